//! The work counts: how many units of work each worker has started and completed. A [`WorkMeter`] counts them in the
//! worker. The scoreboard reads them in the parent.
//!
//! A unit of work may outlive the worker's handle, so it needs memory that stays valid. The counts of a worker process
//! are in its status slot, which stays mapped until the process ends. The counts of a worker thread are in a
//! [`ThreadCounts`], which is never freed. So a unit needs no reference count, which would cost more than the counts.
//!
//! An atomic addition takes 5 ns or more. So one thread of each worker, the first that begins a unit, has values of its
//! own: it is their only writer, and writes them without an atomic addition.

use std::cell::Cell;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::StatusWriter;
use crate::sys::{self, UnitCounts, WorkCounts};

/// The counts of a worker, as the parent has read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub in_progress: u64,
    pub completed: u64,
}

impl WorkCounts {
    /// Resets the counts, for a worker that is about to be started. Removes the limit.
    pub(super) fn reset(&self) {
        let WorkCounts { owned, shared, limit } = self;
        for count in [&owned.started, &owned.completed, &shared.started, &shared.completed, limit] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Reads the counts. A worker may count meanwhile, or may have written any values to its slot.
    pub(super) fn read(&self) -> Work {
        let sum = |owned: &AtomicU64, shared: &AtomicU64| {
            owned.load(Ordering::Acquire).wrapping_add(shared.load(Ordering::Acquire))
        };
        // In this order, because each unit is started before it is completed.
        let completed = sum(&self.owned.completed, &self.shared.completed);
        let started = sum(&self.owned.started, &self.shared.started);
        Work { in_progress: started.saturating_sub(completed), completed }
    }
}

thread_local! {
    /// The [id](WorkMeter::id) of the meter whose `owned` values this thread writes. Zero if there is none.
    static OWNED_METER: Cell<u64> = const { Cell::new(0) };
}

/// Counts the units of one worker, in any of its threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkMeter {
    counts: &'static WorkCounts,
    /// No other meter of this process has the same id.
    id: u64,
    worker: MeteredWorker,
}

/// The worker to which a meter belongs.
#[derive(Clone, Copy, Debug)]
enum MeteredWorker {
    Process(&'static StatusWriter),
    Thread(&'static ThreadCounts),
}

/// A number of units that is larger than the error of [`WorkMeter::complete`], which reads a value that other threads
/// may be writing.
const MARGIN: u64 = 256;

impl WorkMeter {
    /// Returns the meter of this process, which is a worker. Returns `None` in a process that the worker has forked
    /// before its first unit.
    pub fn of_process(status: &'static StatusWriter) -> Option<WorkMeter> {
        if process::id() != status.pid {
            return None;
        }
        sys::watch_forks();
        Some(WorkMeter::new(&status.segment[status.slot].work, MeteredWorker::Process(status)))
    }

    /// Returns the meter of a worker thread. Returns `None` if the worker is a process.
    pub fn of_thread(status: &Arc<StatusWriter>) -> Option<WorkMeter> {
        let counts = status.thread.as_ref()?.counts.0;
        let meter = WorkMeter::new(&counts.counts, MeteredWorker::Thread(counts));
        *lock(&counts.user) = User { meter: meter.id, status: Arc::downgrade(status) };
        Some(meter)
    }

    /// Creates the only meter of these counts. This thread becomes the writer of their `owned` values.
    fn new(counts: &'static WorkCounts, worker: MeteredWorker) -> WorkMeter {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        OWNED_METER.set(id);
        WorkMeter { counts, id, worker }
    }

    /// Counts the start of a unit. Returns whether the unit counts: in a process that the worker has forked, it does
    /// not.
    #[inline]
    pub fn start(&self) -> bool {
        if sys::is_fork() {
            return false;
        }
        self.add_one(|counts| &counts.started, Ordering::Relaxed);
        true
    }

    /// Counts the end of a unit that [`WorkMeter::start`] has counted. Wakes the parent if the worker has reached its
    /// limit. Does nothing in a process that the worker has forked, which has a copy of each unit in progress.
    #[inline]
    pub fn complete(&self) {
        if sys::is_fork() {
            return;
        }
        self.add_one(|counts| &counts.completed, Ordering::Release);
        let limit = self.counts.limit.load(Ordering::Relaxed);
        if limit != 0 && self.completed().saturating_add(MARGIN) >= limit {
            self.check_limit(limit);
        }
    }

    #[inline]
    fn add_one(&self, count: impl Fn(&UnitCounts) -> &AtomicU64, order: Ordering) {
        if OWNED_METER.get() == self.id {
            let count = count(&self.counts.owned);
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), order);
        } else {
            count(&self.counts.shared).fetch_add(1, order);
        }
    }

    #[inline]
    fn completed(&self) -> u64 {
        let WorkCounts { owned, shared, .. } = self.counts;
        owned.completed.load(Ordering::Relaxed).wrapping_add(shared.completed.load(Ordering::Relaxed))
    }

    /// Wakes the parent if the worker has completed as many units as its limit allows.
    #[cold]
    fn check_limit(&self, limit: u64) {
        // After the fences of two threads, at least one of the threads reads the value that the other one has written.
        fence(Ordering::SeqCst);
        if self.completed() < limit {
            return;
        }
        match self.worker {
            MeteredWorker::Process(status) => status.work_done(),
            MeteredWorker::Thread(counts) => counts.send_done(self.id),
        }
    }
}

/// The counts of one worker thread, in a cache line of their own. Later worker threads use them again.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct ThreadCounts {
    counts: WorkCounts,
    user: Mutex<User>,
}

/// The worker thread that has used the counts last.
#[derive(Debug, Default)]
struct User {
    /// The id of its meter.
    meter: u64,
    status: Weak<StatusWriter>,
}

impl ThreadCounts {
    /// Sends the message of this meter. Does nothing if the worker of the meter has ended.
    fn send_done(&self, meter: u64) {
        // If the lock is not free, another unit of the worker sends the message. In a fork of this process, the lock
        // may never become free.
        let Ok(user) = self.user.try_lock() else { return };
        if let Some(status) = user.status.upgrade().filter(|_| user.meter == meter) {
            drop(user);
            status.work_done();
        }
    }

    /// Returns whether no unit is in progress.
    fn are_idle(&self) -> bool {
        self.counts.read().in_progress == 0
    }
}

/// The counts that no worker thread and no scoreboard uses. Some of them may still have units in progress.
static UNUSED: Mutex<Vec<&'static ThreadCounts>> = Mutex::new(Vec::new());

/// The counts of a worker thread. While this value exists, no other worker thread uses them. Afterwards, another worker
/// thread can use them once no unit is in progress. So a unit that ends late does not count for that worker.
#[derive(Debug)]
pub(crate) struct ThreadLease(&'static ThreadCounts);

impl ThreadLease {
    pub fn new() -> ThreadLease {
        let mut unused = lock(&UNUSED);
        let idle = unused.iter().position(|counts| counts.are_idle());
        let counts = idle.map(|at| unused.swap_remove(at)).unwrap_or_else(|| Box::leak(Box::default()));
        counts.counts.reset();
        ThreadLease(counts)
    }

    pub fn counts(&self) -> &WorkCounts {
        &self.0.counts
    }
}

impl Drop for ThreadLease {
    fn drop(&mut self) {
        lock(&UNUSED).push(self.0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::exit::Process;
    use crate::scoreboard::tests::{named, new_board, start};
    use crate::scoreboard::{Scoreboard, WorkerMessage};
    use crate::sys::WorkerKind;

    /// Starts a process, and returns its meter.
    fn start_process(board: &mut Scoreboard, process: Process, limit: Option<u64>) -> WorkMeter {
        let slot = board.allocate().expect("memory");
        board.limit_work(slot, limit);
        board.assign(slot, process);
        WorkMeter::of_process(Box::leak(Box::new(board.writer(slot)))).expect("a meter")
    }

    /// Starts a worker thread. The parent has its own clone of `lease`, as for a real thread.
    fn start_thread(
        board: &mut Scoreboard,
        process: Process,
        lease: &Arc<()>,
        limit: Option<u64>,
    ) -> (Arc<StatusWriter>, WorkMeter) {
        let slot = board.allocate().expect("memory");
        board.limit_work(slot, limit);
        let status = Arc::new(StatusWriter::at(&board.slot_handle(slot), lease));
        board.assign(slot, process);
        let meter = WorkMeter::of_thread(&status).expect("a meter");
        (status, meter)
    }

    fn work_of(board: &Scoreboard, process: Process) -> Work {
        board.works().find(|(known, _)| *known == process).map(|(_, work)| work).unwrap_or_default()
    }

    fn complete_one(meter: &WorkMeter) {
        assert!(meter.start());
        meter.complete();
    }

    #[test]
    fn units_of_all_threads_are_counted() {
        let (mut board, _receiver) = new_board(2, WorkerKind::Spawn);
        let meter = start_process(&mut board, named(0, 0), None);
        start(&mut board, named(1, 0));
        assert!(meter.start() && meter.start());
        thread::scope(|scope| {
            scope.spawn(|| {
                meter.complete();
                assert!(meter.start());
            });
        });
        let own = Work { in_progress: 2, completed: 1 };
        assert_eq!(work_of(&board, named(0, 0)), own);
        assert!(board.works().eq([(named(0, 0), own), (named(1, 0), Work::default())]));
        thread::scope(|scope| {
            scope.spawn(|| (0..2).for_each(|_| meter.complete()));
        });
        assert_eq!(work_of(&board, named(0, 0)), Work { in_progress: 0, completed: 3 });
    }

    #[test]
    fn concurrent_threads_lose_no_unit() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Spawn);
        let meter = start_process(&mut board, named(0, 0), None);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..20_000).for_each(|_| complete_one(&meter)));
            }
            (0..20_000).for_each(|_| complete_one(&meter));
        });
        assert_eq!(work_of(&board, named(0, 0)), Work { in_progress: 0, completed: 80_000 });
    }

    #[test]
    fn the_unit_that_reaches_the_limit_sends_a_message() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Spawn);
        let meter = start_process(&mut board, named(0, 0), Some(MARGIN + 3));
        (0..MARGIN + 2).for_each(|_| complete_one(&meter));
        assert!(meter.start());
        assert_eq!(board.read_messages(), []);
        meter.complete();
        assert_eq!(board.read_messages(), [WorkerMessage::WorkDone(named(0, 0))]);
        complete_one(&meter);
        assert_eq!(board.read_messages(), []);
    }

    #[test]
    fn without_a_limit_no_unit_sends_a_message() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Spawn);
        let limited = start_process(&mut board, named(0, 0), Some(1));
        complete_one(&limited);
        assert_eq!(board.read_messages(), [WorkerMessage::WorkDone(named(0, 0))]);
        board.release(named(0, 0), None);
        let status = Box::leak(Box::new(start(&mut board, named(0, 1))));
        complete_one(&WorkMeter::of_process(status).expect("a meter"));
        assert_eq!(board.read_messages(), [], "the slot was cleared");
    }

    #[test]
    fn the_limit_counts_the_units_of_all_threads() {
        for _ in 0..50 {
            let (mut board, _receiver) = new_board(1, WorkerKind::Spawn);
            let meter = start_process(&mut board, named(0, 0), Some(900));
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| (0..300).for_each(|_| complete_one(&meter)));
                }
                (0..300).for_each(|_| complete_one(&meter));
            });
            assert_eq!(board.read_messages(), [WorkerMessage::WorkDone(named(0, 0))]);
        }
    }

    #[test]
    fn release_returns_the_work_of_an_exited_process() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Spawn);
        let meter = start_process(&mut board, named(0, 0), None);
        complete_one(&meter);
        assert!(meter.start());
        assert_eq!(board.release(named(0, 0), None).work, Work { in_progress: 1, completed: 1 });
        start(&mut board, named(0, 1));
        assert_eq!(work_of(&board, named(0, 1)), Work::default(), "the slot was cleared");
    }

    #[test]
    fn a_late_unit_of_a_thread_counts_for_no_other() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let lease = Arc::new(());
        let (old_status, old) = start_thread(&mut board, named(0, 0), &lease, Some(1));
        assert!(old.start());
        drop(old_status);
        assert_eq!(board.release(named(0, 0), Some(lease)).work, Work { in_progress: 1, completed: 0 });
        let lease = Arc::new(());
        let (_status, new) = start_thread(&mut board, named(0, 1), &lease, Some(2));
        assert!(new.start());
        old.complete();
        assert_eq!(work_of(&board, named(0, 1)), Work { in_progress: 1, completed: 0 });
        new.complete();
        assert_eq!(board.read_messages(), []);
        complete_one(&new);
        assert_eq!(board.read_messages(), [WorkerMessage::WorkDone(named(0, 1))]);
        assert_eq!(work_of(&board, named(0, 1)), Work { in_progress: 0, completed: 2 });
    }

    #[test]
    fn counts_with_a_unit_in_progress_are_not_reused() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let mut first = None;
        for generation in 0..10 {
            let lease = Arc::new(());
            let (status, meter) = start_thread(&mut board, named(0, generation), &lease, None);
            assert!(meter.start());
            if generation > 0 {
                meter.complete();
            }
            let first = first.get_or_insert(meter);
            drop(status);
            board.release(named(0, generation), Some(lease));
            assert_eq!(first.counts.read(), Work { in_progress: 1, completed: 0 });
        }
    }

    #[test]
    fn a_unit_outlives_the_memory_of_its_service() {
        let (mut board, receiver) = new_board(1, WorkerKind::Thread);
        let (status, meter) = start_thread(&mut board, named(0, 0), &Arc::default(), Some(1));
        assert!(meter.start());
        drop((status, board, receiver));
        meter.complete();
    }

    #[test]
    fn counts_of_ended_threads_are_used_again() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let mut used: Vec<*const ThreadCounts> = Vec::new();
        for generation in 0..1000 {
            let lease = Arc::new(());
            let (status, meter) = start_thread(&mut board, named(0, generation), &lease, None);
            complete_one(&meter);
            used.extend(status.thread.as_ref().map(|thread| &raw const *thread.counts.0));
            drop(status);
            board.release(named(0, generation), Some(lease));
        }
        used.sort();
        used.dedup();
        // Other tests use the same list at the same time.
        assert!(used.len() < 100, "{}", used.len());
    }

    #[test]
    fn a_thread_that_owned_reused_counts_shares_them() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let (_status, meter) = start_thread(&mut board, named(0, 0), &Arc::default(), None);
        complete_one(&meter);
        let later = WorkMeter { id: meter.id + 1_000_000, ..meter };
        complete_one(&later);
        let WorkCounts { owned, shared, .. } = meter.counts;
        let completed = [owned, shared].map(|counts| counts.completed.load(Ordering::Relaxed));
        assert_eq!(completed, [1, 1]);
    }

    #[test]
    fn an_earlier_user_of_counts_sends_no_message() {
        let (mut board, _receiver) = new_board(1, WorkerKind::Thread);
        let (status, meter) = start_thread(&mut board, named(0, 0), &Arc::default(), Some(1));
        let counts = status.thread.as_ref().expect("a thread").counts.0;
        counts.send_done(meter.id - 1);
        assert_eq!(board.read_messages(), []);
        counts.send_done(meter.id);
        assert_eq!(board.read_messages(), [WorkerMessage::WorkDone(named(0, 0))]);
    }

    #[test]
    fn forged_counts_are_no_error() {
        let counts = WorkCounts::default();
        counts.shared.completed.store(u64::MAX, Ordering::Relaxed);
        counts.owned.completed.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(counts.read(), Work { in_progress: 0, completed: u64::MAX - 1 });
    }
}
