//! An echo server with mio: one thread per worker, and hundreds of connections in it. Unix only.
//!
//! ```text
//! $ cargo run --example echo -- --workers 2
//! $ nc localhost 7000           # sends every line back
//! $ kill -HUP <the parent>      # replaces every worker; the old ones serve their connections for up to 30 s
//! $ kill <the parent>           # or ^C: active connections may finish, then it exits with status 0
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    run()
}

#[cfg(not(unix))]
fn run() -> ExitCode {
    eprintln!(
        "Error: this example needs Unix, because it polls a descriptor for stop requests; tokio_tcp runs everywhere"
    );
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
    use std::collections::{BTreeSet, HashMap, VecDeque};
    use std::io::{self, ErrorKind, Read, Write};
    use std::mem;
    use std::os::fd::AsRawFd;
    use std::process;
    use std::time::{Duration, Instant};

    use clap::Parser;
    use log::{info, warn};
    use mio::net::{TcpListener, TcpStream};
    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};
    use taskfork::{Prefork, Report, WorkResult, Worker};

    const STOP: Token = Token(0);
    const LISTENER: Token = Token(1);

    /// The limit for the bytes that the server buffers until a client reads them. At this limit, the server stops
    /// reading from the client.
    const UNWRITTEN: usize = 64 * 1024;

    /// The delay after a failed accept, for example because no descriptor is left, until the next attempt.
    const RETRY: Duration = Duration::from_millis(100);

    /// Sends back whatever it receives, from several processes that share one port.
    #[derive(Parser)]
    pub struct Args {
        /// Worker processes; 0 means one per CPU
        #[arg(long, default_value_t = 0)]
        workers: usize,
        /// Address to listen on; with port 0, on any free port
        #[arg(long, default_value = "127.0.0.1:7000")]
        bind: String,
        /// Seconds that a stopping worker gives its connections to finish
        #[arg(long, default_value_t = 30)]
        graceful_timeout: u64,
        /// Milliseconds of silence after which a stopping worker closes a connection
        #[arg(long, default_value_t = 200)]
        idle_timeout: u64,
    }

    pub fn serve(args: Args) -> taskfork::Result<Report> {
        env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
        let idle_timeout = Duration::from_millis(args.idle_timeout);
        Prefork::new()
            .workers(args.workers)
            .listen(args.bind)
            .graceful_timeout(Duration::from_secs(args.graceful_timeout))
            .ready_timeout(Duration::from_secs(10))
            .run(move |worker| work(&worker, idle_timeout))
    }

    fn work(worker: &Worker, idle_timeout: Duration) -> WorkResult {
        let name = format!("worker {} (pid {})", worker.id(), process::id());
        let mut server = Server::new(worker)?;
        worker.ready();
        info!("{name} is serving");
        while !worker.stop_requested() {
            server.turn(None)?;
        }
        server.stop_accepting(worker)?;
        info!("{name} is draining");
        while server.has_connections() {
            server.turn(Some(idle_timeout))?;
            server.close_idle(idle_timeout);
        }
        info!("{name} has drained");
        Ok(())
    }

    struct Server {
        poll: Poll,
        events: Events,
        /// `None` after the stop request.
        listener: Option<TcpListener>,
        connections: HashMap<Token, Connection>,
        /// The token that was assigned last. Each token is used only once, so an old event is never mistaken for an
        /// event of a newer connection.
        last_token: Token,
        /// The tokens of sockets that may be ready. mio reports only once that a socket is ready (edge-triggered). So
        /// its token stays here until a read, a write or an accept would block.
        ready: BTreeSet<Token>,
        /// Whether the last accept failed. Then the next turn begins after `RETRY` at the latest, and accepts again.
        is_refused: bool,
        scratch: Box<[u8]>,
    }

    impl Server {
        /// Creates the epoll instance in the worker, because all workers would share an instance that was created
        /// before the fork.
        fn new(worker: &Worker) -> io::Result<Server> {
            let poll = Poll::new()?;
            let listener = worker.tcp(0)?;
            let mut listener = TcpListener::from_std(listener);
            let registry = poll.registry();
            registry.register(&mut SourceFd(&worker.stop_fd()?.as_raw_fd()), STOP, Interest::READABLE)?;
            registry.register(&mut listener, LISTENER, Interest::READABLE)?;
            Ok(Server {
                poll,
                events: Events::with_capacity(1024),
                listener: Some(listener),
                connections: HashMap::new(),
                last_token: LISTENER,
                ready: BTreeSet::new(),
                is_refused: false,
                scratch: vec![0; UNWRITTEN].into(),
            })
        }

        /// Stops accepting. Clients that wait in the listener's queue are left to the other workers and to the
        /// replacement. If the service stops, clients are refused when the last worker has closed its descriptors of
        /// the socket.
        fn stop_accepting(&mut self, worker: &Worker) -> io::Result<()> {
            self.ready.remove(&LISTENER);
            self.is_refused = false;
            // Deregisters the listener. Closing it is not enough: the parent and the other workers keep the socket
            // open, so epoll would continue to report it.
            if let Some(mut listener) = self.listener.take() {
                self.poll.registry().deregister(&mut listener)?;
            }
            worker.stop_listening();
            let now = Instant::now();
            self.connections.values_mut().for_each(|connection| connection.last_moved = now);
            Ok(())
        }

        fn has_connections(&self) -> bool {
            !self.connections.is_empty()
        }

        /// Waits for events, and then serves each ready connection once, so that a busy client does not delay the
        /// others.
        fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
            let timeout = match &self.ready {
                ready if !ready.is_empty() => Some(Duration::ZERO),
                _ if self.is_refused => Some(RETRY),
                _ => timeout,
            };
            match self.poll.poll(&mut self.events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => self.ready.extend(self.events.iter().map(|event| event.token())),
            }
            if mem::take(&mut self.is_refused) {
                self.ready.insert(LISTENER);
            }
            for token in mem::take(&mut self.ready) {
                match token {
                    STOP => {}
                    LISTENER => self.accept(),
                    token => _ = self.echo(token),
                }
            }
            Ok(())
        }

        fn accept(&mut self) {
            while let Some(listener) = &self.listener {
                match listener.accept() {
                    Ok((stream, _)) => self.welcome(stream),
                    // Another worker has accepted the connection first, or no client waits.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                    Err(error) => {
                        warn!("cannot accept: {error}");
                        self.is_refused = true;
                        return;
                    }
                }
            }
        }

        fn welcome(&mut self, mut stream: TcpStream) {
            self.last_token.0 += 1;
            let interests = Interest::READABLE | Interest::WRITABLE;
            match self.poll.registry().register(&mut stream, self.last_token, interests) {
                Ok(()) => _ = self.connections.insert(self.last_token, Connection::new(stream)),
                Err(error) => warn!("cannot serve one more: {error}"),
            }
        }

        /// Reads from a connection and writes to it once, and closes it if it is finished. Returns whether it could
        /// read or write anything.
        fn echo(&mut self, token: Token) -> bool {
            let Some(connection) = self.connections.get_mut(&token) else { return false };
            match connection.turn(&mut self.scratch) {
                Ok(true) => {
                    self.ready.insert(token);
                    return true;
                }
                Ok(false) if !connection.is_over() => {}
                // An error means that the client is gone.
                _ => _ = self.connections.remove(&token),
            }
            false
        }

        fn close_idle(&mut self, timeout: Duration) {
            let is_idle =
                |connection: &Connection| connection.unwritten.is_empty() && connection.last_moved.elapsed() >= timeout;
            let idle = self.connections.iter().filter(|(_, connection)| is_idle(connection));
            let idle: Vec<Token> = idle.map(|(&token, _)| token).collect();
            for token in idle {
                // Serves data that arrived in time but was not read yet, because other clients were served or this
                // process got no CPU time.
                if !self.echo(token) {
                    self.connections.remove(&token);
                }
            }
        }
    }

    struct Connection {
        stream: TcpStream,
        unwritten: VecDeque<u8>,
        /// Whether the client has closed its sending side.
        is_at_end: bool,
        last_moved: Instant,
    }

    impl Connection {
        fn new(stream: TcpStream) -> Connection {
            Connection { stream, unwritten: VecDeque::new(), is_at_end: false, last_moved: Instant::now() }
        }

        fn is_over(&self) -> bool {
            self.is_at_end && self.unwritten.is_empty()
        }

        /// Reads once and writes once, if that does not block. Returns whether it could read or write anything.
        fn turn(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
            let has_moved = self.read(scratch)? | self.write()?;
            if has_moved {
                self.last_moved = Instant::now();
            }
            Ok(has_moved)
        }

        fn read(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
            let room = UNWRITTEN - self.unwritten.len();
            if room == 0 || self.is_at_end {
                return Ok(false);
            }
            let Some(length) = unless_blocked(|| self.stream.read(&mut scratch[..room]))? else { return Ok(false) };
            self.is_at_end = length == 0;
            self.unwritten.extend(&scratch[..length]);
            Ok(true)
        }

        fn write(&mut self) -> io::Result<bool> {
            let (bytes, _) = self.unwritten.as_slices();
            if bytes.is_empty() {
                return Ok(false);
            }
            let Some(length) = unless_blocked(|| self.stream.write(bytes))? else { return Ok(false) };
            self.unwritten.drain(..length);
            Ok(true)
        }
    }

    /// Repeats interrupted calls. Returns `None` if the call would block.
    fn unless_blocked(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
        loop {
            match call() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                moved => return moved.map(Some),
            }
        }
    }
}
