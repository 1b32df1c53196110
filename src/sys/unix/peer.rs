//! Facts about the process at the other end of a Unix stream socket.
//!
//! # Safety
//! getsockopt(2) writes one `ucred`. pidfd_open(2) takes integers and returns a new descriptor, which nothing else
//! owns.

#[cfg(target_os = "linux")]
pub(crate) use linux::{has_ended, is_accepted};

#[cfg(target_os = "linux")]
mod linux {
    use std::mem;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::super::socket_diag::unix_diag;

    /// Returns whether the process that called listen(2) has ended, for a client's end of a connection. Other processes
    /// may still have copies of the listening socket. Returns `false` if this is unknown.
    pub(crate) fn has_ended(client: BorrowedFd<'_>) -> bool {
        let mut listener = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut len = mem::size_of_val(&listener) as libc::socklen_t;
        let out = (&raw mut listener).cast();
        // SAFETY: see the top of this file. `len` is the size of `listener`.
        let result =
            unsafe { libc::getsockopt(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, out, &raw mut len) };
        // The pid is 0 if the process is in another pid namespace.
        result == 0 && listener.pid > 0 && is_dead(listener.pid)
    }

    /// Returns whether there is no process with this pid, or only a zombie.
    fn is_dead(pid: libc::pid_t) -> bool {
        // SAFETY: see the top of this file.
        match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } {
            -1 => Errno::last() == Errno::ESRCH,
            fd => {
                // SAFETY: see the top of this file.
                let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
                // The descriptor becomes readable when the last thread of the process has ended.
                let mut one = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                poll(&mut one, PollTimeout::ZERO) == Ok(1)
            }
        }
    }

    /// Returns whether a process has accepted the connection of this client. Returns `None` if the kernel cannot answer
    /// this (sock_diag(7)).
    pub(crate) fn is_accepted(client: BorrowedFd<'_>) -> Option<bool> {
        // The end of the server has an inode from accept(2) on.
        peer_inode(client).map(|inode| inode != 0)
    }

    /// Returns the inode number of the other end of a Unix socket, or 0 if that end has no inode.
    fn peer_inode(client: BorrowedFd<'_>) -> Option<u32> {
        const UDIAG_SHOW_PEER: u32 = 4;
        const UNIX_DIAG_PEER: u16 = 2;
        unix_diag(client, UDIAG_SHOW_PEER, UNIX_DIAG_PEER)
    }

    #[cfg(test)]
    mod tests {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

        use nix::sys::wait::{Id, WaitPidFlag};

        use super::*;

        #[test]
        fn an_accepted_connection_differs_from_a_queued_one() {
            let name = format!("taskfork-peer-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).expect("a name");
            let listener = UnixListener::bind_addr(&address).expect("a socket");
            let client = UnixStream::connect_addr(&address).expect("a connection");
            // The kernel may lack the module that answers this.
            if let Some(is_accepted_yet) = is_accepted(client.as_fd()) {
                assert!(!is_accepted_yet);
                let _server = listener.accept().expect("a connection");
                assert_eq!(is_accepted(client.as_fd()), Some(true));
            }
            assert!(!has_ended(client.as_fd()), "this process listens");
        }

        #[test]
        fn a_zombie_is_dead() {
            let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
            let pid = child.id() as libc::pid_t;
            assert!(!is_dead(pid));
            drop(child.stdin.take());
            let is_zombie = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            nix::sys::wait::waitid(Id::Pid(nix::unistd::Pid::from_raw(pid)), is_zombie).expect("an exit");
            assert!(is_dead(pid));
            child.wait().expect("an exit");
            assert!(is_dead(pid));
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn has_ended(_: std::os::fd::BorrowedFd<'_>) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_accepted(_: std::os::fd::BorrowedFd<'_>) -> Option<bool> {
    None
}
