//! The doorbell: one event with which any worker wakes the parent. The reason is in the worker's status slot.

use std::os::windows::io::OwnedHandle;
use std::sync::Mutex;

use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::CallError;

/// The parent's end of the doorbell.
#[derive(Debug)]
pub(crate) struct WakeReceiver {
    event: EventHandle,
    watch: Mutex<Option<Watch>>,
}

/// The workers' end of the doorbell.
#[derive(Debug)]
pub(crate) struct Waker(EventHandle);

pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let event = EventHandle::passing()?;
    Ok((WakeReceiver { event: event.clone(), watch: Mutex::new(None) }, Waker(event)))
}

impl WakeReceiver {
    /// Calls `wake` whenever the doorbell rings.
    pub fn wake_by(&self, wake: impl Fn() + Send + Sync + 'static) -> Result<(), CallError> {
        let watch = Watch::each(self.event.handle(), wake)?;
        *self.watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    /// Returns true, because the wait that `wake_by` has registered resets the event.
    pub fn drain(&self) -> Result<bool, CallError> {
        Ok(true)
    }
}

#[cfg(test)]
impl WakeReceiver {
    /// Returns whether the event is set, and resets it, if `wake_by` was not called.
    pub fn has_woken(&self) -> bool {
        self.event.wait(Some(std::time::Duration::ZERO))
    }
}

impl Waker {
    /// Wakes the parent. If the parent has ended, the error does not matter.
    pub fn wake(&self) {
        let _ = self.0.set();
    }

    pub(super) fn event(&self) -> &EventHandle {
        &self.0
    }
}

/// Makes the waker of a spawned worker.
impl From<OwnedHandle> for Waker {
    fn from(handle: OwnedHandle) -> Waker {
        Waker(handle.into())
    }
}
