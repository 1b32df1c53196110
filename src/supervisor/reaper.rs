//! The exits that wait to be handled, and when the parent searches for more.
//!
//! SIGCHLD names one child, and that child is reaped at once. Signals coalesce, so other children may have exited as
//! well. Two searches find them. Both take time for each child, so both are limited to a share of the parent's time:
//!
//! - A *scan* asks the system for exited children until there are none left. The system walks its list of all children
//!   up to the first one that has exited. A scan is requested by each SIGCHLD and takes at most a tenth of the time.
//! - A search for *missed* exits finds the children that other code in this process has reaped. No signal is left for
//!   these, so each child is checked by its pid. This follows each scan, precedes all timeouts, and takes at most a
//!   hundredth of the time.
//!
//! There is one reaper in a process, because a scan finds the children of all launchers, and as pid 1 also strangers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::children::Children;
use crate::backend::ChildExit;
use crate::error::Result;
use crate::sys;

/// Limits scans to a tenth of the time. A pause of less than a millisecond is left out, because no wait is that short.
const SCAN: Limit =
    Limit { factor: 10, shortest_pause: Duration::from_millis(1), longest_pause: Duration::from_millis(100) };

/// Limits searches for missed exits to a hundredth of the time. On Windows they are not limited: the notifying thread
/// may be late for any exit, and timeouts must not overtake it.
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
}

impl Reaper {
    pub fn new() -> Reaper {
        Reaper { exits: VecDeque::new(), scan: Search::new(SCAN), missed: Search::new(MISSED) }
    }

    /// Queues exits that a launcher has reported.
    pub fn add(&mut self, exits: impl IntoIterator<Item = ChildExit>) {
        self.exits.extend(exits);
    }

    pub fn next_exit(&mut self) -> Option<ChildExit> {
        self.exits.pop_front()
    }

    /// Handles SIGCHLD: reaps the child that the signal names, and requests a scan. The scan comes later, because it
    /// takes time, and the first worker can be replaced before it.
    pub fn handle_child_signal(&mut self, pid: Option<u32>, children: &mut Children) -> Result<()> {
        self.scan.request();
        if let Some(pid) = pid {
            self.exits.extend(children.reap(pid)?);
        }
        Ok(())
    }

    pub fn is_scan_due(&self, now: Instant) -> bool {
        self.scan.is_due(now)
    }

    /// Reaps every child that has exited.
    pub fn scan(&mut self, children: &mut Children) -> Result<()> {
        let begun = Instant::now();
        let before = self.exits.len();
        self.reap_all(children)?;
        let now = Instant::now();
        // The system walked its list once for each exit, and once more to find none. The pause is in proportion to the
        // last walk, because the others were not in vain.
        let walks = (self.exits.len() - before + 1) as u32;
        self.scan.finish((now - begun) / walks, now);
        if cfg!(unix) {
            // The SIGCHLD that requested this scan may have announced a child that other code has reaped since.
            self.search_missed(now, children)?;
        }
        Ok(())
    }

    /// Searches for missed exits if that is due, or if timeouts are about to run. In the latter case a requested scan
    /// also stops waiting for the end of its pause.
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

    /// Returns whether some exits are not known or not handled yet, so that timeouts must wait.
    pub fn is_busy(&self) -> bool {
        self.scan.is_requested || self.has_exits()
    }

    /// Returns when the next search is due, if one is requested.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        [&self.scan, &self.missed].into_iter().filter_map(|search| search.next_deadline(now)).min()
    }

    fn reap_all(&mut self, children: &mut Children) -> Result<()> {
        while let Some(pid) = sys::peek_exited()? {
            if let Some(exit) = children.reap(pid)? {
                self.exits.push_back(exit);
            } else if !sys::reap_as_init(pid)? {
                // The program has started this child itself, and will reap it. Until then
                // `peek_exited` may return this child each time, and never a worker that has exited.
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

/// The share of the time that a search may take: it is followed by a pause of `factor` times its duration.
#[derive(Clone, Copy, Debug)]
struct Limit {
    factor: u32,
    /// A shorter pause is left out.
    shortest_pause: Duration,
    /// A search may have taken long only because this process was stopped meanwhile, so its pause is limited.
    longest_pause: Duration,
}

/// Whether a search is requested, and when it may run.
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

    /// Returns when the requested search is due, or `None` if none is requested.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.is_requested.then(|| self.not_before.unwrap_or(now))
    }

    /// Lets the next requested search run at once.
    fn end_pause(&mut self) {
        self.not_before = None;
    }

    /// Ends a search that took `spent`, at `now`, and begins the pause after it.
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
        assert!(!search.is_due(now), "it was not requested");
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
            assert!(reaper.is_busy(), "others may have exited as well");
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
            assert!(stranger.wait().expect("its status, which is left to the program").success());
        }

        #[test]
        fn missed_exits_are_found_after_the_pause() {
            let mut children = Children::default();
            let mut reaper = Reaper::new();
            // No process has this pid.
            children.add(Process { id: 2, generation: 0, pid: Some(u32::MAX / 4) }, ChildHandle::new(u32::MAX / 4));
            let now = Instant::now();
            let later = now + ms(1000);
            reaper.missed.finish(ms(1), now + ms(600));
            reaper.collect_missed(false, later, &mut children).expect("no error");
            assert_eq!(exits(&mut reaper), [], "none was requested");
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
