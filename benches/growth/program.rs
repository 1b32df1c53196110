//! The two compared programs: a service with taskfork, and a bare loop of fork(2) and waitpid(2). Each has one thread.
//! The driver controls it by signals.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use taskfork::{Event, Prefork};

use crate::common::record::{Record, Role, end_with_parent, now};

pub fn run(role: Role, workers: usize) -> io::Result<()> {
    end_with_parent()?;
    let called = now();
    match role {
        Role::Ours => ours(workers, called),
        Role::Bare => BareLoop::start(workers, called)?.run(),
    }
}

fn ours(workers: usize, called: u64) -> io::Result<()> {
    let service = Prefork::new().workers(workers).max_restarts(1_000_000).ready_timeout(Duration::from_secs(60));
    let role = service.on_event(move |event, _| report_rolling_restart(event, workers)).start();
    let ran = now();
    match role.map_err(io::Error::other)? {
        taskfork::Role::Worker(worker) => {
            Record { id: worker.id() as u64, pid: std::process::id().into(), called, ran }.write()?;
            worker.ready();
            idle().map(|never| match never {})
        }
        taskfork::Role::Parent(report) if report.is_success() => Ok(()),
        taskfork::Role::Parent(report) => Err(io::Error::other(format!("{:?}", report.reason()))),
        role => Err(io::Error::other(format!("{role:?} is no side of the call"))),
    }
}

fn report_rolling_restart(event: &Event, workers: usize) {
    let written = match event {
        Event::RollingRestartFinished { .. } => all_replaced(workers),
        Event::RollingRestartAborted { .. } => Err(io::Error::other("the rolling restart was aborted")),
        _ => Ok(()),
    };
    if let Err(error) = written {
        eprintln!("growth: {error}");
    }
}

/// Writes the parent's record that all workers are replaced. Its id is `workers`, which is no worker's id.
fn all_replaced(workers: usize) -> io::Result<()> {
    let now = now();
    Record { id: workers as u64, pid: std::process::id().into(), called: now, ran: now }.write()
}

struct BareLoop {
    pids: Vec<libc::pid_t>,
    called: u64,
}

/// The last SIGHUP or SIGTERM that was received and not handled yet, or 0.
static ASKED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    ASKED.store(signal, Ordering::Relaxed);
}

impl BareLoop {
    fn start(workers: usize, called: u64) -> io::Result<BareLoop> {
        let mut bare = BareLoop { pids: vec![0; workers], called };
        for id in 0..workers {
            bare.pids[id] = bare.fork_worker(id, None)?;
        }
        handle(libc::SIGHUP, note as *const () as libc::sighandler_t)?;
        handle(libc::SIGTERM, note as *const () as libc::sighandler_t)?;
        Ok(bare)
    }

    /// Replaces workers that exit, and handles SIGHUP and SIGTERM. The loop would miss a signal that arrives between
    /// the check of `ASKED` and the next call of waitpid(2). But the driver sends a signal only while the parent sleeps
    /// in waitpid(2).
    fn run(&mut self) -> io::Result<()> {
        loop {
            match wait_for(-1) {
                Ok(ended) => self.replace(ended)?,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Err(_) if ASKED.swap(0, Ordering::Relaxed) == libc::SIGHUP => self.roll()?,
                Err(_) => return self.stop(),
            }
        }
    }

    fn replace(&mut self, ended: libc::pid_t) -> io::Result<()> {
        if let Some(id) = self.pids.iter().position(|&pid| pid == ended) {
            self.pids[id] = self.fork_worker(id, None)?;
        }
        Ok(())
    }

    /// Replaces one worker after the other: starts the new one, waits for its byte, and then ends the old one.
    fn roll(&mut self) -> io::Result<()> {
        let (mut reader, writer) = pipe()?;
        for id in 0..self.pids.len() {
            let new = self.fork_worker(id, Some(writer.as_raw_fd()))?;
            reader.read_exact(&mut [0])?;
            terminate(self.pids[id])?;
            wait_for(self.pids[id])?;
            self.pids[id] = new;
        }
        all_replaced(self.pids.len())
    }

    fn stop(&mut self) -> io::Result<()> {
        self.pids.iter().try_for_each(|&pid| terminate(pid))?;
        self.pids.iter().try_for_each(|_| wait_for(-1).map(drop))
    }

    fn fork_worker(&self, id: usize, ready: Option<RawFd>) -> io::Result<libc::pid_t> {
        // SAFETY: this program has one thread, so the child of fork(2) may call any function.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let ran = now();
                let record = Record { id: id as u64, pid: std::process::id().into(), called: self.called, ran };
                work(record, ready).map(|never| match never {})
            }
            pid => Ok(pid),
        }
    }
}

fn work(record: Record, ready: Option<RawFd>) -> io::Result<Infallible> {
    record.write()?;
    // A worker inherits the parent's signal handlers. It resets them only after it has written the record, so that the
    // measured time of the bare loop does not include the reset.
    handle(libc::SIGTERM, libc::SIG_DFL)?;
    handle(libc::SIGHUP, libc::SIG_DFL)?;
    if let Some(ready) = ready {
        // SAFETY: write(2) reads one byte, the zero of an empty C string.
        unsafe { libc::write(ready, c"".as_ptr().cast(), 1) };
    }
    idle()
}

/// Idles until this process or its parent is killed.
fn idle() -> io::Result<Infallible> {
    end_with_parent()?;
    loop {
        // SAFETY: pause(2) only waits for a signal.
        unsafe { libc::pause() };
    }
}

/// Installs a handler without SA_RESTART, so that the signal interrupts waitpid(2).
fn handle(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: sigaction consists of integers, a set, and a function pointer that may be null. All may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: the handler only stores to an atomic, which is async-signal-safe, or is SIG_DFL.
    match unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn wait_for(pid: libc::pid_t) -> io::Result<libc::pid_t> {
    // SAFETY: waitpid(2) accepts a null pointer for the status.
    match unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } {
        -1 => Err(io::Error::last_os_error()),
        ended => Ok(ended),
    }
}

fn terminate(pid: libc::pid_t) -> io::Result<()> {
    // SAFETY: kill(2) accesses no memory, and the pid is that of a child that is not reaped yet.
    match unsafe { libc::kill(pid, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: pipe(2) writes two integers.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new, and nothing else owns them.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}
