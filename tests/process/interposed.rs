//! Functions of the C library that this binary replaces, so that a scenario can run code at the moment of a call.
//!
//! A race needs an event at a certain moment, for example between two system calls of the parent. A test that only
//! waits for this moment would rarely meet it. A hook makes the event happen at this moment each time.
//!
//! The linker resolves a name to a function of the executable before it searches the shared libraries. So taskfork, std
//! and mio call these functions. Each function makes the system call itself, and behaves like the original if no hook
//! is set.

use std::io;
use std::sync::{Mutex, PoisonError};

use libc::{c_int, c_long, c_void, off_t};

/// Runs before listen(2). The argument is the socket.
pub static BEFORE_LISTEN: Hook<fn(c_int)> = Hook::unset();
/// Runs before a recv(2) without flags. The argument is the socket. std reads from a stream in this way.
pub static BEFORE_RECV: Hook<fn(c_int)> = Hook::unset();
/// Runs before pwrite(2). taskfork makes this call while it starts a spawned worker, to write the worker's offer.
pub static BEFORE_PWRITE: Hook<fn()> = Hook::unset();
/// Runs before epoll_wait(2).
pub static BEFORE_EPOLL_WAIT: Hook<fn()> = Hook::unset();
/// Runs before a waitid(2) for any child.
pub static BEFORE_WAIT: Hook<fn()> = Hook::unset();
/// Runs after a waitid(2) for any child. The argument is the pid of the child that was found, or 0.
pub static AFTER_WAIT: Hook<fn(libc::pid_t)> = Hook::unset();
/// Runs before the setsockopt(2) that attaches a BPF program to a group of sockets. The call fails with the returned
/// error, if any.
pub static BEFORE_STEERING: Hook<fn() -> Option<c_int>> = Hook::unset();

/// Code that runs at each call of a function, or nothing.
pub struct Hook<F>(Mutex<Option<F>>);

impl<F: Copy> Hook<F> {
    const fn unset() -> Hook<F> {
        Hook(Mutex::new(None))
    }

    pub fn set(&self, hook: F) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    /// Returns the hook. Releases the lock, so that the hook itself may make the call again.
    fn get(&self) -> Option<F> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_errno(number: c_int) {
    nix::errno::Errno::set_raw(number);
}

/// Runs `hook`, and restores errno afterwards.
fn keeping_errno(hook: impl FnOnce()) {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or_default();
    hook();
    set_errno(errno);
}

// SAFETY: this function has the signature of listen(2), and makes that system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn listen(socket: c_int, backlog: c_int) -> c_int {
    if let Some(hook) = BEFORE_LISTEN.get() {
        keeping_errno(|| hook(socket));
    }
    // SAFETY: listen(2) takes integers.
    unsafe { libc::syscall(libc::SYS_listen, socket, backlog) as c_int }
}

// SAFETY: this function has the signature of recv(2), and makes that system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn recv(socket: c_int, buffer: *mut c_void, len: usize, flags: c_int) -> isize {
    if let Some(hook) = BEFORE_RECV.get().filter(|_| flags == 0) {
        keeping_errno(|| hook(socket));
    }
    let null: *mut c_void = std::ptr::null_mut();
    // SAFETY: the caller guarantees that the buffer has room for `len` bytes. Without a buffer for the sender's
    // address, recvfrom(2) is the same as recv(2).
    unsafe { libc::syscall(libc::SYS_recvfrom, socket, buffer, len, flags, null, null) as isize }
}

// SAFETY: this function has the signature of pwrite(2), and makes that system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(file: c_int, bytes: *const c_void, len: usize, offset: off_t) -> isize {
    if let Some(hook) = BEFORE_PWRITE.get() {
        keeping_errno(hook);
    }
    // SAFETY: the caller guarantees that `len` bytes can be read.
    unsafe { libc::syscall(libc::SYS_pwrite64, file, bytes, len, offset) as isize }
}

// SAFETY: this function has the signature of epoll_wait(2), and makes the same system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(epoll: c_int, events: *mut libc::epoll_event, count: c_int, timeout: c_int) -> c_int {
    if let Some(hook) = BEFORE_EPOLL_WAIT.get() {
        keeping_errno(hook);
    }
    let null: *mut c_void = std::ptr::null_mut();
    // A timeout of -1 must have 32 bits here, because a scenario reads it in /proc.
    let timeout = c_long::from(timeout) & 0xffff_ffff;
    // SAFETY: the caller guarantees that `events` has room for `count` events. Without a signal mask, epoll_pwait(2) is
    // the same as epoll_wait(2).
    unsafe { libc::syscall(libc::SYS_epoll_pwait, epoll, events, count, timeout, null, 0_usize) as c_int }
}

// SAFETY: this function has the signature of waitid(2), and makes that system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn waitid(kind: libc::idtype_t, id: libc::id_t, info: *mut libc::siginfo_t, options: c_int) -> c_int {
    let is_any = kind == libc::P_ALL;
    if let Some(hook) = BEFORE_WAIT.get().filter(|_| is_any) {
        keeping_errno(hook);
    }
    let null: *mut c_void = std::ptr::null_mut();
    // SAFETY: the caller guarantees that `info` is valid. The last argument is a buffer for the resource usage, which
    // may be null.
    let result = unsafe { libc::syscall(libc::SYS_waitid, kind, id, info, options, null) as c_int };
    if let Some(hook) = AFTER_WAIT.get().filter(|_| is_any && result == 0 && !info.is_null()) {
        // SAFETY: waitid(2) has succeeded, so the pid is set. It is 0 if no child was found.
        keeping_errno(|| hook(unsafe { (*info).si_pid() }));
    }
    result
}

// SAFETY: this function has the signature of setsockopt(2), and makes that system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn setsockopt(
    socket: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    len: libc::socklen_t,
) -> c_int {
    let is_steering = (level, option) == (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    if let Some(refused) = BEFORE_STEERING.get().filter(|_| is_steering).and_then(|hook| hook()) {
        set_errno(refused);
        return -1;
    }
    // SAFETY: the caller guarantees that `value` is valid for `len` bytes.
    unsafe { libc::syscall(libc::SYS_setsockopt, socket, level, option, value, len) as c_int }
}
