//! A function that is available only during a call.
//!
//! # Safety
//! A [`Lent`] stores a pointer to a function without its lifetime. The pointer is stored only while [`Lent::lend`]
//! runs, which borrows the function for this time. `lend` removes the pointer before it returns, also if it unwinds. A
//! `Lent` is not [`Sync`], so the pointer is used only by the thread that runs `lend`.

use std::cell::Cell;
use std::mem;

/// A place for a function that another function on the same stack provides. A thread-local variable of this type
/// connects the two.
pub(crate) struct Lent<A: 'static, R: 'static>(Cell<Option<Pointer<A, R>>>);

type Pointer<A, R> = *const (dyn Fn(&A) -> R + 'static);

impl<A, R> Lent<A, R> {
    pub const fn nothing() -> Lent<A, R> {
        Lent(Cell::new(None))
    }

    /// Runs a closure. While it runs, [`Lent::call`] calls `function`.
    pub fn lend<T>(&self, function: &dyn Fn(&A) -> R, run: impl FnOnce() -> T) -> T {
        /// Removes the pointer when it is dropped, and puts the pointer of an outer call back.
        struct Guard<'a, A: 'static, R: 'static>(&'a Lent<A, R>, Option<Pointer<A, R>>);

        impl<A, R> Drop for Guard<'_, A, R> {
            fn drop(&mut self) {
                self.0.0.set(self.1);
            }
        }

        // SAFETY: this changes only the lifetime of the pointer's type. The guard removes the pointer before the
        // lifetime of `function` ends: see the top of this file.
        let pointer = unsafe { mem::transmute::<*const (dyn Fn(&A) -> R + '_), Pointer<A, R>>(function) };
        let _guard = Guard(self, self.0.replace(Some(pointer)));
        run()
    }

    /// Calls the lent function. Returns `None` if no call of [`Lent::lend`] is on the stack of this thread.
    pub fn call(&self, argument: &A) -> Option<R> {
        // SAFETY: the pointer is stored, so `lend` runs further down on this thread's stack, and the function is
        // borrowed until `lend` returns. See the top of this file.
        self.0.get().map(|function| unsafe { (*function)(argument) })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};

    use super::*;

    #[test]
    fn a_lent_function_is_available_during_the_call_only() {
        let lent = Lent::<u32, String>::nothing();
        let text = String::from("number");
        let name = |number: &u32| format!("{text} {number}");
        assert_eq!(lent.call(&1), None);
        assert_eq!(lent.lend(&name, || lent.call(&2)), Some("number 2".into()));
        assert_eq!(lent.call(&3), None);
    }

    #[test]
    fn a_panic_takes_the_lent_function_back() {
        let lent = Lent::<(), u32>::nothing();
        let fails = || lent.lend(&|()| 7, || panic::resume_unwind(Box::new(())));
        assert!(panic::catch_unwind(AssertUnwindSafe(fails)).is_err());
        assert_eq!(lent.call(&()), None);
    }

    #[test]
    fn an_inner_call_hides_the_outer_function() {
        let lent = Lent::<(), u32>::nothing();
        lent.lend(&|()| 1, || {
            lent.lend(&|()| 2, || assert_eq!(lent.call(&()), Some(2)));
            assert_eq!(lent.call(&()), Some(1));
        });
    }
}
