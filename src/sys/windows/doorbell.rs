//! The doorbell: an event object through which any worker wakes the parent. The event carries no message, so a worker
//! first writes its message to shared memory, into its status slot.

use std::os::windows::io::OwnedHandle;
use std::sync::Mutex;

use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::{CallError, Drained};

/// The parent's end of the doorbell, which reports that a worker has woken the parent.
#[derive(Debug)]
pub(crate) struct WakeReceiver {
    event: EventHandle,
    watch: Mutex<Option<Watch>>,
}

/// The workers' end of the doorbell, which wakes the parent.
#[derive(Debug)]
pub(crate) struct Waker(EventHandle);

pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let event = EventHandle::auto_reset()?;
    Ok((WakeReceiver { event: event.clone(), watch: Mutex::new(None) }, Waker(event)))
}

impl WakeReceiver {
    /// Calls `wake` each time a worker wakes the parent, in a thread of the system's thread pool. A second call of
    /// `wake_by` replaces the closure.
    pub fn wake_by(&self, wake: impl Fn() + Send + Sync + 'static) -> Result<(), CallError> {
        let watch = Watch::each(self.event.handle(), wake)?;
        *self.watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    /// Does nothing, because the event is already reset. The system resets the event when it calls the closure that was
    /// given to `wake_by`.
    pub fn drain(&self) -> Result<Drained, CallError> {
        Ok(Drained::Empty)
    }
}

#[cfg(test)]
impl WakeReceiver {
    /// Returns whether the event is set, and resets the event. Call this only if `wake_by` was never called. After a
    /// call of `wake_by`, the system itself resets the event as soon as a worker sets it.
    pub fn has_woken(&self) -> bool {
        self.event.wait(Some(std::time::Duration::ZERO))
    }
}

impl Waker {
    /// Wakes the parent. Ignores errors, because if the parent has ended, there is no process to wake.
    pub fn wake(&self) {
        let _ = self.0.set();
    }

    pub(super) fn event(&self) -> &EventHandle {
        &self.0
    }
}

/// Creates the waker of a spawned worker from the handle that the worker has inherited.
impl From<OwnedHandle> for Waker {
    fn from(handle: OwnedHandle) -> Waker {
        Waker(handle.into())
    }
}
