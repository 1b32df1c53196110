//! The reasons for which a pid file cannot be written.

use std::ffi::OsString;

use super::CallError;

#[derive(Debug)]
pub(crate) enum PidFileRefusal {
    /// A process with this pid has the file. `None` if the system does not know the pid.
    Live(Option<u32>),
    /// The file at the path is no pid file. It is left alone.
    NotAPidFile,
    /// Another process has this lock, which is a file in the same directory.
    #[cfg_attr(not(unix), expect(dead_code, reason = "opening the file is enough"))]
    Locked(OsString),
    Call(CallError),
}

impl From<CallError> for PidFileRefusal {
    fn from(error: CallError) -> PidFileRefusal {
        PidFileRefusal::Call(error)
    }
}
