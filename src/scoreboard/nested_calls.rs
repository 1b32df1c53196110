//! [`NestedCalls`]: which workers of `fork_processes` have called a function that starts workers.
//!
//! These workers have no status slots, because an access to a slot would cost each of them a page fault. A nested call
//! is rare. So all workers share one page of memory, and only a worker that makes such a call touches it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::exit::Process;
use crate::sys::{CallError, Shared, StatusSlot};

/// The shared memory. The first word is not zero if there was any nested call. Each other word is zero or the
/// [mark](NestedCalls::mark) of a process that has made a nested call.
#[derive(Debug)]
pub(crate) struct NestedCalls(Shared);

impl NestedCalls {
    /// Maps the memory. The parent calls this before it forks the first worker.
    pub fn new() -> Result<NestedCalls, CallError> {
        Ok(NestedCalls(Shared::new(1)?))
    }

    /// Returns the value that stands for this process. It is not the pid, because a process in another pid namespace
    /// does not know the pid that the parent sees.
    ///
    /// Two processes with the same value never exist at the same time: the values of different ids differ, because no
    /// system allows 2^24 processes, and an id has only a few processes, with successive generations. The value is
    /// never zero.
    pub fn mark(id: usize, generation: u32) -> u32 {
        (id as u32).wrapping_add(1) << 8 | generation & 0xff
    }

    /// Records that the process with this mark has made a nested call. Does nothing if every word is in use.
    pub fn note(&self, mark: u32) {
        let is_noted = |word: &AtomicU32| {
            let noted = word.compare_exchange(0, mark, Ordering::Release, Ordering::Relaxed);
            noted.is_ok() || noted == Err(mark)
        };
        self.words().any(is_noted);
        self.any().store(1, Ordering::Release);
    }

    /// Returns whether this process, which has exited, has made a nested call. Frees its words for other processes.
    pub fn take(&self, process: Process) -> bool {
        if self.any().load(Ordering::Acquire) == 0 {
            return false;
        }
        let mark = NestedCalls::mark(process.id, process.generation);
        let take = |word: &&AtomicU32| word.compare_exchange(mark, 0, Ordering::Acquire, Ordering::Relaxed).is_ok();
        self.words().filter(take).count() > 0
    }

    fn any(&self) -> &AtomicU32 {
        &self.0[0][0]
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU32> {
        self.0.iter().flat_map(StatusSlot::words).skip(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(id: usize, generation: u32) -> Process {
        Process { pool: "", id, generation, pid: Some(71) }
    }

    #[test]
    fn each_process_is_taken_once() {
        let calls = NestedCalls::new().expect("memory");
        for (id, generation) in [(0, 0), (0, 1), (1, 0), (255, 0), (1 << 22, 255)] {
            calls.note(NestedCalls::mark(id, generation));
            calls.note(NestedCalls::mark(id, generation));
        }
        assert!(!calls.take(process(1, 1)) && !calls.take(process(2, 0)));
        for (id, generation) in [(1 << 22, 255), (255, 0), (0, 1), (1, 0), (0, 0)] {
            assert!(calls.take(process(id, generation)), "{id} {generation}");
            assert!(!calls.take(process(id, generation)), "{id} {generation}");
        }
    }

    #[test]
    fn repeated_calls_of_one_process_use_one_word() {
        let calls = NestedCalls::new().expect("memory");
        let words = calls.words().count();
        for _ in 0..=words {
            calls.note(NestedCalls::mark(0, 0));
        }
        calls.note(NestedCalls::mark(1, 0));
        assert!(calls.take(process(1, 0)), "not every word is in use");
    }

    #[test]
    fn a_freed_word_does_not_hide_later_ones() {
        let calls = NestedCalls::new().expect("memory");
        calls.note(NestedCalls::mark(0, 0));
        calls.note(NestedCalls::mark(1, 0));
        assert!(calls.take(process(0, 0)));
        calls.note(NestedCalls::mark(1, 0));
        assert!(calls.take(process(1, 0)));
        assert!(!calls.take(process(1, 0)), "both of its words were freed");
    }

    #[test]
    fn a_full_page_is_no_error() {
        let calls = NestedCalls::new().expect("memory");
        let words = calls.words().count();
        for id in 0..=words {
            calls.note(NestedCalls::mark(id, 0));
        }
        assert!(calls.take(process(words - 1, 0)) && !calls.take(process(words, 0)));
    }
}
