//! The deadline between execve(2) and the call: a timer that ends a program that does not take the state in time. Until
//! then nothing supervises the workers.
//!
//! # Safety
//! [`arm`] runs before `main` and allocates no memory. The system calls here read and write values of the right size.
//! They are made without the C library, because its functions may allocate memory for a timer. The signal handler only
//! calls _exit(2).

use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// The exit status of process 1 of a pid namespace, which SIGKILL of its own timer does not end.
const STATUS: libc::c_int = 70;

/// The timer, as the kernel numbers it. -1 if there is none.
static TIMER: AtomicI32 = AtomicI32::new(-1);

/// The times of a timer, as the kernel reads them (`struct __kernel_old_itimerspec`).
#[repr(C)]
#[derive(Default)]
struct TimerTimes {
    interval: [libc::c_long; 2],
    value: [libc::c_long; 2],
}

/// Starts the timer.
pub(super) fn arm(timeout: Duration) {
    // SAFETY: zero bytes are a valid sigevent, which consists of integers and pointers.
    let mut event: libc::sigevent = unsafe { mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = if std::process::id() == 1 { handled_signal() } else { libc::SIGKILL };
    let mut timer: libc::c_int = -1;
    // SAFETY: timer_create(2) reads the event and writes one int.
    let result =
        unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
    if result != 0 {
        return;
    }
    let mut times = TimerTimes::default();
    times.value[0] = libc::c_long::try_from(timeout.as_secs()).unwrap_or(libc::c_long::MAX);
    // A timer with the time 0 would never run.
    times.value[1] = libc::c_long::from(timeout.subsec_nanos().max(1) as i32);
    let none = ptr::null_mut::<TimerTimes>();
    // SAFETY: timer_settime(2) reads the times.
    unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const times, none) };
    TIMER.store(timer, Ordering::Relaxed);
}

/// Stops the timer. Leaves the signal to the program.
pub(super) fn disarm() {
    let timer = TIMER.swap(-1, Ordering::Relaxed);
    if timer == -1 {
        return;
    }
    // SAFETY: timer_delete(2) takes the number of a timer that exists.
    unsafe { libc::syscall(libc::SYS_timer_delete, timer) };
    if std::process::id() == 1 {
        // SAFETY: zero bytes are a valid sigaction. sigaction(2) writes one.
        unsafe {
            let mut present: libc::sigaction = mem::zeroed();
            libc::sigaction(libc::SIGRTMAX(), ptr::null(), &raw mut present);
            if present.sa_sigaction == end as *const () as libc::sighandler_t {
                libc::signal(libc::SIGRTMAX(), libc::SIG_DFL);
            }
        }
    }
}

/// Installs the handler and returns its signal, which programs hardly ever use.
fn handled_signal() -> libc::c_int {
    let signal = libc::SIGRTMAX();
    // SAFETY: zero bytes are a valid sigaction. The handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = end as *const () as libc::sighandler_t;
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
    signal
}

extern "C" fn end(_: libc::c_int) {
    // SAFETY: _exit(2) takes an integer and is async-signal-safe (signal-safety(7)).
    unsafe { libc::_exit(STATUS) }
}
