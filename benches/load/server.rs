//! The server under load: an example, or nginx.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sys::prctl;
use nix::sys::signal::{self, SigHandler, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::deployment::{Broken, Deployment};
use crate::disturbance::Disturbance;
use crate::procfs;

/// The number of workers of every server but the example `service`, which has one per CPU.
const WORKERS: usize = 4;

/// A server that takes longer than this to start or to end fails the run.
const LIMIT: Duration = Duration::from_secs(60);

/// The parent's lines about the end of an upgrade, and about the adoption by the new program.
const DONE: &str = "Upgrade done";
const ABORTED: &str = "Upgrade aborted: ";
const ADOPTED: &str = "The new program supervises ";

/// A line of the server's log, with the time of its arrival.
struct Line {
    text: String,
    at: Instant,
}

impl Line {
    fn arrived(text: String) -> Line {
        Line { text, at: Instant::now() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One listening socket for all workers
    Shared,
    /// One with SO_REUSEPORT for each
    PerWorker,
}

/// An example of taskfork that serves HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Example {
    /// The example that loses no request
    Http,
    /// The service of the guide
    Service,
}

pub enum Program {
    Taskfork { example: Example, path: PathBuf },
    Nginx { program: PathBuf, directory: PathBuf },
}

pub struct Server {
    child: Child,
    /// The directory of the executed copy of the example. `None` for nginx.
    deployment: Option<Deployment>,
    pub address: SocketAddr,
    lines: Receiver<Line>,
    log: Vec<String>,
    /// How long the parent was away from its loop in each upgrade.
    pub away: Vec<Duration>,
    started: &'static str,
    /// The number of workers at the start.
    workers: usize,
}

impl Example {
    fn name(self) -> &'static str {
        match self {
            Example::Http => "http",
            Example::Service => "service",
        }
    }
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Shared => "shared",
            Mode::PerWorker => "per worker",
        }
    }
}

impl Program {
    /// Builds the example from the current source.
    pub fn taskfork(example: Example) -> io::Result<Program> {
        let name = example.name();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--release", "--locked", "--message-format", "json-render-diagnostics"]);
        build.args(["--example", name]);
        let output = build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
        let messages = String::from_utf8_lossy(&output.stdout);
        let path = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(|message: Value| {
            let is_it = message["target"]["name"] == name && message["target"]["kind"][0] == "example";
            is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        });
        let path = path.ok_or_else(|| io::Error::other(format!("the example `{name}` was not built")))?;
        Ok(Program::Taskfork { example, path })
    }

    /// Creates the directory for nginx's configuration and temporary files.
    pub fn nginx(program: &Path) -> io::Result<Program> {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("load-nginx");
        fs::create_dir_all(&directory)?;
        Ok(Program::Nginx { program: program.into(), directory })
    }

    pub fn name(&self) -> &'static str {
        match self {
            Program::Taskfork { example, .. } => example.name(),
            Program::Nginx { .. } => "nginx",
        }
    }

    /// Returns the command that starts the server. Also returns the address for nginx, because nginx does not log it.
    fn command(&self, mode: Mode, deployment: Option<&Deployment>) -> io::Result<(Command, Option<SocketAddr>)> {
        let path = deployment.map_or_else(PathBuf::new, Deployment::program);
        match self {
            Program::Taskfork { example: Example::Http, .. } => {
                let mut command = Command::new(path);
                // The time of an upgrade is read from lines of this level.
                command.env("RUST_LOG", "info,taskfork=debug");
                command.args(["--bind", "127.0.0.1:0", "--max-restarts", "1000000", "--workers", &WORKERS.to_string()]);
                // A broken build that hangs is refused after this time.
                command.args(["--upgrade-timeout", "3"]);
                command.args((mode == Mode::PerWorker).then_some("--per-worker"));
                Ok((command, None))
            }
            Program::Taskfork { example: Example::Service, .. } => {
                let mut command = Command::new(path);
                // The service itself logs nothing, but the parent logs at this level that a worker is ready.
                command.arg("127.0.0.1:0").env("RUST_LOG", "taskfork=debug");
                Ok((command, None))
            }
            Program::Nginx { program, directory } => {
                let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
                fs::write(directory.join("nginx.conf"), configuration(address, mode))?;
                let mut command = Command::new(program);
                command.arg("-p").arg(directory).args(["-c", "nginx.conf", "-e", "stderr"]);
                Ok((command, Some(address)))
            }
        }
    }

    /// Returns whether the server can have this kind of listener.
    pub fn has(&self, mode: Mode) -> bool {
        mode == Mode::Shared || !matches!(self, Program::Taskfork { example: Example::Service, .. })
    }

    /// Returns whether the server can do this when it is disturbed.
    pub fn takes(&self, disturbance: Disturbance) -> bool {
        match self {
            Program::Taskfork { .. } => true,
            Program::Nginx { .. } => matches!(disturbance, Disturbance::Hup | Disturbance::Kill),
        }
    }

    /// Returns whether a loss beyond the bound of this disturbance fails the benchmark.
    pub fn has_target(&self, disturbance: Option<Disturbance>) -> bool {
        match self {
            Program::Taskfork { example: Example::Http, .. } => true,
            Program::Taskfork { example: Example::Service, .. } => {
                matches!(disturbance, None | Some(Disturbance::Kill))
            }
            Program::Nginx { .. } => false,
        }
    }

    /// Returns the text that the server logs once for each worker that it starts.
    fn started(&self) -> &'static str {
        match self {
            Program::Taskfork { example: Example::Http, .. } => " is serving",
            Program::Taskfork { example: Example::Service, .. } => " is ready",
            Program::Nginx { .. } => "start worker process ",
        }
    }
}

/// Returns an nginx configuration whose answers are as long as those of the example.
fn configuration(address: SocketAddr, mode: Mode) -> String {
    let reuseport = if mode == Mode::PerWorker { " reuseport" } else { "" };
    format!(
        "daemon off; worker_processes {WORKERS}; pid nginx.pid; error_log stderr notice;
        events {{}}
        http {{
            access_log off; keepalive_requests 1000000000;
            client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            server {{ listen {address}{reuseport}; location / {{ return 200 \"worker 0 (pid 12345)\\n\"; }} }}
        }}"
    )
}

impl Server {
    /// Starts the server, and waits until all workers have started.
    pub fn start(program: &Program, mode: Mode) -> io::Result<Server> {
        let deployment = match program {
            Program::Taskfork { path, .. } => Some(Deployment::new(path)?),
            Program::Nginx { .. } => None,
        };
        let (mut command, known) = program.command(mode, deployment.as_ref())?;
        command.env_remove("WEB_CONCURRENCY");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        end_with_driver(&mut command);
        let mut child = command.spawn().map_err(|error| io::Error::other(format!("{command:?}: {error}")))?;
        let stderr = BufReader::new(child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?);
        let (sender, lines) = mpsc::channel();
        let lines_of_server = stderr.lines().map_while(Result::ok);
        thread::spawn(move || lines_of_server.map(Line::arrived).try_for_each(|line| sender.send(line)));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut server = Server {
            child,
            deployment,
            address,
            lines,
            log: Vec::new(),
            away: Vec::new(),
            started: program.started(),
            workers: WORKERS,
        };
        server.address = match known {
            Some(address) => address,
            None => server.wait_for(|server| {
                server.log.iter().find_map(|line| line.split_once("Listening on ")?.1.trim().parse().ok())
            })?,
        };
        if matches!(program, Program::Taskfork { .. }) {
            server.workers = server.wait_for(|server| {
                server.log.iter().find_map(|line| line.split_once("Starting ")?.1.split(' ').next()?.parse().ok())
            })?;
        }
        server.wait_for(|server| (server.count() == server.workers).then_some(()))?;
        Ok(server)
    }

    /// Deploys this build and upgrades to it. Fails if the upgrade is aborted.
    pub fn upgrade(&mut self, number: usize) -> io::Result<()> {
        self.deployment.as_ref().ok_or(io::ErrorKind::Unsupported)?.deploy(number)?;
        let last = self.request_upgrade(&[DONE, ABORTED])?;
        if last.contains(ABORTED) { Err(io::Error::other(last)) } else { Ok(()) }
    }

    /// Deploys this broken build, requests an upgrade, and waits until it is refused.
    pub fn refuse(&mut self, broken: Broken) -> io::Result<()> {
        self.deployment.as_ref().ok_or(io::ErrorKind::Unsupported)?.deploy_broken(broken)?;
        let last = self.request_upgrade(&[DONE, ABORTED])?;
        if last.contains(ABORTED) { Ok(()) } else { Err(io::Error::other(format!("{broken:?} was not refused"))) }
    }

    /// Sends USR2, and waits for a line with one of these texts. Measures how long the parent was away.
    fn request_upgrade(&mut self, ends: &[&str]) -> io::Result<String> {
        self.take_lines();
        self.signal(Signal::SIGUSR2)?;
        let mut ready = None;
        loop {
            let line = self.next_line(Instant::now() + LIMIT)?;
            if line.text.contains(" is ready") {
                ready = Some(line.at);
            } else if line.text.contains(ADOPTED) {
                self.away.extend(ready.map(|ready| line.at - ready));
            }
            if ends.iter().any(|end| line.text.contains(end)) {
                return Ok(line.text);
            }
        }
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(signal::kill(self.pid(), signal)?)
    }

    pub fn workers(&self) -> io::Result<Vec<Pid>> {
        procfs::children(self.pid())
    }

    /// Returns the number of workers that the server has started after those of its start.
    pub fn replaced(&mut self) -> usize {
        self.take_lines();
        self.count() - self.workers
    }

    /// Stops the server. Fails if it does not end in time with exit status 0.
    pub fn stop(mut self) -> io::Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.read_to_end() == RecvTimeoutError::Timeout {
            return Err(self.failure("the server does not end"));
        }
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(self.failure(&format!("the server failed: {status}"))) }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn count(&self) -> usize {
        self.log.iter().filter(|line| line.contains(self.started)).count()
    }

    fn wait_for<T>(&mut self, find: impl Fn(&Server) -> Option<T>) -> io::Result<T> {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(found) = find(self) {
                return Ok(found);
            }
            self.next_line(until)?;
        }
    }

    fn next_line(&mut self, until: Instant) -> io::Result<Line> {
        match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.log.push(line.text.clone());
                Ok(line)
            }
            Err(error) => Err(self.failure(&format!("a line is missing in the log: {error}"))),
        }
    }

    fn take_lines(&mut self) {
        self.log.extend(self.lines.try_iter().map(|line| line.text));
    }

    fn read_to_end(&mut self) -> RecvTimeoutError {
        let until = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.log.push(line.text),
                Err(end) => return end,
            }
        }
    }

    pub fn failure(&mut self, what: &str) -> io::Error {
        self.take_lines();
        let last = &self.log[self.log.len().saturating_sub(20)..];
        io::Error::other(format!("{what}; the end of the server's log:\n{}", last.join("\n")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.signal(Signal::SIGTERM);
            self.read_to_end();
            if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
                eprintln!("load: {error}");
            }
        }
    }
}

/// Makes the kernel send the command SIGTERM when the driver ends for any reason. Also resets SIGHUP to its default
/// action. nohup makes a program ignore SIGHUP. The server would inherit this, and then never handle SIGHUP.
pub fn end_with_driver(command: &mut Command) {
    let prepare = || {
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        // SAFETY: signal(2) with SIG_DFL installs no handler.
        unsafe { signal::signal(Signal::SIGHUP, SigHandler::SigDfl) }?;
        Ok(())
    };
    // SAFETY: between fork and exec it only calls prctl(2) and signal(2), which touch no memory and take no lock.
    unsafe { command.pre_exec(prepare) };
}
