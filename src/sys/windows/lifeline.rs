//! The lifeline as a job object: the parent holds the only handle, and closing it ends all processes in the job.

use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::{mem, ptr};

use windows_sys::Win32::System::JobObjects::{
    CreateJobObjectW, JOB_OBJECT_LIMIT_BREAKAWAY_OK, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, SetInformationJobObject,
};

use super::event::EventHandle;
use super::{handle, stop_request};
use crate::sys::CallError;

#[derive(Debug)]
pub(crate) struct Lifeline {
    job: OwnedHandle,
}

/// The lifeline of a worker, which is in the job already. The worker inherits the event that requests a stop.
#[derive(Debug)]
pub(crate) struct Inherited {
    stop: Option<EventHandle>,
}

impl Lifeline {
    /// Makes the job. `JOB_OBJECT_LIMIT_BREAKAWAY_OK` allows a worker to start a process outside of it, which outlives
    /// the job.
    pub fn new() -> Result<Lifeline, CallError> {
        // SAFETY: there are no attributes and no name, and the handle has no other owner.
        let job = unsafe { handle::owned(CreateJobObjectW(ptr::null(), ptr::null()), "CreateJobObjectW")? };
        // SAFETY: the limits consist of integers, for which zeroes are valid.
        let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { mem::zeroed() };
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_BREAKAWAY_OK;
        // SAFETY: the job is open, and the limits have the type and the size that the call gets.
        let is_set = unsafe {
            let (limits, size) = (ptr::from_ref(&limits).cast(), size_of_val(&limits) as u32);
            SetInformationJobObject(job.as_raw_handle(), JobObjectExtendedLimitInformation, limits, size)
        };
        if is_set == 0 { Err(CallError::last("SetInformationJobObject")) } else { Ok(Lifeline { job }) }
    }

    pub(super) fn job(&self) -> &OwnedHandle {
        &self.job
    }

    /// Returns the lifeline of a spawned worker that has inherited this event.
    pub fn inherited(_: u32, passed: Option<OwnedHandle>) -> Inherited {
        Inherited { stop: passed.map(EventHandle::from) }
    }
}

impl Inherited {
    pub fn hold(self) {
        if let Some(stop) = self.stop {
            stop_request::may_come_by(stop);
        }
    }
}
