//! The side of the operator: starts the program, reads what it says, sends signals, and never outstays it.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
#[cfg(target_os = "linux")]
use std::time::Duration;

pub use crate::os::kill;
use crate::os::{self, Group, KILLED, KILLED_EXIT, Reader, Signal};

/// A program and all its workers, in a group of their own.
///
/// Standard output and error are one pipe: what is said and what is logged come in one order, and the end of the file
/// means that every process is gone, since each holds the pipe.
pub struct Daemon {
    child: Child,
    group: Group,
    lines: BufReader<Reader>,
    said: Vec<String>,
    ended: Option<ExitStatus>,
    leaves: Option<PathBuf>,
    scratch: PathBuf,
    has_threads: bool,
    #[cfg(target_os = "linux")]
    pub is_forking: bool,
}

/// `up 2 71`: worker 2 runs, with pid 71, or as the thread of that generation. `Display` is its name in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Up {
    pub id: usize,
    pub pid: u32,
    is_thread: bool,
}

impl Up {
    /// Of the process, as events tell it.
    pub fn told_pid(&self) -> u32 {
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

    /// A copy of this binary, say, with a variable in its environment.
    pub fn start_program(program: &Path, scenario: &str, backend: &str, variable: Option<(&str, &str)>) -> Daemon {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = std::env::temp_dir().join(format!("taskfork-test-{}-{number}", std::process::id()));
        // A test that was killed has left its own behind, and its pid may be this one's.
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir(&scratch).expect("a directory");
        let (reader, writer) = os::pipe();
        let mut command = Command::new(program);
        command
            .args([crate::PROGRAM, scenario])
            .env(crate::BACKEND, backend)
            .env(crate::SCRATCH, &scratch)
            // What threads print beside each other is only whole where it is short.
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
            leaves: None,
            scratch,
            has_threads: backend == crate::THREAD,
            #[cfg(target_os = "linux")]
            is_forking: backend == "fork",
        }
    }

    /// A directory that the program makes, to be removed once it is gone.
    #[cfg(target_os = "linux")]
    pub fn leaves(&mut self, directory: PathBuf) {
        self.leaves = Some(directory);
    }

    /// A directory of its own, which its processes know as well, and which goes with it.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line, or none if everybody is gone. A program that hangs is ended by its watchdog.
    fn read_line(&mut self) -> Option<&str> {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        if line.is_empty() {
            return None;
        }
        self.said.push(line.trim_end().to_owned());
        assert!(!line.starts_with("watchdog"), "somebody hangs:\n{}", self.transcript());
        self.said.last().map(String::as_str)
    }

    /// The next line.
    #[cfg(target_os = "linux")]
    pub fn next_line(&mut self) -> String {
        match self.read_line() {
            Some(line) => line.to_owned(),
            None => panic!("everybody is gone:\n{}", self.transcript()),
        }
    }

    /// The next line, if there is one within this time. (A line is written at once, so its end is never waited for.)
    #[cfg(target_os = "linux")]
    pub fn line_within(&mut self, time: Duration) -> Option<String> {
        let is_there = !self.lines.buffer().is_empty() || os::is_readable_within(self.lines.get_ref(), time);
        is_there.then(|| self.next_line())
    }

    /// Reads on until a line contains this, and returns it.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_until(text, |line| line.contains(text))
    }

    fn wait_until(&mut self, text: &str, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            match self.read_line() {
                Some(line) if is_it(line) => return line.to_owned(),
                Some(_) => {}
                None => panic!("nobody said '{text}':\n{}", self.transcript()),
            }
        }
    }

    /// Reads on until it has been said so often, from the beginning.
    pub fn wait_for_times(&mut self, text: &str, times: usize) {
        while self.count(text) < times {
            self.wait_for(text);
        }
    }

    /// Reads on until the next worker says that it is up.
    pub fn worker(&mut self) -> Up {
        let line = self.wait_until("up", |line| line.starts_with("up "));
        let mut numbers = line.split(' ').skip(1).map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("an id and a pid");
        Up { id: next() as usize, pid: next(), is_thread: self.has_threads }
    }

    /// Waits for `n` workers, in the order of their ids.
    pub fn workers(&mut self, n: usize) -> Vec<Up> {
        let mut workers: Vec<Up> = (0..n).map(|_| self.worker()).collect();
        workers.sort_by_key(|up| up.id);
        workers
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// To a worker. A thread finds SIGKILL and SIGUSR2 where it waits; what else it may get is the whole program's.
    pub fn send(&self, up: Up, signal: Signal) {
        if !self.has_threads {
            kill(up.pid, signal);
        } else if matches!(signal, Signal::SIGKILL | Signal::SIGUSR2) {
            std::fs::write(crate::letter(&self.scratch, &up.thread(), signal), "").expect("a letter");
        } else {
            self.signal(signal);
        }
    }

    /// How who failed with this status has ended, in the words of the log.
    pub fn failed(&self, status: i32) -> String {
        format!("exited with status {}", if self.has_threads { crate::PANICKED } else { status })
    }

    /// The same of who was killed by the operator.
    pub fn killed(&self) -> String {
        if self.has_threads { self.failed(9) } else { KILLED.to_owned() }
    }

    /// Both as values.
    pub fn failed_exit(&self, status: i32) -> String {
        format!("Code({})", if self.has_threads { crate::PANICKED } else { status })
    }

    pub fn killed_exit(&self) -> String {
        if self.has_threads { self.failed_exit(9) } else { KILLED_EXIT.to_owned() }
    }

    /// The same of who was killed by the parent, or given up.
    pub fn ended_by_parent<'a>(&self, process: &'a str) -> &'a str {
        if self.has_threads { "is stale" } else { process }
    }

    /// As the terminal does it for ^C: the parent and its workers alike.
    pub fn interrupt(&self) {
        self.group.interrupt();
    }

    /// Waits until every process is gone, and returns how the parent ended.
    pub fn end(&mut self) -> ExitStatus {
        while self.read_line().is_some() {}
        let status = self.child.wait().expect("the program's status");
        self.ended = Some(status);
        status
    }

    /// The same, for a parent that is to exit with this status.
    pub fn ends_with(&mut self, code: i32) {
        let status = self.end();
        assert_eq!(status.code(), Some(code), "{status}:\n{}", self.transcript());
    }

    /// A line that was said before.
    pub fn line(&self, text: &str) -> &str {
        self.said
            .iter()
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("no '{text}':\n{}", self.transcript()))
    }

    pub fn said(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    pub fn count(&self, text: &str) -> usize {
        self.said.iter().map(|line| line.matches(text).count()).sum()
    }

    /// The first thing that contains `first` was said before the first that contains `then`.
    pub fn said_before(&self, first: &str, then: &str) -> bool {
        let position = |text: &str| self.said.iter().position(|line| line.contains(text));
        matches!((position(first), position(then)), (Some(first), Some(then)) if first < then)
    }

    pub fn transcript(&self) -> String {
        self.said.join("\n")
    }
}

/// A failed test leaves nobody behind either.
impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.group.kill();
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.scratch);
        if let Some(directory) = &self.leaves {
            let _ = std::fs::remove_dir(directory);
        }
    }
}
