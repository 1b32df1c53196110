//! A build of the program under test: what it does before the call, its settings, and what its workers do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// The end of every copy of this binary that has a build.
const MARK: &[u8; 8] = b"TF-BUILD";

/// The build that is appended to a copy of this binary. In texts, `SCRATCH` stands for the scratch directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Build {
    /// The first word of each line that the program prints.
    pub name: String,
    pub call: Call,
    pub workers: Workers,
    pub pools: Vec<Pool>,
    /// The addresses that the program binds by `taskfork::bind` before the call. The workers serve them too.
    pub binds: Vec<String>,
    /// What candidates and spawned workers do before the call.
    pub before: Before,
    /// What the process that has become the new parent does before the call.
    pub window: Before,
    pub service_name: Option<String>,
    pub program: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub upgrade_timeout_ms: Option<u64>,
    pub notifies_systemd: bool,
    pub is_activated: bool,
    pub ignores_usr2: bool,
    /// Whether the parent and the workers execute the commands of the test (see `Daemon::command`).
    pub takes_commands: bool,
    /// Whether each worker prints its environment, descriptors and signals.
    pub prints_facts: bool,
    /// Whether the program prints its arguments, environment and directory before the call.
    pub prints_start: bool,
    /// Whether the program starts a helper before the call, which prints the descriptors that it has inherited.
    pub prints_inherited: bool,
    /// Whether the parent has a listening socket that neither `listen` nor `bind` has made.
    pub has_foreign_listener: bool,
    /// The directory into which the program changes before the call.
    pub directory: Option<PathBuf>,
}

/// How the program starts its workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    ForkProcesses,
    #[default]
    Prefork,
    Supervisor,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Workers {
    #[default]
    Forked,
    Spawned,
    Threads,
}

/// The settings of a pool, and what its workers do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub workers: usize,
    /// Without it, the pool has no `ready_timeout`.
    pub ready_timeout_ms: Option<u64>,
    pub heartbeat_timeout_ms: Option<u64>,
    pub graceful_timeout_ms: u64,
    pub max_surge: Option<usize>,
    pub max_unavailable: Option<usize>,
    pub max_restarts: Option<u32>,
    pub is_optional: bool,
    pub listens: Vec<String>,
    pub is_per_worker: bool,
    pub fate: Fate,
    /// The only worker that has this fate. The others serve. `None`: all workers have it.
    pub fate_of: Option<usize>,
}

/// What a process does before the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Before {
    #[default]
    Nothing,
    Exits(i32),
    /// Prints a text and exits with status 0, as a program does that does not use this crate.
    PrintsAndExits,
    Crashes,
    Hangs,
    /// Prints a line, and waits at the gate `before` or `window`.
    WaitsAtGate,
    Sleeps(u64),
    /// Forks a child, which makes the call too, and then executes the program once more.
    LeaksItsState,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Answers clients until a stop request, and then until they have closed their connections.
    #[default]
    Serves,
    ExitsWith(i32),
    NeverReady,
    /// Waits at the gate `ready` before it is ready.
    WaitsAtGate,
    /// Is ready, and sends no heartbeat.
    IsSilent,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool {
            name: String::new(),
            workers: 2,
            ready_timeout_ms: Some(60_000),
            heartbeat_timeout_ms: None,
            graceful_timeout_ms: 600_000,
            max_surge: None,
            max_unavailable: None,
            max_restarts: None,
            is_optional: false,
            listens: vec!["127.0.0.1:0".into()],
            is_per_worker: false,
            fate: Fate::Serves,
            fate_of: None,
        }
    }
}

impl Pool {
    pub fn named(name: &str) -> Pool {
        Pool { name: name.into(), ..Pool::default() }
    }

    pub fn of(workers: usize) -> Pool {
        Pool { workers, ..Pool::default() }
    }

    pub fn fate(self, fate: Fate) -> Pool {
        Pool { fate, ..self }
    }
}

impl Build {
    /// Returns a build of a service with one pool of two workers, with a `ready_timeout` and one listener.
    pub fn new(name: &str, workers: Workers) -> Build {
        Build { name: name.into(), workers, pools: vec![Pool::default()], ..Build::default() }
    }

    /// Returns a build that calls `fork_processes(2, 100)`.
    pub fn fork_processes(name: &str) -> Build {
        Build { call: Call::ForkProcesses, ..Build::new(name, Workers::Forked) }
    }

    pub fn pool(self, pool: Pool) -> Build {
        Build { pools: vec![pool], ..self }
    }

    /// Makes the service a `Supervisor` with these pools.
    pub fn supervisor<const N: usize>(self, pools: [Pool; N]) -> Build {
        Build { call: Call::Supervisor, pools: pools.to_vec(), ..self }
    }

    pub fn before(self, before: Before) -> Build {
        Build { before, ..self }
    }

    pub fn window(self, window: Before) -> Build {
        Build { window, ..self }
    }

    /// Returns the build of the program that runs, or `None` if this binary has none.
    pub fn of_this_program() -> Option<Build> {
        let exe = std::fs::read_link("/proc/self/exe").ok()?;
        // The linker has no build, if it was started as a program with the path of this program as its argument.
        if exe.file_name()?.to_str()?.starts_with("ld-") {
            return read(Path::new(&std::env::args_os().next()?)).ok()?;
        }
        read(Path::new("/proc/self/exe")).ok()?
    }

    /// Returns the build of this program.
    pub fn of_program(path: &Path) -> Option<Build> {
        read(path).ok()?
    }

    /// Writes a program with this build. Replaces an existing file by rename(2), as a deployment does.
    ///
    /// Another process writes the file, because programs that other tests start meanwhile could inherit the descriptor
    /// of this process. A file that is open for writing cannot be executed (`ETXTBSY`, execve(2)).
    pub fn install(&self, path: &Path) {
        write_program(path, &self.trailer());
    }

    fn trailer(&self) -> Vec<u8> {
        let mut trailer = serde_json::to_vec(self).expect("a build as JSON");
        let length = trailer.len() as u64;
        trailer.extend(length.to_le_bytes());
        trailer.extend(MARK);
        trailer
    }
}

/// Replaces a file by a program with these bytes at its end.
fn write_program(path: &Path, end: &[u8]) {
    write_by("cat \"$1\" - > \"$2\" && chmod 755 \"$2\"", Some(base()), path, end);
}

/// Replaces a file by an executable file with this content.
pub fn write_file(path: &Path, content: &[u8], mode: u32) {
    write_by("cat > \"$2\"", None, path, content);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

fn write_by(script: &str, from: Option<&Path>, path: &Path, input: &[u8]) {
    let new = path.with_extension("new");
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(from.unwrap_or(Path::new(""))).arg(&new).stdin(Stdio::piped());
    let mut shell = command.spawn().expect("sh(1)");
    shell.stdin.take().expect("a pipe").write_all(input).expect("a shell that reads");
    assert!(shell.wait().expect("a status").success());
    std::fs::rename(new, path).expect("a new program");
}

/// The binary without its symbols, so that the many copies take little room. If strip(1) is missing, the binary itself.
fn base() -> &'static Path {
    BASE.get_or_init(strip)
}

static BASE: OnceLock<PathBuf> = OnceLock::new();

fn strip() -> PathBuf {
    let this = std::env::current_exe().expect("this binary");
    let stripped = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("upgrade-{}", std::process::id()));
    match Command::new("strip").arg("-o").arg(&stripped).arg(&this).status() {
        Ok(status) if status.success() => stripped,
        _ => this,
    }
}

/// Removes the file that [`base`] has made.
pub fn clean_up() {
    if let Some(base) = BASE.get().filter(|base| base.starts_with(env!("CARGO_TARGET_TMPDIR"))) {
        let _ = std::fs::remove_file(base);
    }
}

/// Returns the bytes of a program without a build.
pub fn program_bytes() -> Vec<u8> {
    std::fs::read(base()).expect("the program")
}

fn read(path: &Path) -> io::Result<Option<Build>> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    let mut end = [0; 16];
    file.seek(SeekFrom::Start(length.saturating_sub(16)))?;
    file.read_exact(&mut end)?;
    let (size, mark) = end.split_at(8);
    if mark != MARK {
        return Ok(None);
    }
    let size = u64::from_le_bytes(size.try_into().expect("8 bytes"));
    let mut text = vec![0; size as usize];
    file.seek(SeekFrom::Start(length - 16 - size))?;
    file.read_exact(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}
