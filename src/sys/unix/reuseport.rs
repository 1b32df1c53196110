//! Sockets that share a port, and who of them gets what: socket(7), `SO_REUSEPORT`.
//!
//! # Safety
//! setsockopt(2) reads no more than the length that it is told, and bpf programs are checked by the kernel.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{CallError, Instruction};

/// From here on others may have the port too who say so as well, or they may not.
pub(crate) fn share_port(socket: BorrowedFd<'_>, yes: bool) -> Result<(), CallError> {
    set(socket, libc::SO_REUSEPORT, &libc::c_int::from(yes))
}

/// The program says who of them gets what comes: the first one is 0. What it names that is not there is as if there were no
/// program.
pub(crate) fn steer(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), CallError> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|&Instruction { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k }).collect();
    let len = filter.len().try_into().map_err(|_| CallError::new("setsockopt", io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    set(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Whether something waits there to be accepted or received.
pub(crate) fn has_waiting(socket: BorrowedFd<'_>) -> bool {
    let mut one = [PollFd::new(socket, PollFlags::POLLIN)];
    // An error or a shutdown is nothing that could be taken.
    poll(&mut one, PollTimeout::ZERO).is_ok() && one[0].revents() == Some(PollFlags::POLLIN)
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> Result<(), CallError> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the value is there and as long as it says; what it points to, if it does, lives in the caller's frame.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len) } {
        0 => Ok(()),
        _ => Err(CallError::last("setsockopt")),
    }
}
