//! Several sockets with one port, and the distribution of packets among them (`SO_REUSEPORT`, socket(7)).
//!
//! # Safety
//! setsockopt(2) reads no more than the given length. The kernel checks a BPF program before it runs it.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{CallError, Instruction};

/// Sets whether other sockets with this setting may have the same port (`SO_REUSEPORT`).
pub(crate) fn share_port(socket: BorrowedFd<'_>, yes: bool) -> Result<(), CallError> {
    set(socket, libc::SO_REUSEPORT, &libc::c_int::from(yes))
}

/// Attaches a BPF program to the group of sockets with this port. The program returns for each packet the index of a
/// socket, counted from 0. If that socket does not exist, the kernel chooses one as if there were no program.
pub(crate) fn steer(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), CallError> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|&Instruction { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k }).collect();
    let len = filter.len().try_into().map_err(|_| CallError::new("setsockopt", io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    set(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Returns whether the socket has something to accept or to receive.
pub(crate) fn has_waiting(socket: BorrowedFd<'_>) -> bool {
    let mut one = [PollFd::new(socket, PollFlags::POLLIN)];
    // An error or a shutdown sets other bits as well. Then there is nothing to accept or to receive.
    poll(&mut one, PollTimeout::ZERO).is_ok() && one[0].revents() == Some(PollFlags::POLLIN)
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> Result<(), CallError> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: setsockopt(2) reads `len` bytes of `value`. If they contain a pointer, it points to data of the caller
    // that outlives this call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len) } {
        0 => Ok(()),
        _ => Err(CallError::last("setsockopt")),
    }
}
