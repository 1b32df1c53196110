//! The self-pipe: a signal handler records the signal and writes a byte to a pipe, and the byte wakes the parent. The
//! self-pipe is used on systems without signalfd(2), in processes that may have several threads, because any of the
//! threads may receive a signal, and in processes that spawn workers, because they unblock the signals at each start.
//! (The pipe is a socket pair, because std makes a socket pair close-on-exec on every system.)
//!
//! The handler records each signal as one bit, as the kernel does with pending signals. The byte only wakes the parent.
//! So no signal is lost if the pipe is full and the handler cannot write the byte. The byte is the number of the
//! signal, for the program after an upgrade, which has no access to the recorded bits.
//!
//! # Safety
//! The handler uses only lock-free atomics, write(2), raise(3) and `errno`, which are async-signal-safe
//! (signal-safety(7)). The descriptor that the handler writes to stays open as long as any thread may use it. Before
//! the pipe is closed, `SelfPipe::close` takes the descriptor from the handler, and waits until no thread is in the
//! handler. There is one self-pipe at a time, because there is one [`SupervisorLock`](crate::sys::SupervisorLock).

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::{process, thread};

use nix::sys::signal::SigSet;

use super::takeover::{Dispositions, send_on};
use super::{job_control, native, next_in_turn, number};
use crate::sys::{CallError, Signal, SignalInfo};

/// The number of threads that are running the handler.
static IN_HANDLER: AtomicU32 = AtomicU32::new(0);
/// The signals that have arrived and were not read yet, one bit for each. The number of a signal's bit is the index of
/// the signal in [`Signal::SUPERVISED`].
static ARRIVED: AtomicU32 = AtomicU32::new(0);
/// The descriptor that the handler writes to, or `NO_PIPE` if no self-pipe is in use.
static WAKE_FD: AtomicI32 = AtomicI32::new(NO_PIPE);
const NO_PIPE: i32 = -1;
/// The signals that the handler may still raise again after `SelfPipe::close`, so that the program receives them. Each
/// signal has the same bit as in `ARRIVED`. The handler raises each signal only once, to prevent an endless loop. A
/// loop is possible if the program has saved the disposition with this handler and set it again, because a raised
/// signal then runs this handler.
static MAY_PASS_ON: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(super) struct SelfPipe {
    reader: UnixStream,
    _writer: UnixStream,
    /// The pid of the process that opened the pipe. A forked child has a copy of the recorded signals. It must not send
    /// them to itself, because they were sent to its parent.
    pid: u32,
    /// The index in [`Signal::SUPERVISED`] of the signal that was read last.
    last: usize,
}

impl SelfPipe {
    pub fn open() -> Result<SelfPipe, CallError> {
        let (reader, writer) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
        for end in [&reader, &writer] {
            end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
        }
        ARRIVED.store(0, Ordering::Relaxed);
        WAKE_FD.store(writer.as_raw_fd(), Ordering::SeqCst);
        Ok(SelfPipe { reader, _writer: writer, pid: process::id(), last: 0 })
    }

    pub fn set_dispositions(dispositions: &mut Dispositions, signals: &[Signal]) -> Result<(), CallError> {
        signals
            .iter()
            .try_for_each(|&signal| dispositions.set(signal, handle_signal as *const () as libc::sighandler_t))
    }

    /// Returns the mask `before` without the signals, but with SIGTTIN and SIGTTOU added, which the parent's thread
    /// blocks except while it waits (see [`job_control`]).
    pub fn mask(mut before: SigSet, signals: &[Signal]) -> SigSet {
        for &signal in signals {
            if signal.is_job_control() {
                before.add(native(signal));
            } else {
                before.remove(native(signal));
            }
        }
        before
    }

    /// Takes the descriptor from the handler, and waits until no thread is in the handler. By then, each thread that
    /// was in the handler has recorded its signal, or has raised the signal again so that the program receives it.
    pub fn close(&mut self) {
        MAY_PASS_ON.store(u32::MAX, Ordering::Relaxed);
        WAKE_FD.store(NO_PIPE, Ordering::SeqCst);
        while IN_HANDLER.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
    }

    /// Returns the recorded signals, which stay recorded. Empties the pipe, in which there may be signals that were
    /// read.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn unread(&self) -> impl Iterator<Item = Signal> {
        let mut bytes = [0; 256];
        while let Ok(1..) = (&self.reader).read(&mut bytes) {}
        // A signal that arrives from now on is in the pipe as well.
        let arrived = ARRIVED.load(Ordering::SeqCst);
        let recorded = move |(index, _): &(usize, Signal)| arrived & 1 << index != 0;
        Signal::SUPERVISED.into_iter().enumerate().filter(recorded).map(|(_, signal)| signal)
    }

    pub fn next(&mut self) -> Result<Option<SignalInfo>, CallError> {
        if let Some(signal) = self.take_arrived() {
            return Ok(Some(SignalInfo { signal, sender: None }));
        }
        // This empties the pipe before it checks the recorded signals. A signal that arrives between these two steps
        // writes another byte, and that byte wakes the parent again.
        let mut bytes = [0; 64];
        loop {
            match self.reader.read(&mut bytes) {
                Ok(read) if read == bytes.len() => {}
                // A read that does not fill the buffer has emptied the pipe.
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CallError::new("read", error)),
            }
        }
        Ok(self.take_arrived().map(|signal| SignalInfo { signal, sender: None }))
    }

    /// Takes one of the recorded signals. The kinds of signals take turns.
    fn take_arrived(&mut self) -> Option<Signal> {
        self.last = next_in_turn(ARRIVED.load(Ordering::Relaxed), self.last)?;
        ARRIVED.fetch_and(!(1 << self.last), Ordering::Relaxed);
        Some(Signal::SUPERVISED[self.last])
    }
}

impl AsFd for SelfPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Sends all unread signals to this process again, so that the program receives them. This imitates the kernel, which
/// delivers blocked signals once they are unblocked.
impl Drop for SelfPipe {
    fn drop(&mut self) {
        self.close();
        if self.pid == process::id() {
            while let Some(signal) = self.take_arrived() {
                let _ = send_on(signal);
            }
        }
    }
}

extern "C" fn handle_signal(signal: libc::c_int, info: *const libc::siginfo_t, context: *mut libc::c_void) {
    IN_HANDLER.fetch_add(1, Ordering::SeqCst);
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or_default();
    if let Some(position) = Signal::SUPERVISED.iter().position(|&known| number(known) == signal) {
        // SAFETY: with SA_SIGINFO, the handler's second argument points to the signal's siginfo_t (sigaction(2)).
        let info = unsafe { &*info };
        if Signal::SUPERVISED[position].is_job_control() && job_control::is_from_terminal(info) {
            // SAFETY: `context` is the third argument of this handler, which is installed with SA_SIGINFO.
            unsafe { job_control::block_in_thread(signal, context) };
        } else {
            record(signal, 1 << position);
        }
    }
    nix::errno::Errno::set_raw(errno);
    IN_HANDLER.fetch_sub(1, Ordering::SeqCst);
}

/// Records the signal and wakes the parent. If the self-pipe is closed already, raises the signal again so that the
/// program receives it. Runs in the signal handler.
fn record(signal: libc::c_int, bit: u32) {
    let wake = WAKE_FD.load(Ordering::SeqCst);
    if wake != NO_PIPE {
        ARRIVED.fetch_or(bit, Ordering::Relaxed);
        let byte = signal as u8;
        // SAFETY: write(2) reads one byte. The descriptor stays open as long as this thread is in the handler.
        unsafe { libc::write(wake, (&raw const byte).cast(), 1) };
    } else if MAY_PASS_ON.fetch_and(!bit, Ordering::Relaxed) & bit != 0 {
        // SAFETY: raise(3) takes an integer. The kernel blocks a signal while its handler runs (sigaction(2)), so the
        // raised signal takes effect only after this handler has returned.
        unsafe { libc::raise(signal) };
    }
}
