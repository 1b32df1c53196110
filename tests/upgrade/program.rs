//! The program under test. Its [`Build`] decides what it does.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Termination};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, alarm, fork, pause};
use taskfork::{Backend, Handle, ListenConfig, Listener, Prefork, Report, Status, Supervisor, Worker};

use crate::build::{Before, Build, Call, Pool, Workers};
use crate::facts;
use crate::gate::Gate;
use crate::serving;

/// The environment variable with the scratch directory.
pub const SCRATCH: &str = "TASKFORK_TEST_SCRATCH";
/// The environment variable of a process that a build with `Before::LeaksItsState` has executed.
const LEAKED: &str = "TASKFORK_TEST_LEAKED";
/// The seconds after which every process of the program is killed by SIGALRM.
const WATCHDOG: u32 = 150;
/// The interval at which a parent looks for commands.
const COMMANDS: Duration = Duration::from_millis(20);

static BUILD: OnceLock<Build> = OnceLock::new();

pub fn build() -> &'static Build {
    BUILD.get().expect("a build")
}

pub fn main(build: Build) -> ExitCode {
    alarm::set(WATCHDOG);
    let build = BUILD.get_or_init(|| build);
    start_log();
    if std::env::var_os(LEAKED).is_some() {
        serve_briefly("copy");
    }
    match role() {
        Role::First => {}
        Role::NewParent => act("window", build.window),
        Role::Candidate => act("before", build.before),
    }
    if build.ignores_usr2 {
        // SAFETY: signal(2) with SIG_IGN installs no handler.
        unsafe { signal(Signal::SIGUSR2, SigHandler::SigIgn) }.expect("a signal that can be ignored");
    }
    let _foreign = build.has_foreign_listener.then(|| TcpListener::bind("127.0.0.1:0").expect("a port"));
    if let Some(directory) = &build.directory {
        std::env::set_current_dir(expand(directory)).expect("a directory");
    }
    if build.prints_start {
        say(&format!("start {}", facts::start()));
    }
    if build.prints_inherited {
        start_helper();
    }
    let binds = build.binds.iter().map(|address| bind(address)).collect::<taskfork::Result<Vec<_>>>();
    let report = binds.and_then(|binds| call(build, binds));
    match report {
        Ok(Some(report)) => {
            say(&format!("report {}", report.reason()));
            report.report()
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error {error:?}"));
            ExitCode::FAILURE
        }
    }
}

/// Binds a socket, and prints its address.
fn bind(address: &str) -> taskfork::Result<Listener> {
    let listener = taskfork::bind(expanded(address))?;
    let bound = if let Some(socket) = listener.as_tcp() {
        socket.local_addr().expect("an address").to_string()
    } else if let Some(socket) = listener.as_udp() {
        format!("udp:{}", socket.local_addr().expect("an address"))
    } else {
        expanded(address)
    };
    say(&format!("bound {bound}"));
    Ok(listener)
}

/// What this process is, found without the crate.
enum Role {
    /// The first parent.
    First,
    /// The process of the first parent, which executes another program now.
    NewParent,
    /// A candidate or a spawned worker.
    Candidate,
}

fn role() -> Role {
    let file = scratch().join("parent");
    let own = std::process::id().to_string();
    match std::fs::read_to_string(&file) {
        Ok(parent) if parent == own => Role::NewParent,
        Ok(_) => Role::Candidate,
        Err(_) => {
            std::fs::write(file, own).expect("a file");
            Role::First
        }
    }
}

/// Starts ls(1), which prints the descriptors that it has inherited.
fn start_helper() {
    let list = Command::new("sh").args(["-c", "cd /proc/self/fd && ls"]).output().expect("a helper");
    let numbers = String::from_utf8_lossy(&list.stdout).replace('\n', " ");
    say(&format!("helper has {numbers}"));
}

fn act(place: &str, what: Before) {
    match what {
        Before::Nothing => {}
        Before::Exits(status) => std::process::exit(status),
        Before::PrintsAndExits => {
            println!("hello, world");
            std::process::exit(0)
        }
        Before::Crashes => std::process::abort(),
        Before::Hangs => {
            say(&format!("{place} {}", std::process::id()));
            loop {
                pause();
            }
        }
        Before::WaitsAtGate => {
            let gate = Gate::of(&scratch(), place);
            say(&format!("{place} {}", std::process::id()));
            gate.pass();
        }
        Before::Sleeps(milliseconds) => {
            say(&format!("{place} {}", std::process::id()));
            std::thread::sleep(Duration::from_millis(milliseconds));
        }
        Before::LeaksItsState => leak_state(),
    }
}

/// Makes the call in a forked child, and in a program that inherits the environment. Neither may become the parent or a
/// worker of this service.
fn leak_state() {
    // SAFETY: this process has no other thread, so the child inherits no lock that another thread holds (fork(2)).
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => serve_briefly("fork"),
        ForkResult::Parent { child } => drop(waitpid(child, None).expect("the child")),
    }
    let mut copy = Command::new("/proc/self/exe");
    copy.args(std::env::args_os().skip(1)).env(LEAKED, "yes").status().expect("the program");
}

/// Runs an ordinary service whose worker exits at once, and then exits.
fn serve_briefly(who: &str) -> ! {
    alarm::set(WATCHDOG);
    match Prefork::new().workers(1).start() {
        Ok(taskfork::Role::Parent(report)) => say(&format!("{who} was a parent of its own: {}", report.reason())),
        Ok(_) => say(&format!("{who} was a worker")),
        Err(error) => say(&format!("{who} was refused: {error:?}")),
    }
    std::process::exit(0)
}

fn call(build: &'static Build, binds: Vec<Listener>) -> taskfork::Result<Option<Report>> {
    match build.call {
        Call::ForkProcesses => {
            let id = taskfork::fork_processes(build.pools[0].workers, 100)?;
            alarm::set(WATCHDOG);
            serving::idle(id)
        }
        Call::Prefork => {
            let service = service_settings(build, pool(build, &build.pools[0]));
            run(build, service, binds)
        }
        Call::Supervisor => {
            let mut service = Supervisor::new();
            for settings in &build.pools {
                service = service.pool(settings.name.clone(), pool(build, settings));
            }
            run(build, service_settings(build, service), binds)
        }
    }
}

/// The settings that `Prefork` and `Supervisor` share.
trait Service: Sized {
    fn name(self, name: &str) -> Self;
    fn program(self, path: &Path) -> Self;
    fn upgrade_timeout(self, timeout: Duration) -> Self;
    fn pid_file(self, path: &Path) -> Self;
    fn notify_systemd(self) -> Self;
    fn socket_activation(self) -> Self;
    fn on_interval(self, period: Duration, on_interval: fn(&Status, &Handle)) -> Self;
    fn start(self) -> taskfork::Result<taskfork::Role>;
    fn run_threads(self, work: fn(Worker) -> taskfork::WorkResult) -> taskfork::Result<Report>;
}

macro_rules! service {
    ($service:ty) => {
        impl Service for $service {
            fn name(self, name: &str) -> Self {
                <$service>::name(self, name)
            }

            fn program(self, path: &Path) -> Self {
                <$service>::program(self, path)
            }

            fn upgrade_timeout(self, timeout: Duration) -> Self {
                <$service>::upgrade_timeout(self, timeout)
            }

            fn pid_file(self, path: &Path) -> Self {
                <$service>::pid_file(self, path)
            }

            fn notify_systemd(self) -> Self {
                <$service>::notify_systemd(self)
            }

            fn socket_activation(self) -> Self {
                <$service>::socket_activation(self)
            }

            fn on_interval(self, period: Duration, on_interval: fn(&Status, &Handle)) -> Self {
                <$service>::on_interval(self, period, on_interval)
            }

            fn start(self) -> taskfork::Result<taskfork::Role> {
                <$service>::start(self)
            }

            fn run_threads(self, work: fn(Worker) -> taskfork::WorkResult) -> taskfork::Result<Report> {
                <$service>::run_threads(self, work)
            }
        }
    };
}

service!(Prefork);
service!(Supervisor);

fn service_settings<S: Service>(build: &Build, mut service: S) -> S {
    if let Some(name) = &build.service_name {
        service = service.name(name);
    }
    if let Some(path) = &build.program {
        service = service.program(&expand(path));
    }
    if let Some(path) = &build.pid_file {
        service = service.pid_file(&expand(path));
    }
    if let Some(timeout) = build.upgrade_timeout_ms {
        service = service.upgrade_timeout(Duration::from_millis(timeout));
    }
    if build.notifies_systemd {
        service = service.notify_systemd();
    }
    if build.is_activated {
        service = service.socket_activation();
    }
    if build.takes_commands {
        service = service.on_interval(COMMANDS, take_command);
    }
    service
}

fn pool(build: &Build, settings: &Pool) -> Prefork {
    let mut pool = Prefork::new()
        .workers(settings.workers)
        .graceful_timeout(Duration::from_millis(settings.graceful_timeout_ms))
        .restart_backoff(Duration::from_millis(1), Duration::from_millis(100));
    if let Some(timeout) = settings.ready_timeout_ms {
        pool = pool.ready_timeout(Duration::from_millis(timeout));
    }
    if let Some(timeout) = settings.heartbeat_timeout_ms {
        pool = pool.heartbeat_timeout(Duration::from_millis(timeout));
    }
    pool = settings.max_surge.into_iter().fold(pool, Prefork::max_surge);
    pool = settings.max_unavailable.into_iter().fold(pool, Prefork::max_unavailable);
    pool = settings.max_restarts.into_iter().fold(pool, Prefork::max_restarts);
    if settings.is_optional {
        pool = pool.optional();
    }
    for address in &settings.listens {
        let listen = ListenConfig::from(expanded(address));
        pool = pool.listen(if settings.is_per_worker { listen.per_worker() } else { listen });
    }
    match build.workers {
        Workers::Forked => pool.backend(Backend::Fork),
        Workers::Spawned => pool.backend(Backend::Spawn),
        Workers::Threads => pool,
    }
}

fn run(build: &'static Build, service: impl Service, binds: Vec<Listener>) -> taskfork::Result<Option<Report>> {
    if build.workers == Workers::Threads {
        let work = |worker| {
            serving::serve(worker, Vec::new());
            Ok(())
        };
        return service.run_threads(work).map(Some);
    }
    match service.start()? {
        taskfork::Role::Parent(report) => Ok(Some(report)),
        taskfork::Role::Worker(worker) => {
            alarm::set(WATCHDOG);
            serving::serve(worker, binds);
            Ok(None)
        }
        role => panic!("unknown role {role:?}"),
    }
}

/// Executes the command of the test, if there is one. The test waits for the line that the command prints.
fn take_command(status: &Status, handle: &Handle) {
    let file = scratch().join("command");
    let Ok(command) = std::fs::read_to_string(&file) else { return };
    std::fs::remove_file(file).expect("a command");
    match command.as_str() {
        "upgrade" => handle.upgrade(),
        "facts" => say(&format!("parent facts {}", facts::own())),
        "status" => print_status(status),
        _ => panic!("unknown command {command}"),
    }
}

fn print_status(status: &Status) {
    say(&format!("service pid {} started {:?}", status.pid(), status.started_at()));
    for worker in status.pools().iter().flat_map(|pool| pool.workers()) {
        let age = worker.age().map_or(0, |age| age.as_millis());
        let ready = worker.since_ready().map_or(0, |ready| ready.as_millis());
        say(&format!(
            "status {} {} {} {} {} age {age} ready {ready} restarts {}",
            name_of(worker.pool()),
            worker.id(),
            worker.generation(),
            worker.pid().unwrap_or(0),
            worker.state(),
            worker.restarts(),
        ));
    }
    say("status end");
}

/// Returns the name of a pool for a line. A `Prefork` that is used alone has no name.
pub fn name_of(pool: &str) -> &str {
    if pool.is_empty() { "-" } else { pool }
}

/// Logs to standard error. Each line begins with the name of the build.
fn start_log() {
    let mut log = env_logger::Builder::new();
    log.filter_module("taskfork", log::LevelFilter::Debug);
    log.format(|line, record| writeln!(line, "{} log {}", build().name, record.args())).init();
}

/// Prints a line by one unbuffered write, so that lines of several processes do not mix.
pub fn say(line: &str) {
    let line = format!("{} {line}\n", build().name);
    let written = std::io::stderr().write(line.as_bytes());
    assert_eq!(written.expect("a reader"), line.len());
}

pub fn scratch() -> PathBuf {
    PathBuf::from(std::env::var_os(SCRATCH).expect("a directory"))
}

fn expanded(text: &str) -> String {
    text.replace("SCRATCH", scratch().to_str().expect("a path in UTF-8"))
}

fn expand(path: &Path) -> PathBuf {
    PathBuf::from(expanded(path.to_str().expect("a path in UTF-8")))
}
