//! A UDP daemon that counts what each sender has sent. Each worker has a socket of its own, and a sender stays with one
//! worker, so that the counts need not be shared. Linux, because of the sockets.
//!
//! ```text
//! $ cargo run --example udp -- --workers 2
//! $ nc -u localhost 7007        # worker 1 (pid 71) has 1, and with each line one more
//! $ kill -9 71                  # what comes meanwhile waits for the replacement, which counts from 1 again
//! $ kill -TTOU <the parent>     # one worker fewer: its senders go to the other one, and nothing is lost
//! $ kill <the parent>           # or ^C: what has come is answered, then it exits 0
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    run()
}

#[cfg(not(target_os = "linux"))]
fn run() -> ExitCode {
    eprintln!("Error: this system does not divide what comes among several sockets");
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
fn run() -> ExitCode {
    use std::process::Termination;

    match linux::serve(<linux::Args as clap::Parser>::parse()) {
        Ok(report) => report.report(),
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::io::{self, ErrorKind};
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;
    use std::process;

    use clap::Parser;
    use log::{info, warn};
    use mio::net::UdpSocket;
    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};
    use taskfork::{ListenConfig, Prefork, Report, WorkResult, Worker};

    const STOP: Token = Token(0);
    const SOCKET: Token = Token(1);

    /// More than a queue has room for, so that who sends without end does not hold up a stop.
    const LAST: usize = 10_000;

    /// Counts the datagrams of each sender, in several processes that share one port.
    #[derive(Parser)]
    pub struct Args {
        /// Worker processes; 0 means one per CPU
        #[arg(long, default_value_t = 0)]
        workers: usize,
        /// Address to receive on; with port 0, on any free port
        #[arg(long, default_value = "127.0.0.1:7007")]
        bind: String,
        /// Tie each worker to a CPU, and give it what comes in there: for network cards that spread senders over the CPUs
        #[arg(long)]
        by_cpu: bool,
    }

    pub fn serve(args: Args) -> taskfork::Result<Report> {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
        let listen = ListenConfig::from(format!("udp:{}", args.bind));
        let prefork = Prefork::new().workers(args.workers);
        let prefork = match args.by_cpu {
            true => prefork.pin_cpus().listen(listen.steer_by_cpu()),
            false => prefork.listen(listen.per_worker()),
        };
        prefork.run(|worker| work(&worker))
    }

    fn work(worker: &Worker) -> WorkResult {
        let mut counter = Counter::new(worker)?;
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(8);
        // TERM is a request from here on.
        poll.registry().register(&mut SourceFd(&worker.stop_fd()?.as_raw_fd()), STOP, Interest::READABLE)?;
        poll.registry().register(&mut counter.socket, SOCKET, Interest::READABLE)?;
        info!("{} is serving", counter.name);
        while !worker.stop_requested() {
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => while !worker.stop_requested() && counter.answer_one()? {},
            }
        }
        // What has come in time. What comes later waits for the next worker of this id, if there is to be one.
        for _ in 0..LAST {
            if !counter.answer_one()? {
                break;
            }
        }
        info!("{} has drained", counter.name);
        Ok(())
    }

    struct Counter {
        name: String,
        socket: UdpSocket,
        counts: HashMap<SocketAddr, u64>,
    }

    impl Counter {
        fn new(worker: &Worker) -> io::Result<Counter> {
            let name = format!("worker {} (pid {})", worker.id(), process::id());
            let socket = worker.listeners()[0].as_udp().ok_or(ErrorKind::Unsupported)?.try_clone()?;
            socket.set_nonblocking(true)?;
            Ok(Counter { name, socket: UdpSocket::from_std(socket), counts: HashMap::new() })
        }

        /// Whether there may be more.
        fn answer_one(&mut self) -> io::Result<bool> {
            match self.socket.recv_from(&mut [0; 1500]) {
                Ok((_, sender)) => self.answer(sender),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                // What is told of an earlier answer that nobody took.
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionRefused) => {}
                Err(error) => return Err(error),
            }
            Ok(true)
        }

        fn answer(&mut self, sender: SocketAddr) {
            let count = self.counts.entry(sender).or_default();
            *count += 1;
            if let Err(error) = self.socket.send_to(format!("{} has {count}\n", self.name).as_bytes(), sender) {
                warn!("{sender} is not answered: {error}");
            }
        }
    }
}
