//! The connections that another process has. `/proc/net/tcp` has them too, among tens of thousands in TIME_WAIT, and to read
//! it takes a second under load; so its sockets are borrowed, one at a time, and asked themselves.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::unistd::Pid;

use crate::procfs;

/// As in the kernel's tcp_states.h.
const ESTABLISHED: u8 = 1;

/// How many it has accepted that neither side has closed. Those that wait in a listener's queue are nobody's yet.
pub fn count(pid: Pid) -> io::Result<u64> {
    // SAFETY: it takes two numbers, and gives a descriptor that nobody else has.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let mut count = 0;
    for socket in procfs::sockets(pid)? {
        // SAFETY: as above.
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
    // SAFETY: it was made for the caller just now.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Not if it is no TCP socket at all.
fn is_established(socket: &OwnedFd) -> bool {
    // SAFETY: it is made of numbers, of which all may be zero.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut size = size_of_val(&info) as libc::socklen_t;
    let into = (&raw mut info).cast();
    // SAFETY: it writes no more than the size it is given.
    let got = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut size) };
    got == 0 && info.tcpi_state == ESTABLISHED
}
