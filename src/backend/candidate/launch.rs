//! Starts candidates and reads their answers, in the old parent.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process;

use super::offer::{Offer, OfferedSlot, Task, TrialWorker};
use super::reason::{About, Reason};
use super::received::{CheckAnswer, Received};
use crate::backend::spawn::draw_secret;
use crate::exit::Exit;
use crate::listener::{Passed, SocketLine};
use crate::scoreboard::SlotHandle;
use crate::sys::{self, CallError, Channel, ChildHandle, Message, NewProgram};

/// A request to start a trial worker.
#[derive(Debug)]
pub(crate) struct TrialRequest<'a> {
    /// The name of the pool. Empty for a `Prefork` that is used alone.
    pub pool: &'static str,
    pub id: usize,
    pub generation: u32,
    /// The number of workers in the pool.
    pub count: usize,
    /// `None` if the workers of the pool have no status slots. Then the trial worker cannot report that it is ready.
    pub slot_handle: Option<SlotHandle<'a>>,
    /// The sockets of the service that the worker may need, and the new ones from the checker's answer.
    pub passed: Vec<Passed<'a>>,
}

/// A candidate that this process has started, and this process's end of the channel. The caller registers and reaps the
/// process. When the descriptor is readable ([`AsFd`]), call [`Candidate::read_answer`] for a checker, and
/// [`Candidate::has_reached`] for a trial worker.
///
/// Each error of a method is the reason for the operator why the program cannot be the new program. The caller then
/// ends the process.
#[derive(Debug)]
pub(crate) struct Candidate {
    path: PathBuf,
    channel: Channel,
    received: Received,
}

/// A candidate that has just been started.
#[derive(Debug)]
pub(crate) struct StartedCandidate {
    pub child: ChildHandle,
    pub candidate: Candidate,
}

/// The position of the channel in the list of descriptors of each offer.
const CHANNEL: usize = 0;

impl Candidate {
    /// Starts a checker. `passed` are all sockets of the service. `formats` are the versions of the state format that
    /// this program can write.
    pub fn check(
        program: &NewProgram,
        passed: &[Passed<'_>],
        formats: RangeInclusive<u32>,
    ) -> Result<StartedCandidate, String> {
        let start = Start { program, formats };
        start.run(Vec::new(), passed, Task::Check)
    }

    /// Starts a trial worker. `formats` are the versions of the state format that this program can write.
    pub fn start_worker(
        program: &NewProgram,
        request: &TrialRequest<'_>,
        formats: RangeInclusive<u32>,
    ) -> Result<StartedCandidate, String> {
        let &TrialRequest { pool, id, generation, count, ref slot_handle, ref passed } = request;
        let start = Start { program, formats };
        let mut fds = Vec::new();
        let mut slot = None;
        if let Some(handle) = slot_handle {
            let memory = handle.memory.file().ok_or_else(|| start.explain("its memory has no file".into()))?;
            fds.extend([memory.as_fd(), handle.waker.as_fd()]);
            let slots = handle.memory.len();
            slot = Some(OfferedSlot { memory: CHANNEL + 1, slots, slot: handle.slot, waker: CHANNEL + 2 });
        }
        start.run(fds, passed, Task::Work(TrialWorker { pool: pool.to_owned(), id, generation, count, slot }))
    }

    /// Reads what a checker has sent. Returns the answer once it is complete. The answer counts whatever the exit
    /// status of the checker is, so call this method once more after the exit.
    pub fn read_answer(&mut self) -> Result<Option<CheckAnswer>, String> {
        self.read().and_then(|()| self.received.take_answer()).map_err(|reason| explain(&self.path, &reason))
    }

    /// Reads what a trial worker has sent. Returns whether the process has become a worker.
    pub fn has_reached(&mut self) -> Result<bool, String> {
        self.read().map_err(|reason| explain(&self.path, &reason))?;
        Ok(self.received.has_reached())
    }

    /// Returns the reason if a candidate has ended before its answer was complete, or as a worker that was not ready.
    /// A refusal that the process has sent is the reason, whatever its exit status is.
    pub fn explain_exit(&mut self, exit: Exit) -> String {
        let reason = match self.read() {
            Err(reason) => reason,
            Ok(()) if self.received.has_reached() => Reason::WorkerEnded(exit),
            Ok(()) => Reason::Ended(exit),
        };
        explain(&self.path, &reason)
    }

    /// Closes, in a forked worker, the descriptors of this value. The worker must not use or drop the value afterwards.
    pub fn close_inherited(&self) {
        self.channel.close_inherited();
        self.received.sockets().for_each(|socket| sys::close_inherited(socket.fd.as_fd()));
    }

    fn read(&mut self) -> Result<(), Reason> {
        loop {
            match self.channel.receive() {
                Ok(Some(Message { bytes, fds })) => self.received.add(&bytes, fds)?,
                // The candidate has closed its end. Its exit follows, or it goes on as a worker.
                Err(error) if error.source.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Err(_) => return Err(Reason::NoAnswer("it cannot be received")),
                Ok(None) => return Ok(()),
            }
        }
    }
}

impl AsFd for Candidate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// The start of a candidate.
struct Start<'a> {
    program: &'a NewProgram,
    formats: RangeInclusive<u32>,
}

impl Start<'_> {
    /// Starts the process. `fds` are the descriptors that the task needs. They follow the channel in the list of the
    /// offer's descriptors.
    fn run(&self, fds: Vec<BorrowedFd<'_>>, passed: &[Passed<'_>], task: Task) -> Result<StartedCandidate, String> {
        let refused = |error: CallError| self.explain(format!("{}: {}", error.call, error.source));
        let (channel, remote) = Channel::pair().map_err(refused)?;
        let secret = draw_secret().map_err(refused)?;
        let mut fds: Vec<BorrowedFd<'_>> = std::iter::once(remote.as_fd()).chain(fds).collect();
        let sockets = passed.iter().zip(fds.len()..);
        let sockets = sockets.map(|(Passed { spec, .. }, position)| SocketLine { spec: spec.clone(), position });
        let sockets = sockets.collect();
        fds.extend(passed.iter().map(|socket| socket.fd));
        let formats = self.formats.clone();
        let offer = Offer { formats: formats.clone(), task, parent: process::id(), channel: CHANNEL, sockets };
        let child = self.program.start_candidate(secret, &offer.to_string(), &fds)?;
        let path = self.program.path().to_owned();
        Ok(StartedCandidate { child, candidate: Candidate { path, channel, received: Received::new(formats) } })
    }

    fn explain(&self, problem: String) -> String {
        explain(self.program.path(), &Reason::NotTried(problem))
    }
}

fn explain(path: &Path, reason: &Reason) -> String {
    About { path, reason }.to_string()
}
