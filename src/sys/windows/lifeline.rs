//! A job, which ends with its last handle, and takes all processes in it along: the parent has the only one.

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

/// A worker's. It is in the job already; what it gets is the event by which it is asked to stop.
#[derive(Debug)]
pub(crate) struct Inherited {
    stop: Option<EventHandle>,
}

impl Lifeline {
    /// A process that is to outlive it can be started outside, by who asks for that.
    pub fn new() -> Result<Lifeline, CallError> {
        // SAFETY: there are no attributes and no name; and it is nobody else's.
        let job = unsafe { handle::owned(CreateJobObjectW(ptr::null(), ptr::null()), "CreateJobObjectW")? };
        // SAFETY: these limits consist of integers, for which zeroes are fine.
        let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { mem::zeroed() };
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_BREAKAWAY_OK;
        // SAFETY: the job is open, and the limits are of this kind and have this size.
        let is_set = unsafe {
            let (limits, size) = (ptr::from_ref(&limits).cast(), size_of_val(&limits) as u32);
            SetInformationJobObject(job.as_raw_handle(), JobObjectExtendedLimitInformation, limits, size)
        };
        if is_set == 0 { Err(CallError::last("SetInformationJobObject")) } else { Ok(Lifeline { job }) }
    }

    pub(super) fn job(&self) -> &OwnedHandle {
        &self.job
    }

    /// In a program that was passed this.
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
