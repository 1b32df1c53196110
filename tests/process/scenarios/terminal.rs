//! What a terminal does to a service that is started in its background. Linux only.

use std::fs;
use std::io::Read;
use std::os::fd::FromRawFd;

use nix::unistd::{Pid, getppid, setpgid, setsid};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, in_child};
use crate::program::{fork, prepare, say, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("a_worker_in_the_background_that_reads_the_terminal_adds_no_workers", background, |daemon| {
        let line = daemon.wait_for("parent ");
        let parent = line.rsplit(' ').next().expect("a pid").parse().expect("a pid");
        let worker = daemon.worker();
        // The terminal sends SIGTTIN to the whole group: the worker stops, and the parent gets it no later.
        await_stop(worker.pid);
        kill(worker.pid, Signal::SIGKILL);
        let replacement = daemon.worker();
        assert_eq!(replacement.id, 0);
        // One that still runs would end of the first TERM, and nobody be there for the second.
        await_stop(replacement.pid);
        kill(parent, Signal::SIGTERM);
        daemon.wait_for("log Stopping 1 processes");
        kill(parent, Signal::SIGTERM);
        daemon.ends_with(0);
        assert!(!daemon.said("log Scaled"), "{}", daemon.transcript());
    })]
}

fn await_stop(pid: u32) {
    while !is_stopped(pid) {
        std::thread::yield_now();
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the worker");
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
}

/// A session with a terminal, and a job in its background, which is not the group that may read.
fn background() {
    prepare();
    let status = in_child(|| {
        setsid().expect("a session");
        let (mut master, mut terminal) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: the descriptors are there to be written, and the rest is not asked for.
        let opened = unsafe { libc::openpty(&mut master, &mut terminal, null, null.cast(), null.cast()) };
        // SAFETY: TIOCSCTTY takes an integer.
        assert_eq!((opened, unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) }), (0, 0));
        let job = in_child(|| {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("a group");
            let id = fork(1, 100);
            say(&format!("parent {}", getppid()));
            up(id);
            // SAFETY: it is open, and nobody else's in this process.
            let mut terminal = unsafe { fs::File::from_raw_fd(terminal) };
            let read = terminal.read(&mut [0]);
            say(&format!("read {read:?}"));
        });
        std::process::exit(job);
    });
    std::process::exit(status);
}
