//! Starts the measured programs, upgrades each several times, and prints the times.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use taskfork::Backend;

use crate::program::{BEGINS, CALLS, Settings};

/// The upgrades of each program.
const UPGRADES: usize = 20;

/// The longest time that the parent of the example may be away.
const TARGET: Duration = Duration::from_millis(5);

/// MiB of memory of the measured parents.
const SIZES: [usize; 4] = [0, 64, 256, 1024];

/// The times of one upgrade.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    /// From the last line of the old program to the first line of the new one. Not known for the example.
    exec: Option<Duration>,
    /// The new program's own code before its call. Not known for the example.
    own: Option<Duration>,
    /// From the last line of the old program to the adoption, without `own`.
    away: Duration,
}

/// Measures all programs. Returns whether the example meets its target.
pub fn run(is_checked: bool) -> io::Result<bool> {
    println!("| parent | exec, ms | its own code, ms | away without its own code, ms: median | longest |");
    println!("|---|---|---|---|---|");
    let example = measure("http", &example()?, &["--bind", "127.0.0.1:0", "--workers", "4"].map(str::to_owned))?;
    for mebibytes in SIZES {
        for backend in [Backend::Fork, Backend::Spawn] {
            let settings = Settings { backend, mebibytes };
            let name = format!("{backend:?}, {mebibytes} MiB");
            measure(&name, &std::env::current_exe()?, &settings.arguments())?;
        }
    }
    let is_met = example < TARGET;
    println!("\nThe parent of `http` is away for less than {TARGET:?}: {}", if is_met { "yes" } else { "NO" });
    Ok(is_met || !is_checked)
}

/// Builds the example from the current source, and returns its path.
fn example() -> io::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--message-format", "json-render-diagnostics", "--example", "http"]);
    let output = build.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let path = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(|message: Value| {
        let is_it = message["target"]["name"] == "http" && message["target"]["kind"][0] == "example";
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    path.ok_or_else(|| io::Error::other("the example was not built"))
}

/// Upgrades a copy of a program several times, prints the row, and returns the longest time that its parent was away.
fn measure(name: &str, program: &Path, arguments: &[String]) -> io::Result<Duration> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("upgrade-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let deployed = directory.join("program");
    fs::copy(program, &deployed)?;
    let times = Service::start(&deployed, arguments).and_then(|mut service| service.upgrades(program, &deployed));
    fs::remove_dir_all(directory)?;
    let times = times?;
    let longest = times.iter().map(|times| times.away).max().unwrap_or_default();
    println!(
        "| {name} | {} | {} | {} | {:.2} |",
        median(&times, |times| times.exec),
        median(&times, |times| times.own),
        median(&times, |times| Some(times.away)),
        longest.as_secs_f64() * 1e3,
    );
    Ok(longest)
}

/// Returns the median of the known times in milliseconds, or an empty text if none is known.
fn median(times: &[Times], of: fn(&Times) -> Option<Duration>) -> String {
    let mut known: Vec<Duration> = times.iter().filter_map(of).collect();
    known.sort_unstable();
    known.get(known.len() / 2).map_or_else(String::new, |time| format!("{:.2}", time.as_secs_f64() * 1e3))
}

struct Service {
    child: Child,
    lines: io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Service {
    fn start(program: &Path, arguments: &[String]) -> io::Result<Service> {
        let mut command = Command::new(program);
        command.args(arguments).env("RUST_LOG", "info,taskfork=debug").env_remove("WEB_CONCURRENCY");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?).lines();
        let mut service = Service { child, lines };
        for _ in 0..crate::program::WORKERS {
            while !service.line()?.contains(" is ready") {}
        }
        Ok(service)
    }

    fn line(&mut self) -> io::Result<String> {
        self.lines.next().unwrap_or_else(|| Err(io::Error::other("the service has ended")))
    }

    fn upgrades(&mut self, program: &Path, deployed: &Path) -> io::Result<Vec<Times>> {
        (0..UPGRADES)
            .map(|_| {
                let new = deployed.with_extension("new");
                fs::copy(program, &new)?;
                fs::rename(new, deployed)?;
                self.upgrade()
            })
            .collect()
    }

    /// Upgrades once. Takes the times when the lines arrive.
    fn upgrade(&mut self) -> io::Result<Times> {
        let parent = self.child.id().to_string();
        self.signal(Signal::SIGUSR2)?;
        let mut ready = Instant::now();
        let mut begins = None;
        let mut calls = None;
        let mut times = Times::default();
        loop {
            let line = self.line()?;
            let now = Instant::now();
            let is_of_parent = |word: &str| line.strip_prefix(word) == Some(&parent);
            if is_of_parent(BEGINS) {
                begins = Some(now);
            } else if is_of_parent(CALLS) {
                calls = Some(now);
            } else if line.contains(" is ready") && times.away.is_zero() {
                ready = now;
            } else if line.contains("The new program supervises ") {
                times.exec = begins.map(|begins| begins - ready);
                times.own = begins.zip(calls).map(|(begins, calls)| calls - begins);
                times.away = now - ready - times.own.unwrap_or_default();
            } else if line.contains("Upgrade done") {
                return Ok(times);
            } else if line.contains("Upgrade aborted") {
                return Err(io::Error::other(line));
            }
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(signal::kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let ended = self.signal(Signal::SIGTERM).and_then(|()| self.child.wait().map(drop));
        if let Err(error) = ended {
            eprintln!("upgrade: {error}");
        }
    }
}
