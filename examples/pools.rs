//! A service with two pools. The workers of `web` answer HTTP requests, and the workers of `jobs` do the work that
//! takes long. A web worker passes each job to a job worker over a Unix socket. Unix only.
//!
//! ```text
//! $ cargo run --example pools -- 127.0.0.1:8000 jobs.sock
//! $ curl localhost:8000                     # web worker 1 (pid 72)
//! $ curl -d 5000 localhost:8000/jobs        # 5 s later: jobs worker 0 (pid 73): 12502500
//! $ kill -9 73                              # the worker is restarted; its job is run again by another worker
//! $ kill -HUP <the parent>                  # replaces the web workers first, and then the job workers
//! $ kill -TTIN <the parent>                 # adds a web worker
//! $ curl -d '' localhost:8000/stop-jobs     # stops the pool jobs; the pool web goes on, and answers jobs with 503
//! $ kill <the parent>                       # or ^C: all workers finish their requests, then it exits with status 0
//! ```

#[cfg(not(unix))]
fn main() {
    eprintln!("Error: this example needs Unix, because its pools are connected by a Unix socket");
    std::process::exit(1);
}

#[cfg(unix)]
fn main() -> taskfork::Result<taskfork::Report> {
    unix::run()
}

#[cfg(unix)]
mod unix {
    use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::time::Duration;
    use std::{env, process, thread};

    use log::{info, warn};
    use taskfork::{Connection, ListenConfig, Prefork, Report, Supervisor, WorkResult, Worker};

    /// More than the longest job takes.
    const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(70);

    /// A client that sends nothing for this time is dropped, because a worker serves one client at a time.
    const READ_TIMEOUT: Duration = Duration::from_secs(5);

    /// The number of workers that get a job, if each of them is killed.
    const TRIES: usize = 3;

    pub fn run() -> taskfork::Result<Report> {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
        let address = env::args().nth(1).unwrap_or("127.0.0.1:8000".into());
        let jobs = PathBuf::from(env::args_os().nth(2).unwrap_or("jobs.sock".into()));
        let pool = || Prefork::new().ready_timeout(Duration::from_secs(10)).graceful_timeout(GRACEFUL_TIMEOUT);
        Supervisor::new()
            .pool("web", pool().workers(2).listen(address))
            // If the pool jobs gives up, the pool web goes on.
            .pool("jobs", pool().workers(2).listen(ListenConfig::unix(&jobs).mode(0o600)).optional())
            .run(|worker| serve(&worker, &jobs))
    }

    /// Serves one client after the other, until a stop is requested. Each pool has a listener of its own.
    fn serve(worker: &Worker, jobs: &Path) -> WorkResult {
        worker.enable_graceful_stop(); // From now on SIGTERM is a request and does not interrupt the work.
        worker.ready();
        info!("{} is serving", name(worker));
        loop {
            let client = match worker.listeners()[0].accept() {
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()), // A stop was requested.
                accepted => accepted?.0,
            };
            let served = client.set_read_timeout(Some(READ_TIMEOUT)).and_then(|()| match worker.pool() {
                "web" => answer(worker, client, jobs),
                _ => work(worker, client),
            });
            served.unwrap_or_else(|error| warn!("{}: a client is gone: {error}", name(worker)));
        }
    }

    /// Answers one HTTP request.
    fn answer(worker: &Worker, mut client: Connection, jobs: &Path) -> io::Result<()> {
        let request = Request::read(&mut client)?;
        let mut send = |status: &str, body: &str| {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close", body.len());
            client.write_all(format!("{head}\r\n\r\n{body}").as_bytes())
        };
        let job = match request.target.as_str() {
            "GET /" => return send("200 OK", &format!("{}\n", name(worker))),
            "POST /jobs" => request.body.lines().next().unwrap_or_default(),
            "POST /stop-jobs" => "stop",
            _ => return send("404 Not Found", "no such page\n"),
        };
        match pass(jobs, job) {
            Ok(result) => send("200 OK", &result),
            Err(error) => send("503 Service Unavailable", &format!("no worker runs jobs: {error}\n")),
        }
    }

    /// Passes a job to the pool `jobs`, and returns its result. If the job worker is killed, another one gets the job.
    /// This does no harm, because a second run of a job has the same result.
    fn pass(jobs: &Path, job: &str) -> io::Result<String> {
        let of_killed_worker = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        for _ in 1..TRIES {
            match try_to_pass(jobs, job) {
                Err(error) if of_killed_worker.contains(&error.kind()) => {}
                passed => return passed,
            }
        }
        try_to_pass(jobs, job)
    }

    fn try_to_pass(jobs: &Path, job: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(jobs)?;
        writeln!(stream, "{job}")?;
        let mut result = String::new();
        BufReader::new(stream).read_line(&mut result)?;
        if result.ends_with('\n') { Ok(result) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// Runs one job, which is a number. Its result is the sum of all numbers from 1 to this one.
    fn work(worker: &Worker, mut client: Connection) -> io::Result<()> {
        let mut job = String::new();
        BufReader::new(&mut client).read_line(&mut job)?;
        info!("{} has taken the job {:?}", name(worker), job.trim());
        let result = match job.trim() {
            "stop" => {
                worker.stop_pool();
                "stopping this pool".to_owned()
            }
            number => number.parse().map_or_else(|error| format!("not a job: {error}"), |last| sum(last).to_string()),
        };
        client.write_all(format!("{}: {result}\n", name(worker)).as_bytes())
    }

    fn sum(last: u16) -> u32 {
        // The sleep stands for the work of a real job.
        (1..=u32::from(last)).inspect(|_| thread::sleep(Duration::from_millis(1))).sum()
    }

    fn name(worker: &Worker) -> String {
        format!("{} worker {} (pid {})", worker.pool(), worker.id(), process::id())
    }

    struct Request {
        /// The method and the path, for example `GET /`.
        target: String,
        body: String,
    }

    impl Request {
        fn read(client: &mut Connection) -> io::Result<Request> {
            const MOST_BYTES: u64 = 10_000;
            let mut reader = BufReader::new(client.take(MOST_BYTES));
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let target = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
            let mut length = 0;
            while line.trim() != "" {
                line.clear();
                reader.read_line(&mut line)?;
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
            }
            let mut body = String::new();
            reader.take(length).read_to_string(&mut body)?;
            Ok(Request { target, body })
        }
    }
}
