//! A program under test, with its log. Shared by the tests of the examples.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::unistd::Pid;

/// A step that takes longer than this fails the test.
pub const LIMIT: Duration = Duration::from_secs(60);

/// An example, in a process group of its own. Dropping it ends all processes of the group.
pub struct Daemon {
    child: Child,
    is_reaped: bool,
    lines: Receiver<String>,
    /// The lines read so far.
    pub log: Vec<String>,
}

impl Daemon {
    pub fn spawn(command: &mut Command) -> Daemon {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Daemon { child, is_reaped: false, lines, log: Vec::new() }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn kill(&self, signal: Signal) {
        signal::kill(self.pid(), signal).unwrap();
    }

    /// Returns the address that the log names, without the prefix `udp:`.
    pub fn address(&mut self) -> SocketAddr {
        let find = |line: &String| line.split_once("Listening on ")?.1.trim_start_matches("udp:").parse().ok();
        self.wait_for(|log| log.iter().find_map(find))
    }

    /// Reads lines until `find` returns something for the log read so far. (`find` gets all lines, because the order of
    /// lines from several processes is arbitrary.)
    pub fn wait_for<T>(&mut self, find: impl Fn(&[String]) -> Option<T>) -> T {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(found) = find(&self.log) {
                return found;
            }
            self.read_line(until).expect("another line of the log");
        }
    }

    /// Reads new lines until one contains `text`, and returns this line.
    pub fn wait_for_next(&mut self, text: &str) -> String {
        let read = self.log.len();
        self.wait_for(|log| log[read..].iter().find(|line| line.contains(text)).cloned())
    }

    fn read_line(&mut self, until: Instant) -> Result<(), RecvTimeoutError> {
        let line = self.lines.recv_timeout(until.saturating_duration_since(Instant::now()))?;
        self.log.push(line);
        Ok(())
    }

    /// Waits until every process has closed the log, and returns the exit status.
    pub fn wait(&mut self) -> Option<i32> {
        assert_eq!(self.read_to_end(LIMIT), RecvTimeoutError::Disconnected, "a process is still alive");
        self.reap()
    }

    fn read_to_end(&mut self, limit: Duration) -> RecvTimeoutError {
        let until = Instant::now() + limit;
        loop {
            if let Err(end) = self.read_line(until) {
                return end;
            }
        }
    }

    fn reap(&mut self) -> Option<i32> {
        let status = self.child.wait().unwrap();
        self.is_reaped = true;
        status.code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = signal::kill(self.pid(), Signal::SIGTERM);
            self.read_to_end(Duration::from_secs(5));
            // The child is not reaped yet, so no other process or group has this pid.
            let _ = signal::killpg(self.pid(), Signal::SIGKILL);
            self.reap();
        }
        if thread::panicking() {
            eprintln!("{}", self.log.join("\n"));
        }
    }
}

/// Returns a command that runs the example in a process group of its own, with a pipe for its log.
pub fn command(example: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/http-1234 to target/debug/examples/http
    let example = test.ancestors().nth(2).unwrap().join("examples").join(example);
    assert!(
        example.exists(),
        "no {}: `cargo test` without a test target builds it, and so does `cargo build --examples`",
        example.display()
    );
    let mut command = Command::new(example);
    command.env_remove("WEB_CONCURRENCY").env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec it only calls signal(2), which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(reset_signals()?)) };
    command
}

/// Resets signals to their default actions. nohup and shells start programs with some signals ignored. The daemon would
/// inherit this and continue to ignore them.
fn reset_signals() -> Result<(), Errno> {
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().try_for_each(|signal| {
        // SAFETY: signal(2) with SIG_DFL installs no handler.
        unsafe { signal::signal(signal, SigHandler::SigDfl) }.map(|_| ())
    })
}

pub fn count(log: &[String], text: &str) -> usize {
    log.iter().filter(|line| line.contains(text)).count()
}
