//! `Listener::accept` and `Listener::recv_from`: they wait for clients, and end at a stop request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

use taskfork::{Connection, Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
use crate::program::{drain, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_stop_request_ends_waits_for_clients", waits_in_threads, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("accept: Interrupted"), 2, "{}", daemon.transcript());
            assert_eq!(daemon.count("recv_from: Interrupted"), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("queued_clients_are_served_after_a_stop_request", accepts_after_stop, |daemon| {
            let address = address(daemon);
            daemon.worker();
            let clients: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
            daemon.signal(Signal::SIGTERM);
            for client in clients {
                assert_eq!(answer(client), "served\n");
            }
            daemon.ends_with(0);
            assert!(daemon.said("accept: Interrupted"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_busy_worker_stops_although_clients_wait", is_its_own_client, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("accept: Interrupted"), "{}", daemon.transcript());
        }),
        Scenario::reporting("workers_that_wait_together_all_stay", wait_together, |daemon| {
            let address = address(daemon);
            daemon.workers(4);
            for _ in 0..300 {
                assert_eq!(answer(connect(address)), "served\n");
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(daemon.count("accept: Interrupted"), 4, "{}", daemon.transcript());
            assert_eq!(daemon.count("Restarting"), 0, "{}", daemon.transcript());
        }),
        Scenario::reporting("an_accepted_connection_blocks", reads_slowly, |daemon| {
            let address = address(daemon);
            daemon.worker();
            let mut client = connect(address);
            daemon.wait_for("accepted");
            client.write_all(b"late\n").expect("a worker");
            daemon.wait_for("read late");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("stop_listening_ends_waits_for_clients", stops_listening, |daemon| {
            daemon.worker();
            daemon.wait_for("all calls have ended");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            for line in [
                "waiting: NotConnected the worker has stopped listening",
                "later: NotConnected the worker has stopped listening",
                "tcp: NotConnected the worker has stopped listening",
            ] {
                assert!(daemon.said(line), "{line}: {}", daemon.transcript());
            }
        }),
        Scenario::reporting("accept_and_recv_from_name_the_wrong_listener", calls_the_wrong_listener, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("accept: InvalidInput a UDP socket (udp:127.0.0.1:"), "{}", daemon.transcript());
            assert!(daemon.said("recv_from: InvalidInput a TCP listener (127.0.0.1:"), "{}", daemon.transcript());
        }),
        #[cfg(unix)]
        Scenario::reporting("other_signals_do_not_end_accept", gets_other_signals, |daemon| {
            let address = address(daemon);
            let worker = daemon.worker();
            for _ in 0..20 {
                daemon.send(worker, Signal::SIGUSR1);
                daemon.wait_for("a signal");
            }
            assert_eq!(answer(connect(address)), "served\n");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        #[cfg(target_os = "linux")]
        Scenario::reporting("a_fork_of_a_worker_has_its_own_waits", forks_after_a_wait, |daemon| {
            let address = address(daemon);
            daemon.worker();
            assert_eq!(answer(connect(address)), "served by the fork\n");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("the fork has ended with 0"), "{}", daemon.transcript());
        })
        .for_processes(),
    ]
}

fn address(daemon: &mut Daemon) -> SocketAddr {
    let line = daemon.wait_for("log Listening on ");
    line.trim_start_matches("log Listening on ").parse().expect("an address")
}

fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).expect("a listener")
}

fn answer(client: TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line
}

fn describe(call: &str, error: &std::io::Error) {
    say(&format!("{call}: {:?} {error}", error.kind()));
}

/// Serves the clients until a call fails. Returns the error of that call.
fn serve_clients(worker: &Worker) -> std::io::Error {
    loop {
        match worker.listeners()[0].accept() {
            Ok((mut client, _)) => drop(client.write_all(b"served\n")),
            Err(error) => return error,
        }
    }
}

fn one() -> Prefork {
    Prefork::new().workers(1).listen("127.0.0.1:0")
}

/// The worker enables the graceful stop only when both calls may have begun to wait.
fn waits_in_threads() -> Report {
    serve(Prefork::new().workers(2).listen("127.0.0.1:0").listen("udp:127.0.0.1:0"), |worker| {
        let worker = Arc::new(worker);
        let accepting = Arc::clone(&worker);
        let receiving = Arc::clone(&worker);
        let accepting = thread::spawn(move || accepting.listeners()[0].accept().expect_err("no client"));
        let receiving = thread::spawn(move || receiving.listeners()[1].recv_from(&mut [0]).expect_err("no client"));
        thread::yield_now();
        worker.enable_graceful_stop();
        up(worker.id());
        describe("accept", &accepting.join().expect("no panic"));
        describe("recv_from", &receiving.join().expect("no panic"));
    })
}

fn accepts_after_stop() -> Report {
    serve(one(), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        assert!(worker.wait_for_stop(None));
        describe("accept", &serve_clients(&worker));
    })
}

/// The queue never becomes empty, because the worker connects to itself before each accept.
fn is_its_own_client() -> Report {
    serve(one(), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        let address = worker.listeners()[0].as_tcp().expect("TCP").local_addr().expect("an address");
        let mut waiting = vec![connect(address)];
        let end = loop {
            waiting.push(connect(address));
            waiting.remove(0);
            match worker.listeners()[0].accept() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        describe("accept", &end);
    })
}

/// Each worker sets its clone to the mode that a program with tokio needs.
fn wait_together() -> Report {
    serve(Prefork::new().workers(4).listen("127.0.0.1:0"), |worker| {
        worker.enable_graceful_stop();
        worker.tcp(0).expect("a clone").set_nonblocking(true).expect("a clone");
        up(worker.id());
        describe("accept", &serve_clients(&worker));
    })
}

fn reads_slowly() -> Report {
    serve(one(), |worker| {
        worker.enable_graceful_stop();
        up(worker.id());
        let (connection, address) = worker.listeners()[0].accept().expect("a client");
        assert_eq!(address.map(|address| address.ip().to_string()).as_deref(), Some("127.0.0.1"));
        assert!(matches!(connection, Connection::Tcp(_)));
        say("accepted");
        let mut line = String::new();
        (&connection).take(5).read_to_string(&mut line).expect("a line");
        say(&format!("read {line}"));
        drain(&worker);
    })
}

fn stops_listening() -> Report {
    serve(one(), |worker| {
        worker.enable_graceful_stop();
        let worker = Arc::new(worker);
        let waiting = Arc::clone(&worker);
        let waiting = thread::spawn(move || waiting.listeners()[0].accept().expect_err("no client"));
        thread::yield_now();
        worker.stop_listening();
        worker.stop_listening();
        up(worker.id());
        describe("waiting", &waiting.join().expect("no panic"));
        describe("later", &worker.listeners()[0].accept().expect_err("no listener"));
        describe("tcp", &worker.tcp(0).expect_err("no listener"));
        say("all calls have ended");
        drain(&worker);
    })
}

fn calls_the_wrong_listener() -> Report {
    serve(one().listen("udp:127.0.0.1:0"), |worker| {
        describe("accept", &worker.listeners()[1].accept().expect_err("UDP"));
        describe("recv_from", &worker.listeners()[0].recv_from(&mut [0]).expect_err("TCP"));
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let to = worker.listeners()[1].as_udp().expect("UDP").local_addr().expect("an address");
        socket.send_to(b"datagram", to).expect("a receiver");
        let mut buffer = [0; 100];
        let (len, from) = worker.listeners()[1].recv_from(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..len], b"datagram");
        assert_eq!(from, socket.local_addr().expect("an address"));
    })
}

/// Handles SIGUSR1 without `SA_RESTART`, so that the signal interrupts each system call.
#[cfg(unix)]
fn gets_other_signals() -> Report {
    extern "C" fn handle(_: libc::c_int) {
        // SAFETY: write(2) reads nine bytes of a static string.
        unsafe { libc::write(2, c"a signal\n".as_ptr().cast(), 9) };
    }
    serve(one(), |worker| {
        // SAFETY: a sigaction of zero bytes is valid, and the handler only calls write(2).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        }
        worker.enable_graceful_stop();
        up(worker.id());
        let end = serve_clients(&worker);
        assert_eq!(end.kind(), std::io::ErrorKind::Interrupted);
    })
}

/// The worker stops listening before the fork serves a client.
#[cfg(target_os = "linux")]
fn forks_after_a_wait() -> Report {
    use std::os::unix::net::UnixStream;

    use crate::os::in_child;

    serve(one(), |worker| {
        worker.enable_graceful_stop();
        let worker = Arc::new(worker);
        let waiting = Arc::clone(&worker);
        let listener = &worker.listeners()[0];
        let address = listener.as_tcp().expect("TCP").local_addr().expect("an address");
        // Lets the process begin to wait once, so that its pipe exists.
        let waiting = thread::spawn(move || waiting.listeners()[0].accept().expect("a client"));
        let client = connect(address);
        waiting.join().expect("no panic");
        drop(client);
        let (mut parent_end, mut child_end) = UnixStream::pair().expect("a pipe");
        let parent = Arc::clone(&worker);
        let stopper = thread::spawn(move || {
            parent_end.read_exact(&mut [0]).expect("a fork");
            parent.stop_listening();
            up(parent.id());
        });
        let status = in_child(|| {
            child_end.write_all(b".").expect("a parent");
            let (mut client, _) = worker.listeners()[0].accept().expect("a client");
            client.write_all(b"served by the fork\n").expect("a client");
        });
        stopper.join().expect("no panic");
        say(&format!("the fork has ended with {status}"));
        drain(&worker);
    })
}
