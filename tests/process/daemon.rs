//! The test's side of a scenario, which acts as the operator: starts a program, reads its output, sends signals, and
//! leaves no process behind.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
#[cfg(target_os = "linux")]
use std::time::Duration;

pub use crate::os::kill;
use crate::os::{self, Group, KILLED, KILLED_EXIT, Reader, Signal};

/// A program and all its workers, in a process group of their own.
///
/// Standard output and standard error are one pipe, so printed lines and log lines have one order. Every process has
/// the pipe open, so the reader gets the end of the file only when all processes are gone.
pub struct Daemon {
    child: Child,
    group: Group,
    lines: BufReader<Reader>,
    /// The lines read so far.
    said: Vec<String>,
    ended: Option<ExitStatus>,
    /// A directory to remove at the end of the test.
    leftover: Option<PathBuf>,
    scratch: PathBuf,
    #[cfg(target_os = "linux")]
    scenario: String,
    #[cfg(target_os = "linux")]
    backend: String,
    has_threads: bool,
    #[cfg(target_os = "linux")]
    pub is_forking: bool,
}

/// A worker's line `up 2 71`: worker 2 runs with pid 71, or as the thread of generation 71. `Display` gives its name
/// in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Up {
    pub id: usize,
    pub pid: u32,
    is_thread: bool,
}

impl Up {
    /// Returns the pid as printed events show it. For a thread, this is 0.
    pub fn event_pid(&self) -> u32 {
        if self.is_thread { 0 } else { self.pid }
    }

    fn thread(&self) -> String {
        format!("worker-{}.{}", self.id, self.pid)
    }
}

impl fmt::Display for Up {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_thread {
            true => write!(f, "child {} (thread {})", self.id, self.thread()),
            false => write!(f, "child {} (pid {})", self.id, self.pid),
        }
    }
}

impl Daemon {
    pub fn start(scenario: &str, backend: &str) -> Daemon {
        Daemon::start_program(&std::env::current_exe().expect("this binary"), scenario, backend, None)
    }

    /// Starts a program, for example a copy of this binary, with one more environment variable.
    pub fn start_program(program: &Path, scenario: &str, backend: &str, variable: Option<(&str, &str)>) -> Daemon {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = std::env::temp_dir().join(format!("taskfork-test-{}-{number}", std::process::id()));
        // The directory may exist already: a killed test leaves its directory behind, and its pid may be reused.
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir(&scratch).expect("a directory");
        let (reader, writer) = os::pipe();
        let mut command = Command::new(program);
        command
            .args([crate::PROGRAM, scenario])
            .env(crate::BACKEND, backend)
            .env(crate::SCRATCH, &scratch)
            // Worker threads may panic at the same time, and long backtraces would be interleaved.
            .env("RUST_BACKTRACE", "0")
            .envs(variable)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("a descriptor"))
            .stderr(writer);
        let (child, group) = Group::start(&mut command);
        Daemon {
            child,
            group,
            lines: BufReader::new(reader),
            said: Vec::new(),
            ended: None,
            leftover: None,
            scratch,
            #[cfg(target_os = "linux")]
            scenario: scenario.to_owned(),
            #[cfg(target_os = "linux")]
            backend: backend.to_owned(),
            has_threads: backend == crate::THREAD,
            #[cfg(target_os = "linux")]
            is_forking: backend == "fork",
        }
    }

    /// Starts the program of this scenario a second time, in a group and a directory of its own.
    #[cfg(target_os = "linux")]
    pub fn another(&self) -> Daemon {
        Daemon::start(&self.scenario, &self.backend)
    }

    /// Removes this directory at the end of the test. The program creates the directory.
    #[cfg(target_os = "linux")]
    pub fn remove_at_end(&mut self, directory: PathBuf) {
        self.leftover = Some(directory);
    }

    /// Returns the scratch directory of the program and its workers. The directory is removed at the end of the test.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the next line, or `None` if all processes are gone. If the program hangs, its watchdog ends it.
    fn read_line(&mut self) -> Option<&str> {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        if line.is_empty() {
            return None;
        }
        self.said.push(line.trim_end().to_owned());
        assert!(!line.starts_with("watchdog"), "a process hangs:\n{}", self.transcript());
        self.said.last().map(String::as_str)
    }

    /// Returns the next line.
    #[cfg(target_os = "linux")]
    pub fn next_line(&mut self) -> String {
        match self.read_line() {
            Some(line) => line.to_owned(),
            None => panic!("every process has exited:\n{}", self.transcript()),
        }
    }

    /// Returns the next line if its first byte arrives within this time. The rest of the line arrives with the first
    /// byte, because each line is one write.
    #[cfg(target_os = "linux")]
    pub fn line_within(&mut self, time: Duration) -> Option<String> {
        let is_there = !self.lines.buffer().is_empty() || os::is_readable_within(self.lines.get_ref(), time);
        is_there.then(|| self.next_line())
    }

    /// Reads until a line contains this text, and returns the line.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_until(text, |line| line.contains(text))
    }

    fn wait_until(&mut self, text: &str, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            match self.read_line() {
                Some(line) if is_it(line) => return line.to_owned(),
                Some(_) => {}
                None => panic!("no line has '{text}':\n{}", self.transcript()),
            }
        }
    }

    /// Reads until this text has occurred `times` times in total, counted from the first line.
    pub fn wait_for_times(&mut self, text: &str, times: usize) {
        while self.count(text) < times {
            self.wait_for(text);
        }
    }

    /// Reads until the next worker is up.
    pub fn worker(&mut self) -> Up {
        let line = self.wait_until("up", |line| line.starts_with("up "));
        let mut numbers = line.split(' ').skip(1).map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("an id and a pid");
        Up { id: next() as usize, pid: next(), is_thread: self.has_threads }
    }

    /// Reads until `n` workers are up, and returns them in the order of their ids.
    pub fn workers(&mut self, n: usize) -> Vec<Up> {
        let mut workers: Vec<Up> = (0..n).map(|_| self.worker()).collect();
        workers.sort_by_key(|up| up.id);
        workers
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Sends a signal to a worker. For a worker thread, creates a file instead of SIGKILL and SIGUSR2, and the thread
    /// checks for this file. Sends every other signal to the whole program.
    pub fn send(&self, up: Up, signal: Signal) {
        if !self.has_threads {
            kill(up.pid, signal);
        } else if matches!(signal, Signal::SIGKILL | Signal::SIGUSR2) {
            std::fs::write(crate::signal_file(&self.scratch, &up.thread(), signal), "").expect("a signal file");
        } else {
            self.signal(signal);
        }
    }

    /// Returns the log's text for a worker that failed with this status.
    pub fn failed(&self, status: i32) -> String {
        format!("exited with status {}", if self.has_threads { crate::PANICKED } else { status })
    }

    /// Returns the log's text for a worker that the test has killed.
    pub fn killed(&self) -> String {
        if self.has_threads { self.failed(9) } else { KILLED.to_owned() }
    }

    /// Returns the `Debug` text of the exit of a worker that failed with this status.
    pub fn failed_exit(&self, status: i32) -> String {
        format!("Code({})", if self.has_threads { crate::PANICKED } else { status })
    }

    /// Returns the `Debug` text of the exit of a worker that the test has killed.
    pub fn killed_exit(&self) -> String {
        if self.has_threads { self.failed_exit(9) } else { KILLED_EXIT.to_owned() }
    }

    /// Returns the log's text for a worker that the parent has ended. For a process, which the parent kills, this is
    /// `process`. For a thread, which the parent abandons, it is another text.
    pub fn ended_by_parent<'a>(&self, process: &'a str) -> &'a str {
        if self.has_threads { "is stale" } else { process }
    }

    /// Interrupts the parent and its workers, as a terminal does for ^C.
    pub fn interrupt(&self) {
        self.group.interrupt();
    }

    /// Waits until every process is gone, and returns the parent's exit status.
    pub fn end(&mut self) -> ExitStatus {
        while self.read_line().is_some() {}
        let status = self.child.wait().expect("the program's status");
        self.ended = Some(status);
        status
    }

    /// Waits until every process is gone, and checks the parent's exit status.
    pub fn ends_with(&mut self, code: i32) {
        let status = self.end();
        assert_eq!(status.code(), Some(code), "{status}:\n{}", self.transcript());
    }

    /// Returns the first line so far that contains this text.
    pub fn line(&self, text: &str) -> &str {
        self.said
            .iter()
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("no '{text}':\n{}", self.transcript()))
    }

    /// Returns whether a line so far contains this text.
    pub fn said(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// Returns how often this text occurs in the lines so far.
    pub fn count(&self, text: &str) -> usize {
        self.said.iter().map(|line| line.matches(text).count()).sum()
    }

    /// Returns whether the first line that contains `first` came before the first line that contains `then`.
    pub fn said_before(&self, first: &str, then: &str) -> bool {
        let position = |text: &str| self.said.iter().position(|line| line.contains(text));
        matches!((position(first), position(then)), (Some(first), Some(then)) if first < then)
    }

    /// Returns all lines so far.
    pub fn transcript(&self) -> String {
        self.said.join("\n")
    }
}

/// Kills the processes that a failed test has left running.
impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.group.kill();
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.scratch);
        if let Some(directory) = &self.leftover {
            let _ = std::fs::remove_dir(directory);
        }
    }
}
