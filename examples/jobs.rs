//! Workers that take jobs from a directory. Each file in the directory is a job: a list of numbers, one per line. The
//! result is their sum.
//!
//! ```text
//! $ mkdir -p spool/jobs spool/tries spool/results spool/failed
//! $ cargo run --example jobs -- spool
//! $ seq 5000 > spool/numbers && mv spool/numbers spool/jobs/     # mv renames the file, so that the job is complete
//! $ cat spool/results/numbers   # 5 s later: 12502500
//! $ kill -HUP <the parent>      # replaces every worker; the old ones finish their jobs
//! $ kill <the parent>           # or ^C: the workers finish their jobs, then it exits with status 0
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use log::{error, info, warn};
use taskfork::{Prefork, Report, WorkResult, Worker};

/// The number of times that a job may be begun. A job that was begun more often has probably killed its workers.
const TRIES: u64 = 3;

fn main() -> taskfork::Result<Report> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let spool = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "spool".into()));
    Prefork::new()
        .workers(2)
        .ready_timeout(Duration::from_secs(10))
        .heartbeat_timeout(Duration::from_secs(30))
        .graceful_timeout(Duration::from_secs(60)) // more than the longest job takes
        .restart_backoff(Duration::from_millis(100), Duration::from_secs(10))
        .run(move |worker| work(&worker, &spool))
}

fn work(worker: &Worker, spool: &Path) -> WorkResult {
    worker.enable_graceful_stop(); // From now on SIGTERM is a request and does not interrupt a job.
    list(spool)?; // If the directory is missing, the worker fails before it is ready.
    worker.ready();
    while !worker.stop_requested() {
        worker.heartbeat();
        match take(spool)? {
            Some(job) => job.finish(worker, spool)?,
            None => _ = worker.wait_for_stop(Some(Duration::from_secs(1))),
        }
    }
    Ok(())
}

/// A job that this process has locked. The lock ends with the process, so another process takes the job if this one is
/// killed.
struct Job {
    name: String,
    file: Lock,
}

fn list(spool: &Path) -> io::Result<fs::ReadDir> {
    let jobs = spool.join("jobs");
    fs::read_dir(&jobs).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", jobs.display())))
}

/// Takes a job that no other process has taken, if there is one.
fn take(spool: &Path) -> io::Result<Option<Job>> {
    for entry in list(spool)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let path = spool.join("jobs").join(&name);
        match lock(&path) {
            // A process that has finished a job removes the file before it releases the lock.
            Ok(Some(file)) if path.exists() => return Ok(Some(Job { name, file })),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // A job that cannot be opened does not keep the worker from the other jobs.
            Err(error) => warn!("cannot open {name}: {error}"),
        }
    }
    Ok(None)
}

impl Job {
    /// Runs the job. If the process is killed, the job is run again. This is harmless, because the result is the same
    /// and replaces the first one.
    fn finish(self, worker: &Worker, spool: &Path) -> io::Result<()> {
        let [job, tries, result, failed] =
            ["jobs", "tries", "results", "failed"].map(|d| spool.join(d).join(&self.name));
        let count = File::options().append(true).create(true).open(&tries)?;
        (&count).write_all(b".")?;
        info!("worker {} (pid {}) has taken {}", worker.id(), process::id(), self.name);
        let sum = if count.metadata()?.len() > TRIES { Err("too many tries".into()) } else { self.sum(worker) };
        match sum {
            Ok(sum) => {
                let unfinished = spool.join(format!("{}.{}", self.name, process::id()));
                fs::write(&unfinished, format!("{sum}\n"))?;
                fs::rename(unfinished, result)?;
                fs::remove_file(job)?;
                info!("worker {} (pid {}) has finished {}", worker.id(), process::id(), self.name);
            }
            Err(error) => {
                fs::rename(job, failed)?;
                error!("worker {} (pid {}) cannot do {}: {error}", worker.id(), process::id(), self.name);
            }
        }
        fs::remove_file(tries)
    }

    fn sum(&self, worker: &Worker) -> Result<i64, Box<dyn std::error::Error>> {
        let mut sum: i64 = 0;
        for line in BufReader::new(&*self.file).lines() {
            worker.heartbeat(); // A long job sends heartbeats as long as it makes progress.
            sum = sum.checked_add(line?.parse()?).ok_or("the sum is too large")?;
            thread::sleep(Duration::from_millis(1)); // This stands for the work of a real job.
        }
        Ok(sum)
    }
}

/// An open file that no other process can lock until this process closes the file or ends.
#[cfg(unix)]
type Lock = nix::fcntl::Flock<File>;
#[cfg(windows)]
type Lock = Box<File>;

/// Opens and locks a file. Returns `None` if another process has locked it.
#[cfg(unix)]
fn lock(path: &Path) -> io::Result<Option<Lock>> {
    match Lock::lock(File::open(path)?, nix::fcntl::FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Some(file)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Opens and locks a file. Returns `None` if another process has locked it.
#[cfg(windows)]
fn lock(path: &Path) -> io::Result<Option<Lock>> {
    use std::os::windows::fs::OpenOptionsExt;

    const FILE_SHARE_DELETE: u32 = 4;
    const ERROR_SHARING_VIOLATION: i32 = 32;
    match File::options().read(true).share_mode(FILE_SHARE_DELETE).open(path) {
        Err(error) if error.raw_os_error() == Some(ERROR_SHARING_VIOLATION) => Ok(None),
        file => Ok(Some(Box::new(file?))),
    }
}
