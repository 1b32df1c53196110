//! Takes over the state in the new program.

use std::mem;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{DoorbellState, PidFileState, PoolState, State};
use crate::error::{Error, Result};
use crate::exit::Process;
use crate::failure;
use crate::listener::Given;
use crate::pid_file::{AdoptedPidFile, GivenPidFile, PidFile};
use crate::policy::{Config, ServiceSnapshot};
use crate::pool_name;
use crate::prefork::PoolSettings;
use crate::scoreboard::{Scoreboard, Waker};
use crate::sys::{self, TakenState, WakeReceiver, WorkerKind};

/// The service that this program takes over from the program before the upgrade.
#[derive(Debug)]
pub(crate) struct Adoption {
    state: State,
    /// The descriptors. `None` if one was taken.
    fds: Vec<Option<OwnedFd>>,
    /// The time of the snapshot.
    taken: Instant,
    /// The time from execve(2) to the call.
    since_exec: Duration,
}

/// The settings of the signals, and the descriptors that belong to them.
#[derive(Debug)]
pub(crate) struct HandedOverSignals {
    pub text: String,
    pub fds: Vec<OwnedFd>,
}

impl Adoption {
    /// Returns the service that this process takes over. Returns `None` if the program was not executed in an upgrade.
    pub fn take() -> Result<Option<Box<Adoption>>> {
        let unfit = |problem| Error::unfit("upgrade", problem);
        let Some(TakenState { text, fds, since_exec }) = sys::take_state().map_err(unfit)? else { return Ok(None) };
        let state: State = text.parse()?;
        let now = Instant::now();
        let age = Duration::from_nanos(sys::monotonic_nanos().saturating_sub(state.taken));
        let taken = now.checked_sub(age).unwrap_or(now);
        let fds = fds.into_iter().map(Some).collect();
        Ok(Some(Box::new(Adoption { state, fds, taken, since_exec })))
    }

    fn fd(&mut self, position: usize) -> Result<OwnedFd> {
        let missing = || Error::unfit("upgrade", format!("the state of the parent has no descriptor {position}"));
        self.fds.get_mut(position).and_then(Option::take).ok_or_else(missing)
    }

    /// Returns the snapshot of the policy.
    pub fn snapshot(&self) -> ServiceSnapshot {
        self.state.snapshot()
    }

    /// Returns the time of the snapshot.
    pub fn taken(&self) -> Instant {
        self.taken
    }

    /// Returns how long the service has run.
    pub fn uptime(&self) -> Duration {
        self.state.uptime + self.since_exec
    }

    /// Returns the time in which nothing has supervised the workers.
    pub fn since_exec(&self) -> Duration {
        self.since_exec
    }

    /// Returns all processes that the old program has not reaped.
    pub fn processes(&self) -> impl Iterator<Item = Process> {
        self.state.pools.iter().flat_map(PoolState::processes)
    }

    /// Returns the other children that the old program has not reaped. It has sent SIGKILL to each of them.
    pub fn others(&self) -> &[Process] {
        &self.state.others
    }

    /// Returns the settings with which the pools stop that the new program does not have. `known` are the names of the
    /// pools that it has.
    pub fn removed_pools(&self, known: &[&str]) -> Vec<Config> {
        let pools = self.state.pools.iter().map(|pool| &pool.snapshot);
        let removed = pools.filter(|pool| !known.contains(&&*pool.name));
        let stopping = removed.map(|pool| Config {
            pool: pool_name::intern(&pool.name),
            workers: pool.configured,
            graceful_timeout: pool.graceful_timeout,
            ..PoolSettings::default().config
        });
        stopping.collect()
    }

    pub fn take_signals(&mut self) -> Result<HandedOverSignals> {
        let fds = (0..self.state.signal_fds).map(|position| self.fd(position)).collect::<Result<_>>()?;
        Ok(HandedOverSignals { text: mem::take(&mut self.state.signals), fds })
    }

    pub fn take_doorbell(&mut self) -> Result<Option<(WakeReceiver, Waker)>> {
        let Some(DoorbellState { receiver, waker }) = self.state.doorbell.take() else { return Ok(None) };
        Ok(Some((WakeReceiver::from_fd(self.fd(receiver)?), Waker::from_fd(self.fd(waker)?))))
    }

    /// Returns the pid file at the path that this program wants. Takes over the one of the old program, and removes it
    /// if this program wants another one or none.
    pub fn pid_file(&mut self, wanted: Option<&Path>) -> Result<Option<PidFile>> {
        let given = match self.state.pid_file.take() {
            Some(PidFileState { path, position }) => Some(GivenPidFile { fd: self.fd(position)?, path }),
            None => None,
        };
        let AdoptedPidFile { file, error } = PidFile::adopt(given, wanted);
        if let Some(error) = error {
            failure::report(&format_args!("{error:?}"));
        }
        Ok(file)
    }

    /// Returns the shared memory of a pool. Creates it if the old program had no such pool, or none with shared memory.
    pub fn scoreboard(
        &mut self,
        pool: &'static str,
        workers: usize,
        kind: WorkerKind,
        waker: &Arc<Waker>,
    ) -> Result<Scoreboard> {
        let known = self.state.pools.iter_mut().find(|state| state.snapshot.name == pool);
        let board = known.and_then(|state| {
            let processes: Vec<Process> = state.processes().collect();
            Some((state.board.take()?, mem::take(&mut state.files), processes))
        });
        let Some((board, files, processes)) = board else {
            return Ok(Scoreboard::new(workers, kind, Arc::clone(waker))?);
        };
        let files = files.into_iter().map(|position| self.fd(position)).collect::<Result<_>>()?;
        Ok(Scoreboard::adopt(kind, &board, files, &processes, Arc::clone(waker))?)
    }

    /// Takes the sockets.
    pub fn take_sockets(&mut self) -> Result<Vec<Given>> {
        let lines = mem::take(&mut self.state.sockets);
        lines.into_iter().map(|line| Ok(Given { fd: self.fd(line.position)?, spec: line.spec })).collect()
    }
}

impl PoolState {
    pub(super) fn processes(&self) -> impl Iterator<Item = Process> {
        self.snapshot.slots.iter().flat_map(|slot| &slot.children).map(|child| child.process)
    }
}
