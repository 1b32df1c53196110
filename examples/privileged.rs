//! A port that takes root to bind, served by somebody who is not root. Unix only.
//!
//! ```text
//! $ cargo build --example privileged
//! $ sudo target/debug/examples/privileged --bind 127.0.0.1:80 --user nobody --workers 2 --pin-cpus
//! $ nc localhost 80             # worker 1 (pid 72), user 65534, group 65534
//! $ ps -o pid,user,psr,args -C privileged
//! $ sudo kill -HUP <the parent> # every worker is replaced, by the parent, which is root still
//! $ sudo kill <the parent>      # or ^C
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    run()
}

#[cfg(not(unix))]
fn run() -> ExitCode {
    eprintln!("Error: there is no other user to become on this system");
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
    use std::io::Write;
    use std::process;
    use std::time::Duration;

    use clap::Parser;
    use log::info;
    use nix::unistd::{getgid, getuid};
    use taskfork::{Prefork, Report, WorkResult, Worker};

    /// Says who serves, on a port that may take root to bind.
    #[derive(Parser)]
    pub struct Args {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:80")]
        bind: String,
        /// User that the workers become
        #[arg(long, default_value = "nobody")]
        user: String,
        /// Group that they become; the user's own by default
        #[arg(long)]
        group: Option<String>,
        /// Worker processes; 0 means one per CPU
        #[arg(long, default_value_t = 0)]
        workers: usize,
        /// Tie each worker to a CPU (Linux)
        #[arg(long)]
        pin_cpus: bool,
    }

    pub fn serve(args: Args) -> taskfork::Result<Report> {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
        let mut service = Prefork::new()
            .workers(args.workers)
            .listen(args.bind)
            .user(args.user)
            // A worker that cannot become that user is then the end of the service, and not restarted.
            .ready_timeout(Duration::from_secs(10));
        if let Some(group) = args.group {
            service = service.group(group);
        }
        if args.pin_cpus {
            service = service.pin_cpus();
        }
        service.run(work)
    }

    /// A signal that asks it to stop ends it: nothing is lost but who is being greeted.
    fn work(worker: Worker) -> WorkResult {
        let name = format!("worker {} (pid {}), user {}, group {}", worker.id(), process::id(), getuid(), getgid());
        let listener = worker.listeners()[0].as_tcp().ok_or("only TCP is served here")?;
        worker.ready();
        info!("{name} is serving");
        loop {
            let (mut client, _) = listener.accept()?;
            // Who has gone meanwhile does not want to know.
            let _ = writeln!(client, "{name}");
        }
    }
}
