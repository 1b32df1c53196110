//! SIGTTIN and SIGTTOU from the terminal. The terminal sends these signals to the process group of a background job
//! when a thread of the job reads from the terminal, or writes to it after `stty tostop`. They are no requests.
//!
//! The read or write begins again after the signal handler, and the terminal sends the signal again. So a handler that
//! only ignores the signal causes an endless loop. If the thread blocks the signal, the terminal does not send it: a
//! write succeeds, and a read fails with `EIO` (POSIX.1-2017, chapter 11.1.4, and read(2)). So each thread in which the
//! handler runs for such a signal blocks the signal from then on. The parent's thread blocks both signals, except while
//! it waits for events.
//!
//! # Safety
//! The functions here run in the signal handler. They use only async-signal-safe system calls, and change the signal
//! mask with which the interrupted thread goes on.

/// Returns whether the terminal has sent this signal. The kernel sends the terminal's signals itself.
#[cfg(target_os = "linux")]
pub(super) fn is_from_terminal(info: &libc::siginfo_t) -> bool {
    info.si_code == libc::SI_KERNEL
}

/// Returns whether the terminal has sent this signal. The kernel sends the terminal's signals itself.
#[cfg(target_os = "freebsd")]
pub(super) fn is_from_terminal(info: &libc::siginfo_t) -> bool {
    /// `SI_KERNEL` from `<sys/signal.h>`.
    const SI_KERNEL: libc::c_int = 0x10006;
    info.si_code == SI_KERNEL
}

/// Returns whether the terminal may have sent this signal. As the sender, macOS names the process that has used the
/// terminal. So the signal is the terminal's if the sender belongs to this process group and the group is in the
/// background. The signal of an operator is mistaken for one of the terminal only if both are true for the operator.
#[cfg(target_os = "macos")]
pub(super) fn is_from_terminal(info: &libc::siginfo_t) -> bool {
    // SAFETY: getpgrp(2) and getpgid(2) take and return integers.
    let (own, sender) = unsafe { (libc::getpgrp(), libc::getpgid(info.si_pid)) };
    (info.si_pid == 0 || sender == own) && is_in_background(own)
}

/// Returns whether the process has a terminal whose foreground process group is another group.
#[cfg(target_os = "macos")]
fn is_in_background(own_group: libc::pid_t) -> bool {
    // SAFETY: open(2) reads a C string. tcgetpgrp(3) and close(2) take a descriptor that is open and has no other
    // owner.
    unsafe {
        let terminal = libc::open(c"/dev/tty".as_ptr(), libc::O_RDONLY | libc::O_NOCTTY | libc::O_CLOEXEC);
        if terminal == -1 {
            return false;
        }
        let foreground = libc::tcgetpgrp(terminal);
        libc::close(terminal);
        foreground != own_group
    }
}

/// Blocks the signal in the thread that the handler has interrupted: the kernel restores the thread's signal mask from
/// the context when the handler returns.
///
/// # Safety
/// `context` must be the third argument of a signal handler with `SA_SIGINFO`.
pub(super) unsafe fn block_in_thread(signal: libc::c_int, context: *mut libc::c_void) {
    // SAFETY: the argument points to a ucontext_t (sigaction(2)), and sigaddset(3) changes its signal mask only.
    unsafe {
        let mask = &raw mut (*context.cast::<Context>()).uc_sigmask;
        libc::sigaddset(mask, signal);
    }
}

#[cfg(target_os = "linux")]
type Context = libc::ucontext_t;

/// The beginning of `ucontext_t` from `<sys/_ucontext.h>`.
#[cfg(target_os = "freebsd")]
#[repr(C)]
struct Context {
    uc_sigmask: libc::sigset_t,
}

/// The beginning of `ucontext_t` from `<sys/_types/_ucontext.h>`.
#[cfg(target_os = "macos")]
#[repr(C)]
struct Context {
    _uc_onstack: libc::c_int,
    uc_sigmask: libc::sigset_t,
}
