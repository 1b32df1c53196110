//! The self-pipe: a handler that notes the signal and writes a byte to a pipe. Used where there is no signalfd(2), or
//! where other threads might get the signals. (The pipe is a socket pair, which std makes close-on-exec on every
//! system.)
//!
//! The note is one bit per signal, as the kernel keeps it for pending signals. So no signal is lost if the pipe is
//! full.
//!
//! # Safety
//! The handler uses only lock-free atomics, write(2), raise(3) and `errno`, which are async-signal-safe
//! (signal-safety(7)). The descriptor that it writes to is open while any thread may write to it: there is one
//! self-pipe at a time, because there is one [`SupervisorLock`](crate::sys::SupervisorLock). Before the pipe is
//! closed, the handler loses the descriptor, and every thread has left the handler.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::{process, thread};

use nix::sys::signal::SigSet;

use super::takeover::{Dispositions, send_on};
use super::{native, number};
use crate::sys::{CallError, Signal, SignalInfo};

/// How many threads are in the handler.
static HANDLING: AtomicU32 = AtomicU32::new(0);
/// The signals that have arrived, as bits at their positions in [`Signal::SUPERVISED`].
static ARRIVED: AtomicU32 = AtomicU32::new(0);
static WAKE: AtomicI32 = AtomicI32::new(NO_PIPE);
const NO_PIPE: i32 = -1;
/// The signals that the handler still passes on to the program after the pipe was closed, as bits. Each is passed on
/// once, because a program may have kept the handler's disposition and set it again.
static LATE: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(super) struct SelfPipe {
    reader: UnixStream,
    _writer: UnixStream,
    /// The process that the notes belong to. A fork has a copy of them.
    pid: u32,
}

impl SelfPipe {
    pub fn open() -> Result<SelfPipe, CallError> {
        let (reader, writer) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
        for end in [&reader, &writer] {
            end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
        }
        ARRIVED.store(0, Ordering::Relaxed);
        WAKE.store(writer.as_raw_fd(), Ordering::SeqCst);
        Ok(SelfPipe { reader, _writer: writer, pid: process::id() })
    }

    pub fn set_dispositions(dispositions: &mut Dispositions, signals: &[Signal]) -> Result<(), CallError> {
        signals.iter().try_for_each(|&signal| dispositions.set(signal, note as *const () as libc::sighandler_t))
    }

    pub fn mask(mut before: SigSet, signals: &[Signal]) -> SigSet {
        for &signal in signals {
            before.remove(native(signal));
        }
        before
    }

    /// Closes the pipe. A thread that entered the handler before has noted its signal, or passes it on to the program.
    pub fn close(&mut self) {
        LATE.store(u32::MAX, Ordering::Relaxed);
        WAKE.store(NO_PIPE, Ordering::SeqCst);
        while HANDLING.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
    }

    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        if let Some(signal) = take_arrived() {
            return Ok(Some(SignalInfo { signal, sender: None }));
        }
        // The bytes are read before the bits: a signal that arrives in between wakes the parent again.
        let mut bytes = [0; 64];
        loop {
            match self.reader.read(&mut bytes) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(take_arrived().map(|signal| SignalInfo { signal, sender: None }));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CallError::new("read", error)),
            }
        }
    }
}

impl AsFd for SelfPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Passes signals that were not taken on to the program, as the kernel does with blocked signals once they are
/// unblocked.
impl Drop for SelfPipe {
    fn drop(&mut self) {
        self.close();
        if self.pid == process::id() {
            while let Some(signal) = take_arrived() {
                let _ = send_on(signal);
            }
        }
    }
}

extern "C" fn note(signal: libc::c_int, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    HANDLING.fetch_add(1, Ordering::SeqCst);
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or_default();
    let position = Signal::SUPERVISED.iter().position(|&known| number(known) == signal);
    // SAFETY: with SA_SIGINFO, sigaction(2) passes a valid pointer to the signal's siginfo_t.
    let from_kernel = is_from_kernel(unsafe { &*info });
    if let Some(position) = position.filter(|&position| !(from_kernel && Signal::SUPERVISED[position].is_job_control()))
    {
        record(signal, 1 << position);
    }
    nix::errno::Errno::set_raw(errno);
    HANDLING.fetch_sub(1, Ordering::SeqCst);
}

/// Notes the signal and wakes the parent, in the handler.
fn record(signal: libc::c_int, bit: u32) {
    let wake = WAKE.load(Ordering::SeqCst);
    if wake != NO_PIPE {
        ARRIVED.fetch_or(bit, Ordering::Relaxed);
        // SAFETY: write(2) reads one byte of a static string. The descriptor stays open while this thread is in the
        // handler.
        unsafe { libc::write(wake, c"".as_ptr().cast(), 1) };
    } else if LATE.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
        // SAFETY: raise(3) takes any number. The signal takes effect after this handler has returned.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(target_os = "linux")]
fn is_from_kernel(info: &libc::siginfo_t) -> bool {
    info.si_code == libc::SI_KERNEL
}

#[cfg(target_os = "freebsd")]
fn is_from_kernel(info: &libc::siginfo_t) -> bool {
    /// `SI_KERNEL` from `<sys/signal.h>`.
    const SI_KERNEL: libc::c_int = 0x10006;
    info.si_code == SI_KERNEL
}

#[cfg(target_os = "macos")]
fn is_from_kernel(info: &libc::siginfo_t) -> bool {
    info.si_pid == 0
}

fn take_arrived() -> Option<Signal> {
    let lowest = ARRIVED.load(Ordering::Relaxed).trailing_zeros();
    let signal = Signal::SUPERVISED.get(lowest as usize)?;
    ARRIVED.fetch_and(!(1 << lowest), Ordering::Relaxed);
    Some(*signal)
}
