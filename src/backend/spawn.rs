//! Starts workers as new processes that run this program from its beginning.
//!
//! The parent sets an environment variable in each worker that it starts. But the variable alone does not prove that a
//! process is a worker: other processes can inherit the variable, and a user can set it by hand. So the parent also
//! writes a secret into shared memory that the worker inherits. Each worker has its own secret. The variable contains
//! the secret and the place of the secret in this memory. A process is a worker only if the memory contains the same
//! secret at this place.

use std::fmt;
use std::process;
use std::str::FromStr;

use rand::TryRng;
use rand::rngs::SysRng;

use super::{Launcher, StartRequest, Started};
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::scoreboard::StatusWriter;
use crate::setup::{ChildSetup, WorkerSetup};
use crate::sys::{self, CallError, ExitNotifier, InheritedFds, InheritedMemory, Lifeline, Program, Shared};
use crate::worker::Worker;

const ENV_NAME: &str = "TASKFORK_WORKER";

#[derive(Debug)]
pub(crate) struct Spawn {
    program: Program,
    exit_notifier: ExitNotifier,
    setup: Option<WorkerSetup>,
    lifeline: Lifeline,
}

impl Spawn {
    pub fn new(exit_notifier: ExitNotifier, setup: Option<WorkerSetup>) -> Result<Spawn> {
        Ok(Spawn { program: Program::this(exit_notifier.clone())?, exit_notifier, setup, lifeline: Lifeline::new()? })
    }
}

impl Launcher for Spawn {
    fn start(&mut self, request: StartRequest<'_>) -> Result<Started> {
        let StartRequest { id, generation, count, slot_handle, listeners } = request;
        let Some(slot_handle) = slot_handle else { return Err(Error::unfit("backend", "a program needs a handle")) };
        let listeners = listeners.as_deref().unwrap_or_default();
        let refused = |error| Error::from(error).starting(id);
        let secret = draw_secret().map_err(refused)?;
        slot_handle.memory.offer(slot_handle.slot, secret);
        let sockets = listeners.iter().map(Listener::as_passed).collect();
        let fds = InheritedFds::new(slot_handle.memory, slot_handle.slot, slot_handle.waker, &self.lifeline, sockets)
            .map_err(refused)?;
        let (memory, passed, sockets) = fds.numbers();
        let inherited =
            InheritedMemory { memory, len: slot_handle.memory.len(), slot: slot_handle.slot, passed, sockets, secret };
        let setup = self.setup.as_ref().map(|setup| setup.for_worker(id)).unwrap_or_default();
        let kinds = listeners.iter().map(Listener::kind).collect();
        let env = SpawnEnv { parent: process::id(), id, generation, count, setup, inherited, kinds };
        let start = || self.program.start((ENV_NAME, &env.to_string()), fds);
        match self.exit_notifier.with_program_mask(start) {
            Ok(child) => {
                slot_handle.memory.set_expected_pid(slot_handle.slot, child.pid());
                Ok(Started::Parent(Some(child)))
            }
            Err(error) => Err(Error::executable(self.program.path().to_owned(), error).starting(id)),
        }
    }
}

/// Returns the [`Worker`] handle if a parent has started this process as a worker, and `None` otherwise. Exits if this
/// process is a worker whose parent has exited already. A child process of a worker may inherit the worker's
/// environment variable. Such a child process is not a worker, although its variable is valid.
///
/// # Errors
/// Returns an error if this process was started as a worker but cannot become one. Such a process must not run as a
/// parent instead, because it would then start more processes like itself. Also returns an error if the executable
/// gives this process rights, such as set-user-ID, because then its environment cannot be trusted.
pub(crate) fn accept_spawn() -> Result<Option<Worker>> {
    if sys::is_secure_exec() {
        let problem =
            "a program whose file gives it rights (set-user-ID, capabilities) cannot believe that it is a worker";
        return Err(Error::unfit("backend", problem));
    }
    let Some(env) = sys::take_env_var(ENV_NAME) else { return Ok(None) };
    let Ok(SpawnEnv { parent, id, generation, count, setup, inherited, kinds }) = env.parse() else { return Ok(None) };
    let started_by = sys::parent_id();
    // `started_by` is 0 if the pid of the parent is unknown, for example because the parent is outside this pid
    // namespace. Then only the secret is checked.
    if started_by != parent && started_by != 0 {
        let expected_pid = Shared::expected_pid(&inherited);
        // The expected pid is 0 if the parent exited before it wrote the pid of its worker.
        if expected_pid.is_some_and(|pid| pid == process::id() || pid == 0) {
            process::exit(1);
        }
        return Ok(None);
    }
    let closed = || {
        let problem = format!(
            "what worker {id} was passed by its parent was closed before the call, or {ENV_NAME} is not its own"
        );
        Error::unfit("backend", problem)
    };
    if !Shared::is_passed(&inherited) {
        return Err(closed());
    }
    let Some((memory, [waker, lifeline], sockets)) = Shared::accept(&inherited) else { return Ok(None) };
    setup.apply(id);
    Lifeline::inherited(started_by, lifeline).hold();
    let status = StatusWriter::given(memory, inherited.slot, waker.ok_or_else(closed)?.into());
    let given = kinds.chars().zip(sockets).map(|(kind, socket)| Listener::given(kind, socket));
    let listeners: Vec<Listener> = given.collect::<Option<_>>().ok_or_else(closed)?;
    let listeners = (!listeners.is_empty()).then(|| listeners.into());
    status.reached();
    Ok(Some(Worker::new(id, generation, count, Some(status), listeners)))
}

/// The content of the environment variable `TASKFORK_WORKER`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SpawnEnv {
    parent: u32,
    id: usize,
    generation: u32,
    count: usize,
    setup: ChildSetup,
    inherited: InheritedMemory,
    /// One letter for each inherited socket: its [kind](Listener::kind).
    kinds: String,
}

impl fmt::Display for SpawnEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpawnEnv { parent, id, generation, count, setup, inherited, kinds } = self;
        let InheritedMemory { memory, len, slot, passed: [waker, lifeline], sockets, secret: [a, b, c, d] } = inherited;
        write!(f, "{parent} {id} {generation} {count} {setup} ")?;
        write!(f, "{memory} {len} {slot} {waker} {lifeline} {a} {b} {c} {d}")?;
        kinds.chars().zip(sockets).try_for_each(|(kind, socket)| write!(f, " {kind}{socket}"))
    }
}

impl FromStr for SpawnEnv {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<SpawnEnv, ()> {
        fn next<T: FromStr>(fields: &mut std::str::Split<'_, char>) -> std::result::Result<T, ()> {
            fields.next().ok_or(())?.parse().map_err(|_| ())
        }
        let fields = &mut text.split(' ');
        let parent = next(fields)?;
        let id = next(fields)?;
        let generation = next(fields)?;
        let count = next(fields)?;
        let setup = format!("{} {}", next::<String>(fields)?, next::<String>(fields)?).parse()?;
        let memory = next(fields)?;
        let len = next(fields)?;
        let slot = next(fields)?;
        let passed = [next(fields)?, next(fields)?];
        let secret = [next(fields)?, next(fields)?, next(fields)?, next(fields)?];
        let mut kinds = String::new();
        let mut sockets = Vec::new();
        for field in fields {
            let kind = field.chars().next().filter(char::is_ascii_lowercase).ok_or(())?;
            kinds.push(kind);
            sockets.push(field[1..].parse().map_err(|_| ())?);
        }
        let inherited = InheritedMemory { memory, len, slot, passed, sockets, secret };
        Ok(SpawnEnv { parent, id, generation, count, setup, inherited, kinds })
    }
}

fn draw_secret() -> std::result::Result<[u32; 4], CallError> {
    let mut secret = [0; 4];
    for part in &mut secret {
        *part = SysRng.try_next_u32().map_err(|error| CallError::new("getrandom", error))?;
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spawn_env_parses_only_its_own_display_output() {
        let secret = [u32::MAX, 0, 5, 6];
        let inherited = InheritedMemory { memory: 7, len: 64, slot: 3, passed: [8, -1], sockets: vec![], secret };
        let setup = ChildSetup { cpu: Some(1), identity: None };
        let kinds = String::new();
        let env = SpawnEnv { parent: 71, id: 2, generation: 3, count: 4, setup, inherited: inherited.clone(), kinds };
        let text = env.to_string();
        assert_eq!(text.parse(), Ok(env.clone()));
        let env =
            SpawnEnv { inherited: InheritedMemory { sockets: vec![9, 10], ..inherited }, kinds: "tx".into(), ..env };
        assert_eq!(env.to_string().parse(), Ok(env));
        for wrong in [
            "",
            "1",
            "yes",
            &text[1..text.len() - 2],
            &format!("{text} x"),
            &format!("{text} 9"),
            &text.replace("64", "-64"),
        ] {
            assert_eq!(wrong.parse::<SpawnEnv>(), Err(()), "{wrong}");
        }
    }
}
