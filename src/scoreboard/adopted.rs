//! Passes a scoreboard to the program that the parent executes in an upgrade, and adopts it there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{NOTES, Occupant, REACHED, Scoreboard, Segment, Waker};
use crate::exit::Process;
use crate::sys::{CallError, Shared, WorkerKind};

/// What the new program needs to use a scoreboard, besides the files of its segments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BoardState {
    /// The length of each segment, in status slots.
    pub segments: Vec<usize>,
    /// The token that was used last.
    pub token: u32,
    pub occupants: Vec<OccupantState>,
}

/// A process that uses a status slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OccupantState {
    pub slot: usize,
    pub id: usize,
    pub generation: u32,
    /// The messages that the parent has read.
    pub seen: u32,
    pub token: u32,
    /// Whether the process has reached its call.
    pub has_reached: bool,
}

impl Scoreboard {
    /// Returns what a new program needs, besides the [files](Scoreboard::files).
    pub fn state(&self) -> BoardState {
        let occupants = self.occupants.iter().enumerate().filter_map(|(slot, occupant)| {
            let Occupant { process, seen, token } = (*occupant)?;
            let Process { id, generation, .. } = process;
            let has_reached = self.has_reached(process);
            Some(OccupantState { slot, id, generation, seen, token, has_reached })
        });
        BoardState {
            segments: self.segments.iter().map(|segment| segment.shared.len()).collect(),
            token: self.token,
            occupants: occupants.collect(),
        }
    }

    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Returns the file of each segment.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.segments.iter().filter_map(|segment| segment.shared.file().map(AsFd::as_fd))
    }

    /// Returns the scoreboard that the old program has passed. `processes` are the processes of the pool: the slots of
    /// all others are free. The processes of the old program go on to use their slots.
    pub fn adopt(
        kind: WorkerKind,
        state: &BoardState,
        files: Vec<OwnedFd>,
        processes: &[Process],
        waker: Arc<Waker>,
    ) -> Result<Scoreboard, CallError> {
        let mut segments = Vec::with_capacity(files.len());
        let mut len = 0;
        for (file, slots) in files.into_iter().zip(&state.segments) {
            segments.push(Segment { first: len, shared: Arc::new(Shared::from_file(file, *slots)?) });
            len += slots;
        }
        let mut occupants = Vec::new();
        for &OccupantState { slot, id, generation, seen, token, .. } in &state.occupants {
            let known = processes.iter().find(|process| process.id == id && process.generation == generation);
            let Some(&process) = known.filter(|_| slot < len) else { continue };
            if occupants.len() <= slot {
                occupants.resize(slot + 1, None);
            }
            occupants[slot] = Some(Occupant { process, seen, token });
        }
        let free = (0..occupants.len()).filter(|&slot| occupants[slot].is_none()).collect();
        let scoreboard = Scoreboard {
            kind,
            segments,
            occupants,
            free,
            leased: Vec::new(),
            thread_counts: Vec::new(),
            token: state.token,
            waker,
        };
        // The workers of the old program may have been forks, which do not note this.
        for occupant in state.occupants.iter().filter(|occupant| occupant.has_reached && occupant.slot < len) {
            scoreboard.word(occupant.slot, NOTES).fetch_or(REACHED, Ordering::Relaxed);
        }
        Ok(scoreboard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::{LastMessages, WorkerMessage};
    use crate::sys;

    fn named(id: usize, generation: u32) -> Process {
        Process { pool: "", id, generation, pid: Some(71) }
    }

    #[test]
    fn processes_of_another_kind_of_worker_have_reached_the_call() {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let waker = Arc::new(waker);
        for (before, has_reached) in [(WorkerKind::Fork, true), (WorkerKind::Spawn, false)] {
            let mut old = Scoreboard::new(1, before, Arc::clone(&waker)).expect("memory");
            let slot = old.allocate().expect("memory");
            old.assign(slot, named(0, 0));
            let files = old.files().map(|file| file.try_clone_to_owned().expect("a descriptor")).collect();
            let state = old.state();
            let new = Scoreboard::adopt(WorkerKind::Spawn, &state, files, &[named(0, 0)], Arc::clone(&waker));
            let new = new.expect("memory");
            assert_eq!(new.has_reached(named(0, 0)), has_reached, "{before:?}");
            assert!(new.has_reached(named(1, 0)), "it has no slot");
            old.writer(slot).reached();
            assert!(new.has_reached(named(0, 0)));
        }
    }

    #[test]
    fn an_adopted_scoreboard_goes_on_where_the_old_one_stopped() {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let waker = Arc::new(waker);
        let mut old = Scoreboard::new(1, WorkerKind::Spawn, Arc::clone(&waker)).expect("memory");
        let mut writers = Vec::new();
        for id in 0..200 {
            let slot = old.allocate().expect("memory");
            old.assign(slot, named(id, 0));
            writers.push(old.writer(slot));
        }
        writers[0].ready();
        assert_eq!(old.read_messages(), [WorkerMessage::Ready(named(0, 0))]);
        writers[150].ready();
        let files = old.files().map(|file| file.try_clone_to_owned().expect("a descriptor")).collect();
        let processes: Vec<Process> = (0..199).map(|id| named(id, 0)).collect();
        let mut new = Scoreboard::adopt(WorkerKind::Spawn, &old.state(), files, &processes, waker).expect("memory");
        drop(old);
        assert_eq!(new.read_messages(), [WorkerMessage::Ready(named(150, 0))], "the first message was read before");
        writers[0].retire();
        writers[199].ready();
        assert_eq!(new.read_messages(), [WorkerMessage::Retire(named(0, 0))], "process 199 has ended");
        assert_eq!(new.release(named(3, 0), None), LastMessages::default());
        let slot = new.allocate().expect("memory");
        new.assign(slot, named(3, 1));
        assert_eq!(slot, 3);
        writers[3].beat();
        assert_eq!(new.beats().count(), 0, "a late heartbeat of the process before");
        new.writer(slot).beat();
        assert!(new.beats().eq([named(3, 1)]));
    }
}
