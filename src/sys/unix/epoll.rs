//! Finds the epoll instances that this process has open (epoll(7)).
//!
//! # Safety
//!
//! epoll_ctl(2) with `EPOLL_CTL_DEL` ignores the pointer to an event. It changes nothing if the second descriptor is
//! not registered in the instance.

use std::os::fd::RawFd;
use std::ptr;

use nix::errno::Errno;

/// An open epoll instance.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OpenEpoll {
    pub fd: RawFd,
    /// Whether another program may have made this instance, so that this program has only inherited it. False if the
    /// descriptor is close-on-exec, because execve(2) would have closed it.
    pub may_be_inherited: bool,
}

/// The search ends after this many closed descriptors in a row. A new descriptor gets the lowest free number, so there
/// is a gap only where the program has closed descriptors.
const LONGEST_GAP: usize = 32;
/// The search ends before this descriptor, so that a program with many descriptors does not start late. A search
/// through all of them takes about 0.1 ms.
const END: RawFd = 1024;

/// Returns the open epoll instances except `own`, which must not be registered in any of them.
pub(crate) fn other_epolls(own: RawFd) -> Vec<OpenEpoll> {
    let mut found = Vec::new();
    let mut gap = 0;
    for fd in 0..END {
        let error = remove(fd, own);
        gap = if error == Errno::EBADF { gap + 1 } else { 0 };
        if gap == LONGEST_GAP {
            break;
        }
        if error == Errno::ENOENT {
            found.push(OpenEpoll { fd, may_be_inherited: !is_close_on_exec(fd) });
        }
    }
    found
}

/// Asks the system to remove `own` from the epoll instance `fd`, and returns the error: `ENOENT` if `fd` is an epoll
/// instance, `EINVAL` if `fd` is `own` or another kind of file, `EBADF` if `fd` is closed. Opens nothing and waits for
/// nothing, and needs no `/proc`.
fn remove(fd: RawFd, own: RawFd) -> Errno {
    // SAFETY: `own` is not registered in `fd`, so the call only fails; see the module's safety section.
    match unsafe { libc::epoll_ctl(fd, libc::EPOLL_CTL_DEL, own, ptr::null_mut()) } {
        -1 => Errno::last(),
        _ => Errno::UnknownErrno,
    }
}

fn is_close_on_exec(fd: RawFd) -> bool {
    // SAFETY: fcntl(2) with F_GETFD only reads a flag.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC != 0
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;

    fn epoll(flags: libc::c_int) -> OwnedFd {
        // SAFETY: epoll_create1(2) returns a new descriptor, which nothing else owns.
        unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(flags)) }
    }

    #[test]
    fn only_other_epoll_instances_are_found() {
        let own = epoll(libc::EPOLL_CLOEXEC);
        let other = epoll(libc::EPOLL_CLOEXEC);
        let without_flag = epoll(0);
        let file = File::open("/dev/null").expect("a file");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let found = other_epolls(own.as_raw_fd());
        // Other tests of this process may have instances too.
        let find = |fd| found.iter().find(|epoll| epoll.fd == fd).map(|epoll| epoll.may_be_inherited);
        assert_eq!(find(other.as_raw_fd()), Some(false));
        assert_eq!(find(without_flag.as_raw_fd()), Some(true));
        for fd in [own.as_raw_fd(), file.as_raw_fd(), socket.as_raw_fd()] {
            assert_eq!(find(fd), None);
        }
    }
}
