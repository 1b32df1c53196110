//! Which CPUs a thread may use.

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::sys::CallError;

/// The calling one.
const THIS: Pid = Pid::from_raw(0);

/// Those that this thread may use: of its affinity, what its cgroup leaves. None, where there is no such choice.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    let set = sched_getaffinity(THIS).map_err(|error| CallError::new("sched_getaffinity", error))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// From here on this thread runs there alone, and those that it starts as well.
pub(crate) fn pin_to(cpu: usize) -> Result<(), CallError> {
    let refused = |error| CallError::new("sched_setaffinity", io::Error::from(error));
    let mut set = CpuSet::new();
    set.set(cpu).map_err(refused)?;
    sched_setaffinity(THIS, &set).map_err(refused)
}
