//! Waits for any number of objects, with threads of the system's pool.
//!
//! # Safety
//! RegisterWaitForSingleObject requires that the object stays open while the wait is registered, and the callback needs
//! its closure. A [`Watch`] owns both. Dropping it first calls UnregisterWaitEx with `INVALID_HANDLE_VALUE`, which
//! returns only after every callback has returned.

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

/// A registered wait, which calls a closure when an object is signalled. Dropping this value ends it.
pub(super) struct Watch {
    registration: HANDLE,
    /// Boxed twice, because the callback gets a thin pointer, and `Called` is a wide one.
    _called: Box<Called>,
    _object: Arc<OwnedHandle>,
}

type Called = Box<dyn Fn() + Send + Sync>;

// SAFETY: UnregisterWaitEx may be called by any thread, and the closure is Send and Sync.
unsafe impl Send for Watch {}
// SAFETY: the only method that takes `&self` formats the address of the registration.
unsafe impl Sync for Watch {}

impl Watch {
    /// Calls the closure each time the object is signalled. The object must be an auto-reset event, because the closure
    /// would otherwise be called again and again.
    pub fn each(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEDEFAULT)
    }

    /// Calls the closure when the object is signalled for the first time. The closure may take long, because the system
    /// then calls others in another thread (`WT_EXECUTELONGFUNCTION`).
    pub fn once(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEONLYONCE | WT_EXECUTELONGFUNCTION)
    }

    fn register(object: &Arc<OwnedHandle>, called: Called, flags: u32) -> Result<Watch, CallError> {
        let called = Box::new(called);
        let context = ptr::from_ref(&*called).cast::<c_void>();
        let mut registration = ptr::null_mut();
        // SAFETY: the call writes one handle. The object stays open and the context stays valid while the wait is
        // registered; see the module's safety section.
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
    // SAFETY: the system passes the context that was registered with this function: a `Called` that still exists; see
    // the module's safety section.
    let called = unsafe { &*context.cast::<Called>() };
    let _ = panic::catch_unwind(AssertUnwindSafe(called));
}

/// Waits until every callback that runs has returned.
impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: RegisterWaitForSingleObject has returned this registration, and only this call ends it.
        unsafe { UnregisterWaitEx(self.registration, INVALID_HANDLE_VALUE) };
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.registration).finish()
    }
}
