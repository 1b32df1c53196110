//! The process that has sent a signal (sigaction(2), `siginfo_t`).
//!
//! # Safety
//! The functions here run in the signal handler, and read only the signal's `siginfo_t`.

/// Returns the pid of the process that has sent the signal, or `None` if no process has sent it: the kernel sends the
/// signals of a terminal and of a timer. A sender outside this pid namespace has the pid 0.
#[cfg(target_os = "linux")]
pub(in crate::sys::unix) fn sender(info: &libc::siginfo_t) -> Option<u32> {
    let has_sender = matches!(info.si_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
    // SAFETY: with these codes, kill(2), sigqueue(3) or tgkill(2) has sent the signal and has set the pid.
    has_sender.then(|| unsafe { info.si_pid() } as u32)
}

/// Returns the pid of the process that has sent the signal, or `None` if no process has sent it: the kernel sends the
/// signals of a terminal and of a timer.
#[cfg(target_os = "freebsd")]
pub(in crate::sys::unix) fn sender(info: &libc::siginfo_t) -> Option<u32> {
    // From `<sys/signal.h>`.
    const SI_USER: libc::c_int = 0x10001;
    const SI_QUEUE: libc::c_int = 0x10002;
    const SI_LWP: libc::c_int = 0x10007;
    matches!(info.si_code, SI_USER | SI_QUEUE | SI_LWP).then_some(info.si_pid as u32)
}

/// Returns the pid of the process that has sent the signal, or `None` if no process has sent it. macOS does not mark
/// the signals of a terminal. It names a process as their sender, for example the terminal emulator.
#[cfg(target_os = "macos")]
pub(in crate::sys::unix) fn sender(info: &libc::siginfo_t) -> Option<u32> {
    Some(info.si_pid as u32).filter(|&pid| pid != 0)
}
