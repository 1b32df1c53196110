//! The start and the CPU time of a child process, from `/proc` (proc_pid_stat(5)).
//!
//! # Safety
//! sysconf(3) takes and returns integers. clock_gettime(2) writes one `timespec`.

use std::time::Duration;
use std::{fs, mem, process};

use crate::sys::ProcessTimes;

/// Returns the time since the system was booted, which is the clock of [`ProcessTimes::started`].
pub(crate) fn process_clock() -> Duration {
    // SAFETY: all-zero bytes are a valid timespec.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: clock_gettime(2) writes one timespec. It cannot fail, because every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs() as u64, time.tv_nsec as u32)
}

/// Returns the times of a child of this process. Returns `None` if this process has no child with this pid, and if
/// `/proc` is missing or shows another pid namespace.
pub(crate) fn process_times(pid: u32) -> Option<ProcessTimes> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // SAFETY: see the top of this file.
    let ticks_per_second =
        u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|&ticks| ticks > 0)?;
    let stat = Stat::parse(&stat).filter(|stat| stat.parent == process::id())?;
    let duration = |ticks: u64| {
        Duration::from_nanos(
            (u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second)).try_into().unwrap_or(u64::MAX),
        )
    };
    Some(ProcessTimes { started: duration(stat.started), cpu: duration(stat.user.saturating_add(stat.system)) })
}

/// The fields of `/proc/PID/stat` that are used here. The times are in clock ticks.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    user: u64,
    system: u64,
    started: u64,
}

impl Stat {
    /// Parses the file. The name of the program is in parentheses, and may contain spaces and parentheses.
    fn parse(stat: &str) -> Option<Stat> {
        let (_, fields) = stat.rsplit_once(')')?;
        // The first field after the name is the third field of the file.
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Stat {
            parent: field(4)?.parse().ok()?,
            user: field(14)?.parse().ok()?,
            system: field(15)?.parse().ok()?,
            started: field(22)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "71 (a) b (c) S 7 71 71 0 -1 4194560 1 2 3 4 30 12 5 6 20 0 1 0 9000 100 200";
        assert_eq!(Stat::parse(stat), Some(Stat { parent: 7, user: 30, system: 12, started: 9000 }));
        for wrong in ["", "71 (a", "71 (a) S 7", "71 (a) S x 71 71 0 -1 4194560 1 2 3 4 30 12 5 6 20 0 1 0 9000"] {
            assert_eq!(Stat::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_children_have_times() {
        assert_eq!(process_times(process::id()).map(|times| times.cpu), None, "not a child of its own");
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a program of POSIX");
        let times = process_times(child.id()).expect("/proc");
        assert!(times.started <= process_clock(), "{times:?}");
        let later = process_clock() - times.started;
        assert!(later < Duration::from_secs(600), "{times:?} started {later:?} ago");
        drop(child.stdin.take());
        let pid = child.id();
        child.wait().expect("an exit");
        assert_eq!(process_times(pid).map(|times| times.cpu), None);
    }
}
