//! One event by which any of the workers wakes the parent. What for is written elsewhere.

use std::os::windows::io::OwnedHandle;
use std::sync::Mutex;

use super::event::EventHandle;
use super::watch::Watch;
use crate::sys::CallError;

/// The parent's end.
#[derive(Debug)]
pub(crate) struct WakeReceiver {
    event: EventHandle,
    watch: Mutex<Option<Watch>>,
}

/// The end that all workers have.
#[derive(Debug)]
pub(crate) struct Waker(EventHandle);

pub(crate) fn doorbell() -> Result<(WakeReceiver, Waker), CallError> {
    let event = EventHandle::passing()?;
    Ok((WakeReceiver { event: event.clone(), watch: Mutex::new(None) }, Waker(event)))
}

impl WakeReceiver {
    /// When it rings, this is called.
    pub fn wake_by(&self, wake: impl Fn() + Send + Sync + 'static) -> Result<(), CallError> {
        let watch = Watch::each(self.event.handle(), wake)?;
        *self.watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    /// Whoever was woken by it has silenced it.
    pub fn drain(&self) -> Result<bool, CallError> {
        Ok(true)
    }
}

#[cfg(test)]
impl WakeReceiver {
    /// While nobody is woken by it.
    pub fn has_woken(&self) -> bool {
        self.event.wait(Some(std::time::Duration::ZERO))
    }
}

impl Waker {
    /// A parent that is gone needs no waking.
    pub fn wake(&self) {
        let _ = self.0.set();
    }

    pub(super) fn event(&self) -> &EventHandle {
        &self.0
    }
}

/// As it was passed to a program.
impl From<OwnedHandle> for Waker {
    fn from(handle: OwnedHandle) -> Waker {
        Waker(handle.into())
    }
}
