//! The test's side of a scenario, which acts as the operator: starts a build, deploys another one, sends signals, reads
//! the output, and leaves no process behind.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{self, SigHandler, SigSet, Signal};
use nix::unistd::Pid;

use crate::build::Build;
use crate::gate::Gate;
use crate::procfs;
use crate::program::SCRATCH;

/// A step that takes longer than this fails the test.
const LIMIT: Duration = Duration::from_secs(60);

/// The path of the program in the scratch directory, unless the scenario starts it differently.
const PROGRAM: &str = "program";

/// A service and all its processes, in a process group of their own.
///
/// Standard output and standard error are one pipe, so printed lines and log lines have one order. Every process has
/// the pipe open, so the reader gets the end of the file only when all processes are gone.
pub struct Daemon {
    child: Child,
    parent: u32,
    lines: BufReader<UnixStream>,
    /// The lines read so far.
    said: Vec<String>,
    has_ended: bool,
    scratch: PathBuf,
    gates: HashMap<String, Gate>,
}

/// A worker's line `new up - 0 1 71`: a process of the build `new` serves worker 0, in generation 1, with pid 71.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Up {
    pub build: String,
    pub pool: String,
    pub id: usize,
    pub generation: u32,
    pub pid: u32,
}

impl Up {
    fn of(line: &str) -> Option<Up> {
        let words: Vec<&str> = line.split(' ').collect();
        let [build, "up", pool, id, generation, pid] = words[..] else { return None };
        Some(Up {
            build: build.into(),
            pool: pool.into(),
            id: id.parse().ok()?,
            generation: generation.parse().ok()?,
            pid: pid.parse().ok()?,
        })
    }
}

/// An empty directory for one test.
fn new_scratch() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let scratch = std::env::temp_dir().join(format!("taskfork-upgrade-{}-{number}", std::process::id()));
    // The directory may exist already: a killed test leaves its directory behind, and its pid may be reused.
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir(&scratch).expect("a directory");
    scratch
}

impl Daemon {
    /// Starts a build by its absolute path.
    pub fn start(build: &Build) -> Daemon {
        Daemon::start_by(|scratch| {
            build.install(&scratch.join(PROGRAM));
            Command::new(scratch.join(PROGRAM))
        })
    }

    /// Starts the program that `prepare` installs in the scratch directory.
    pub fn start_by(prepare: impl FnOnce(&Path) -> Command) -> Daemon {
        let scratch = new_scratch();
        let mut command = prepare(&scratch);
        let (reader, writer) = UnixStream::pair().expect("a pipe");
        reader.set_read_timeout(Some(LIMIT)).expect("a timeout");
        let writer = OwnedFd::from(writer);
        command.env(SCRATCH, &scratch).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a descriptor")).stderr(writer).process_group(0);
        // SAFETY: between fork and exec it only makes system calls about signals, which take no lock.
        unsafe { command.pre_exec(|| Ok(reset_signals()?)) };
        let child = command.spawn().expect("the program");
        let parent = child.id();
        // The command keeps the writer open, and with it the reader would never get the end of the file.
        drop(command);
        let gates = HashMap::new();
        Daemon { child, parent, lines: BufReader::new(reader), said: Vec::new(), has_ended: false, scratch, gates }
    }

    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Returns the pid of the parent.
    pub fn pid(&self) -> u32 {
        self.parent
    }

    /// Uses this process as the parent, because the started program is only its launcher.
    pub fn set_parent(&mut self, parent: u32) {
        self.parent = parent;
    }

    /// Replaces the program by this build.
    pub fn deploy(&self, build: &Build) {
        build.install(&self.program());
    }

    pub fn program(&self) -> PathBuf {
        self.scratch.join(PROGRAM)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.parent, signal);
    }

    /// Deploys a build, and requests an upgrade.
    pub fn begin_upgrade(&self, build: &Build) {
        self.deploy(build);
        self.signal(Signal::SIGUSR2);
    }

    /// Upgrades to this build, and waits until the upgrade has finished.
    pub fn upgrade(&mut self, build: &Build) {
        self.begin_upgrade(build);
        self.wait_for_end_of_upgrade(build);
    }

    /// Upgrades to this build like `upgrade`, while another upgrade may be in progress, which is aborted or finishes.
    pub fn upgrade_despite_aborts(&mut self, build: &Build) {
        self.begin_upgrade(build);
        self.wait_for(&format!("{} log Upgrade done", build.name));
    }

    pub fn wait_for_end_of_upgrade(&mut self, build: &Build) {
        let done = format!("{} log Upgrade done", build.name);
        self.wait_until(&done, |line| line == done || line.contains(" log Upgrade aborted"));
        assert!(self.said.last() == Some(&done), "the upgrade was aborted:\n{}", self.transcript());
    }

    /// Makes the parent execute this command.
    pub fn command(&self, command: &str) {
        let new = self.scratch.join("command.new");
        std::fs::write(&new, command).expect("a command");
        std::fs::rename(new, self.scratch.join("command")).expect("a command");
    }

    /// Lets this number of processes pass a gate.
    pub fn open_gate(&mut self, name: &str, times: usize) {
        let scratch = &self.scratch;
        self.gates.entry(name.to_owned()).or_insert_with(|| Gate::of(scratch, name)).open(times);
    }

    /// Lets all processes pass a gate from now on.
    pub fn leave_gate_open(&mut self, name: &str) {
        self.open_gate(name, 1000);
    }

    /// Returns the next line, or `None` if all processes are gone.
    fn read_line(&mut self) -> Option<&str> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("no line for {} s:\n{}", LIMIT.as_secs(), self.transcript())
            }
            Err(error) => panic!("{error}"),
        }
        self.said.push(line.trim_end().to_owned());
        self.said.last().map(String::as_str)
    }

    /// Returns the pid in the last line that begins with this text.
    pub fn pid_after(&self, text: &str) -> Pid {
        let pid = self.said.iter().rev().find_map(|line| line.strip_prefix(text)?.parse().ok());
        Pid::from_raw(pid.unwrap_or_else(|| panic!("no pid after {text:?}:\n{}", self.transcript())))
    }

    /// Reads the lines that have arrived already.
    pub fn read_available(&mut self) {
        loop {
            let mut stream = [PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN)];
            let has_more = !self.lines.buffer().is_empty() || poll(&mut stream, PollTimeout::ZERO) == Ok(1);
            // A line is one write, so it is there as a whole.
            if !has_more || self.read_line().is_none() {
                return;
            }
        }
    }

    /// Reads until a new line contains this text, and returns the line.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_until(text, |line| line.contains(text))
    }

    fn wait_until(&mut self, text: &str, is_it: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + LIMIT;
        loop {
            match self.read_line() {
                Some(line) if is_it(line) => return line.to_owned(),
                Some(_) => assert!(Instant::now() < until, "no line has '{text}':\n{}", self.transcript()),
                None => panic!("no line has '{text}':\n{}", self.transcript()),
            }
        }
    }

    /// Reads until this text has occurred in `times` lines in total, counted from the first line.
    pub fn wait_for_times(&mut self, text: &str, times: usize) {
        while self.count(text) < times {
            self.wait_for(text);
        }
    }

    /// Reads until a new process of this build is up.
    pub fn worker(&mut self, build: &str) -> Up {
        let line = self.wait_for(&format!("{build} up "));
        Up::of(&line).unwrap_or_else(|| panic!("{line}"))
    }

    /// Reads until `n` new processes of this build are up. Returns them in the order of their pools and ids.
    pub fn workers(&mut self, build: &str, n: usize) -> Vec<Up> {
        let mut workers: Vec<Up> = (0..n).map(|_| self.worker(build)).collect();
        workers.sort_by(|a, b| (&a.pool, a.id).cmp(&(&b.pool, b.id)));
        workers
    }

    /// Reads until `n` new processes of this build are up and ready, and returns them like `workers`.
    pub fn ready_workers(&mut self, build: &str, n: usize) -> Vec<Up> {
        let workers = self.workers(build, n);
        for up in &workers {
            self.wait_for_times(&format!("(pid {}) is ready", up.pid), 1);
        }
        workers
    }

    /// Returns the address of a listener, as the first parent has logged it.
    pub fn address(&self, nth: usize) -> String {
        let mut addresses = self.said.iter().filter_map(|line| line.split_once("Listening on "));
        addresses.nth(nth).unwrap_or_else(|| panic!("no address {nth}:\n{}", self.transcript())).1.to_owned()
    }

    /// Returns the processes of the workers, such as `new - 0`, by the lines that they have printed.
    pub fn running(&self) -> Vec<String> {
        let children = procfs::children(self.parent);
        let ups: Vec<Up> = self.said.iter().filter_map(|line| Up::of(line)).collect();
        let mut running: Vec<String> = children
            .into_iter()
            .map(|pid| match ups.iter().rev().find(|up| up.pid == pid) {
                Some(up) => format!("{} {} {}", up.build, up.pool, up.id),
                None => format!("unknown process {pid}"),
            })
            .collect();
        running.sort();
        running
    }

    /// Returns the pids of the processes of the workers.
    pub fn pids_of_workers(&self) -> BTreeSet<u32> {
        procfs::children(self.parent)
    }

    /// Returns what `see` sees, as soon as it is what is expected. Used because the parent cleans up after it has
    /// written its line.
    pub fn after_cleanup<T: PartialEq>(&self, see: impl Fn(&Daemon) -> T, expected: &T) -> T {
        until(|| see(self) == *expected);
        see(self)
    }

    /// Checks that exactly these workers run.
    pub fn assert_runs(&self, expected: &[&str]) {
        assert_eq!(self.running(), expected, "{}", self.transcript());
    }

    /// Waits until exactly these workers run.
    pub fn wait_until_runs(&mut self, expected: &[&str]) {
        let until = Instant::now() + LIMIT;
        loop {
            // The processes are known by their lines.
            self.read_available();
            let running = self.running();
            if running == expected {
                return;
            }
            assert!(Instant::now() < until, "{running:?}, not {expected:?}:\n{}", self.transcript());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until every process is gone, and returns the exit status of the started program.
    pub fn end(&mut self) -> ExitStatus {
        while self.read_line().is_some() {}
        let status = self.child.wait().expect("the program's status");
        self.has_ended = true;
        status
    }

    /// Waits until every process is gone, and checks the exit status of the started program.
    pub fn ends_with(&mut self, code: i32) {
        let status = self.end();
        assert_eq!(status.code(), Some(code), "{status}:\n{}", self.transcript());
    }

    /// Stops the service gracefully.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        self.ends_with(0);
    }

    /// Returns whether a line so far contains this text.
    pub fn said(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// Returns the number of lines so far that contain this text.
    pub fn count(&self, text: &str) -> usize {
        self.said.iter().filter(|line| line.contains(text)).count()
    }

    /// Returns whether the first line that contains `first` came before the first line that contains `then`.
    pub fn said_before(&self, first: &str, then: &str) -> bool {
        let position = |text: &str| self.said.iter().position(|line| line.contains(text));
        matches!((position(first), position(then)), (Some(first), Some(then)) if first < then)
    }

    /// Returns the lines so far that contain this text.
    pub fn lines_with(&self, text: &str) -> BTreeSet<&str> {
        self.said.iter().map(String::as_str).filter(|line| line.contains(text)).collect()
    }

    /// Returns all lines so far.
    pub fn transcript(&self) -> String {
        self.said.join("\n")
    }
}

/// Kills the processes that a failed test has left running.
impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.has_ended {
            let _ = signal::killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

pub fn kill(pid: u32, signal: Signal) {
    signal::kill(Pid::from_raw(pid as i32), signal).expect("a process to signal");
}

/// Waits until this is true. Returns false if it takes too long. Used if nothing reports that it has become true.
pub fn until(is_true: impl Fn() -> bool) -> bool {
    let until = Instant::now() + LIMIT;
    while !is_true() {
        if Instant::now() > until {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Resets the signal mask and every disposition, so that the program does not inherit those of the test process.
fn reset_signals() -> Result<(), Errno> {
    for number in Signal::iterator().filter(|number| !matches!(number, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: signal(2) with SIG_DFL installs no handler.
        unsafe { signal::signal(number, SigHandler::SigDfl) }?;
    }
    SigSet::empty().thread_set_mask()
}
