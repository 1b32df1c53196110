//! The wakers of the tasks that wait for one stop request.
//!
//! The wakers contain code of the program and of its async runtime. So no method calls this code while it holds the
//! lock: the code may drop or poll another future, which locks the set again.

use std::collections::BTreeMap;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// The place of one future's waker in a [`WakerSet`].
pub(crate) type WakerKey = u64;

/// The wakers of all futures that have been polled and are neither complete nor dropped.
#[derive(Debug, Default)]
pub(crate) struct WakerSet(Mutex<Wakers>);

#[derive(Debug, Default)]
struct Wakers {
    waiting: BTreeMap<WakerKey, Waker>,
    last_key: WakerKey,
}

impl WakerSet {
    /// Stores the waker of a future, instead of the waker that is stored under this key. Returns the future's key.
    pub fn set(&self, key: Option<WakerKey>, waker: &Waker) -> WakerKey {
        if let Some(key) = key {
            let is_stored = self.lock().waiting.get(&key).is_some_and(|stored| stored.will_wake(waker));
            if is_stored {
                return key;
            }
        }
        let waker = waker.clone();
        let mut wakers = self.lock();
        let key = key.unwrap_or_else(|| {
            wakers.last_key += 1;
            wakers.last_key
        });
        let replaced = wakers.waiting.insert(key, waker);
        drop(wakers);
        drop(replaced);
        key
    }

    pub fn remove(&self, key: WakerKey) {
        let removed = self.lock().waiting.remove(&key);
        drop(removed);
    }

    /// Wakes every task that has stored a waker, and removes the wakers. If a waker panics, the others still wake
    /// their tasks.
    pub fn wake_all(&self) {
        let waiting = mem::take(&mut self.lock().waiting);
        for waker in waiting.into_values() {
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| waker.wake())) {
                // The destructor of the payload is code of the program, and may panic too.
                mem::forget(payload);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wakers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }
}
