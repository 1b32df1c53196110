//! Waiting for any number of objects, with threads of the system's pool.
//!
//! # Safety
//! Whatever a callback uses lives as long as its registration. The registration ends only when no callback runs any
//! more.

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

/// A registration: a closure is called when an object is signalled, as long as this value exists.
pub(super) struct Watch {
    registration: HANDLE,
    /// Boxed twice, because the callback gets one thin pointer.
    _called: Box<Called>,
    _object: Arc<OwnedHandle>,
}

type Called = Box<dyn Fn() + Send + Sync>;

// SAFETY: any thread may end a registration, and the closure may run in any thread.
unsafe impl Send for Watch {}
// SAFETY: a reference to it allows nothing.
unsafe impl Sync for Watch {}

impl Watch {
    /// Calls the closure each time. The object must be an auto-reset event.
    pub fn each(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEDEFAULT)
    }

    /// Calls the closure the first time. It may take long.
    pub fn once(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEONLYONCE | WT_EXECUTELONGFUNCTION)
    }

    fn register(object: &Arc<OwnedHandle>, called: Called, flags: u32) -> Result<Watch, CallError> {
        let called = Box::new(called);
        let context = ptr::from_ref(&*called).cast::<c_void>();
        let mut registration = ptr::null_mut();
        // SAFETY: the object is open, and it and the context outlive the registration; see the module's safety
        // section.
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
    // SAFETY: the pointer was registered with this function, and what it points to still exists; see the module's
    // safety section.
    let called = unsafe { &*context.cast::<Called>() };
    let _ = panic::catch_unwind(AssertUnwindSafe(called));
}

/// Waits for a callback that is running.
impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: the registration exists, and is ended once.
        unsafe { UnregisterWaitEx(self.registration, INVALID_HANDLE_VALUE) };
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.registration).finish()
    }
}
