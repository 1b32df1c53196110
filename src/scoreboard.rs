//! Messages from workers to the parent: a status slot in shared memory for each process, and a doorbell that wakes the
//! parent.
//!
//! A slot is one cache line. A worker writes to its own slot only. The parent reads single words and takes each as a
//! yes or a no. So a worker that corrupts the shared memory can fake messages of any worker, but can do no other harm
//! to the parent.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::exit::Process;
pub(crate) use crate::sys::Waker;
use crate::sys::{self, CallError, Shared, StatusSlot, WakeReceiver, WorkerKind};

/// The words of a slot. A worker sets each word before `BEAT` only once, and wakes the parent when it does.
const READY: usize = 0;
const STOP_ALL: usize = 1;
const BEAT: usize = 2;

/// A message from a process. A heartbeat is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerMessage {
    Ready(Process),
    StopAll(Process),
}

/// The access to a slot that a worker thread or a spawned worker needs.
#[derive(Debug)]
pub(crate) struct SlotHandle<'a> {
    pub memory: &'a Arc<Shared>,
    pub slot: usize,
    pub waker: &'a Arc<Waker>,
}

/// The parent's end of the shared memory.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    kind: WorkerKind,
    /// Each new segment is as large as all earlier ones together, so that there are few.
    segments: Vec<Segment>,
    /// The process that uses each slot, by slot.
    occupants: Vec<Option<Occupant>>,
    /// The released slots, which can be used again.
    free: Vec<usize>,
    /// The slots whose process has ended, but to which a thread may still write.
    leased: Vec<(SlotLease, usize)>,
    waker: Arc<Waker>,
}

#[derive(Debug)]
struct Segment {
    /// The number of the first slot in this segment.
    first: usize,
    shared: Arc<Shared>,
}

/// The process that uses a slot.
#[derive(Clone, Copy, Debug)]
struct Occupant {
    process: Process,
    /// The messages that were read already, by word.
    seen: [bool; BEAT],
}

/// The worker's end of a slot. It keeps the segment mapped, even if the scoreboard is dropped.
#[derive(Debug)]
pub(crate) struct StatusWriter {
    segment: Arc<Shared>,
    slot: usize,
    waker: Arc<Waker>,
    /// The process that may send messages. A process that the worker forks has a copy of this, and may outlive the
    /// worker and write when the slot is another worker's.
    pid: u32,
    _lease: SlotLease,
}

/// A worker thread's claim on its slot. `None` for processes.
///
/// The thread may pass its [`StatusWriter`] to a thread that outlives it. The slot is not used again while a writer
/// holds a clone of the lease.
pub(crate) type SlotLease = Option<Arc<()>>;

fn is_over(lease: &SlotLease) -> bool {
    lease.as_ref().is_none_or(|lease| Arc::strong_count(lease) == 1)
}

impl Scoreboard {
    /// Creates a scoreboard. It has room for this number of processes, and grows if there are more.
    pub fn new(processes: usize, kind: WorkerKind) -> Result<(Scoreboard, WakeReceiver), CallError> {
        let (wake_receiver, waker) = sys::doorbell()?;
        let segments = vec![Segment { first: 0, shared: Arc::new(map(kind, processes)?) }];
        Ok((
            Scoreboard {
                kind,
                segments,
                occupants: Vec::new(),
                free: Vec::new(),
                leased: Vec::new(),
                waker: Arc::new(waker),
            },
            wake_receiver,
        ))
    }

    /// Returns a cleared slot for a process that is about to be started. [Assign](Scoreboard::assign) the slot once the
    /// process was started; until then this returns the same slot again.
    pub fn allocate(&mut self) -> Result<usize, CallError> {
        if self.free.is_empty() {
            let released = self.leased.iter().filter(|(lease, _)| is_over(lease)).map(|(_, slot)| *slot);
            self.free.extend(released);
            self.leased.retain(|(lease, _)| !is_over(lease));
        }
        let slot = self.free.last().copied().unwrap_or(self.occupants.len());
        let len = self.segments.iter().map(|segment| segment.shared.len()).sum();
        if slot >= len {
            self.segments.push(Segment { first: len, shared: Arc::new(map(self.kind, len)?) });
        }
        for word in [READY, STOP_ALL, BEAT] {
            self.word(slot, word).store(0, Ordering::Relaxed);
        }
        Ok(slot)
    }

    /// Records that the process uses the slot that [`Scoreboard::allocate`] returned last.
    pub fn assign(&mut self, slot: usize, process: Process) {
        let occupant = Some(Occupant { process, seen: [false; BEAT] });
        if self.free.last() == Some(&slot) {
            self.free.pop();
            self.occupants[slot] = occupant;
        } else {
            self.occupants.push(occupant);
        }
    }

    /// Returns the writer for a slot, in the worker that was just forked.
    pub fn writer(&self, slot: usize) -> StatusWriter {
        let (segment, slot) = self.locate(slot);
        let segment = Arc::clone(segment);
        StatusWriter { segment, slot, waker: Arc::clone(&self.waker), pid: process::id(), _lease: None }
    }

    /// Returns what a worker thread or a spawned worker needs to use this slot.
    pub fn slot_handle(&self, slot: usize) -> SlotHandle<'_> {
        let (memory, slot) = self.locate(slot);
        SlotHandle { memory, slot, waker: &self.waker }
    }

    /// Returns the messages that have come since the last call.
    pub fn read_messages(&mut self) -> Vec<WorkerMessage> {
        let mut messages = Vec::new();
        for Segment { first, shared } in &self.segments {
            let occupants = self.occupants.iter_mut().skip(*first);
            messages.extend(
                shared.iter().zip(occupants).flat_map(|(slot, occupant)| new_messages(slot, occupant)).flatten(),
            );
        }
        messages
    }

    /// Frees the slot of a process that has ended, and returns its messages that were not read yet. The slot can be
    /// used again once no writer holds the lease.
    pub fn release(&mut self, process: Process, lease: SlotLease) -> [Option<WorkerMessage>; BEAT] {
        let is_occupant = |occupant: &Option<Occupant>| occupant.is_some_and(|occupant| occupant.process == process);
        let Some(slot) = self.occupants.iter().position(is_occupant) else { return [None; BEAT] };
        let (segment, at) = self.locate(slot);
        let messages = new_messages(&Arc::clone(segment)[at], &mut self.occupants[slot]);
        self.occupants[slot] = None;
        if is_over(&lease) {
            self.free.push(slot);
        } else {
            self.leased.push((lease, slot));
        }
        messages
    }

    /// Returns the processes that have called [`heartbeat`](crate::Worker::heartbeat) since the last call.
    pub fn beats(&self) -> impl Iterator<Item = Process> {
        let occupants =
            self.occupants.iter().enumerate().filter_map(|(slot, occupant)| Some((slot, occupant.as_ref()?)));
        occupants.filter(|(slot, _)| take_flag(self.word(*slot, BEAT))).map(|(_, occupant)| occupant.process)
    }

    fn word(&self, slot: usize, word: usize) -> &AtomicU32 {
        let (segment, slot) = self.locate(slot);
        &segment[slot][word]
    }

    fn locate(&self, slot: usize) -> (&Arc<Shared>, usize) {
        let Segment { first, shared } =
            &self.segments[self.segments.partition_point(|segment| segment.first <= slot) - 1];
        (shared, slot - first)
    }
}

impl StatusWriter {
    /// Returns the writer for a thread that is about to be started.
    pub fn at(slot_handle: &SlotHandle<'_>, lease: &Arc<()>) -> StatusWriter {
        let segment = Arc::clone(slot_handle.memory);
        let waker = Arc::clone(slot_handle.waker);
        StatusWriter { segment, slot: slot_handle.slot, waker, pid: process::id(), _lease: Some(Arc::clone(lease)) }
    }

    /// Returns the writer of a spawned worker, made from what it inherited.
    pub fn given(memory: Shared, slot: usize, waker: Waker) -> StatusWriter {
        StatusWriter { segment: Arc::new(memory), slot, waker: Arc::new(waker), pid: process::id(), _lease: None }
    }

    pub fn ready(&self) {
        self.send_once(READY);
    }

    pub fn stop_all(&self) {
        self.send_once(STOP_ALL);
    }

    /// Records in the slot that this process waits for the stop event from now on.
    #[cfg(windows)]
    pub fn listen(&self) {
        self.segment.note_listener(self.slot);
    }

    pub fn beat(&self) {
        self.segment[self.slot][BEAT].store(1, Ordering::Relaxed);
    }

    fn send_once(&self, word: usize) {
        if process::id() == self.pid && self.segment[self.slot][word].swap(1, Ordering::Release) == 0 {
            self.waker.wake();
        }
    }
}

/// Returns the messages in a slot that were not read before.
fn new_messages(slot: &StatusSlot, occupant: &mut Option<Occupant>) -> [Option<WorkerMessage>; BEAT] {
    let Some(Occupant { process, seen }) = occupant else { return [None; BEAT] };
    let set = [READY, STOP_ALL].map(|word| slot[word].load(Ordering::Acquire) != 0);
    // Write to `seen` only if it changes: every page that the parent writes between two forks is copied for each worker
    // (copy-on-write).
    if set == *seen {
        return [None; BEAT];
    }
    let is_new = |word: usize| set[word] && !seen[word];
    let ready = is_new(READY).then_some(WorkerMessage::Ready(*process));
    let messages = [ready, is_new(STOP_ALL).then_some(WorkerMessage::StopAll(*process))];
    *seen = set;
    messages
}

/// Maps memory for this number of slots. A spawned program can only inherit memory that has a descriptor.
fn map(kind: WorkerKind, slots: usize) -> Result<Shared, CallError> {
    if kind == WorkerKind::Spawn { Shared::for_programs(slots) } else { Shared::new(slots) }
}

fn take_flag(word: &AtomicU32) -> bool {
    word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::Relaxed) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [Option<WorkerMessage>; BEAT] = [None; BEAT];

    fn named(id: usize, generation: u32) -> Process {
        Process { id, generation, pid: Some(71) }
    }

    fn start(board: &mut Scoreboard, process: Process) -> StatusWriter {
        let slot = board.allocate().expect("memory");
        board.assign(slot, process);
        board.writer(slot)
    }

    #[test]
    fn each_message_is_read_once() {
        let (mut board, _receiver) = Scoreboard::new(2, WorkerKind::Thread).expect("memory");
        let first = start(&mut board, named(0, 0));
        let second = start(&mut board, named(1, 0));
        assert_eq!(board.read_messages(), []);
        second.ready();
        first.stop_all();
        second.ready();
        assert_eq!(board.read_messages(), [WorkerMessage::StopAll(named(0, 0)), WorkerMessage::Ready(named(1, 0))]);
        second.ready();
        assert_eq!(board.read_messages(), []);
        first.beat();
        assert!(board.beats().eq([named(0, 0)]));
        assert!(board.beats().eq([]));
    }

    #[test]
    fn only_release_returns_the_unread_messages_of_an_exit() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let old = start(&mut board, named(0, 0));
        old.stop_all();
        old.beat();
        assert_eq!(board.release(named(0, 0), None), [None, Some(WorkerMessage::StopAll(named(0, 0)))]);
        assert_eq!(board.release(named(0, 0), None), NONE, "the slot is free already");
        let new = start(&mut board, named(0, 1));
        assert_eq!(board.read_messages(), []);
        assert_eq!(board.beats().count(), 0);
        new.ready();
        assert_eq!(board.read_messages(), [WorkerMessage::Ready(named(0, 1))]);
    }

    #[test]
    fn released_slots_are_used_again() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        for generation in 0..10_000 {
            start(&mut board, named(0, generation));
            board.release(named(0, generation), None);
        }
        assert_eq!(board.segments.len(), 1);
    }

    #[test]
    fn each_message_wakes_the_parent_once() {
        let (mut board, wake_receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let writer = start(&mut board, named(0, 0));
        let wakes = || {
            let wakes = has_woken(&wake_receiver);
            while !wake_receiver.drain().expect("a doorbell") {}
            wakes
        };
        assert!(!wakes());
        writer.ready();
        assert!(wakes() && !wakes());
        writer.ready();
        writer.beat();
        assert!(!wakes());
        writer.stop_all();
        assert!(wakes());
        for _ in 0..1_000_000 {
            writer.waker.wake();
        }
        assert!(wakes() && !wakes(), "many calls neither block nor wake it for ever");
    }

    #[cfg(unix)]
    fn has_woken(wake_receiver: &WakeReceiver) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;

        poll(&mut [PollFd::new(wake_receiver.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).expect("a doorbell") > 0
    }

    #[cfg(windows)]
    fn has_woken(wake_receiver: &WakeReceiver) -> bool {
        wake_receiver.has_woken()
    }

    #[test]
    fn a_failed_start_takes_no_slot() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let slot = board.allocate().expect("memory");
        assert_eq!(board.allocate().expect("memory"), slot);
    }

    #[test]
    fn the_scoreboard_grows_beyond_its_first_size() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let writers: Vec<StatusWriter> = (0..1000).map(|id| start(&mut board, named(id, 0))).collect();
        for writer in &writers {
            writer.ready();
        }
        assert!(board.read_messages().into_iter().eq((0..1000).map(|id| WorkerMessage::Ready(named(id, 0)))));
    }
}
