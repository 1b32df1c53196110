//! The lifeline, which ends the workers when the parent ends. On Windows, the lifeline is a job object that contains
//! all workers. The parent holds the only handle to the job. When the parent ends, the system closes that handle, and
//! then ends all processes in the job (`JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`).
//!
//! # Safety
//! The system calls read a struct of the right size, and take handles that are open.

use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::sync::Arc;
use std::time::Duration;
use std::{mem, ptr};

use windows_sys::Win32::System::JobObjects::{
    CreateJobObjectW, JOB_OBJECT_LIMIT_BREAKAWAY_OK, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, SetInformationJobObject,
};

use super::event::EventHandle;
use super::{handle, stop_request};
use crate::sys::CallError;

/// The parent's end of the lifeline: the job object in which every worker starts.
#[derive(Clone, Debug)]
pub(crate) struct Lifeline {
    job: Arc<OwnedHandle>,
}

/// The worker's end of the lifeline. The worker is in the job from its start, so the worker needs no handle to the job.
/// This value contains only the event through which the parent requests a stop.
#[derive(Debug)]
pub(crate) struct Inherited {
    stop: Option<EventHandle>,
}

impl Lifeline {
    /// Creates the job object. `JOB_OBJECT_LIMIT_BREAKAWAY_OK` allows a worker to start a process outside the job, with
    /// the flag `CREATE_BREAKAWAY_FROM_JOB`. A process outside the job continues to run when the parent ends.
    ///
    /// The workers have no time to exit after the end of the parent, because the system ends them at once.
    pub fn new(_graceful_timeout: Duration) -> Result<Lifeline, CallError> {
        // SAFETY: CreateJobObjectW accepts null for the attributes and the name. CreateJobObjectW returns a new handle,
        // which has no other owner.
        let job = unsafe { handle::owned(CreateJobObjectW(ptr::null(), ptr::null()), "CreateJobObjectW")? };
        // SAFETY: all-zero bytes are a valid value of this struct, because it consists of integers.
        let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { mem::zeroed() };
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_BREAKAWAY_OK;
        let size = size_of_val(&limits) as u32;
        let limits = ptr::from_ref(&limits).cast();
        // SAFETY: SetInformationJobObject reads `size` bytes of `limits`. `JobObjectExtendedLimitInformation` requires
        // a struct of this type.
        let is_set =
            unsafe { SetInformationJobObject(job.as_raw_handle(), JobObjectExtendedLimitInformation, limits, size) };
        if is_set == 0 { Err(CallError::last("SetInformationJobObject")) } else { Ok(Lifeline { job: Arc::new(job) }) }
    }

    /// Returns this lifeline, because the system ends the workers of all pools at once.
    pub fn with_timeout(self, _graceful_timeout: Duration) -> Lifeline {
        self
    }

    /// Returns true: the job contains the whole process.
    pub fn can_be_armed() -> bool {
        true
    }

    /// Returns true: the worker is in the job from its start.
    pub fn is_armed() -> bool {
        true
    }

    pub(super) fn job(&self) -> &OwnedHandle {
        &self.job
    }

    /// Creates the lifeline in a spawned worker. `passed` is the stop event that the worker has inherited.
    pub fn inherited(_: u32, _: Duration, passed: Option<OwnedHandle>) -> Inherited {
        Inherited { stop: passed.map(EventHandle::from) }
    }
}

impl Inherited {
    /// Stores the stop event, so that the worker can listen for stop requests.
    pub fn hold(self) {
        if let Some(stop) = self.stop {
            stop_request::set_stop_event(stop);
        }
    }
}
