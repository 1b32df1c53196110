//! Finds the children that have exited, and queues their exits.
//!
//! A SIGCHLD names one child, and the reaper reaps that child at once. But signals coalesce, so other children may have
//! exited without a signal of their own. Two kinds of searches find these children. The time of such a search grows
//! with the number of children, so each kind is limited to a share of the parent's time:
//!
//! - A *scan* asks the system for an exited child again and again, until there is none left. Each time, the system
//!   walks its list of all children up to the first one that has exited. Each SIGCHLD requests a scan. Scans take at
//!   most a tenth of the parent's time.
//! - A search for *missed* exits finds the children that other code in this process has reaped. The system no longer
//!   lists these children, so the search checks the pid of each worker. The parent requests this search after each scan
//!   (on Unix) and before timeouts. These searches take at most a hundredth of the parent's time.
//!
//! A process has only one reaper, because a scan finds all children of the process: the children of every launcher, the
//! children that the program itself has started, and also orphans (see [`strangers`](super::strangers)).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::children::Children;
use super::strangers::Strangers;
use crate::backend::ChildExit;
use crate::error::Result;
use crate::sys;

/// Limits scans to a tenth of the parent's time. Pauses of less than a millisecond are skipped, because the parent
/// cannot wait for so short a time.
const SCAN: Limit =
    Limit { factor: 10, shortest_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(100) };

/// Limits searches for missed exits to a hundredth of the parent's time. On Windows these searches are not limited. The
/// Windows thread that reports exits may be late, and the parent must find such an exit before it runs timeouts.
const MISSED: Limit = Limit {
    factor: if cfg!(unix) { 100 } else { 0 },
    shortest_pause: Duration::ZERO,
    longest_pause: Duration::from_secs(1),
};

#[derive(Debug)]
pub(super) struct Reaper {
    exits: VecDeque<ChildExit>,
    scan: Search,
    missed: Search,
    strangers: Strangers,
}

impl Reaper {
    pub fn new() -> Reaper {
        Reaper {
            exits: VecDeque::new(),
            scan: Search::new(SCAN),
            missed: Search::new(MISSED),
            strangers: Strangers::default(),
        }
    }

    /// Queues exits that a launcher has reported.
    pub fn add(&mut self, exits: impl IntoIterator<Item = ChildExit>) {
        self.exits.extend(exits);
    }

    pub fn next_exit(&mut self) -> Option<ChildExit> {
        self.exits.pop_front()
    }

    /// Handles SIGCHLD: reaps the child that the signal names, and requests a scan. The scan does not run at once,
    /// because it takes time. So the parent can replace the reaped child before the scan.
    pub fn handle_child_signal(&mut self, pid: Option<u32>, children: &mut Children) -> Result<()> {
        self.scan.request();
        if let Some(pid) = pid {
            self.exits.extend(children.reap(pid)?);
        }
        Ok(())
    }

    pub fn is_scan_due(&self, now: Instant) -> bool {
        self.scan.is_due(now) || self.strangers.is_due(now)
    }

    /// Reaps every child that has exited.
    pub fn scan(&mut self, children: &mut Children) -> Result<()> {
        let begun = Instant::now();
        let before = self.exits.len();
        self.reap_all(children)?;
        let now = Instant::now();
        // The system has walked its list of children once for each exit, and once more to find that there is none left.
        // Only the last walk has found nothing, so the pause is in proportion to the duration of one walk.
        let walks = (self.exits.len() - before + 1) as u32;
        self.scan.finish((now - begun) / walks, now);
        if cfg!(unix) {
            // The SIGCHLD that requested this scan may belong to a child that other code has already reaped.
            self.search_missed(now, children)?;
        }
        Ok(())
    }

    /// Searches for missed exits if a search is requested and the pause after the last search is over.
    /// `before_timeouts` means that timeouts are about to run. In this case the function requests a search itself. It
    /// also ends the pause between scans, so that a requested scan runs at once.
    pub fn collect_missed(&mut self, before_timeouts: bool, now: Instant, children: &mut Children) -> Result<()> {
        if before_timeouts {
            self.scan.end_pause();
        }
        if before_timeouts || self.missed.is_due(now) {
            self.search_missed(now, children)?;
        }
        Ok(())
    }

    pub fn has_exits(&self) -> bool {
        !self.exits.is_empty()
    }

    /// Returns whether a scan is requested or an exit is not handled yet. Timeouts must wait as long as this is true.
    pub fn is_busy(&self) -> bool {
        self.scan.is_requested || self.has_exits()
    }

    /// Returns the time at which the next requested search may run, or `None` if no search is requested.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let searches = [&self.scan, &self.missed].into_iter().filter_map(|search| search.next_deadline(now));
        searches.chain(self.strangers.next_deadline()).min()
    }

    fn reap_all(&mut self, children: &mut Children) -> Result<()> {
        self.strangers.reap_due(Instant::now(), children)?;
        while let Some(pid) = sys::peek_exited()? {
            if let Some(exit) = children.reap(pid)? {
                self.exits.push_back(exit);
            } else {
                // Until this stranger is reaped, `peek_exited` may return it every time, and never an exited worker. So
                // this checks each worker instead.
                self.strangers.note(Instant::now());
                return children.reap_each(&mut self.exits);
            }
        }
        Ok(())
    }

    fn search_missed(&mut self, now: Instant, children: &mut Children) -> Result<()> {
        self.missed.request();
        if !self.missed.is_due(now) {
            return Ok(());
        }
        let begun = Instant::now();
        let pids = children.missed();
        let now = Instant::now();
        self.missed.finish(now - begun, now);
        for pid in pids {
            self.exits.extend(children.reap(pid)?);
        }
        Ok(())
    }
}

/// The limit on the share of time that a kind of search may take. After each search there is a pause of `factor` times
/// the duration of the search.
#[derive(Clone, Copy, Debug)]
struct Limit {
    factor: u32,
    /// A pause that would be shorter than this is skipped.
    shortest_pause: Duration,
    /// The upper limit of the pause. It is necessary because a search takes very long if this process is stopped
    /// (SIGSTOP) during the search.
    longest_pause: Duration,
}

/// The state of one kind of search: whether a search is requested, and when it may run.
#[derive(Debug)]
struct Search {
    limit: Limit,
    is_requested: bool,
    /// The end of the pause after the last search.
    not_before: Option<Instant>,
}

impl Search {
    fn new(limit: Limit) -> Search {
        Search { limit, is_requested: false, not_before: None }
    }

    fn request(&mut self) {
        self.is_requested = true;
    }

    fn is_due(&self, now: Instant) -> bool {
        self.is_requested && self.not_before.is_none_or(|at| at <= now)
    }

    /// Returns the time at which the requested search may run, or `None` if none is requested.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.is_requested.then(|| self.not_before.unwrap_or(now))
    }

    /// Lets the next requested search run at once.
    fn end_pause(&mut self) {
        self.not_before = None;
    }

    /// Records that a search has ended at `now` and has taken `spent`, and begins the pause after it.
    fn finish(&mut self, spent: Duration, now: Instant) {
        let pause = (spent * self.limit.factor).min(self.limit.longest_pause);
        self.is_requested = false;
        self.not_before = (pause >= self.limit.shortest_pause).then(|| now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const TENTH: Limit = Limit { factor: 10, shortest_pause: ms(5), longest_pause: ms(100) };

    #[test]
    fn a_search_runs_only_on_request() {
        let now = Instant::now();
        let mut search = Search::new(TENTH);
        assert!(!search.is_due(now));
        assert_eq!(search.next_deadline(now), None);
        search.request();
        assert!(search.is_due(now));
        assert_eq!(search.next_deadline(now), Some(now));
        search.finish(ms(2), now);
        assert!(!search.is_due(now + ms(1000)));
        assert_eq!(search.next_deadline(now), None);
    }

    #[test]
    fn a_search_pauses_in_proportion_to_its_duration() {
        let now = Instant::now();
        let mut search = Search::new(TENTH);
        search.finish(ms(2), now);
        search.request();
        assert!(!search.is_due(now + ms(19)));
        assert!(search.is_due(now + ms(20)));
        assert_eq!(search.next_deadline(now), Some(now + ms(20)));
    }

    #[test]
    fn short_pauses_are_left_out_and_long_ones_limited() {
        let now = Instant::now();
        let mut search = Search::new(TENTH);
        search.finish(Duration::from_micros(499), now);
        search.request();
        assert!(search.is_due(now));
        search.finish(Duration::from_micros(500), now);
        search.request();
        assert!(!search.is_due(now));
        search.finish(ms(60_000), now);
        search.request();
        assert_eq!(search.next_deadline(now), Some(now + ms(100)));
    }

    #[test]
    fn a_pause_can_be_ended() {
        let now = Instant::now();
        let mut search = Search::new(TENTH);
        search.finish(ms(9), now);
        search.end_pause();
        assert!(!search.is_due(now), "no search was requested");
        search.request();
        assert!(search.is_due(now));
    }

    #[cfg(target_os = "linux")]
    mod processes {
        use std::process::Child;

        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        use nix::unistd::Pid;

        use super::super::super::children::tests::{register, spawn};
        use super::*;
        use crate::exit::{Exit, Process};
        use crate::sys::ChildHandle;

        /// Waits until a child has exited, and leaves it unreaped.
        fn wait_for_exit(pid: u32) {
            let pid = Pid::from_raw(pid as i32);
            waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("a child");
        }

        fn register_exited(children: &mut Children, id: usize, child: Child) -> u32 {
            register(children, id, &child);
            wait_for_exit(child.id());
            child.id()
        }

        fn exits(reaper: &mut Reaper) -> Vec<(usize, Exit)> {
            std::iter::from_fn(|| reaper.next_exit()).map(|exit| (exit.process.id, exit.exit)).collect()
        }

        #[test]
        fn sigchld_reaps_its_child_and_requests_a_scan() {
            let mut children = Children::default();
            let mut reaper = Reaper::new();
            let pid = register_exited(&mut children, 3, spawn("true"));
            assert!(!reaper.is_busy());
            reaper.handle_child_signal(Some(pid), &mut children).expect("waitpid");
            assert!(reaper.is_busy() && reaper.is_scan_due(Instant::now()));
            assert_eq!(exits(&mut reaper), [(3, Exit::Code(0))]);
            assert!(reaper.is_busy(), "other children may have exited as well");
        }

        #[test]
        fn a_scan_finds_workers_behind_children_of_the_program() {
            let mut children = Children::default();
            let mut reaper = Reaper::new();
            let mut stranger = spawn("true");
            wait_for_exit(stranger.id());
            register_exited(&mut children, 1, spawn("false"));
            reaper.handle_child_signal(None, &mut children).expect("no error");
            reaper.scan(&mut children).expect("waitid");
            assert_eq!(exits(&mut reaper), [(1, Exit::Code(1))]);
            assert!(!reaper.is_busy());
            assert!(stranger.wait().expect("the status, which the reaper has left").success());
        }

        #[test]
        fn missed_exits_are_found_after_the_pause() {
            let mut children = Children::default();
            let mut reaper = Reaper::new();
            // No process has this pid.
            children.add(
                Process { pool: "", id: 2, generation: 0, pid: Some(u32::MAX / 4) },
                ChildHandle::new(u32::MAX / 4),
            );
            let now = Instant::now();
            let later = now + ms(1000);
            reaper.missed.finish(ms(1), now + ms(600));
            reaper.collect_missed(false, later, &mut children).expect("no error");
            assert_eq!(exits(&mut reaper), [], "no search was requested");
            reaper.collect_missed(true, now, &mut children).expect("no error");
            assert_eq!(exits(&mut reaper), [], "the pause is not over");
            assert_eq!(reaper.next_deadline(now), Some(now + ms(700)));
            reaper.missed.end_pause();
            reaper.collect_missed(false, later, &mut children).expect("no error");
            assert_eq!(exits(&mut reaper), [(2, Exit::Unknown)]);
            assert_eq!(reaper.next_deadline(now), None);
        }

        #[test]
        fn timeouts_end_the_pause_of_a_requested_scan() {
            let mut children = Children::default();
            let mut reaper = Reaper::new();
            let now = Instant::now();
            reaper.scan.finish(ms(10), now);
            reaper.scan.request();
            assert_eq!(reaper.next_deadline(now), Some(now + ms(100)));
            reaper.collect_missed(false, now, &mut children).expect("no error");
            assert!(!reaper.is_scan_due(now));
            reaper.collect_missed(true, now, &mut children).expect("no error");
            assert!(reaper.is_scan_due(now));
        }
    }
}
