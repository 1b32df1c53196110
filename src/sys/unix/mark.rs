//! The mark of a process that was started as a worker and has not reached its call.
//!
//! Memory, environment and descriptors do not survive if a program executes itself again with a clean environment. A
//! resource limit does: exec(3) keeps it, and a fork inherits it (getrlimit(2)). So the mark is the soft value of a
//! limit that has no effect. It stays until the worker reaches its call.
//!
//! # Safety
//! getrlimit(2) and setrlimit(2) read or write one rlimit.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::offer::ProgramId;

/// A limit that has no effect: Linux ignores the number of file locks since version 2.4.25. The other systems have no
/// such limit. There the resident memory, in bytes, has no effect as long as the limit is very large.
#[cfg(target_os = "linux")]
use libc::RLIMIT_LOCKS as LIMIT;
#[cfg(not(target_os = "linux"))]
use libc::RLIMIT_RSS as LIMIT;

/// Set if the limit has no effect even if it is low.
const IS_IGNORED: bool = cfg!(target_os = "linux");

/// The highest byte of a mark. Such a limit is less than `RLIM_INFINITY` on every system, and still very large.
const TAG: libc::rlim_t = 0x5b << SHIFT;
const SHIFT: u32 = libc::rlim_t::BITS - 8;

/// The soft value that the mark replaced, and the mark. The mark is 0 if this process was not marked.
static BEFORE: AtomicU64 = AtomicU64::new(0);
static MARK: AtomicU64 = AtomicU64::new(0);

/// Marks this process and all processes that descend from it from now on. Has no effect if the hard limit is too low.
pub(super) fn set(program: ProgramId) {
    let Some(limit) = read() else { return };
    let is_unused = IS_IGNORED || limit.rlim_cur == libc::RLIM_INFINITY;
    let mark = of(program);
    if is_unused && write(libc::rlimit { rlim_cur: mark, ..limit }) {
        BEFORE.store(widen(limit.rlim_cur), Ordering::Relaxed);
        MARK.store(widen(mark), Ordering::Relaxed);
    }
}

/// Removes the mark that this process has set, and restores the limit.
pub(super) fn remove() {
    let mark = MARK.swap(0, Ordering::Relaxed);
    if let Some(limit) = read().filter(|limit| mark != 0 && widen(limit.rlim_cur) == mark) {
        // The former value was possible before, so it is possible again.
        write(libc::rlimit { rlim_cur: BEFORE.load(Ordering::Relaxed) as libc::rlim_t, ..limit });
    }
}

/// Returns whether this process has the mark of this program.
pub(super) fn is_set(program: ProgramId) -> bool {
    read().is_some_and(|limit| limit.rlim_cur == of(program))
}

/// Returns whether every process could be marked that this process descends from. Only a low hard limit prevents that.
pub(super) fn is_reliable() -> bool {
    read().is_some_and(|limit| limit.rlim_max == libc::RLIM_INFINITY && (IS_IGNORED || limit.rlim_cur >= TAG))
}

/// Returns the mark of a program. Other programs have another mark, so that a worker may start them before its call.
fn of(ProgramId(volume, file): ProgramId) -> libc::rlim_t {
    // This constant of splitmix64 spreads the bits of the numbers.
    let mixed = (volume.rotate_left(32) ^ file).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    TAG | ((mixed >> (u64::BITS - SHIFT)) as libc::rlim_t)
}

#[allow(clippy::unnecessary_cast, reason = "the type depends on the system")]
fn widen(limit: libc::rlim_t) -> u64 {
    limit as u64
}

fn read() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit.
    (unsafe { libc::getrlimit(LIMIT, &raw mut limit) } == 0).then_some(limit)
}

fn write(limit: libc::rlimit) -> bool {
    // SAFETY: setrlimit(2) reads one rlimit.
    unsafe { libc::setrlimit(LIMIT, &raw const limit) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_one_program_and_can_be_removed() {
        let program = ProgramId(5, 1 << 40);
        let before = read().expect("a limit").rlim_cur;
        set(program);
        if MARK.load(Ordering::Relaxed) != 0 {
            assert!(is_set(program));
            assert!(!is_set(ProgramId(5, 1)) && !is_set(ProgramId(1 << 40, 5)));
        }
        remove();
        assert_eq!(read().expect("a limit").rlim_cur, before);
        assert!(!is_set(program));
    }
}
