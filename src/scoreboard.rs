//! What workers tell the parent: one cache line of shared memory for each process, and a doorbell for what cannot wait.
//!
//! A worker writes to its own line only. The parent believes nothing of it but single words, each a yes or a no, so that a
//! worker gone mad, which writes anywhere, can say something untrue of itself and of the others, and do nothing else.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::exit::Process;
pub(crate) use crate::sys::Waker;
use crate::sys::{self, CallError, Shared, StatusSlot, WakeReceiver, WorkerKind};

/// The words of a line. Those before the beat are said once, and rung for.
const READY: usize = 0;
const STOP_ALL: usize = 1;
const BEAT: usize = 2;

/// What a process has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerMessage {
    Ready(Process),
    StopAll(Process),
}

/// What a program that is started is to be given.
#[derive(Debug)]
pub(crate) struct SlotHandle<'a> {
    pub memory: &'a Arc<Shared>,
    pub slot: usize,
    pub waker: &'a Arc<Waker>,
}

/// The parent's side.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    kind: WorkerKind,
    /// Each as long as all before it together, so that there are few.
    segments: Vec<Segment>,
    /// By line, whose it is.
    occupants: Vec<Option<Occupant>>,
    /// Lines that have had an owner and have none.
    free: Vec<usize>,
    /// Lines that have no owner any more, and to which somebody may still write.
    leased: Vec<(SlotLease, usize)>,
    waker: Arc<Waker>,
}

#[derive(Debug)]
struct Segment {
    /// The first of its lines.
    first: usize,
    shared: Arc<Shared>,
}

/// A process, and what is known of it already.
#[derive(Clone, Copy, Debug)]
struct Occupant {
    process: Process,
    seen: [bool; BEAT],
}

/// A worker's side. (Its segment is the parent's as well, and stays mapped whatever becomes of the scoreboard.)
#[derive(Debug)]
pub(crate) struct StatusWriter {
    segment: Arc<Shared>,
    slot: usize,
    waker: Arc<Waker>,
    /// What this process forks has it as well, and may outlive it, when the line is another's.
    pid: u32,
    _lease: SlotLease,
}

/// A thread may leave its place to somebody who outlives it. As long as others have the tenancy, the line is theirs.
pub(crate) type SlotLease = Option<Arc<()>>;

fn is_over(lease: &SlotLease) -> bool {
    lease.as_ref().is_none_or(|lease| Arc::strong_count(lease) == 1)
}

impl Scoreboard {
    /// With room for so many processes before more memory has to be found.
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

    /// A line for a process that is about to be started: to be [assigned](Scoreboard::assign) when it has been.
    pub fn allocate(&mut self) -> Result<usize, CallError> {
        if self.free.is_empty() {
            let left = self.leased.iter().filter(|(lease, _)| is_over(lease)).map(|(_, slot)| *slot);
            self.free.extend(left);
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

    pub fn assign(&mut self, slot: usize, process: Process) {
        let occupant = Some(Occupant { process, seen: [false; BEAT] });
        if self.free.last() == Some(&slot) {
            self.free.pop();
            self.occupants[slot] = occupant;
        } else {
            self.occupants.push(occupant);
        }
    }

    /// In the process that was started.
    pub fn writer(&self, slot: usize) -> StatusWriter {
        let (segment, slot) = self.locate(slot);
        let (segment, waker) = (Arc::clone(segment), Arc::clone(&self.waker));
        StatusWriter { segment, slot, waker, pid: process::id(), _lease: None }
    }

    /// For a program that is about to be started.
    pub fn slot_handle(&self, slot: usize) -> SlotHandle<'_> {
        let (memory, slot) = self.locate(slot);
        SlotHandle { memory, slot, waker: &self.waker }
    }

    /// What has been said since it was last asked.
    pub fn read_messages(&mut self) -> Vec<WorkerMessage> {
        let mut messages = Vec::new();
        for Segment { first, shared } in &self.segments {
            let occupants = self.occupants.iter_mut().skip(*first);
            messages.extend(
                shared.iter().zip(occupants).flat_map(|(slot, occupant)| messages_of(slot, occupant)).flatten(),
            );
        }
        messages
    }

    /// The last words of one that has ended. Its line is another's when the tenancy is over.
    pub fn release(&mut self, process: Process, lease: SlotLease) -> [Option<WorkerMessage>; BEAT] {
        let is_occupant = |occupant: &Option<Occupant>| occupant.is_some_and(|occupant| occupant.process == process);
        let Some(slot) = self.occupants.iter().position(is_occupant) else { return [None; BEAT] };
        let (segment, at) = self.locate(slot);
        let messages = messages_of(&Arc::clone(segment)[at], &mut self.occupants[slot]);
        self.occupants[slot] = None;
        if is_over(&lease) {
            self.free.push(slot);
        } else {
            self.leased.push((lease, slot));
        }
        messages
    }

    /// Who has given a sign of life since it was last asked.
    pub fn beats(&self) -> impl Iterator<Item = Process> {
        let occupants =
            self.occupants.iter().enumerate().filter_map(|(slot, occupant)| Some((slot, occupant.as_ref()?)));
        occupants.filter(|(slot, _)| take(self.word(*slot, BEAT))).map(|(_, occupant)| occupant.process)
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
    /// In a thread that is about to be started.
    pub fn at(slot_handle: &SlotHandle<'_>, lease: &Arc<()>) -> StatusWriter {
        let (segment, waker) = (Arc::clone(slot_handle.memory), Arc::clone(slot_handle.waker));
        StatusWriter { segment, slot: slot_handle.slot, waker, pid: process::id(), _lease: Some(Arc::clone(lease)) }
    }

    /// In a program that was started.
    pub fn given(memory: Shared, slot: usize, waker: Waker) -> StatusWriter {
        StatusWriter { segment: Arc::new(memory), slot, waker: Arc::new(waker), pid: process::id(), _lease: None }
    }

    pub fn ready(&self) {
        self.say_once(READY);
    }

    pub fn stop_all(&self) {
        self.say_once(STOP_ALL);
    }

    /// From now on this process hears when it is asked to stop.
    #[cfg(windows)]
    pub fn listen(&self) {
        self.segment.note_listener(self.slot);
    }

    pub fn beat(&self) {
        self.segment[self.slot][BEAT].store(1, Ordering::Relaxed);
    }

    fn say_once(&self, word: usize) {
        if process::id() == self.pid && self.segment[self.slot][word].swap(1, Ordering::Release) == 0 {
            self.waker.wake();
        }
    }
}

/// What is new in this line.
fn messages_of(slot: &StatusSlot, occupant: &mut Option<Occupant>) -> [Option<WorkerMessage>; BEAT] {
    let Some(Occupant { process, seen }) = occupant else { return [None; BEAT] };
    let says = [READY, STOP_ALL].map(|word| slot[word].load(Ordering::Acquire) != 0);
    // What is written between two forks is copied for every worker.
    if says == *seen {
        return [None; BEAT];
    }
    let is_new = |word: usize| says[word] && !seen[word];
    let ready = is_new(READY).then_some(WorkerMessage::Ready(*process));
    let messages = [ready, is_new(STOP_ALL).then_some(WorkerMessage::StopAll(*process))];
    *seen = says;
    messages
}

/// Maps memory for this number of slots. A spawned program can only inherit memory that has a descriptor.
fn map(kind: WorkerKind, slots: usize) -> Result<Shared, CallError> {
    if kind == WorkerKind::Spawn { Shared::for_programs(slots) } else { Shared::new(slots) }
}

fn take(word: &AtomicU32) -> bool {
    word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::Relaxed) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: [Option<WorkerMessage>; BEAT] = [None; BEAT];

    fn named(id: usize, generation: u32) -> Process {
        Process { id, generation, pid: Some(71) }
    }

    fn start(board: &mut Scoreboard, process: Process) -> StatusWriter {
        let slot = board.allocate().expect("memory");
        board.assign(slot, process);
        board.writer(slot)
    }

    #[test]
    fn what_a_process_says_is_heard_once() {
        let (mut board, _receiver) = Scoreboard::new(2, WorkerKind::Thread).expect("memory");
        let (first, second) = (start(&mut board, named(0, 0)), start(&mut board, named(1, 0)));
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
    fn the_last_words_of_a_process_are_heard_and_are_not_those_of_the_next_one_on_its_line() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let old = start(&mut board, named(0, 0));
        old.stop_all();
        old.beat();
        assert_eq!(board.release(named(0, 0), None), [None, Some(WorkerMessage::StopAll(named(0, 0)))]);
        assert_eq!(board.release(named(0, 0), None), NOBODY, "it is unknown by now");
        let new = start(&mut board, named(0, 1));
        assert_eq!((board.read_messages(), board.beats().count()), (vec![], 0));
        new.ready();
        assert_eq!(board.read_messages(), [WorkerMessage::Ready(named(0, 1))]);
    }

    #[test]
    fn lines_are_used_again() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        for generation in 0..10_000 {
            start(&mut board, named(0, generation));
            board.release(named(0, generation), None);
        }
        assert_eq!(board.segments.len(), 1);
    }

    #[test]
    fn the_bell_rings_once_for_each_thing_that_is_said_and_is_silent_then() {
        let (mut board, wake_receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let writer = start(&mut board, named(0, 0));
        let rings = || {
            let rings = has_woken(&wake_receiver);
            while !wake_receiver.drain().expect("a wake_receiver") {}
            rings
        };
        assert!(!rings());
        writer.ready();
        assert!(rings() && !rings());
        writer.ready();
        writer.beat();
        assert!(!rings());
        writer.stop_all();
        assert!(rings());
        for _ in 0..1_000_000 {
            writer.waker.wake();
        }
        assert!(rings() && !rings(), "nobody can wake it for ever, nor block on it");
    }

    #[cfg(unix)]
    fn has_woken(wake_receiver: &WakeReceiver) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;

        poll(&mut [PollFd::new(wake_receiver.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).expect("a wake_receiver")
            > 0
    }

    #[cfg(windows)]
    fn has_woken(wake_receiver: &WakeReceiver) -> bool {
        wake_receiver.has_woken()
    }

    #[test]
    fn a_start_that_fails_takes_no_line() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let slot = board.allocate().expect("memory");
        assert_eq!(board.allocate().expect("memory"), slot);
    }

    #[test]
    fn more_processes_than_were_expected_find_room_too() {
        let (mut board, _receiver) = Scoreboard::new(1, WorkerKind::Thread).expect("memory");
        let writers: Vec<StatusWriter> = (0..1000).map(|id| start(&mut board, named(id, 0))).collect();
        for writer in &writers {
            writer.ready();
        }
        assert!(board.read_messages().into_iter().eq((0..1000).map(|id| WorkerMessage::Ready(named(id, 0)))));
    }
}
