//! The self-pipe: a handler that notes the signal and writes a byte to a pipe. It is used on systems without
//! signalfd(2), and if other threads might get the signals. (The pipe is a socket pair, because std makes that
//! close-on-exec on every system.)
//!
//! The handler notes each signal as one bit, as the kernel does with pending signals. The byte only wakes the parent,
//! so no signal is lost if the pipe is full.
//!
//! # Safety
//! The handler uses only lock-free atomics, write(2), raise(3) and `errno`, which are async-signal-safe
//! (signal-safety(7)). The descriptor that it writes to is open while any thread may write to it. There is one
//! self-pipe at a time, because there is one [`SupervisorLock`](crate::sys::SupervisorLock). The pipe is closed only
//! after its descriptor was taken from the handler and every thread has left the handler.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::{process, thread};

use nix::sys::signal::SigSet;

use super::takeover::{Dispositions, send_on};
use super::{native, number};
use crate::sys::{CallError, Signal, SignalInfo};

/// The number of threads that are in the handler.
static IN_HANDLER: AtomicU32 = AtomicU32::new(0);
/// The signals that have arrived, as bits at their positions in [`Signal::SUPERVISED`].
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// The descriptor that the handler writes to.
static WAKE_FD: AtomicI32 = AtomicI32::new(NO_PIPE);
const NO_PIPE: i32 = -1;
/// The signals that the handler may still pass on to the program after the pipe was closed, as bits. Each is passed on
/// only once: if the program has saved the handler's disposition and set it again, a signal that is passed on runs this
/// handler again.
static MAY_PASS_ON: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(super) struct SelfPipe {
    reader: UnixStream,
    _writer: UnixStream,
    /// The process that opened the pipe. A fork has a copy of the noted signals, but must not send them to itself.
    pid: u32,
}

impl SelfPipe {
    pub fn open() -> Result<SelfPipe, CallError> {
        let (reader, writer) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
        for end in [&reader, &writer] {
            end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
        }
        ARRIVED.store(0, Ordering::Relaxed);
        WAKE_FD.store(writer.as_raw_fd(), Ordering::SeqCst);
        Ok(SelfPipe { reader, _writer: writer, pid: process::id() })
    }

    pub fn set_dispositions(dispositions: &mut Dispositions, signals: &[Signal]) -> Result<(), CallError> {
        signals
            .iter()
            .try_for_each(|&signal| dispositions.set(signal, handle_signal as *const () as libc::sighandler_t))
    }

    pub fn mask(mut before: SigSet, signals: &[Signal]) -> SigSet {
        for &signal in signals {
            before.remove(native(signal));
        }
        before
    }

    /// Takes the pipe from the handler, and waits until every thread has left the handler. Such a thread has noted its
    /// signal, or passes it on to the program.
    pub fn close(&mut self) {
        MAY_PASS_ON.store(u32::MAX, Ordering::Relaxed);
        WAKE_FD.store(NO_PIPE, Ordering::SeqCst);
        while IN_HANDLER.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
    }

    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        if let Some(signal) = take_arrived() {
            return Ok(Some(SignalInfo { signal, sender: None }));
        }
        // The bytes are read before the bits, so that a signal that arrives in between wakes the parent again.
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

/// Sends the program the noted signals that were not read, as the kernel delivers blocked signals once they are
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

extern "C" fn handle_signal(signal: libc::c_int, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    IN_HANDLER.fetch_add(1, Ordering::SeqCst);
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or_default();
    let position = Signal::SUPERVISED.iter().position(|&known| number(known) == signal);
    // SAFETY: with SA_SIGINFO, the handler's second argument points to the signal's siginfo_t (sigaction(2)).
    let from_kernel = is_from_kernel(unsafe { &*info });
    if let Some(position) = position.filter(|&position| !(from_kernel && Signal::SUPERVISED[position].is_job_control()))
    {
        record(signal, 1 << position);
    }
    nix::errno::Errno::set_raw(errno);
    IN_HANDLER.fetch_sub(1, Ordering::SeqCst);
}

/// Notes the signal and wakes the parent, or passes a late signal on to the program. Runs in the handler.
fn record(signal: libc::c_int, bit: u32) {
    let wake = WAKE_FD.load(Ordering::SeqCst);
    if wake != NO_PIPE {
        ARRIVED.fetch_or(bit, Ordering::Relaxed);
        // SAFETY: write(2) reads one byte of a static string. The descriptor stays open while this thread is in the
        // handler.
        unsafe { libc::write(wake, c"".as_ptr().cast(), 1) };
    } else if MAY_PASS_ON.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
        // SAFETY: raise(3) takes an integer. The kernel blocks a signal while its handler runs (sigaction(2)), so this
        // one takes effect after the handler has returned.
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
