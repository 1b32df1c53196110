//! Counts the connections of another process. Duplicates its sockets one at a time (pidfd_getfd(2)), and reads the
//! state of each. Reading `/proc/net/tcp` instead would take a second under load, because that file then lists tens of
//! thousands of connections in the state TIME_WAIT.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::unistd::Pid;

use crate::procfs;

/// TCP_ESTABLISHED in the kernel's tcp_states.h.
const ESTABLISHED: u8 = 1;

/// Counts the connections that the process has accepted, and that neither side has closed. Connections that still wait
/// in a listener's queue do not count, because no process has a descriptor for them yet.
pub fn count(pid: Pid) -> io::Result<u64> {
    // SAFETY: pidfd_open(2) takes two integers, and returns a new descriptor.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let mut count = 0;
    for socket in procfs::sockets(pid)? {
        // SAFETY: pidfd_getfd(2) takes three integers, and returns a new descriptor.
        let socket = own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), socket, 0) })?;
        count += u64::from(is_established(&socket));
    }
    Ok(count)
}

fn own(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller has just made the descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns whether this is a TCP socket in the state ESTABLISHED.
fn is_established(socket: &OwnedFd) -> bool {
    // SAFETY: tcp_info consists of integers, which may all be zero.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut size = size_of_val(&info) as libc::socklen_t;
    let into = (&raw mut info).cast();
    // SAFETY: getsockopt(2) writes no more than `size` bytes.
    let got = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut size) };
    got == 0 && info.tcpi_state == ESTABLISHED
}
