//! Replaces `unix/process_name.rs` on macOS and Windows, which have no process name that a process can change.

use super::CallError;

#[derive(Debug)]
pub(crate) struct ProcessName;

impl ProcessName {
    /// Does nothing.
    pub fn set(_: &str) -> Result<ProcessName, CallError> {
        Ok(ProcessName)
    }

    pub fn keep(self) {}
}
