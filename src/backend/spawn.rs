//! Starts workers as new processes that run this program from its beginning.
//!
//! The parent passes an offer to each worker that it starts: a message that only this process inherits. `sys` reads the
//! offer before `main`. So the program cannot lose the offer before it makes its call, and no other worker can read or
//! change it. An environment variable leads to the offer. The variable alone does not prove that a process is a worker:
//! other processes can inherit it, and a user can set it by hand.
//!
//! A process that was started as a worker must never become a parent, because its workers would do the same. So if
//! anything went wrong between its start and its call, the call fails.

use std::fmt;
use std::process;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;

use super::{Common, Launcher, StartRequest, Started};
use crate::error::{Error, Result};
use crate::listener::{self, BoundListener, Listener, Passed, SocketKind, SocketLine};
#[cfg(unix)]
use crate::pool_name;
use crate::pool_name::WorkerName;
use crate::scoreboard::StatusWriter;
use crate::setup::{ChildSetup, WorkerSetup, parse_name, write_name};
use crate::sys::{
    self, BorrowedSocket, CallError, ExitNotifier, Inherited, InheritedFds, Lifeline, Origin, Program, Secret,
};
use crate::worker::Worker;

#[derive(Debug)]
pub(crate) struct Spawn {
    /// The program, which the launchers of all pools share.
    program: Arc<Program>,
    /// Whether this launcher closes the program in a forked worker. Only one of the launchers that share the program
    /// does, because the number may be that of another file after the first close.
    #[cfg(unix)]
    closes_program: bool,
    exit_notifier: ExitNotifier,
    setup: Option<WorkerSetup>,
    lifeline: Lifeline,
    graceful_timeout: Duration,
}

impl Spawn {
    pub fn new(
        exit_notifier: ExitNotifier,
        setup: Option<WorkerSetup>,
        graceful_timeout: Duration,
        common: &mut Common,
    ) -> Result<Spawn> {
        let lifeline = common.lifeline(graceful_timeout)?;
        #[cfg(unix)]
        let closes_program = common.program.is_none();
        let program = common.program(&exit_notifier)?;
        Ok(Spawn {
            program,
            #[cfg(unix)]
            closes_program,
            exit_notifier,
            setup,
            lifeline,
            graceful_timeout,
        })
    }

    /// Returns an error if a worker that changes its user in this thread would lose its lifeline.
    pub fn check(setup: &ChildSetup) -> Result<()> {
        match &setup.identity {
            Some(identity) if !Lifeline::can_be_armed() => {
                let setting = if identity.uid.is_some() { "user" } else { "group" };
                Err(Error::unfit(setting, "the call that spawns workers is not made in the main thread"))
            }
            _ => Ok(()),
        }
    }
}

impl Launcher for Spawn {
    fn start(&mut self, request: StartRequest<'_>) -> Result<Started> {
        let StartRequest { pool, id, generation, count, slot_handle, listeners } = request;
        let Some(slot_handle) = slot_handle else { return Err(Error::unfit("backend", "a program needs a handle")) };
        let listeners = listeners.as_deref().unwrap_or_default();
        let refused = |error| Error::from(error).starting(id);
        let secret = draw_secret().map_err(refused)?;
        let bound = listener::bound();
        let (sockets, lines) = with_bound(listeners, &bound);
        let fds = InheritedFds::new(slot_handle.memory, slot_handle.slot, slot_handle.waker, &self.lifeline, sockets)
            .map_err(refused)?;
        let setup = self.setup.as_ref().map(|setup| setup.for_worker(id)).unwrap_or_default();
        let kinds = listeners.iter().map(|listener| listener.kind().letter()).collect();
        let slots = slot_handle.memory.len();
        let slot = slot_handle.slot;
        let graceful_timeout = self.graceful_timeout;
        let pool = pool.to_owned();
        let parent = process::id();
        let text =
            SpawnText { pool, parent, id, generation, count, graceful_timeout, setup, slots, slot, kinds, lines };
        let start = || self.program.start(secret, &text.to_string(), fds);
        match self.exit_notifier.with_program_mask(start) {
            Ok(child) => Ok(Started::Parent(Some(child))),
            Err(error) if error.call != Program::CALL => Err(refused(error)),
            Err(error) => Err(Error::executable(self.program.path().to_owned(), error).starting(id)),
        }
    }

    #[cfg(unix)]
    fn release_in_child(&self) {
        if self.closes_program {
            self.program.release_in_child();
        }
    }
}

/// Returns the [`Worker`] handle if a parent has started this process as a worker, and `None` if this process may
/// become a parent. Exits if this process is a worker whose parent has exited already. `pools` are the names of the
/// pools of this call; a `Prefork` that is used alone has the name "". The worker belongs to one of them.
///
/// # Errors
/// Returns an error if the worker belongs to another pool, because the program has not made the call of its parent.
///
/// Returns an error if this process was started as a worker but cannot become one, and in other processes that such a
/// process has made. They must not run as a parent, because they would then start more processes like themselves. Also
/// returns an error if the start could not be recorded, or if the executable gives this process rights, such as
/// set-user-ID, because then its environment cannot be trusted.
pub(crate) fn accept_spawn(pools: &[&'static str]) -> Result<Option<Worker>> {
    if sys::is_secure_exec() {
        return Err(unfit(
            "a program whose file gives it rights (set-user-ID, capabilities) cannot believe that it is a worker",
        ));
    }
    match sys::origin() {
        Origin::Independent => Ok(None),
        Origin::Worker(text) => {
            let text: SpawnText = text.parse().map_err(|()| unfit("the parent is another version"))?;
            let pool = find_pool(&text.pool, pools)?;
            accept(text, pool).map(Some).map_err(|error| error.in_pool(pool))
        }
        Origin::Candidate(_) => Err(unfit("a running service has started this program as a candidate for an upgrade")),
        #[cfg(unix)]
        Origin::Fork(text) => Err(made_by_fork(text)),
        Origin::Descendant => Err(descendant()),
        Origin::Library => Err(unfit("workers can be spawned by a program only, and this code is in a library")),
    }
}

/// Returns the error for a process of a worker's program that descends from the worker, but has no offer.
pub(super) fn descendant() -> Error {
    unfit(
        "a worker has executed its program again before the call, with the same pid or as another process; its mark is \
         the soft limit RLIMIT_LOCKS (on Linux) or RLIMIT_RSS",
    )
}

/// Returns the error for a process that a worker has forked before the call. `text` is the worker's offer.
#[cfg(unix)]
fn made_by_fork(text: &str) -> Error {
    match text.parse::<SpawnText>() {
        Ok(SpawnText { pool, id, .. }) => {
            let error = unfit(format!("worker {id} has forked before the call, and this is the child"));
            error.in_pool(pool_name::intern(&pool))
        }
        Err(()) => unfit("a worker has forked before the call, and this is the child"),
    }
}

/// Returns the pool with this name.
pub(crate) fn find_pool(name: &str, pools: &[&'static str]) -> Result<&'static str> {
    let problem = || match name {
        "" => "the parent has a pool without a name, which this program does not have".to_owned(),
        _ => format!("the parent has a pool {name}, which this program does not have"),
    };
    pools.iter().copied().find(|pool| *pool == name).ok_or_else(|| unfit(problem()))
}

/// Returns an error if a parent has started this process as a worker. Called if no pool of this process's own call has
/// spawned workers, because otherwise the process would become a second parent.
pub(crate) fn check_not_spawned() -> Result<()> {
    if sys::was_spawned() {
        return Err(unfit("a parent has started this process as a worker, but this call spawns no workers"));
    }
    Ok(())
}

/// Turns this process into the worker that its parent has started.
fn accept(text: SpawnText, pool: &'static str) -> Result<Worker> {
    let SpawnText { parent, id, generation, count, graceful_timeout, setup, slots, slot, kinds, .. } = text;
    let started_by = sys::parent_id();
    // `started_by` is 0 if the pid of the parent is unknown, for example because the parent is outside this pid
    // namespace.
    if started_by != parent && started_by != 0 {
        process::exit(1);
    }
    Spawn::check(&setup)?;
    if !Lifeline::can_be_armed() && !Lifeline::is_armed() {
        return Err(unfit("a worker has changed its user before the call, which is not made in the main thread"));
    }
    let closed = || unfit(format!("what worker {id} was passed by its parent was closed or replaced before the call"));
    let Inherited { memory, waker, lifeline, sockets } = sys::take_inherited(slots, slot).ok_or_else(closed)?;
    // The sockets of `bind` are closed here. The program has copies of those that it uses.
    let given = kinds.chars().zip(sockets).map(|(kind, socket)| Listener::given(SocketKind::of_letter(kind)?, socket));
    let listeners: Vec<Listener> = given.collect::<Option<_>>().ok_or_else(closed)?;
    let listeners = (!listeners.is_empty()).then(|| listeners.into());
    // Nothing can fail from here on. The lifeline may start a thread, and then the variable could not be removed.
    sys::become_independent();
    let status = StatusWriter::given(memory, slot, waker.into());
    // Before the setup: a worker whose setup fails has reached the call, and is restarted as a forked one is.
    status.reached();
    setup.apply(WorkerName { pool, id });
    Lifeline::inherited(started_by, graceful_timeout, lifeline).hold();
    Ok(Worker::new(pool, id, generation, count, Some(status), listeners))
}

pub(crate) fn unfit(problem: impl Into<String>) -> Error {
    Error::unfit("backend", problem)
}

/// The launcher's part of the offer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SpawnText {
    /// The name of the pool. Empty for a `Prefork` that is used alone.
    pool: String,
    parent: u32,
    id: usize,
    generation: u32,
    count: usize,
    graceful_timeout: Duration,
    setup: ChildSetup,
    /// The length of the shared memory, in slots, and the worker's slot.
    slots: usize,
    slot: usize,
    /// The kind of each listener of the worker, as a letter.
    kinds: String,
    /// The sockets that the program has opened by [`bind`](crate::bind).
    lines: Vec<SocketLine>,
}

/// Returns the sockets that a worker inherits: its listeners, and those that [`bind`](crate::bind) has opened. A socket
/// that is both is passed once.
fn with_bound<'a>(listeners: &'a [Listener], bound: &'a [BoundListener]) -> (Vec<BorrowedSocket<'a>>, Vec<SocketLine>) {
    let mut sockets: Vec<_> = listeners.iter().map(Listener::as_passed).collect();
    let lines = bound.iter().map(BoundListener::passed).map(|Passed { spec, fd }| {
        let known = sockets.iter().position(|socket| sys::is_same_socket(*socket, fd));
        let at = known.unwrap_or_else(|| {
            sockets.push(fd);
            sockets.len() - 1
        });
        SocketLine { spec, position: InheritedFds::FIRST_SOCKET + at }
    });
    let lines = lines.collect();
    (sockets, lines)
}

impl fmt::Display for SpawnText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpawnText { pool, parent, id, generation, count, graceful_timeout, setup, slots, slot, kinds, lines } =
            self;
        let graceful_timeout = graceful_timeout.as_nanos();
        write_name(f, Some(&**pool).filter(|pool| !pool.is_empty()))?;
        write!(f, " {parent} {id} {generation} {count} {graceful_timeout} {setup} {slots} {slot} {kinds}")?;
        lines.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

impl FromStr for SpawnText {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<SpawnText, ()> {
        fn next<T: FromStr>(fields: &mut std::str::Split<'_, char>) -> std::result::Result<T, ()> {
            fields.next().ok_or(())?.parse().map_err(|_| ())
        }
        let mut lines = text.split('\n');
        let fields = &mut lines.next().ok_or(())?.split(' ');
        let pool = parse_name(fields.next().ok_or(())?)?.unwrap_or_default();
        let parent = next(fields)?;
        let id = next(fields)?;
        let generation = next(fields)?;
        let count = next(fields)?;
        let graceful_timeout = Duration::from_nanos(next(fields)?);
        let setup =
            format!("{} {} {}", next::<String>(fields)?, next::<String>(fields)?, next::<String>(fields)?).parse()?;
        let text = SpawnText {
            pool,
            parent,
            id,
            generation,
            count,
            graceful_timeout,
            setup,
            slots: next(fields)?,
            slot: next(fields)?,
            kinds: next(fields)?,
            lines: lines.map(str::parse).collect::<std::result::Result<_, ()>>()?,
        };
        fields.next().is_none().then_some(text).ok_or(())
    }
}

pub(crate) fn draw_secret() -> std::result::Result<Secret, CallError> {
    let mut secret = Secret::default();
    for part in &mut secret {
        *part = SysRng.try_next_u32().map_err(|error| CallError::new("getrandom", error))?;
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_formatted_text_can_be_parsed() {
        let setup = ChildSetup { cpu: Some(1), name: Some("web/2".into()), identity: None };
        let graceful_timeout = Duration::from_nanos(7);
        let text = SpawnText {
            pool: String::new(),
            parent: 71,
            id: 2,
            generation: 3,
            count: 4,
            graceful_timeout,
            setup,
            slots: 64,
            slot: 5,
            kinds: String::new(),
            lines: Vec::new(),
        };
        let formatted = text.to_string();
        assert_eq!(formatted.parse(), Ok(text.clone()));
        let line: SocketLine = "socket bt,,127.0.0.1:0,0,,,,, 3".parse().expect("a line");
        let lines = vec![line.clone(), line];
        let text = SpawnText { pool: "größe 7".into(), kinds: "tux".into(), lines, ..text };
        assert_eq!(text.to_string().parse(), Ok(text));
        for wrong in [
            "",
            "1",
            "yes",
            formatted.trim_end(),
            &format!("{formatted} 9"),
            &format!("x{formatted}"),
            &formatted.replace("64", "-64"),
        ] {
            assert_eq!(wrong.parse::<SpawnText>(), Err(()), "{wrong}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn errors_in_a_workers_fork_name_the_pool() {
        let offer = |pool: &str| SpawnText {
            pool: pool.to_owned(),
            parent: 71,
            id: 2,
            generation: 0,
            count: 4,
            graceful_timeout: Duration::from_secs(30),
            setup: ChildSetup::default(),
            slots: 64,
            slot: 5,
            kinds: String::new(),
            lines: Vec::new(),
        };
        let line = "backend: worker 2 has forked before the call, and this is the child";
        assert_eq!(made_by_fork(&offer("").to_string()).to_string(), line);
        assert_eq!(made_by_fork(&offer("jobs").to_string()).to_string(), format!("jobs: {line}"));
        assert_eq!(
            made_by_fork("?").to_string(),
            "backend: a worker has forked before the call, and this is the child"
        );
    }

    #[test]
    fn a_worker_of_an_unknown_pool_is_refused() {
        assert_eq!(find_pool("jobs", &["web", "jobs"]).ok(), Some("jobs"));
        assert_eq!(find_pool("", &[""]).ok(), Some(""));
        for (name, pools, problem) in [
            ("jobs", &["web"][..], "the parent has a pool jobs, which this program does not have"),
            ("jobs", &[""], "the parent has a pool jobs, which this program does not have"),
            ("", &["web"], "the parent has a pool without a name, which this program does not have"),
        ] {
            let error = find_pool(name, pools).expect_err("a refusal");
            assert_eq!((error.setting(), error.to_string()), (Some("backend"), format!("backend: {problem}")));
        }
    }
}
