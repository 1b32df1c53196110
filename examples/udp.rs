//! A UDP daemon that counts the datagrams of each sender. Each worker has a socket of its own, and a sender stays with
//! one worker, so the workers need not share the counts. Linux only, because other systems do not distribute datagrams
//! among several sockets in this way.
//!
//! ```text
//! $ cargo run --example udp -- --workers 2
//! $ nc -u localhost 7007        # worker 1 (pid 71) has 1, and one more with each line
//! $ kill -9 71                  # new datagrams wait for the restarted worker, which counts from 1 again
//! $ kill -TTOU <the parent>     # removes a worker: its senders move to the other one, and no datagram is lost
//! $ kill <the parent>           # or ^C: the workers answer all queued datagrams, then it exits with status 0
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    run()
}

#[cfg(not(target_os = "linux"))]
fn run() -> ExitCode {
    eprintln!("Error: this example needs Linux, because this system does not distribute datagrams to several sockets");
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

    /// The number of datagrams that are answered after the stop request at most. A queue cannot hold this many, so the
    /// limit only matters if a client continues to send without a pause.
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
        /// Pin each worker to a CPU and give it the datagrams that arrive there, for network cards that spread flows
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
        // From here on, SIGTERM is a stop request and does not kill the process, because of stop_fd().
        poll.registry().register(&mut SourceFd(&worker.stop_fd()?.as_raw_fd()), STOP, Interest::READABLE)?;
        poll.registry().register(&mut counter.socket, SOCKET, Interest::READABLE)?;
        info!("{} is serving", counter.name);
        while !worker.stop_requested() {
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => while !worker.stop_requested() && counter.answer_one()? {},
            }
        }
        // Answers the datagrams that arrived before the stop request. Later datagrams wait in the socket's queue for
        // the next process with this worker id, if there is one.
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
            let socket = worker.udp(0)?;
            Ok(Counter { name, socket: UdpSocket::from_std(socket), counts: HashMap::new() })
        }

        /// Answers one datagram. Returns whether the queue may contain more datagrams.
        fn answer_one(&mut self) -> io::Result<bool> {
            match self.socket.recv_from(&mut [0; 1500]) {
                Ok((_, sender)) => self.answer(sender),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                // ConnectionRefused reports that an earlier answer reached no socket.
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
