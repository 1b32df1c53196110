//! Messages from workers to the parent. Each worker has a status slot in shared memory, where it writes its messages. A
//! doorbell (a socket pair; on Windows an event) then wakes the parent, which reads the slots.
//!
//! Each pool has its own scoreboard. A slot is one cache line. A worker writes only to its own slot. The parent relies
//! on nothing in a slot: any value of a word is valid. So a worker that corrupts the shared memory can forge messages
//! and work counts of any worker of its pool, but cannot harm the parent in any other way.

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
mod adopted;
#[cfg(unix)]
mod nested_calls;
mod status_writer;
mod work;

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::exit::Process;
#[cfg(unix)]
use crate::sys::CAN_UPGRADE;
pub(crate) use crate::sys::Waker;
use crate::sys::{CallError, Shared, StatusSlot, WorkCounts, WorkerKind};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) use adopted::{BoardState, OccupantState};
#[cfg(unix)]
pub(crate) use nested_calls::NestedCalls;
pub(crate) use status_writer::StatusWriter;
use work::ThreadLease;
pub(crate) use work::{Work, WorkMeter};

/// The indexes of the words in a slot. On Windows, `sys` uses the word 5.
///
/// The messages that the worker has sent. Each bit is one kind of message, in the order of [`WorkerMessage`]. A worker
/// sets each bit at most once, and then wakes the parent.
const SENT: usize = 0;
/// The worker sets this word at each heartbeat, without waking the parent.
const BEAT: usize = 1;
/// The token of the process that uses the slot, which a spawned worker reads once.
const TOKEN: usize = 2;
/// Facts that the parent reads only after the process has exited: the bits [`REACHED`] and [`STOP_NOTED`].
const NOTES: usize = 3;
/// The token of the process, once it has called a function that starts workers. The parent reads this word only after
/// the process has exited.
const NESTED_CALL: usize = 4;

/// The bits of [`SENT`].
const READY: u32 = 1;
const STOP_ALL: u32 = 2;
const STOP_POOL: u32 = 4;
const RETIRE: u32 = 8;
/// The process has completed as many units of work as its limit allows.
const WORK_DONE: u32 = 16;

/// Set in [`NOTES`] when a spawned worker's call has recognized it.
const REACHED: u32 = 1;
/// Set in [`NOTES`] when the process has got a stop request that neither the parent nor the terminal made.
const STOP_NOTED: u32 = 2;

/// A message from a worker to the parent. Heartbeats are not messages: [`Scoreboard::beats`] returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerMessage {
    Ready(Process),
    StopAll(Process),
    StopPool(Process),
    Retire(Process),
    WorkDone(Process),
}

/// The number of kinds of messages.
const MESSAGES: usize = 5;

/// The messages of one process that the parent has not read before.
type NewMessages = [Option<WorkerMessage>; MESSAGES];

/// The parts that give a worker thread or a spawned worker access to its slot: the shared memory, the index of the slot
/// in this memory, and the waker.
#[derive(Debug)]
pub(crate) struct SlotHandle<'a> {
    pub memory: &'a Arc<Shared>,
    pub slot: usize,
    pub token: u32,
    pub waker: &'a Arc<Waker>,
    /// The work counts of a worker thread. `None` for a process, because its counts are in its slot.
    pub thread_counts: Option<&'a Arc<ThreadLease>>,
}

/// The parent's side of the shared memory: assigns the slots to processes, and reads the messages of the workers.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    kind: WorkerKind,
    /// The mapped pieces of shared memory. Each new segment is as large as all earlier segments together, so that the
    /// number of segments stays small.
    segments: Vec<Segment>,
    /// The process that uses each slot. The index is the number of the slot.
    occupants: Vec<Option<Occupant>>,
    /// The numbers of released slots. New processes can use these slots.
    free: Vec<usize>,
    /// The numbers of the slots of ended worker threads that another thread may still write to. A new process must not
    /// use these slots until their leases are over.
    leased: Vec<(SlotLease, usize)>,
    /// The work counts of the worker thread in each slot. Empty if the workers are processes.
    thread_counts: Vec<Arc<ThreadLease>>,
    /// The token of the slot that was allocated last.
    token: u32,
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
    /// The bits of [`SENT`] that the parent has already read.
    seen: u32,
    token: u32,
}

/// The messages that the parent reads after the end of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LastMessages {
    /// The messages that the parent had not read before.
    pub unread: NewMessages,
    /// Whether the process had called [`StatusWriter::note_stop`].
    pub stop_noted: bool,
    /// Whether the process had called [`StatusWriter::note_nested_call`].
    pub nested_call: bool,
    /// The work counts of the process.
    pub work: Work,
}

/// Keeps the slot of a worker thread from being used again. `None` for a worker process.
///
/// The [`StatusWriter`] of a worker thread holds a clone of the lease. The thread may move the writer to another
/// thread, which may outlive the worker thread. The slot can be used again once the clone of the lease is dropped.
pub(crate) type SlotLease = Option<Arc<()>>;

fn is_over(lease: &SlotLease) -> bool {
    lease.as_ref().is_none_or(|lease| Arc::strong_count(lease) == 1)
}

impl Scoreboard {
    /// Creates a scoreboard with slots for `processes` processes. The scoreboard grows if there are more processes. The
    /// workers wake the parent through `waker`.
    pub fn new(processes: usize, kind: WorkerKind, waker: Arc<Waker>) -> Result<Scoreboard, CallError> {
        let segments = vec![Segment { first: 0, shared: Arc::new(map(kind, processes)?) }];
        Ok(Scoreboard {
            kind,
            segments,
            occupants: Vec::new(),
            free: Vec::new(),
            leased: Vec::new(),
            thread_counts: Vec::new(),
            token: 0,
            waker,
        })
    }

    /// Returns the number of a cleared slot, for a process that is about to be started. After the start,
    /// [assign](Scoreboard::assign) the slot to the process. Before that, another call of this method returns the same
    /// slot again.
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
        for word in [SENT, BEAT, NOTES, NESTED_CALL] {
            self.word(slot, word).store(0, Ordering::Relaxed);
        }
        self.reset_work(slot);
        // Zero is no token. After 2^32 starts the tokens begin again.
        self.token = self.token.wrapping_add(1).max(1);
        self.word(slot, TOKEN).store(self.token, Ordering::Relaxed);
        Ok(slot)
    }

    /// Resets the work counts of a slot. A worker thread gets counts that no earlier thread can change.
    fn reset_work(&mut self, slot: usize) {
        if self.kind != WorkerKind::Thread {
            return self.counts(slot).reset();
        }
        let counts = Arc::new(ThreadLease::new());
        match self.thread_counts.get_mut(slot) {
            Some(earlier) => *earlier = counts,
            None => self.thread_counts.push(counts),
        }
    }

    /// Sets the number of completed units of work at which the worker sends [`WorkerMessage::WorkDone`]. `None` is no
    /// limit. `slot` must be the slot that [`Scoreboard::allocate`] has just returned.
    pub fn limit_work(&self, slot: usize, limit: Option<u64>) {
        self.counts(slot).limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Records that `process` uses `slot`, which must be the slot that [`Scoreboard::allocate`] has just returned.
    pub fn assign(&mut self, slot: usize, process: Process) {
        let occupant = Some(Occupant { process, seen: 0, token: self.token });
        if self.free.last() == Some(&slot) {
            self.free.pop();
            self.occupants[slot] = occupant;
        } else {
            self.occupants.push(occupant);
        }
    }

    /// Returns the writer of the slot that was allocated last. A forked worker calls this for its own slot.
    pub fn writer(&self, slot: usize) -> StatusWriter {
        let (segment, slot) = self.locate(slot);
        let segment = Arc::clone(segment);
        let waker = Arc::clone(&self.waker);
        StatusWriter { segment, slot, waker, pid: process::id(), token: self.token, thread: None }
    }

    /// Returns the handle that gives a worker thread or a spawned worker access to this slot.
    pub fn slot_handle(&self, number: usize) -> SlotHandle<'_> {
        let (memory, slot) = self.locate(number);
        let thread_counts = self.thread_counts.get(number);
        SlotHandle { memory, slot, token: self.token, waker: &self.waker, thread_counts }
    }

    /// Returns the messages that workers have sent since the last call.
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

    /// Returns whether this process has reached its call. A forked worker and a worker thread are started in the call,
    /// so they have always reached it. So has a process without a slot, which another program has started in a pool
    /// without shared memory. Read this before the slot is [released](Scoreboard::release).
    pub fn has_reached(&self, process: Process) -> bool {
        if self.kind != WorkerKind::Spawn {
            return true;
        }
        let is_occupant = |occupant: &Option<Occupant>| occupant.is_some_and(|occupant| occupant.process == process);
        let slot = self.occupants.iter().position(is_occupant);
        slot.is_none_or(|slot| self.word(slot, NOTES).load(Ordering::Acquire) & REACHED != 0)
    }

    /// Releases the slot of a process that has ended. Returns the last messages of this process. A new process can use
    /// the slot once no [`StatusWriter`] holds a clone of `lease`.
    pub fn release(&mut self, process: Process, lease: SlotLease) -> LastMessages {
        let is_occupant = |occupant: &Option<Occupant>| occupant.is_some_and(|occupant| occupant.process == process);
        let Some(slot) = self.occupants.iter().position(is_occupant) else { return LastMessages::default() };
        let stop_noted = self.word(slot, NOTES).load(Ordering::Acquire) & STOP_NOTED != 0;
        let is_of_process = |token| self.occupants[slot].is_some_and(|occupant| occupant.token == token);
        let nested_call = is_of_process(self.word(slot, NESTED_CALL).load(Ordering::Acquire));
        let work = self.counts(slot).read();
        let (segment, at) = self.locate(slot);
        let unread = new_messages(&Arc::clone(segment)[at], &mut self.occupants[slot]);
        self.occupants[slot] = None;
        if is_over(&lease) {
            self.free.push(slot);
        } else {
            self.leased.push((lease, slot));
        }
        LastMessages { unread, stop_noted, nested_call, work }
    }

    /// Returns the processes that have called [`heartbeat`](crate::Worker::heartbeat) since the last call.
    pub fn beats(&self) -> impl Iterator<Item = Process> {
        let occupants =
            self.occupants.iter().enumerate().filter_map(|(slot, occupant)| Some((slot, occupant.as_ref()?)));
        occupants
            .filter(|(slot, occupant)| take_token(self.word(*slot, BEAT), occupant.token))
            .map(|(_, occupant)| occupant.process)
    }

    /// Returns the work counts of all processes.
    pub fn works(&self) -> impl Iterator<Item = (Process, Work)> {
        let occupants = self.occupants.iter().enumerate();
        occupants.filter_map(|(slot, occupant)| Some((occupant.as_ref()?.process, self.counts(slot).read())))
    }

    /// Sets whether the workers that are forked from now on have this memory. Without it, a worker of another pool
    /// cannot send messages in the name of this pool's workers.
    #[cfg(unix)]
    pub fn set_inherited(&self, yes: bool) -> Result<(), CallError> {
        self.segments.iter().try_for_each(|segment| segment.shared.set_inherited(yes))
    }

    /// Closes the files of the memory in a forked worker. The worker must not drop the scoreboard. A worker of the same
    /// pool may go on using its slot.
    #[cfg(unix)]
    pub fn close_inherited(&self) {
        self.segments.iter().for_each(|segment| segment.shared.close_file_in_child());
    }

    fn word(&self, slot: usize, word: usize) -> &AtomicU32 {
        let (segment, slot) = self.locate(slot);
        &segment[slot][word]
    }

    fn counts(&self, slot: usize) -> &WorkCounts {
        if let Some(counts) = self.thread_counts.get(slot) {
            return counts.counts();
        }
        let (segment, slot) = self.locate(slot);
        &segment[slot].work
    }

    fn locate(&self, slot: usize) -> (&Arc<Shared>, usize) {
        let Segment { first, shared } =
            &self.segments[self.segments.partition_point(|segment| segment.first <= slot) - 1];
        (shared, slot - first)
    }
}

/// Returns the messages in a slot that the parent has not read before. Each message is new once, even if the worker
/// clears its bits.
fn new_messages(slot: &StatusSlot, occupant: &mut Option<Occupant>) -> NewMessages {
    let Some(Occupant { process, seen, .. }) = occupant else { return NewMessages::default() };
    let unread = slot[SENT].load(Ordering::Acquire) & !*seen;
    // Write to `seen` only if it changes. After a fork, the kernel copies each page that the parent writes to
    // (copy-on-write).
    if unread == 0 {
        return NewMessages::default();
    }
    let messages = [
        WorkerMessage::Ready,
        WorkerMessage::StopAll,
        WorkerMessage::StopPool,
        WorkerMessage::Retire,
        WorkerMessage::WorkDone,
    ];
    let new = std::array::from_fn(|kind| (unread >> kind & 1 != 0).then(|| messages[kind](*process)));
    *seen |= unread;
    new
}

/// Maps memory for this number of slots. If the workers are spawned, the memory has a descriptor (on Windows, a
/// handle), because a spawned worker can inherit memory only through a descriptor or handle. Forked workers of other
/// pools do not have this memory. The memory of forked workers has a descriptor if the parent can be upgraded, because
/// the new program maps the memory again. Without it, for example because of a limit (`RLIMIT_FSIZE`), the service
/// works, but cannot be upgraded.
fn map(kind: WorkerKind, slots: usize) -> Result<Shared, CallError> {
    #[cfg(unix)]
    if kind == WorkerKind::Fork && CAN_UPGRADE {
        return Shared::for_programs(slots).or_else(|_| Shared::new(slots));
    }
    if kind != WorkerKind::Spawn {
        return Shared::new(slots);
    }
    let shared = Shared::for_programs(slots)?;
    #[cfg(unix)]
    shared.set_inherited(false)?;
    Ok(shared)
}

/// Returns whether the word has this token, and clears the word if so. Also clears a higher value, which no heartbeat
/// of this process could replace. Such a value comes from a worker that writes to wrong memory.
fn take_token(word: &AtomicU32, token: u32) -> bool {
    let value = word.load(Ordering::Relaxed);
    value >= token && word.compare_exchange(value, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() && value == token
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{self, Drained, WakeReceiver};

    pub(super) fn named(id: usize, generation: u32) -> Process {
        Process { pool: "", id, generation, pid: Some(71) }
    }

    pub(super) fn new_board(processes: usize, kind: WorkerKind) -> (Scoreboard, WakeReceiver) {
        let (wake_receiver, waker) = sys::doorbell().expect("a doorbell");
        (Scoreboard::new(processes, kind, Arc::new(waker)).expect("memory"), wake_receiver)
    }

    pub(super) fn start(board: &mut Scoreboard, process: Process) -> StatusWriter {
        let slot = board.allocate().expect("memory");
        board.assign(slot, process);
        board.writer(slot)
    }

    #[test]
    fn each_message_is_read_once() {
        let (mut board, _receiver) = new_board(2, WorkerKind::Thread);
        let first = start(&mut board, named(0, 0));
        let second = start(&mut board, named(1, 0));
        assert_eq!(board.read_messages(), []);
        second.ready();
        first.stop_all();
        second.ready();
        assert_eq!(board.read_messages(), [WorkerMessage::StopAll(named(0, 0)), WorkerMessage::Ready(named(1, 0))]);
        second.ready();
        assert_eq!(board.read_messages(), []);
        second.retire();
        assert_eq!(board.read_messages(), [WorkerMessage::Retire(named(1, 0))]);
        second.retire();
        assert_eq!(board.read_messages(), []);
        first.stop_pool();
        assert_eq!(board.read_messages(), [WorkerMessage::StopPool(named(0, 0))]);
        first.stop_pool();
        assert_eq!(board.read_messages(), []);
        first.beat();
        assert!(board.beats().eq([named(0, 0)]));
        assert!(board.beats().eq([]));
    }

    #[test]
    fn an_overwritten_slot_repeats_no_message() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let writer = start(&mut board, named(0, 0));
        writer.retire();
        assert_eq!(board.read_messages(), [WorkerMessage::Retire(named(0, 0))]);
        for sent in [0, RETIRE, RETIRE | 1 << 31] {
            board.word(0, SENT).store(sent, Ordering::Relaxed);
            assert_eq!(board.read_messages(), []);
        }
    }

    #[test]
    fn release_returns_the_unread_messages_of_an_exited_process() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let old = start(&mut board, named(0, 0));
        old.stop_all();
        old.beat();
        let unread = [None, Some(WorkerMessage::StopAll(named(0, 0))), None, None, None];
        assert_eq!(board.release(named(0, 0), None), LastMessages { unread, ..LastMessages::default() });
        assert_eq!(board.release(named(0, 0), None), LastMessages::default(), "the slot is free already");
        let new = start(&mut board, named(0, 1));
        assert_eq!(board.read_messages(), []);
        assert_eq!(board.beats().count(), 0);
        new.ready();
        assert_eq!(board.read_messages(), [WorkerMessage::Ready(named(0, 1))]);
    }

    #[test]
    fn reaching_the_call_is_recorded_for_one_process() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Spawn);
        let old = start(&mut board, named(0, 0));
        assert!(!board.has_reached(named(0, 0)));
        old.reached();
        assert!(board.has_reached(named(0, 0)));
        board.release(named(0, 0), None);
        assert!(board.has_reached(named(0, 0)), "it has no slot any more");
        start(&mut board, named(0, 1));
        assert!(!board.has_reached(named(0, 1)), "the slot was cleared");
    }

    #[test]
    fn a_noted_stop_is_read_after_the_end_of_its_process() {
        let (mut board, wake_receiver) = new_board(1, WorkerKind::Thread);
        let old = start(&mut board, named(0, 0));
        old.note_stop();
        assert!(!has_woken(&wake_receiver));
        assert_eq!(board.read_messages(), []);
        let noted = LastMessages { stop_noted: true, ..LastMessages::default() };
        assert_eq!(board.release(named(0, 0), None), noted);
        start(&mut board, named(0, 1));
        assert_eq!(board.release(named(0, 1), None), LastMessages::default(), "the slot was cleared");
    }

    #[test]
    fn a_nested_call_is_read_after_the_end_of_its_process() {
        let (mut board, wake_receiver) = new_board(1, WorkerKind::Thread);
        start(&mut board, named(0, 0)).note_nested_call();
        assert!(!has_woken(&wake_receiver));
        let noted = LastMessages { nested_call: true, ..LastMessages::default() };
        assert_eq!(board.release(named(0, 0), None), noted);
        start(&mut board, named(0, 1));
        assert_eq!(board.release(named(0, 1), None), LastMessages::default(), "the slot was cleared");
    }

    #[test]
    fn a_late_nested_call_does_not_count() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let old = start(&mut board, named(0, 0));
        board.release(named(0, 0), None);
        start(&mut board, named(0, 1));
        old.note_nested_call();
        assert_eq!(board.release(named(0, 1), None), LastMessages::default());
    }

    #[test]
    fn a_late_heartbeat_neither_counts_nor_hides_the_successors() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let old = start(&mut board, named(0, 0));
        old.beat();
        assert!(board.beats().eq([named(0, 0)]));
        board.release(named(0, 0), None);
        let new = start(&mut board, named(0, 1));
        old.beat();
        assert_eq!(board.beats().count(), 0);
        new.beat();
        old.beat();
        assert!(board.beats().eq([named(0, 1)]));
        old.beat();
        new.beat();
        assert!(board.beats().eq([named(0, 1)]));
        assert_eq!(board.beats().count(), 0);
    }

    #[test]
    fn an_overwritten_slot_does_not_hide_later_heartbeats() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let writer = start(&mut board, named(0, 0));
        board.word(0, BEAT).store(u32::MAX, Ordering::Relaxed);
        writer.beat();
        assert_eq!(board.beats().count(), 0);
        writer.beat();
        assert!(board.beats().eq([named(0, 0)]));
    }

    #[test]
    fn released_slots_are_used_again() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        for generation in 0..10_000 {
            start(&mut board, named(0, generation));
            board.release(named(0, generation), None);
        }
        assert_eq!(board.segments.len(), 1);
    }

    #[test]
    fn each_message_wakes_the_parent_once() {
        let (mut board, wake_receiver) = new_board(1, WorkerKind::Thread);
        let writer = start(&mut board, named(0, 0));
        let wakes = || {
            let wakes = has_woken(&wake_receiver);
            while wake_receiver.drain().expect("a doorbell") == Drained::Partly {}
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
        writer.stop_pool();
        assert!(wakes());
        writer.retire();
        assert!(wakes());
        writer.retire();
        assert!(!wakes());
        for _ in 0..1_000_000 {
            writer.waker.wake();
        }
        assert!(wakes() && !wakes(), "many calls of wake() do not block, and drain() clears all of them");
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
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let slot = board.allocate().expect("memory");
        assert_eq!(board.allocate().expect("memory"), slot);
    }

    #[test]
    fn the_scoreboard_grows_beyond_its_first_size() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let writers: Vec<StatusWriter> = (0..1000).map(|id| start(&mut board, named(id, 0))).collect();
        for writer in &writers {
            writer.ready();
        }
        assert!(board.read_messages().into_iter().eq((0..1000).map(|id| WorkerMessage::Ready(named(id, 0)))));
    }

    #[test]
    fn a_leased_slot_is_used_again_after_its_lease() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let slot = board.allocate().expect("memory");
        let lease = Arc::new(());
        let writer = StatusWriter::at(&board.slot_handle(slot), &lease);
        board.assign(slot, named(0, 0));
        writer.ready();
        assert_eq!(board.read_messages(), [WorkerMessage::Ready(named(0, 0))]);
        board.release(named(0, 0), Some(lease));
        let other = board.allocate().expect("memory");
        assert_ne!(other, slot, "the thread's writer may still write to its slot");
        board.assign(other, named(0, 1));
        drop(writer);
        assert_eq!(board.allocate().expect("memory"), slot);
        board.assign(slot, named(0, 2));
        assert_eq!(board.allocate().expect("memory"), 2, "the other slots are in use");
    }

    #[test]
    fn a_lease_that_is_over_frees_the_slot_at_once() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        start(&mut board, named(0, 0));
        board.release(named(0, 0), Some(Arc::new(())));
        assert_eq!(board.allocate().expect("memory"), 0);
    }

    #[test]
    fn processes_forked_by_a_worker_send_no_messages() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let worker = start(&mut board, named(0, 0));
        let forked = StatusWriter { pid: worker.pid + 1, ..worker };
        forked.ready();
        forked.stop_all();
        forked.stop_pool();
        forked.note_stop();
        forked.note_nested_call();
        forked.retire();
        assert_eq!(board.read_messages(), []);
        assert_eq!(board.release(named(0, 0), None), LastMessages::default());
    }

    #[test]
    fn a_spawned_worker_sends_heartbeats_with_the_token_of_its_slot() {
        let memory = Shared::new(3).expect("memory");
        memory[2][TOKEN].store(71, Ordering::Relaxed);
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let writer = StatusWriter::given(memory, 2, waker);
        writer.beat();
        assert_eq!(writer.segment[2][BEAT].load(Ordering::Relaxed), 71);
    }
}
