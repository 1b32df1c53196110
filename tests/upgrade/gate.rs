//! A gate at which processes of the program wait until the test opens it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A named gate in the scratch directory. Each opening lets one process pass. An opening gets lost when no process has
/// the gate open, so the test holds every gate that it opens until its end.
pub struct Gate(File);

impl Gate {
    pub fn of(scratch: &Path, name: &str) -> Gate {
        let path = scratch.join(format!("gate-{name}"));
        // The test or another process of the program may have created the fifo already.
        let _ = mkfifo(&path, Mode::S_IRWXU);
        Gate(File::options().read(true).write(true).open(path).expect("a gate"))
    }

    pub fn open(&self, times: usize) {
        (&self.0).write_all(&vec![0; times]).expect("an open gate");
    }

    pub fn pass(&self) {
        (&self.0).read_exact(&mut [0]).expect("a gate that opens");
    }
}
