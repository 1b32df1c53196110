//! A service that runs in the background of a terminal. Linux only.

use std::fs;
use std::io::Read;
use std::os::fd::FromRawFd;

use nix::unistd::{Pid, getppid, setpgid, setsid};

use crate::Scenario;
use crate::daemon::kill;
use crate::os::{Signal, in_child};
use crate::program::{fork, prepare, say, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("terminal_sigttin_in_the_background_adds_no_workers", background, |daemon| {
        let line = daemon.wait_for("parent ");
        let parent = line.rsplit(' ').next().expect("a pid").parse().expect("a pid");
        let worker = daemon.worker();
        // The kernel sends SIGTTIN to the whole process group. So when the worker is stopped, the parent has got the
        // signal too.
        await_stop(worker.pid);
        kill(worker.pid, Signal::SIGKILL);
        let replacement = daemon.worker();
        assert_eq!(replacement.id, 0);
        // Waits for the replacement to stop. If it were still running, the first SIGTERM would end it, and the parent
        // could exit before the second SIGTERM.
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

/// Creates a session with a terminal, and starts the service in a background process group. Such a group may not read
/// from the terminal.
fn background() {
    prepare();
    let status = in_child(|| {
        setsid().expect("a session");
        let mut master = -1;
        let mut terminal = -1;
        let null = std::ptr::null_mut();
        // SAFETY: openpty(3) writes the two descriptors, and accepts null for the name, the attributes and the size.
        let opened = unsafe { libc::openpty(&mut master, &mut terminal, null, null.cast(), null.cast()) };
        // SAFETY: ioctl(2) with TIOCSCTTY takes an integer, and accesses no memory.
        assert_eq!((opened, unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) }), (0, 0));
        let job = in_child(|| {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("a group");
            let id = fork(1, 100);
            say(&format!("parent {}", getppid()));
            up(id);
            // SAFETY: the descriptor is open, and nothing else in this process owns it.
            let mut terminal = unsafe { fs::File::from_raw_fd(terminal) };
            let read = terminal.read(&mut [0]);
            say(&format!("read {read:?}"));
        });
        std::process::exit(job);
    });
    std::process::exit(status);
}
