//! [`MemoryReader`], which reads the memory of the workers when the policy asks for it.

use std::time::Instant;

use ::log::Level;

use super::children::Children;
use super::observer::Output;
use crate::exit::Process;
use crate::policy::{MemoryReading, Service};
use crate::sys::{self, CallError};

#[derive(Debug, Default)]
pub(super) struct MemoryReader {
    /// Whether this reader has logged that it cannot read the memory of a worker.
    has_warned: bool,
}

impl MemoryReader {
    /// Reads what the policy asks for now, if anything, and passes the sizes to the policy.
    pub fn read_due(&mut self, policy: &mut Service, children: &Children, output: &mut Output) {
        let begun = Instant::now();
        let Some((pool, reading)) = policy.memory_reading(begun) else { return };
        match reading {
            MemoryReading::Bounds => {
                for process in children.processes() {
                    if policy.index_of(process) != Some(pool) {
                        continue;
                    }
                    match read(process, sys::private_memory_bound) {
                        Ok(bytes) => policy.handle_memory_bound(begun, process, bytes),
                        Err(error) => self.warn(process, &error, output),
                    }
                }
            }
            // After the process was reaped, another process may have its pid.
            MemoryReading::Exact(process) if children.processes().any(|known| known == process) => {
                match read(process, sys::private_memory) {
                    Ok(bytes) => policy.handle_memory(begun, process, bytes),
                    Err(error) => self.warn(process, &error, output),
                }
            }
            MemoryReading::Exact(_) => {}
        }
        policy.end_memory_reading(pool, begun, Instant::now());
    }

    /// Logs the first failure of the service. A failure that repeats every second would fill the log.
    fn warn(&mut self, process: Process, error: &CallError, output: &mut Output) {
        if !self.has_warned {
            self.has_warned = true;
            let source = &error.source;
            output.log(
                Level::Warn,
                &format_args!(
                    "cannot read the memory of {process}, so it is not replaced if it exceeds max_memory: {source}"
                ),
            );
        }
    }
}

fn read(process: Process, size_of: fn(u32) -> Result<u64, CallError>) -> Result<u64, CallError> {
    process.pid.map_or(Ok(0), size_of)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::{Config, PoolConfig, UpgradeConfig};
    use crate::prefork::PoolSettings;

    #[test]
    fn a_pause_follows_each_reading() {
        let config = Config { workers: 1, max_memory: Some(1), ..PoolSettings::default().config };
        let begun = Instant::now() - Duration::from_secs(5);
        let upgrade = UpgradeConfig { timeout: Duration::from_secs(60), refusal: None };
        let mut policy = Service::new(vec![PoolConfig { config, optional: false, removed: false }], upgrade, 1, begun);
        assert!(policy.next_deadline().is_some_and(|deadline| deadline < Instant::now()), "a reading is due");
        MemoryReader::default().read_due(&mut policy, &Children::default(), &mut Output::flushed());
        assert!(policy.next_deadline().is_some_and(|deadline| deadline > Instant::now()));
    }
}
