//! CPU affinity: the set of CPUs that a thread may run on (sched_setaffinity(2)).

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::sys::CallError;

/// The pid argument that means the calling thread.
const THIS: Pid = Pid::from_raw(0);

/// Returns the CPUs that the calling thread may run on: those that are both in its affinity mask and in the cpuset of
/// its cgroup.
pub(crate) fn usable_cpus() -> Result<Vec<usize>, CallError> {
    let set = sched_getaffinity(THIS).map_err(|error| CallError::new("sched_getaffinity", error))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// Pins the calling thread to one CPU. Threads that it starts later inherit this setting.
pub(crate) fn pin_to(cpu: usize) -> Result<(), CallError> {
    let refused = |error| CallError::new("sched_setaffinity", io::Error::from(error));
    let mut set = CpuSet::new();
    set.set(cpu).map_err(refused)?;
    sched_setaffinity(THIS, &set).map_err(refused)
}
