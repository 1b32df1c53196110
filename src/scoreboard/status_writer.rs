//! [`StatusWriter`], with which a worker writes to its status slot.

use std::process;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::work::ThreadLease;
use super::{
    BEAT, NESTED_CALL, NOTES, REACHED, READY, RETIRE, SENT, STOP_ALL, STOP_NOTED, STOP_POOL, SlotHandle, TOKEN,
    WORK_DONE,
};
use crate::sys::{Shared, Waker};

/// Writes the messages of one worker to its slot. The segment stays mapped while this value exists, even if the
/// scoreboard is dropped.
#[derive(Debug)]
pub(crate) struct StatusWriter {
    pub(super) segment: Arc<Shared>,
    pub(super) slot: usize,
    pub(super) waker: Arc<Waker>,
    /// The pid of the only process that may send messages through this writer. If the worker forks a process, that
    /// process has a copy of the writer. The forked process may outlive the worker, and its messages would then count
    /// for the next worker in this slot.
    pub(super) pid: u32,
    /// The value of a heartbeat of this process. Each start has a higher one. So a heartbeat of a process that the
    /// worker has left behind does not count for the next worker in this slot, and does not hide its heartbeats.
    pub(super) token: u32,
    /// `None` if the worker is a process.
    pub(super) thread: Option<Box<ThreadPart>>,
}

/// The part of a [`StatusWriter`] that only a worker thread has.
#[derive(Debug)]
pub(super) struct ThreadPart {
    pub(super) counts: Arc<ThreadLease>,
    _lease: Arc<()>,
}

impl StatusWriter {
    /// Creates the writer of a worker thread that is about to be started.
    pub fn at(slot_handle: &SlotHandle<'_>, lease: &Arc<()>) -> StatusWriter {
        let segment = Arc::clone(slot_handle.memory);
        let counts = slot_handle.thread_counts.cloned();
        let thread = counts.map(|counts| Box::new(ThreadPart { counts, _lease: Arc::clone(lease) }));
        let waker = Arc::clone(slot_handle.waker);
        StatusWriter { segment, slot: slot_handle.slot, waker, pid: process::id(), token: slot_handle.token, thread }
    }

    /// Creates the writer of a spawned worker from the shared memory and the waker that it has inherited.
    pub fn given(memory: Shared, slot: usize, waker: Waker) -> StatusWriter {
        let token = memory[slot][TOKEN].load(Ordering::Relaxed);
        StatusWriter {
            segment: Arc::new(memory),
            slot,
            waker: Arc::new(waker),
            pid: process::id(),
            token,
            thread: None,
        }
    }

    pub fn ready(&self) {
        self.send_once(READY);
    }

    pub fn stop_all(&self) {
        self.send_once(STOP_ALL);
    }

    pub fn stop_pool(&self) {
        self.send_once(STOP_POOL);
    }

    pub fn retire(&self) {
        self.send_once(RETIRE);
    }

    pub(super) fn work_done(&self) {
        self.send_once(WORK_DONE);
    }

    /// Records that this process, a spawned worker, has reached its call.
    pub fn reached(&self) {
        self.segment[self.slot][NOTES].fetch_or(REACHED, Ordering::Release);
    }

    /// Records that this process has got a stop request that neither the parent nor the terminal made. Does nothing in
    /// a process that the worker has forked, because its stop request does not concern the worker.
    ///
    /// A signal handler may call this method: it only calls getpid(2) and stores one word. It does not wake the parent,
    /// because the parent reads the word after the process has exited.
    pub fn note_stop(&self) {
        if process::id() == self.pid {
            self.segment[self.slot][NOTES].fetch_or(STOP_NOTED, Ordering::Release);
        }
    }

    /// Records that this process has called a function that starts workers. Does nothing in a process that the worker
    /// has forked, because the exit of that process does not concern the parent.
    pub fn note_nested_call(&self) {
        if process::id() == self.pid {
            self.segment[self.slot][NESTED_CALL].store(self.token, Ordering::Release);
        }
    }

    /// Records in the slot that this process now listens for stop requests. The parent kills a process that does not
    /// listen, instead of requesting its stop.
    #[cfg(windows)]
    pub fn listen(&self) {
        self.segment.note_listener(self.slot);
    }

    pub fn beat(&self) {
        let word = &self.segment[self.slot][BEAT];
        // Most heartbeats find the word set. A load is faster than a write.
        if word.load(Ordering::Relaxed) < self.token {
            word.fetch_max(self.token, Ordering::Relaxed);
        }
    }

    fn send_once(&self, message: u32) {
        let sent = &self.segment[self.slot][SENT];
        let is_sent = |sent: u32| sent & message != 0;
        if is_sent(sent.load(Ordering::Relaxed)) || process::id() != self.pid {
            return;
        }
        if !is_sent(sent.fetch_or(message, Ordering::Release)) {
            self.waker.wake();
        }
    }
}
