//! The text of the state.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::num::NonZeroU32;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::fields::{Bytes, ExitFields, Fields, Maybe, Name, malformed, nanos};
use crate::backend::candidate::FORMATS;
use crate::error::{Error, Result};
use crate::exit::Process;
use crate::listener::SocketLine;
use crate::policy::{ChildRole, ChildSnapshot, PoolCondition, PoolSnapshot, Request, ServiceSnapshot, SlotSnapshot};
use crate::pool_name;
use crate::scoreboard::{BoardState, OccupantState};

/// No system runs this number of processes. So no worker has this id or a higher one.
const MAX_IDS: usize = 1 << 22;

/// What the old program passes to the new one. The text contains the positions of the descriptors in a list, which the
/// old program passes besides the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub format: u32,
    /// The time of the snapshot on the monotonic clock, in nanoseconds.
    pub taken: u64,
    /// How long the service has run.
    pub uptime: Duration,
    /// The signal handling from before the call. Its descriptors are the first ones in the list, and this is their
    /// number.
    pub signals: String,
    pub signal_fds: usize,
    pub doorbell: Option<DoorbellState>,
    pub pid_file: Option<PidFileState>,
    pub roll_requested: bool,
    pub upgrade_requested: bool,
    pub pools: Vec<PoolState>,
    /// The children that the snapshots of the pools do not contain.
    pub others: Vec<Process>,
    pub sockets: Vec<SocketLine>,
}

/// The positions of the two ends of the doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DoorbellState {
    pub receiver: usize,
    pub waker: usize,
}

/// The file with the pid of the parent: its path, and the position of its descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFileState {
    pub path: PathBuf,
    pub position: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct PoolState {
    pub snapshot: PoolSnapshot,
    pub board: Option<BoardState>,
    /// The positions of the files of the board's segments.
    pub files: Vec<usize>,
}

impl State {
    /// Returns the snapshot of the policy.
    pub fn snapshot(&self) -> ServiceSnapshot {
        ServiceSnapshot {
            pools: self.pools.iter().map(|pool| pool.snapshot.clone()).collect(),
            roll_requested: self.roll_requested,
            upgrade_requested: self.upgrade_requested,
        }
    }
}

impl Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "taskfork {}", self.format)?;
        writeln!(f, "taken {} {}", self.taken, nanos(self.uptime))?;
        writeln!(f, "signals {} {}", self.signal_fds, self.signals)?;
        if let Some(DoorbellState { receiver, waker }) = self.doorbell {
            writeln!(f, "doorbell {receiver} {waker}")?;
        }
        if let Some(PidFileState { path, position }) = &self.pid_file {
            writeln!(f, "pid_file {position} {}", Bytes(path.as_os_str().as_bytes()))?;
        }
        writeln!(f, "requests {} {}", u8::from(self.roll_requested), u8::from(self.upgrade_requested))?;
        self.pools.iter().try_for_each(|pool| write_pool(f, pool))?;
        self.others.iter().try_for_each(|process| write_other(f, process))?;
        self.sockets.iter().try_for_each(|socket| writeln!(f, "{socket}"))
    }
}

fn write_other(f: &mut fmt::Formatter<'_>, process: &Process) -> fmt::Result {
    let Process { pool, id, generation, pid } = *process;
    writeln!(f, "other {} {id} {generation} {}", Name(pool), Maybe(pid))
}

fn write_pool(f: &mut fmt::Formatter<'_>, PoolState { snapshot, board, files }: &PoolState) -> fmt::Result {
    let PoolSnapshot { name, configured, graceful_timeout, condition, slots, requests } = snapshot;
    let condition = match condition {
        PoolCondition::Open => "open",
        PoolCondition::Stopping => "stopping",
        PoolCondition::Ended => "ended",
        PoolCondition::Failed => "failed",
    };
    writeln!(f, "pool {} {configured} {} {condition}", Name(name), nanos(*graceful_timeout))?;
    if let Some(BoardState { segments, token, occupants }) = board {
        writeln!(f, "board {token}")?;
        segments.iter().zip(files).try_for_each(|(len, file)| writeln!(f, "segment {len} {file}"))?;
        for OccupantState { slot, id, generation, seen, token, has_reached } in occupants {
            writeln!(f, "occupant {slot} {id} {generation} {seen} {token} {}", u8::from(*has_reached))?;
        }
    }
    requests.iter().try_for_each(|request| write_request(f, *request))?;
    slots.iter().try_for_each(|slot| write_slot(f, slot))
}

fn write_request(f: &mut fmt::Formatter<'_>, request: Request) -> fmt::Result {
    match request {
        Request::Roll => writeln!(f, "request roll 0"),
        Request::ScaleUp => writeln!(f, "request up 0"),
        Request::ScaleDown => writeln!(f, "request down 0"),
        Request::Scale(workers) => writeln!(f, "request scale {workers}"),
        Request::Replace(id) => writeln!(f, "request replace {id}"),
        Request::Reopen => writeln!(f, "request reopen 0"),
        // A stop ends the upgrade, and the service has one flag for an upgrade that was requested again.
        Request::Stop | Request::QuickStop | Request::Upgrade => Ok(()),
    }
}

fn write_slot(f: &mut fmt::Formatter<'_>, slot: &SlotSnapshot) -> fmt::Result {
    let SlotSnapshot {
        id,
        generation,
        is_wanted,
        has_been_ready,
        processes,
        restarts,
        exit,
        failed,
        abandoned,
        children,
    } = slot;
    let is_wanted = u8::from(*is_wanted);
    let has_been_ready = u8::from(*has_been_ready);
    let failed = u8::from(*failed);
    let exit = ExitFields(*exit);
    writeln!(
        f,
        "slot {id} {generation} {is_wanted} {has_been_ready} {processes} {restarts} {failed} {abandoned} {exit}"
    )?;
    children.iter().try_for_each(|child| write_child(f, child))
}

fn write_child(f: &mut fmt::Formatter<'_>, child: &ChildSnapshot) -> fmt::Result {
    let ChildSnapshot { process, age, ready_for, silent_for, heartbeat_timeout, role } = child;
    let pid = Maybe(process.pid);
    let ready_for = Maybe(ready_for.map(nanos));
    let beats = Maybe(heartbeat_timeout.map(nanos));
    write!(f, "child {} {pid} {} {ready_for} {} {beats}", process.generation, nanos(*age), nanos(*silent_for))?;
    match role {
        ChildRole::Serving => writeln!(f, " serving"),
        ChildRole::Trial => writeln!(f, " trial"),
        ChildRole::NotReady { late_in } => writeln!(f, " not_ready {}", nanos(*late_in)),
        ChildRole::Probation { ready_in } => writeln!(f, " probation {}", nanos(*ready_in)),
        ChildRole::Aborting { kill_in } => writeln!(f, " aborting {}", nanos(*kill_in)),
        ChildRole::Draining { stop_in, last_in } => writeln!(f, " draining {} {}", nanos(*stop_in), nanos(*last_in)),
        ChildRole::Stopping { kill_in } => writeln!(f, " stopping {}", nanos(*kill_in)),
        ChildRole::Killed { give_up_in } => writeln!(f, " killed {}", Maybe(give_up_in.map(nanos))),
    }
}

impl FromStr for State {
    type Err = Error;

    fn from_str(text: &str) -> Result<State> {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let mut fields = Fields::of(first);
        let is_ours = fields.word()? == "taskfork";
        let format: u32 = fields.next()?;
        if !is_ours || !FORMATS.contains(&format) {
            return Err(malformed(first));
        }
        let mut state = State {
            format,
            taken: 0,
            uptime: Duration::ZERO,
            signals: String::new(),
            signal_fds: 0,
            doorbell: None,
            pid_file: None,
            roll_requested: false,
            upgrade_requested: false,
            pools: Vec::new(),
            others: Vec::new(),
            sockets: Vec::new(),
        };
        lines.try_for_each(|line| state.read_line(line))?;
        Ok(state)
    }
}

impl State {
    fn read_line(&mut self, line: &str) -> Result<()> {
        let Some((keyword, rest)) = line.split_once(' ') else { return Ok(()) };
        let mut fields = Fields::of(rest);
        match keyword {
            "taken" => {
                self.taken = fields.next()?;
                self.uptime = fields.duration()?;
            }
            "signals" => {
                self.signal_fds = fields.next()?;
                self.signals = rest.split_once(' ').map(|(_, text)| text.to_owned()).unwrap_or_default();
            }
            "doorbell" => {
                self.doorbell = Some(DoorbellState { receiver: fields.next()?, waker: fields.next()? });
            }
            "pid_file" => {
                let position = fields.next()?;
                self.pid_file = Some(PidFileState { position, path: OsString::from_vec(fields.bytes()?).into() });
            }
            "requests" => {
                self.roll_requested = fields.flag()?;
                self.upgrade_requested = fields.flag()?;
            }
            "pool" => self.pools.push(read_pool(&mut fields)?),
            "other" => self.others.push(read_other(&mut fields)?),
            "socket" => self.sockets.push(line.parse().map_err(|()| malformed(line))?),
            _ => return self.read_pool_line(keyword, line, &mut fields),
        }
        Ok(())
    }

    /// Reads a line that belongs to the pool that was read last.
    fn read_pool_line(&mut self, keyword: &str, line: &str, fields: &mut Fields<'_>) -> Result<()> {
        if !matches!(keyword, "board" | "segment" | "occupant" | "request" | "slot" | "child") {
            return Ok(());
        }
        let Some(PoolState { snapshot, board, files }) = self.pools.last_mut() else { return Err(malformed(line)) };
        match (keyword, board) {
            ("board", board) => *board = Some(BoardState { token: fields.next()?, ..BoardState::default() }),
            ("segment", Some(board)) => {
                board.segments.push(fields.next()?);
                files.push(fields.next()?);
            }
            ("occupant", Some(board)) => board.occupants.push(read_occupant(fields)?),
            ("segment" | "occupant", None) => return Err(malformed(line)),
            ("request", _) => snapshot.requests.extend(read_request(fields)?),
            ("slot", _) => {
                let slot = read_slot(fields)?;
                let is_next = snapshot.slots.last().is_none_or(|last| last.id < slot.id);
                if !is_next || slot.id >= MAX_IDS {
                    return Err(malformed(line));
                }
                snapshot.slots.push(slot);
            }
            (_, _) => {
                let pool = pool_name::intern(&snapshot.name);
                let Some(slot) = snapshot.slots.last_mut() else { return Err(malformed(line)) };
                slot.children.push(read_child(pool, slot.id, line, fields)?);
            }
        }
        Ok(())
    }
}

fn read_other(fields: &mut Fields<'_>) -> Result<Process> {
    let pool = pool_name::intern(&fields.name()?);
    let id = fields.next()?;
    let generation = fields.next()?;
    let pid: NonZeroU32 = fields.next()?;
    Ok(Process { pool, id, generation, pid: Some(pid.get()) })
}

fn read_pool(fields: &mut Fields<'_>) -> Result<PoolState> {
    let snapshot = PoolSnapshot {
        name: fields.name()?,
        configured: fields.next()?,
        graceful_timeout: fields.duration()?,
        condition: match fields.word()? {
            "stopping" => PoolCondition::Stopping,
            "ended" => PoolCondition::Ended,
            "failed" => PoolCondition::Failed,
            _ => PoolCondition::Open,
        },
        slots: Vec::new(),
        requests: Vec::new(),
    };
    Ok(PoolState { snapshot, board: None, files: Vec::new() })
}

fn read_occupant(fields: &mut Fields<'_>) -> Result<OccupantState> {
    Ok(OccupantState {
        slot: fields.next()?,
        id: fields.next()?,
        generation: fields.next()?,
        seen: fields.next()?,
        token: fields.next()?,
        has_reached: fields.flag()?,
    })
}

/// Reads a request. Returns `None` if a later release has written a kind of request that this one does not know.
fn read_request(fields: &mut Fields<'_>) -> Result<Option<Request>> {
    let kind = fields.word()?;
    let number = fields.next()?;
    Ok(match kind {
        "roll" => Some(Request::Roll),
        "up" => Some(Request::ScaleUp),
        "down" => Some(Request::ScaleDown),
        "scale" => Some(Request::Scale(number)),
        "replace" => Some(Request::Replace(number)),
        "reopen" => Some(Request::Reopen),
        _ => None,
    })
}

fn read_slot(fields: &mut Fields<'_>) -> Result<SlotSnapshot> {
    Ok(SlotSnapshot {
        id: fields.next()?,
        generation: fields.next()?,
        is_wanted: fields.flag()?,
        has_been_ready: fields.flag()?,
        processes: fields.next()?,
        restarts: fields.next()?,
        failed: fields.flag()?,
        abandoned: fields.next()?,
        exit: fields.exit()?,
        children: Vec::new(),
    })
}

fn read_child(pool: &'static str, id: usize, line: &str, fields: &mut Fields<'_>) -> Result<ChildSnapshot> {
    let generation = fields.next()?;
    let pid = fields.maybe()?;
    let age = fields.duration()?;
    let ready_for = fields.maybe_duration()?;
    let silent_for = fields.duration()?;
    let heartbeat_timeout = fields.maybe_duration()?;
    let role = match fields.word()? {
        "serving" => ChildRole::Serving,
        "trial" => ChildRole::Trial,
        "not_ready" => ChildRole::NotReady { late_in: fields.duration()? },
        "probation" => ChildRole::Probation { ready_in: fields.duration()? },
        "aborting" => ChildRole::Aborting { kill_in: fields.duration()? },
        "draining" => ChildRole::Draining { stop_in: fields.duration()?, last_in: fields.duration()? },
        "stopping" => ChildRole::Stopping { kill_in: fields.duration()? },
        "killed" => ChildRole::Killed { give_up_in: fields.maybe_duration()? },
        _ => return Err(malformed(line)),
    };
    Ok(ChildSnapshot {
        process: Process { pool, id, generation, pid },
        age,
        ready_for,
        silent_for,
        heartbeat_timeout,
        role,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn child(id: usize, generation: u32, role: ChildRole) -> ChildSnapshot {
        let process = Process { pool: "web 7", id, generation, pid: Some(71 + generation) };
        let time = |nanos| Duration::from_nanos(nanos);
        let heartbeat_timeout = Some(time(2));
        ChildSnapshot { process, age: time(5), ready_for: Some(time(4)), silent_for: time(3), heartbeat_timeout, role }
    }

    fn slot(id: usize, exit: Option<Exit>, children: Vec<ChildSnapshot>) -> SlotSnapshot {
        SlotSnapshot {
            id,
            generation: 3,
            is_wanted: id == 0,
            has_been_ready: id == 1,
            processes: 4,
            restarts: 2,
            exit,
            failed: id == 1,
            abandoned: id,
            children,
        }
    }

    /// Returns the snapshot of a pool with every role of a process, every exit and every request.
    fn snapshot() -> PoolSnapshot {
        let time = Duration::from_nanos;
        let roles = [
            ChildRole::Serving,
            ChildRole::Trial,
            ChildRole::NotReady { late_in: time(11) },
            ChildRole::Probation { ready_in: time(10) },
            ChildRole::Aborting { kill_in: time(12) },
            ChildRole::Draining { stop_in: time(13), last_in: time(14) },
            ChildRole::Stopping { kill_in: time(15) },
            ChildRole::Killed { give_up_in: Some(time(16)) },
            ChildRole::Killed { give_up_in: None },
        ];
        let children = roles.into_iter().zip(0..).map(|(role, generation)| child(0, generation, role)).collect();
        let not_ready = ChildSnapshot { ready_for: None, heartbeat_timeout: None, ..child(1, 9, ChildRole::Serving) };
        let exits = [Exit::Code(-3), Exit::Signal(9), Exit::Unknown, Exit::Stale];
        let others = exits.into_iter().zip(2..).map(|(exit, id)| slot(id, Some(exit), Vec::new()));
        let slots = [slot(0, None, children), slot(1, Some(Exit::Code(0)), vec![not_ready])].into_iter().chain(others);
        let requests = vec![
            Request::Roll,
            Request::ScaleUp,
            Request::ScaleDown,
            Request::Scale(7),
            Request::Replace(2),
            Request::Reopen,
        ];
        PoolSnapshot {
            name: "web 7".into(),
            configured: 4,
            graceful_timeout: time(30),
            condition: PoolCondition::Open,
            slots: slots.collect(),
            requests,
        }
    }

    fn state() -> State {
        let snapshot = snapshot();
        let occupant = OccupantState { slot: 1, id: 2, generation: 3, seen: 4, token: 5, has_reached: true };
        let board = BoardState { segments: vec![64, 128], token: 8, occupants: vec![occupant] };
        let empty = |condition| PoolState {
            snapshot: PoolSnapshot {
                name: String::new(),
                slots: vec![],
                requests: vec![],
                condition,
                ..snapshot.clone()
            },
            board: None,
            files: Vec::new(),
        };
        let ended = [PoolCondition::Stopping, PoolCondition::Ended, PoolCondition::Failed].map(empty);
        let pool = PoolState { snapshot, board: Some(board), files: vec![5, 6] };
        let sockets = ["socket lt,,127.0.0.1:0,0,,,,, 7", "socket bu,,udp:[::]:53,0,,,,, 8"];
        State {
            format: 1,
            taken: u64::MAX,
            uptime: Duration::from_nanos(1),
            signals: "mask 0 1 2".into(),
            signal_fds: 2,
            doorbell: Some(DoorbellState { receiver: 2, waker: 3 }),
            pid_file: Some(PidFileState { path: "/run/größe 7".into(), position: 4 }),
            roll_requested: true,
            upgrade_requested: false,
            pools: [pool].into_iter().chain(ended).collect(),
            others: vec![
                Process { pool: "web 7", id: 1, generation: 2, pid: Some(73) },
                Process { pool: "", id: usize::MAX, generation: 0, pid: Some(74) },
            ],
            sockets: sockets.map(|line| line.parse().expect("a line")).to_vec(),
        }
    }

    #[test]
    fn the_written_state_is_read_again() {
        let state = state();
        assert_eq!(state.to_string().parse::<State>().expect("a state"), state);
    }

    #[test]
    fn additions_of_later_releases_are_ignored() {
        let text = state().to_string();
        let extended = text.replace(" serving\n", " serving 7 more\n").replace("pool", "later 1 2\nnews\npool");
        assert_eq!(extended.parse::<State>().expect("a state"), state());
        let with_request = text.replace("request roll 0\n", "request roll 0\nrequest dance 0\n");
        assert_eq!(with_request.parse::<State>().expect("a state"), state());
    }

    #[test]
    fn malformed_states_are_refused_with_the_line() {
        let text = state().to_string();
        for (line, wrong) in [
            ("taskfork 1", "taskfork 2"),
            ("taskfork 1", "somefork 1"),
            ("taskfork 1", "taskfork"),
            ("doorbell 2 3", "doorbell 2"),
            ("segment 64 5", "segment -64 5"),
            (" 1 2 73", " 1 2 0"),
            (" 1 2 73", " 1 2 -"),
            ("socket lt", "socket xx"),
            (" trial", " trail"),
            ("slot 0 3", "slot 0"),
            ("slot 1 3", "slot 0 3"),
            ("slot 2 3", "slot 4194304 3"),
        ] {
            let changed = text.replacen(line, wrong, 1);
            let error = changed.parse::<State>().expect_err("a refusal");
            assert!(error.to_string().contains("cannot be read"), "{error}");
        }
        for text in ["", "taskfork 1\nsegment 3", "taskfork 1\nslot 1", "taskfork 1\npool - 1 1\nchild 1"] {
            text.parse::<State>().expect_err("a refusal");
        }
    }
}
