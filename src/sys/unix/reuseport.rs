//! Sockets that share one port (`SO_REUSEPORT`, socket(7)), and a BPF program that distributes packets among them.
//!
//! # Safety
//! setsockopt(2) reads only as many bytes as the given length. The kernel checks a BPF program before it runs the
//! program.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::{CallError, Instruction};

/// Sets or clears `SO_REUSEPORT`. Several sockets can have the same port if all of them have this option.
pub(crate) fn share_port(socket: BorrowedFd<'_>, yes: bool) -> Result<(), CallError> {
    set(socket, libc::SO_REUSEPORT, &libc::c_int::from(yes))
}

/// Attaches a BPF program to all sockets that share the port of this socket. The kernel runs the program for each
/// packet. The program returns the index of the socket that receives the packet, counted from 0. If there is no socket
/// with that index, the kernel chooses a socket as if there were no program.
pub(crate) fn steer(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), CallError> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|&Instruction { code, jt, jf, k }| libc::sock_filter { code, jt, jf, k }).collect();
    let len = filter.len().try_into().map_err(|_| CallError::new("setsockopt", io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    set(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Returns whether the socket has a connection to accept or data to receive.
pub(crate) fn has_waiting(socket: BorrowedFd<'_>) -> bool {
    let mut one = [PollFd::new(socket, PollFlags::POLLIN)];
    // If the socket has an error or was shut down, poll(2) sets other bits besides POLLIN. Then there is nothing to
    // accept or to receive.
    poll(&mut one, PollTimeout::ZERO).is_ok() && one[0].revents() == Some(PollFlags::POLLIN)
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> Result<(), CallError> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: setsockopt(2) reads `len` bytes of `value`. If `value` contains a pointer, it points to data that the
    // caller keeps until this call has returned.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len) } {
        0 => Ok(()),
        _ => Err(CallError::last("setsockopt")),
    }
}
