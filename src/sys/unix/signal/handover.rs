//! Passes unread signals, and the program's signal mask, to the program after an upgrade.
//!
//! A signal that is blocked stays pending in execve(2), so the new program receives it. A signal that ran the handler
//! of the self-pipe is in the memory of the old program. Until the last moment, the handler may run in another thread.
//! So the old program passes the signals that it has recorded, and the pipe, to which the handler writes the number of
//! each signal.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::super::upgrade::{bit, was_ignored_at_start};
use super::source::Source;
use super::takeover::{Signals, send_on, swap_disposition};
use super::*;

/// What [`Signals`] passes to the next program.
#[derive(Debug)]
pub(crate) struct SignalHandover<'a> {
    /// A line of text without line feeds.
    pub text: String,
    pub fds: Vec<BorrowedFd<'a>>,
}

/// What the program before an upgrade has passed. Each set of signals has one bit for each signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HandedOver {
    /// The supervised signals that the program itself had blocked.
    blocked: u64,
    /// The signals that the program before the upgrade has received and not read.
    unread: u64,
}

impl Signals {
    /// Returns what the next program needs to go on with these signals. Unread signals stay unread, because the next
    /// program may fail to start. So the caller must read the signals before it waits again.
    pub fn handover(&self) -> SignalHandover<'_> {
        let supervised = Signal::SUPERVISED.into_iter().filter(|&signal| self.program_mask().contains(native(signal)));
        let blocked: u64 = supervised.map(|signal| bit(number(signal))).sum();
        let mut unread = 0;
        let mut fds = Vec::new();
        if let Source::Handled(pipe) = self.source() {
            unread = pipe.unread().map(|signal| bit(number(signal))).sum();
            fds.push(pipe.as_fd());
        }
        SignalHandover { text: format!("{blocked:x} {unread:x}"), fds }
    }

    /// Takes over the signals in the program after an upgrade, with what [`Signals::handover`] has returned in the
    /// program before it. The kinds of the workers may be different ones. The signals that are unread can be read from
    /// the new value.
    ///
    /// # Errors
    /// Also returns an error if the text is wrong.
    pub fn take_handed_over(
        lock: SupervisorLock,
        workers: &[WorkerKind],
        text: &str,
        fds: Vec<OwnedFd>,
    ) -> Result<Signals, CallError> {
        let wrong = || CallError::new("read", std::io::ErrorKind::InvalidData);
        let mut words = text.split(' ').map(|word| u64::from_str_radix(word, 16).ok());
        let blocked = words.next().flatten().ok_or_else(wrong)?;
        let unread = words.next().flatten().ok_or_else(wrong)?;
        let arrived = fds.into_iter().map(|fd| signals_in(&UnixStream::from(fd))).fold(0, |all, some| all | some);
        Signals::take_as(lock, workers, Some(HandedOver { blocked, unread: unread | arrived }))
    }
}

impl HandedOver {
    /// Returns the program's mask. `present` is that of this thread, in which all supervised signals have been blocked
    /// since the upgrade.
    pub fn program_mask(self, mut present: SigSet) -> SigSet {
        for signal in Signal::SUPERVISED {
            if self.blocked & bit(number(signal)) == 0 {
                present.remove(native(signal));
            }
        }
        present
    }

    /// Sends the unread signals among these to this process again. They must be blocked, or run the handler.
    pub fn send_again(self, taken: &[Signal]) -> Result<(), CallError> {
        let unread = taken.iter().filter(|&&signal| self.unread & bit(number(signal)) != 0);
        unread.copied().try_for_each(send_on)
    }

    /// Returns the disposition that SIGCHLD had when the service was started, if that was another one than now: to be
    /// ignored. The program before the upgrade could not pass that on, because the kernel would have reaped the
    /// workers.
    pub fn disposition_of_child(self) -> Result<Option<libc::sigaction>, CallError> {
        let present = swap_disposition(Signal::Child, None)?;
        let is_lost = was_ignored_at_start(libc::SIGCHLD) && present.sa_sigaction == libc::SIG_DFL;
        Ok(is_lost.then_some(libc::sigaction { sa_sigaction: libc::SIG_IGN, ..present }))
    }
}

/// Returns the signals whose numbers are in the pipe, one bit for each. Never blocks.
fn signals_in(mut pipe: &UnixStream) -> u64 {
    let mut signals = 0;
    let mut bytes = [0; 256];
    if pipe.set_nonblocking(true).is_err() {
        return signals;
    }
    while let Ok(read @ 1..) = pipe.read(&mut bytes) {
        for &number in &bytes[..read] {
            signals |= bit(number.into());
        }
    }
    signals
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_numbers_in_the_pipe_are_signals() {
        let (reader, mut writer) = UnixStream::pair().expect("a pipe");
        assert_eq!(signals_in(&reader), 0, "it is empty");
        writer.write_all(&[1, 15, 1, 0, 200]).expect("a pipe");
        assert_eq!(signals_in(&reader), 1 | 1 << 14);
        drop(writer);
        assert_eq!(signals_in(&reader), 0, "it is closed");
    }

    #[test]
    fn only_the_programs_own_blocked_signals_stay_blocked() {
        let handed_over = HandedOver { blocked: bit(libc::SIGHUP), unread: 0 };
        let present = SigSet::from_iter([Native::SIGHUP, Native::SIGTERM, Native::SIGCHLD, Native::SIGALRM]);
        let expected = SigSet::from_iter([Native::SIGHUP, Native::SIGALRM]);
        assert_eq!(handed_over.program_mask(present), expected);
    }
}
