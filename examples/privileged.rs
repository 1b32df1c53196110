//! A service on a port that only root may bind, with workers that run as another user. Unix only.
//!
//! ```text
//! $ cargo build --example privileged
//! $ sudo target/debug/examples/privileged --bind 127.0.0.1:80 --user nobody --workers 2 --pin-cpus
//! $ nc localhost 80             # worker 1 (pid 72), user 65534, group 65534
//! $ ps -o pid,user,psr,args -C privileged
//! $ sudo kill -HUP <the parent> # replaces every worker; the parent can, because it is still root
//! $ sudo kill <the parent>      # or ^C
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    run()
}

#[cfg(not(unix))]
fn run() -> ExitCode {
    eprintln!("Error: this example needs Unix, because workers cannot become another user on this system");
    ExitCode::FAILURE
}

#[cfg(unix)]
fn run() -> ExitCode {
    use std::process::Termination;

    match unix::serve(<unix::Args as clap::Parser>::parse()) {
        Ok(report) => report.report(),
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
mod unix {
    use std::io::{ErrorKind, Write};
    use std::process;
    use std::time::Duration;

    use clap::Parser;
    use log::info;
    use nix::unistd::{getgid, getuid};
    use taskfork::{Prefork, Report, WorkResult, Worker};

    /// Sends each client the user and the group of the worker, on a port that may need root to bind.
    #[derive(Parser)]
    pub struct Args {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:80")]
        bind: String,
        /// User that the workers become
        #[arg(long, default_value = "nobody")]
        user: String,
        /// Group that the workers get; by default the user's own
        #[arg(long)]
        group: Option<String>,
        /// Worker processes; 0 means one per CPU
        #[arg(long, default_value_t = 0)]
        workers: usize,
        /// Pin each worker to a CPU (Linux)
        #[arg(long)]
        pin_cpus: bool,
    }

    pub fn serve(args: Args) -> taskfork::Result<Report> {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
        let mut service = Prefork::new()
            .workers(args.workers)
            .listen(args.bind)
            .user(args.user)
            // With a ready timeout, the service stops if a worker cannot become that user. Without a ready timeout, the
            // parent would restart that worker.
            .ready_timeout(Duration::from_secs(10));
        if let Some(group) = args.group {
            service = service.group(group);
        }
        if args.pin_cpus {
            service = service.pin_cpus();
        }
        service.run(work)
    }

    /// Greets clients until a stop request. Then greets the clients that wait already.
    fn work(worker: Worker) -> WorkResult {
        let name = format!("worker {} (pid {}), user {}, group {}", worker.id(), process::id(), getuid(), getgid());
        let listener = &worker.listeners()[0];
        worker.enable_graceful_stop();
        worker.ready();
        info!("{name} is serving");
        loop {
            let (mut client, _) = match listener.accept() {
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
                accepted => accepted?,
            };
            // Ignores the error of a client that has left.
            let _ = writeln!(client, "{name}");
        }
    }
}
