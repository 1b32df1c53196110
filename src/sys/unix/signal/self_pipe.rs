//! Where there is no signalfd(2), or other threads that might get the signals: a handler that notes the signal and writes a byte to a pipe, or to a socket
//! pair, which std makes close-on-exec everywhere.
//!
//! The note is a bit for each signal, as the kernel keeps it for pending ones: a full pipe loses nothing.
//!
//! # Safety
//! The handler only uses lock-free atomics, write(2) and `errno`, all async-signal-safe (signal-safety(7)). The descriptor it
//! writes to is open for as long as any thread may write to it: it is closed with all signals blocked in this thread, and when no
//! other thread is in the handler.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use nix::sys::signal::SigSet;

use super::taken::Before;
use super::{native, number};
use crate::sys::{Arrived, CallError, Signal};

/// How many threads are in the handler.
static HANDLING: AtomicU32 = AtomicU32::new(0);
/// By the position in [`Signal::SUPERVISED`].
static ARRIVED: AtomicU32 = AtomicU32::new(0);
static WAKE: AtomicI32 = AtomicI32::new(-1);

#[derive(Debug)]
pub(super) struct SelfPipe {
    reader: UnixStream,
    _writer: UnixStream,
}

impl SelfPipe {
    pub fn open(signals: &[Signal], before: &mut Before) -> Result<SelfPipe, CallError> {
        let (reader, writer) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
        for end in [&reader, &writer] {
            end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
        }
        ARRIVED.store(0, Ordering::Relaxed);
        WAKE.store(writer.as_raw_fd(), Ordering::Relaxed);
        for &signal in signals {
            before.set_disposition(signal, note as *const () as libc::sighandler_t)?;
        }
        Ok(SelfPipe { reader, _writer: writer })
    }

    pub fn mask(mut before: SigSet, signals: &[Signal]) -> SigSet {
        for &signal in signals {
            before.remove(native(signal));
        }
        before
    }

    pub fn next(&mut self) -> Result<Option<Arrived>, CallError> {
        if let Some(signal) = take_arrived() {
            return Ok(Some(Arrived { signal, sender: None }));
        }
        // The bytes go first: a signal that comes after them wakes the parent again.
        let mut bytes = [0; 64];
        loop {
            match self.reader.read(&mut bytes) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(take_arrived().map(|signal| Arrived { signal, sender: None }));
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

/// The descriptor goes; with all signals blocked here, until those who still write to it are put back, and when no other
/// thread is about to write to it.
impl Drop for SelfPipe {
    fn drop(&mut self) {
        let _ = SigSet::all().thread_block();
        WAKE.store(-1, Ordering::SeqCst);
        while HANDLING.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}

extern "C" fn note(signal: libc::c_int, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    HANDLING.fetch_add(1, Ordering::SeqCst);
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or_default();
    let position = Signal::SUPERVISED.iter().position(|&known| number(known) == signal);
    // SAFETY: with SA_SIGINFO, sigaction(2), it points to what is known about this signal.
    let from_kernel = is_from_kernel(unsafe { &*info });
    if let Some(position) = position.filter(|&position| !(from_kernel && Signal::SUPERVISED[position].is_job_control()))
    {
        ARRIVED.fetch_or(1 << position, Ordering::Relaxed);
        // SAFETY: write(2) of one byte that is there; to -1 it is an error, and nothing else.
        unsafe { libc::write(WAKE.load(Ordering::SeqCst), c"".as_ptr().cast(), 1) };
    }
    nix::errno::Errno::set_raw(errno);
    HANDLING.fetch_sub(1, Ordering::SeqCst);
}

#[cfg(target_os = "linux")]
fn is_from_kernel(info: &libc::siginfo_t) -> bool {
    info.si_code == libc::SI_KERNEL
}

#[cfg(target_os = "freebsd")]
fn is_from_kernel(info: &libc::siginfo_t) -> bool {
    /// From <sys/signal.h>.
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
