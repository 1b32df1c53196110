//! The mark of a process that was started as a worker and has not reached its call.
//!
//! Memory, environment and descriptors do not survive if a program executes itself again with a clean environment. A
//! resource limit does: exec(3) keeps it, and a fork inherits it (getrlimit(2)). So the mark is the soft value of a
//! limit that has no effect. It stays until the worker reaches its call.
//!
//! The mark contains the worker's pid and a hash of its program. exec(3) keeps the pid, so the pid shows that the
//! worker has executed something, even if its program was replaced on disk meanwhile. In other processes the hash shows
//! that they run the worker's program.
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
const TAG: libc::rlim_t = 0x5b << TAG_SHIFT;
const TAG_SHIFT: u32 = libc::rlim_t::BITS - 8;
/// Linux has pids of up to 22 bits (`PID_MAX_LIMIT`), the other systems of 17 bits.
const PID_SHIFT: u32 = TAG_SHIFT - 22;
const TAG_BITS: libc::rlim_t = 0xff << TAG_SHIFT;
const PID_BITS: libc::rlim_t = 0x3f_ffff << PID_SHIFT;
const HASH_BITS: libc::rlim_t = (1 << PID_SHIFT) - 1;

/// The soft value that the mark replaced, and the mark. The mark is 0 if this process was not marked.
static BEFORE: AtomicU64 = AtomicU64::new(0);
static MARK: AtomicU64 = AtomicU64::new(0);

/// Marks this process and all processes that descend from it from now on. Has no effect if the hard limit is too low.
pub(super) fn set(program: ProgramId) {
    let Some(limit) = read() else { return };
    let is_unused = IS_IGNORED || limit.rlim_cur == libc::RLIM_INFINITY;
    let mark = of(program, std::process::id());
    if is_unused && write(libc::rlimit { rlim_cur: mark, ..limit }) {
        BEFORE.store(widen(limit.rlim_cur), Ordering::Relaxed);
        MARK.store(widen(mark), Ordering::Relaxed);
    }
}

/// Removes the mark that this process has set, and restores the limit.
pub(super) fn remove() {
    let mark = MARK.swap(0, Ordering::Relaxed);
    if let Some(limit) = read().filter(|limit| mark != 0 && widen(limit.rlim_cur) == mark) {
        // The program may have lowered the hard limit meanwhile.
        let rlim_cur = (BEFORE.load(Ordering::Relaxed) as libc::rlim_t).min(limit.rlim_max);
        write(libc::rlimit { rlim_cur, ..limit });
    }
}

/// Returns whether this process has the mark of a worker, and is that worker or runs this program.
pub(super) fn is_set(program: ProgramId) -> bool {
    read().is_some_and(|limit| is_mark_of(limit.rlim_cur, program, std::process::id()))
}

fn is_mark_of(limit: libc::rlim_t, program: ProgramId, pid: u32) -> bool {
    let expected = of(program, pid);
    limit & TAG_BITS == TAG && (limit & PID_BITS == expected & PID_BITS || limit & HASH_BITS == expected & HASH_BITS)
}

/// Returns whether every process could be marked that this process descends from. Only a low hard limit prevents that.
pub(super) fn is_reliable() -> bool {
    read().is_some_and(|limit| limit.rlim_max == libc::RLIM_INFINITY && (IS_IGNORED || limit.rlim_cur >= TAG))
}

/// Returns the mark of a worker. Other programs have another mark, so that a worker may start them before its call.
fn of(ProgramId(volume, file): ProgramId, pid: u32) -> libc::rlim_t {
    // This constant of splitmix64 spreads the bits of the numbers.
    let mixed = (volume.rotate_left(32) ^ file).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = (mixed >> (u64::BITS - PID_SHIFT)) as libc::rlim_t;
    TAG | (libc::rlim_t::from(pid) << PID_SHIFT & PID_BITS) | hash
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
    fn a_mark_is_of_one_pid_or_one_program() {
        let program = ProgramId(5, 1 << 40);
        let other = ProgramId(1 << 40, 5);
        let mark = of(program, 4_194_303);
        assert!(is_mark_of(mark, program, 71), "a child of the worker");
        assert!(is_mark_of(mark, other, 4_194_303), "the worker runs another program");
        assert!(!is_mark_of(mark, other, 71) && !is_mark_of(mark, ProgramId(5, 1), 4_194_302));
        assert!(!is_mark_of(libc::RLIM_INFINITY, program, 71));
        assert!(!is_mark_of(mark & !TAG_BITS, program, 4_194_303));
    }

    #[test]
    fn a_mark_names_one_program_and_can_be_removed() {
        let program = ProgramId(5, 1 << 40);
        let before = read().expect("a limit").rlim_cur;
        set(program);
        if MARK.load(Ordering::Relaxed) != 0 {
            assert!(is_set(program));
        }
        remove();
        assert_eq!(read().expect("a limit").rlim_cur, before);
        assert!(!is_set(program));
    }
}
