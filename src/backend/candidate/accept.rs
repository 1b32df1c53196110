//! The call in a candidate, which runs the new program.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::answer::{CheckedPool, End, Message};
use super::offer::{Offer, OfferedSlot, Task, TrialWorker, is_for_candidate};
use super::{FORMATS, newest_common};
use crate::backend::spawn::{Spawn, descendant, unfit};
use crate::error::{Error, Result};
use crate::listener::{Given, Listeners, Passed, SocketLine};
use crate::pool_name::WorkerName;
use crate::scoreboard::StatusWriter;
use crate::setup::ChildSetup;
use crate::sys::{self, Channel, Lifeline, Origin, Shared};
use crate::worker::Worker;

/// The largest number of pools or sockets in one message. So no message is too long for the channel.
const PER_MESSAGE: usize = 100;

/// A candidate that has reached its call.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub duty: Duty,
    pub reply: Reply,
    /// The sockets of the running service.
    pub given: Vec<Given>,
}

/// What the candidate must do.
#[derive(Debug)]
pub(crate) enum Duty {
    /// Check the settings, answer, and exit.
    Check,
    /// Become a worker.
    Work(TrialCall),
}

/// What a trial worker has got from the old parent.
#[derive(Debug)]
pub(crate) struct TrialCall {
    worker: TrialWorker,
    parent: u32,
    status: Option<StatusWriter>,
}

/// What a trial worker gets from the settings of the new program.
#[derive(Debug)]
pub(crate) struct TrialSettings {
    pub pool: &'static str,
    pub graceful_timeout: Duration,
    pub setup: ChildSetup,
    pub listeners: Listeners,
}

/// The candidate's end of the channel.
#[derive(Debug)]
pub(crate) struct Reply {
    channel: OwnedFd,
    /// The versions of the state format that the old parent can write.
    parents_formats: RangeInclusive<u32>,
}

/// Returns what this process must do if a parent has started it as a candidate, and `None` otherwise. Exits if the
/// parent has ended already.
///
/// # Errors
/// Returns an error in a candidate that cannot answer, and in other processes that a candidate has made before its
/// call. They must not run as a parent, because the service would then have two.
pub(crate) fn accept_candidate() -> Result<Option<Accepted>> {
    if sys::is_secure_exec() && sys::is_in_environment() {
        return Err(unfit(
            "a program whose file gives it rights (set-user-ID, capabilities) cannot believe that it is a candidate",
        ));
    }
    offer_of(sys::origin())?.map(accept).transpose()
}

/// Returns the text of the offer to this process if it is a candidate.
fn offer_of(origin: Origin) -> Result<Option<&'static str>> {
    match origin {
        Origin::Candidate(text) => Ok(Some(text)),
        Origin::Fork(text) if is_for_candidate(text) => {
            Err(unfit("a candidate of an upgrade has forked before the call, and this is the child"))
        }
        Origin::Descendant => Err(descendant()),
        Origin::Fork(_) | Origin::Worker(_) | Origin::Independent | Origin::Library => Ok(None),
    }
}

fn accept(text: &str) -> Result<Accepted> {
    let offer: Offer = text.parse().map_err(|_| unfit("the parent of this candidate is an unknown version"))?;
    let started_by = sys::parent_id();
    // `started_by` is 0 if the parent is outside this pid namespace.
    if started_by != offer.parent && started_by != 0 {
        sys::exit_now(1);
    }
    let closed = || unfit("what this candidate was passed by its parent was closed or replaced before the call");
    let fds = sys::take_candidate_fds().ok_or_else(closed)?;
    let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
    let mut take = |position: usize| fds.get_mut(position).and_then(Option::take).ok_or_else(closed);
    let reply = Reply { channel: take(offer.channel)?, parents_formats: offer.formats };
    match accept_rest(offer.task, started_by, offer.sockets, take) {
        Ok((duty, given)) => Ok(Accepted { duty, reply, given }),
        Err(error) => {
            reply.refuse(&error);
            Err(error)
        }
    }
}

/// Takes over what the task needs, and the sockets. `take` returns the descriptor at a position of the offer's list.
fn accept_rest(
    task: Task,
    parent: u32,
    sockets: Vec<SocketLine>,
    mut take: impl FnMut(usize) -> Result<OwnedFd>,
) -> Result<(Duty, Vec<Given>)> {
    let duty = match task {
        Task::Check => Duty::Check,
        Task::Work(worker) => {
            let mut writer = |slot: OfferedSlot| status_writer(take(slot.memory)?, take(slot.waker)?, slot);
            let status = worker.slot.map(&mut writer).transpose()?;
            Duty::Work(TrialCall { worker, parent, status })
        }
    };
    let given = sockets.into_iter().map(|SocketLine { spec, position }| Ok(Given { spec, fd: take(position)? }));
    Ok((duty, given.collect::<Result<_>>()?))
}

/// Returns the writer of the worker's status slot.
fn status_writer(
    memory: OwnedFd,
    waker: OwnedFd,
    OfferedSlot { slots, slot, .. }: OfferedSlot,
) -> Result<StatusWriter> {
    let memory = Shared::from_passed(memory, slots);
    let memory = memory.ok_or_else(|| unfit("the shared memory that this candidate was passed cannot be mapped"))?;
    Ok(StatusWriter::given(memory, slot, waker.into()))
}

impl TrialCall {
    /// Returns the name of the worker's pool. Empty for a `Prefork` that is used alone.
    pub fn pool(&self) -> &str {
        &self.worker.pool
    }

    pub fn id(&self) -> usize {
        self.worker.id
    }

    /// Turns this process into the worker.
    pub fn become_worker(self, settings: TrialSettings, reply: &Reply) -> Result<Worker> {
        let TrialCall { worker: TrialWorker { id, generation, count, .. }, parent, status } = self;
        let TrialSettings { pool, graceful_timeout, setup, listeners } = settings;
        Spawn::check(&setup)?;
        if !Lifeline::can_be_armed() && !Lifeline::is_armed() {
            return Err(unfit("a worker has changed its user before the call, which is not made in the main thread"));
        }
        // Nothing can fail from here on.
        sys::become_independent();
        if let Some(status) = &status {
            status.reached();
        }
        reply.reached();
        setup.apply(WorkerName { pool, id });
        Lifeline::inherited(parent, graceful_timeout, None).hold();
        Ok(Worker::new(pool, id, generation, count, status, listeners))
    }
}

impl Reply {
    /// Returns whether this program can read a version of the state format that the old parent can write.
    pub fn knows_format(&self) -> bool {
        newest_common(&FORMATS, &self.parents_formats).is_some()
    }

    /// Sends the answer of a checker whose checks have all passed. Returns whether the parent can receive it.
    pub fn pass(&self, pools: Vec<CheckedPool>, new_sockets: Vec<Passed<'_>>) -> bool {
        let pools_sent = pools.chunks(PER_MESSAGE).all(|pools| {
            let message = Message { pools: pools.to_vec(), ..Message::new(FORMATS) };
            self.send(&message, &[])
        });
        let sockets_sent = new_sockets.chunks(PER_MESSAGE).all(|sockets| {
            let lines = sockets.iter().zip(0..);
            let lines = lines.map(|(socket, position)| SocketLine { spec: socket.spec.clone(), position });
            let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.fd).collect();
            self.send(&Message { sockets: lines.collect(), ..Message::new(FORMATS) }, &fds)
        });
        pools_sent && sockets_sent && self.send(&Message::end(FORMATS, End::Passed), &[])
    }

    /// Sends the error because of which this program cannot be the new program. Each message contains the formats too.
    /// If the two programs have no format in common, the old parent reports that instead of the error.
    pub fn refuse(&self, error: &Error) {
        // `Debug` contains the system's error.
        self.send(&Message::end(FORMATS, End::Refused(format!("{error:?}"))), &[]);
    }

    /// Reports that this process has become a worker. Ignores errors: the old parent may have closed its end.
    fn reached(&self) {
        self.send(&Message::end(FORMATS, End::Reached), &[]);
    }

    fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> bool {
        Channel::send_blocking(self.channel.as_fd(), message.to_string().as_bytes(), fds).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_started_process_is_a_candidate() {
        let text = "candidate 1 1 check\nparent 71\nchannel 0\n";
        assert_eq!(offer_of(Origin::Candidate(text)).ok(), Some(Some(text)));
        for other in [Origin::Independent, Origin::Library, Origin::Worker("- 71 0"), Origin::Fork("- 71 0")] {
            assert_eq!(offer_of(other).ok(), Some(None), "{other:?}");
        }
        for (origin, problem) in [
            (Origin::Fork(text), "a candidate of an upgrade has forked before the call"),
            (Origin::Descendant, "has executed its program again before the call"),
        ] {
            let error = offer_of(origin).expect_err("a refusal");
            assert_eq!(error.setting(), Some("backend"));
            assert!(error.to_string().contains(problem), "{error}");
        }
    }
}
