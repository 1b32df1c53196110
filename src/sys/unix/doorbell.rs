//! The doorbell: a socket pair through which any worker can wake the parent. A byte in it carries no message. A worker
//! first writes its message to its status slot in shared memory.
//!
//! The workers share one end, and only the parent holds the other. So the parent reads only from an open file
//! description of its own, whose flags no worker can change, and no worker can take a byte out before the parent has
//! read it. An eventfd(2) has neither property, because all its users share one open file description.
//!
//! Neither end relies on `O_NONBLOCK`, which any process that shares the end can clear: each call has `MSG_DONTWAIT`.
//!
//! # Safety
//! send(2) and recv(2) read and write bytes of the given length. kill(2) and getppid(2) take and return integers.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::guarded_socket::GuardedSocket;
use crate::sys::{CallError, Drained};

/// The parent's end of the doorbell. It is readable after a worker has woken the parent.
#[derive(Debug)]
pub(crate) struct WakeReceiver(GuardedSocket);

/// The workers' end of the doorbell, with which a worker wakes the parent.
#[derive(Debug)]
pub(crate) struct Waker {
    socket: GuardedSocket,
    /// The pid of the parent.
    parent: libc::pid_t,
}

pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let (receiver, socket) = GuardedSocket::pair()?;
    refuse_descriptors(receiver.as_fd());
    Ok((WakeReceiver(receiver), Waker { socket, parent: std::process::id() as libc::pid_t }))
}

/// Makes the kernel refuse descriptors that a worker sends along (unix(7)). If the kernel closed them at the parent's
/// read, the close of a socket with `SO_LINGER` would delay the parent. Linux has this option since 6.16, and the error
/// of an older kernel is ignored.
#[cfg(target_os = "linux")]
fn refuse_descriptors(receiver: BorrowedFd<'_>) {
    let no: libc::c_int = 0;
    // SAFETY: setsockopt(2) reads one int.
    unsafe {
        let len = size_of_val(&no) as libc::socklen_t;
        libc::setsockopt(receiver.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw const no).cast(), len);
    }
}

/// `SO_PASSRIGHTS` from `<asm-generic/socket.h>`, which libc does not have yet.
#[cfg(target_os = "linux")]
const SO_PASSRIGHTS: libc::c_int = 83;

#[cfg(not(target_os = "linux"))]
fn refuse_descriptors(_: BorrowedFd<'_>) {}

impl WakeReceiver {
    /// Creates the parent's end from the descriptor that the program before an upgrade has handed over.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn from_fd(fd: OwnedFd) -> WakeReceiver {
        WakeReceiver(fd.into())
    }

    /// Reads up to 4096 bytes. If there may be more, the caller reads the rest after its next wait. So a worker that
    /// wakes the parent again and again cannot keep the parent in a loop here.
    pub fn drain(&self) -> Result<Drained, CallError> {
        let mut bytes = [0_u8; 4096];
        let fd = self.0.as_fd().as_raw_fd();
        // SAFETY: recv(2) writes at most as many bytes as `bytes` has.
        match unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) } {
            0 => Ok(Drained::Broken),
            1.. => Ok(Drained::Partly),
            _ => match CallError::last("recv") {
                error if error.source.kind() == ErrorKind::WouldBlock => Ok(Drained::Empty),
                error if error.source.kind() == ErrorKind::Interrupted => Ok(Drained::Partly),
                error => Err(error),
            },
        }
    }
}

impl AsFd for WakeReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Creates the waker in a spawned worker, from the descriptor that the worker has inherited.
impl From<OwnedFd> for Waker {
    fn from(fd: OwnedFd) -> Waker {
        Waker { socket: fd.into(), parent: nix::unistd::getppid().as_raw() }
    }
}

impl Waker {
    /// Creates the waker in the parent, from the descriptor that the program before an upgrade has handed over.
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn from_fd(fd: OwnedFd) -> Waker {
        Waker { socket: fd.into(), parent: std::process::id() as libc::pid_t }
    }

    /// Wakes the parent. If the program has closed the descriptor, sends the parent SIGCHLD instead. SIGCHLD makes the
    /// parent look for exits and for messages. The kernel refuses this signal if the worker runs as another user.
    ///
    /// Ignores errors. If the socket is full, the parent still has bytes to read and wakes up anyway. If the parent has
    /// ended, there is no process to wake.
    pub fn wake(&self) {
        // A worker thread is in the parent's process, and a worker whose parent has ended has another parent.
        if self.socket.is_open() {
            self.socket.send_byte();
        } else if nix::unistd::getppid().as_raw() == self.parent {
            // SAFETY: kill(2) takes integers and accesses no memory.
            unsafe { libc::kill(self.parent, libc::SIGCHLD) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn drained(receiver: &WakeReceiver) -> Drained {
        receiver.drain().expect("a socket")
    }

    #[test]
    fn a_full_or_empty_doorbell_does_not_block() {
        let (receiver, waker) = doorbell().expect("a doorbell");
        assert_eq!(drained(&receiver), Drained::Empty, "recv(2) does not wait");
        for _ in 0..100_000 {
            waker.wake();
        }
        while drained(&receiver) == Drained::Partly {}
        assert_eq!(drained(&receiver), Drained::Empty);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_doorbell_refuses_descriptors_where_the_kernel_can() {
        let (receiver, _waker) = doorbell().expect("a doorbell");
        let mut value: libc::c_int = 1;
        let mut len = size_of_val(&value) as libc::socklen_t;
        let fd = receiver.as_fd().as_raw_fd();
        // SAFETY: getsockopt(2) writes one int.
        let result =
            unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw mut value).cast(), &raw mut len) };
        if result == 0 {
            assert_eq!(value, 0);
        } else {
            let error = CallError::last("getsockopt").source;
            assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "this kernel has no such option: {error}");
        }
    }

    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    #[test]
    fn a_handed_over_doorbell_works() {
        let (receiver, waker) = doorbell().expect("a doorbell");
        let fd = |end: BorrowedFd<'_>| end.try_clone_to_owned().expect("a descriptor");
        let handed_over = (WakeReceiver::from_fd(fd(receiver.as_fd())), Waker::from_fd(fd(waker.as_fd())));
        drop((receiver, waker));
        handed_over.1.wake();
        assert_eq!(drained(&handed_over.0), Drained::Partly);
        assert_eq!(drained(&handed_over.0), Drained::Empty);
    }

    #[test]
    fn a_shut_down_doorbell_is_reported_as_broken() {
        let (receiver, waker) = doorbell().expect("a doorbell");
        waker.wake();
        // SAFETY: shutdown(2) takes integers.
        assert_eq!(unsafe { libc::shutdown(waker.as_fd().as_raw_fd(), libc::SHUT_RDWR) }, 0);
        assert_eq!(drained(&receiver), Drained::Partly, "the byte from before");
        assert_eq!(drained(&receiver), Drained::Broken);
        waker.wake();
    }

    #[test]
    fn another_file_under_the_number_gets_nothing() {
        let (receiver, waker) = doorbell().expect("a doorbell");
        let (file, mut other_end) = UnixStream::pair().expect("a socket pair");
        let number = waker.as_fd().as_raw_fd();
        let saved = waker.as_fd().try_clone_to_owned().expect("a descriptor");
        // SAFETY: dup2(2) takes integers. The number stays open, and `saved` is put back under it below.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), number) }, number);
        waker.wake();
        other_end.set_nonblocking(true).expect("a socket");
        let read = std::io::Read::read(&mut other_end, &mut [0]);
        assert_eq!(read.expect_err("nothing was written").kind(), ErrorKind::WouldBlock);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::dup2(saved.as_raw_fd(), number) }, number);
        waker.wake();
        assert_eq!(drained(&receiver), Drained::Partly);
        // SAFETY: a test of the constructor for inherited descriptors; the clone has no other owner.
        let clone = unsafe { OwnedFd::from_raw_fd(libc::dup(number)) };
        Waker::from(clone).wake();
    }
}
