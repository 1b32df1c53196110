//! Threads of the system's pool, which wait for any number of objects.
//!
//! # Safety
//! What a callback uses lives as long as its registration, and that ends only when no callback runs any more.

use std::ffi::c_void;
use std::fmt;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Arc;

use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Threading::{
    INFINITE, RegisterWaitForSingleObject, UnregisterWaitEx, WT_EXECUTEDEFAULT, WT_EXECUTELONGFUNCTION,
    WT_EXECUTEONLYONCE,
};

use crate::sys::CallError;

/// As long as this lives, something is called when an object is signalled.
pub(super) struct Watch {
    registration: HANDLE,
    /// Boxed once more, because the callback gets one pointer.
    _called: Box<Called>,
    _object: Arc<OwnedHandle>,
}

type Called = Box<dyn Fn() + Send + Sync>;

// SAFETY: a registration may be ended in any thread, and what is called may be called in any.
unsafe impl Send for Watch {}
// SAFETY: nothing can be done with a reference to it.
unsafe impl Sync for Watch {}

impl Watch {
    /// Each time, of an event that is set until somebody has waited for it.
    pub fn each(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEDEFAULT)
    }

    /// The first time. It may take long.
    pub fn once(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEONLYONCE | WT_EXECUTELONGFUNCTION)
    }

    fn register(object: &Arc<OwnedHandle>, called: Called, flags: u32) -> Result<Watch, CallError> {
        let called = Box::new(called);
        let context = ptr::from_ref(&*called).cast::<c_void>();
        let mut registration = ptr::null_mut();
        // SAFETY: the object is open, and both it and the context stay, see above.
        let registered = unsafe {
            let object = object.as_raw_handle();
            RegisterWaitForSingleObject(&raw mut registration, object, Some(call), context, INFINITE, flags)
        };
        if registered == 0 {
            return Err(CallError::last("RegisterWaitForSingleObject"));
        }
        Ok(Watch { registration, _called: called, _object: Arc::clone(object) })
    }
}

unsafe extern "system" fn call(context: *mut c_void, _: bool) {
    // SAFETY: it is what was registered with this function, and it is still there, see above.
    let called = unsafe { &*context.cast::<Called>() };
    let _ = panic::catch_unwind(AssertUnwindSafe(called));
}

/// Waits for a callback that runs.
impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: it was registered, and is ended once.
        unsafe { UnregisterWaitEx(self.registration, INVALID_HANDLE_VALUE) };
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.registration).finish()
    }
}
