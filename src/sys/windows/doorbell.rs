//! The doorbell: one event through which any worker wakes the parent. The reason is in the worker's status slot.

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
    let event = EventHandle::auto_reset()?;
    Ok((WakeReceiver { event: event.clone(), watch: Mutex::new(None) }, Waker(event)))
}

impl WakeReceiver {
    /// Calls `wake` in a thread of the system's pool whenever a worker wakes the parent. A second call replaces the
    /// closure.
    pub fn wake_by(&self, wake: impl Fn() + Send + Sync + 'static) -> Result<(), CallError> {
        let watch = Watch::each(self.event.handle(), wake)?;
        *self.watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    /// Returns true, because the system resets the event when it calls the closure of `wake_by`.
    pub fn drain(&self) -> Result<bool, CallError> {
        Ok(true)
    }
}

#[cfg(test)]
impl WakeReceiver {
    /// Returns whether the event was set, and resets it. Requires that `wake_by` was not called, because the closure's
    /// call resets the event too.
    pub fn has_woken(&self) -> bool {
        self.event.wait(Some(std::time::Duration::ZERO))
    }
}

impl Waker {
    /// Wakes the parent. Ignores errors: if the parent has ended, there is nothing to wake.
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
