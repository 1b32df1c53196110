//! Calls closures when objects are signalled. Threads of the system's thread pool wait for the objects and run the
//! closures.
//!
//! # Safety
//! RegisterWaitForSingleObject requires that the object stays open while the wait is registered. The callback uses a
//! closure, which must also exist while the wait is registered. A [`Watch`] owns the object and the closure. Dropping a
//! [`Watch`] first calls UnregisterWaitEx with `INVALID_HANDLE_VALUE`. That call returns only after every callback has
//! returned. Only then are the object and the closure dropped.

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

/// A registered wait, which calls a closure when an object is signalled. Dropping this value ends the wait.
pub(super) struct Watch {
    registration: HANDLE,
    /// The closure, boxed twice. The system passes a thin pointer to the callback, but a pointer to a `dyn Fn` is wide.
    _called: Box<Called>,
    _object: Arc<OwnedHandle>,
}

type Called = Box<dyn Fn() + Send + Sync>;

// SAFETY: any thread may call UnregisterWaitEx, and the closure is Send and Sync.
unsafe impl Send for Watch {}
// SAFETY: the only method that takes `&self` is `fmt`, which formats the address of the registration.
unsafe impl Sync for Watch {}

impl Watch {
    /// Calls the closure each time the object is signalled. The object must be an auto-reset event. Otherwise the
    /// object could stay signalled, and the system would call the closure again and again.
    pub fn each(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEDEFAULT)
    }

    /// Calls the closure when the object is signalled for the first time. The closure may run for a long time, because
    /// the flag `WT_EXECUTELONGFUNCTION` makes the system run other callbacks in other threads.
    pub fn once(object: &Arc<OwnedHandle>, called: impl Fn() + Send + Sync + 'static) -> Result<Watch, CallError> {
        Watch::register(object, Box::new(called), WT_EXECUTEONLYONCE | WT_EXECUTELONGFUNCTION)
    }

    fn register(object: &Arc<OwnedHandle>, called: Called, flags: u32) -> Result<Watch, CallError> {
        let called = Box::new(called);
        let context = ptr::from_ref(&*called).cast::<c_void>();
        let mut registration = ptr::null_mut();
        // SAFETY: RegisterWaitForSingleObject writes one handle. While the wait is registered, the object stays open
        // and the context stays valid; see the module's safety section.
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
    // SAFETY: the system passes the context that was registered together with this function. The context points to a
    // `Called` that still exists; see the module's safety section.
    let called = unsafe { &*context.cast::<Called>() };
    let _ = panic::catch_unwind(AssertUnwindSafe(called));
}

/// Ends the wait. Blocks until every callback that is running has returned.
impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: RegisterWaitForSingleObject has returned this registration, and no other call ends the registration.
        unsafe { UnregisterWaitEx(self.registration, INVALID_HANDLE_VALUE) };
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.registration).finish()
    }
}
