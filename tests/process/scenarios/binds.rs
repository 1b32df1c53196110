//! Sockets that the program opens by `bind` before the call.

use std::fs;
#[cfg(target_os = "linux")]
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

use taskfork::{ListenConfig, Listener, Prefork, Report};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
#[cfg(unix)]
use crate::os::idle;
use crate::program::{answer_clients, drain, fork, own_host, prepare, say, scratch, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "nothing is added"))]
    let mut scenarios = vec![
        Scenario::reporting("workers_share_the_ports_of_bind", two_ports, |daemon| {
            daemon.workers(2);
            let addresses = the_same_in_all(daemon, "bound ", 2);
            let (one, other) = addresses.split_once(' ').expect("two addresses");
            assert_ne!(one, other, "two calls open two sockets");
            for address in [one, other] {
                let client = TcpStream::connect(address).expect("a listening socket");
                assert!(answer(client).starts_with("worker "));
            }
            stop(daemon);
        })
        .for_processes(),
        Scenario::reporting("workers_share_a_udp_socket_of_bind", udp, |daemon| {
            daemon.workers(2);
            let address = the_same_in_all(daemon, "bound udp:", 2);
            let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
            client.send_to(b"?", address).expect("a datagram");
            let mut answer = [0; 100];
            let len = client.recv(&mut answer).expect("an answer");
            assert!(answer[..len].starts_with(b"worker "));
            stop(daemon);
        })
        .for_processes(),
        Scenario::reporting("listen_accepts_a_socket_of_bind", bound_and_listened, |daemon| {
            daemon.workers(2);
            let address = the_same_in_all(daemon, "listens at ", 2);
            assert!(daemon.said(&format!("log Listening on {address}")), "{}", daemon.transcript());
            assert!(answer(TcpStream::connect(&address).expect("a listening socket")).starts_with("worker "));
            stop(daemon);
            TcpStream::connect(address).expect_err("the socket is closed");
        }),
        Scenario::new("bind_returns_the_same_socket_before_fork_processes", plain, |daemon| {
            daemon.workers(2);
            let address = the_same_in_all(daemon, "bound ", 2);
            assert_eq!(answer(TcpStream::connect(address).expect("a listening socket")), "hello\n");
            stop(daemon);
        }),
        Scenario::reporting("binding_an_address_twice_is_an_error", twice, |daemon| {
            daemon.ends_with(0);
            let line = the_same_in_all(daemon, "twice: ", 2);
            assert!(line.starts_with("Some(AddrInUse) cannot listen on 127."), "{line}");
            assert!(!daemon.said("is in use, trying again"), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_dropped_socket_of_bind_is_not_passed", dropped, |daemon| {
            daemon.ends_with(0);
            let kept = the_same_in_all(daemon, "kept ", 2);
            assert_eq!(daemon.count(&format!("again {kept}")), 0, "{}", daemon.transcript());
        }),
        Scenario::reporting("an_address_can_be_bound_again_after_a_drop", again, |daemon| {
            daemon.workers(2);
            let address = the_same_in_all(daemon, "bound ", 2);
            TcpStream::connect(address).expect("a listening socket");
            stop(daemon);
        }),
        Scenario::reporting("bind_in_a_worker_after_the_call_opens_a_socket", after_the_call, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("other ports: true"), 1, "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::new("bind_refuses_sockets_and_per_worker", prints_refusals, |daemon| {
            daemon.ends_with(0);
            for line in
                ["per_worker: 127.0.0.1:0 is opened by bind()", "bind: 127.0.0.1:", "listen: cannot listen on nonsense"]
            {
                assert_eq!(daemon.count(line), 1, "{line}: {}", daemon.transcript());
            }
        }),
    ];
    #[cfg(unix)]
    scenarios.extend(unix::scenarios());
    #[cfg(target_os = "linux")]
    scenarios.extend(linux::scenarios());
    scenarios
}

fn stop(daemon: &mut Daemon) {
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
}

/// Returns what comes after `start` in the lines of all workers, which must be the same.
fn the_same_in_all(daemon: &mut Daemon, start: &str, workers: usize) -> String {
    let transcript = daemon.transcript();
    let mut lines: Vec<&str> = transcript.lines().filter_map(|line| line.strip_prefix(start)).collect();
    assert_eq!(lines.len(), workers, "{transcript}");
    lines.dedup();
    assert_eq!(lines.len(), 1, "{transcript}");
    lines[0].to_owned()
}

fn answer(client: TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line
}

fn bind(on: impl Into<ListenConfig>) -> Listener {
    prepare();
    taskfork::bind(on).expect("a socket")
}

/// Answers the clients of the listener until a stop is requested.
fn answer_all(listener: &Listener, answer: &str) {
    while let Ok((mut client, _)) = listener.accept() {
        let _ = writeln!(client, "{answer}");
    }
}

fn two_ports() -> Report {
    let one = bind("127.0.0.1:0");
    let other = bind("127.0.0.1:0");
    serve(Prefork::new().workers(2), move |worker| {
        worker.enable_graceful_stop();
        say(&format!("bound {one} {other}"));
        let answer = format!("worker {}", worker.id());
        thread::scope(|scope| {
            scope.spawn(|| answer_all(&one, &answer));
            scope.spawn(|| answer_all(&other, &answer));
            up(worker.id());
            drain(&worker);
        });
    })
}

fn udp() -> Report {
    let socket = bind("udp:127.0.0.1:0");
    serve(Prefork::new().workers(2), move |worker| {
        worker.enable_graceful_stop();
        say(&format!("bound {socket}"));
        up(worker.id());
        while let Ok((_, client)) = socket.recv_from(&mut [0; 100]) {
            let answer = format!("worker {}", worker.id());
            socket.as_udp().expect("a UDP socket").send_to(answer.as_bytes(), client).expect("a datagram");
        }
    })
}

fn bound_and_listened() -> Report {
    let listener = bind(SocketAddr::from((own_host(std::process::id()), 0)));
    serve(Prefork::new().workers(2).listen(listener), |worker| {
        let worker = Arc::new(worker);
        say(&format!("listens at {}", worker.listeners()[0]));
        answer_clients(&worker, format!("worker {}", worker.id()));
        up(worker.id());
        drain(&worker);
    })
}

fn plain() {
    let listener = bind("127.0.0.1:0");
    let id = fork(2, 0);
    say(&format!("bound {listener}"));
    up(id);
    answer_all(&listener, "hello");
}

fn twice() -> Report {
    let address = SocketAddr::from((own_host(first_pid()), 4000));
    let first = bind(address);
    let error = taskfork::bind(address).expect_err("a refusal");
    let text = format!("twice: {:?} {error}", error.io_error().map(std::io::Error::kind));
    serve(Prefork::new().workers(2), move |_| {
        assert!(first.as_tcp().is_some());
        say(&text);
    })
}

fn dropped() -> Report {
    drop(bind("127.0.0.1:0"));
    let kept = bind("127.0.0.1:0");
    let other = bind("127.0.0.1:0");
    let dropped = other.to_string();
    drop(other);
    serve(Prefork::new().workers(2), move |_| {
        say(&format!("kept {kept}"));
        say(&format!("again {dropped}"));
    })
}

/// In the worker, the first call already finds the socket that the parent has opened by the second call.
fn again() -> Report {
    let address = SocketAddr::from((own_host(first_pid()), 4000));
    drop(bind(address));
    let listener = bind(address);
    serve(Prefork::new().workers(2), move |worker| {
        say(&format!("bound {listener}"));
        up(worker.id());
        drain(&worker);
    })
}

/// Returns the pid of the process that has called this function first.
fn first_pid() -> u32 {
    let file = scratch().join("pid");
    let known = fs::read_to_string(&file).ok().and_then(|pid| pid.parse().ok());
    known.unwrap_or_else(|| {
        fs::write(&file, std::process::id().to_string()).expect("a file");
        std::process::id()
    })
}

fn after_the_call() -> Report {
    let before = bind("127.0.0.1:0");
    let address = before.to_string();
    let before = Mutex::new(Some(before));
    let listened = bind("127.0.0.1:0");
    serve(Prefork::new().workers(1).listen(listened), move |worker| {
        // The parent still has the socket.
        drop(before.lock().expect("a listener").take());
        let known = [address.clone(), worker.listeners()[0].to_string()];
        let new = [bind("127.0.0.1:0"), bind("127.0.0.1:0")].map(|listener| listener.to_string());
        say(&format!("other ports: {}", !new.iter().any(|address| known.contains(address))));
    })
}

fn prints_refusals() {
    prepare();
    let bound = TcpListener::bind("127.0.0.1:0").expect("a port");
    let per_worker = ListenConfig::from("127.0.0.1:0").per_worker();
    for refused in [per_worker, bound.into(), "nonsense".into()] {
        let error = taskfork::bind(refused).expect_err("a refusal");
        say(&format!("{}: {error}", error.setting().expect("a setting")));
    }
}

#[cfg(unix)]
mod unix {
    use std::os::unix::net::UnixStream;

    use super::*;

    pub fn scenarios() -> Vec<Scenario> {
        vec![
            Scenario::reporting("unix_socket_of_bind_is_removed_by_the_parent", on_a_path, |daemon| {
                outlives_workers(daemon);
            }),
            Scenario::reporting("listened_unix_socket_of_bind_is_removed", listened_path, outlives_workers),
            Scenario::new("fork_processes_removes_the_unix_socket_of_bind", plain_path, outlives_workers),
        ]
    }

    fn outlives_workers(daemon: &mut Daemon) {
        let workers = daemon.workers(2);
        let path = daemon.scratch().join("socket");
        daemon.send(workers[0], Signal::SIGKILL);
        daemon.worker();
        UnixStream::connect(&path).expect("a killed worker leaves the file in place");
        stop(daemon);
        assert!(!path.exists(), "the parent removes the file");
    }

    fn path() -> ListenConfig {
        ListenConfig::unix(scratch().join("socket")).mode(0o600)
    }

    fn on_a_path() -> Report {
        let _listener = bind(path());
        serve(Prefork::new().workers(2), |worker| {
            up(worker.id());
            drain(&worker);
        })
    }

    fn listened_path() -> Report {
        serve(Prefork::new().workers(2).listen(bind(path())), |worker| {
            up(worker.id());
            drain(&worker);
        })
    }

    fn plain_path() {
        let _listener = bind(path());
        up(fork(2, 10));
        idle();
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::os::own_descriptors;

    pub fn scenarios() -> Vec<Scenario> {
        vec![
            Scenario::reporting("workers_have_each_socket_of_bind_once", counts_descriptors, |daemon| {
                daemon.ends_with(0);
                let line = "bound 1, listened 1, dropped 0, close-on-exec: true";
                assert_eq!(daemon.count(line), 2, "{}", daemon.transcript());
            })
            .for_processes(),
            Scenario::spawning("a_replaced_descriptor_is_not_returned_by_bind", replaces_descriptors, |daemon| {
                daemon.end();
                assert!(daemon.said("bound another port: true"), "{}", daemon.transcript());
                assert!(daemon.said("was closed or replaced before the call"), "{}", daemon.transcript());
            }),
        ]
    }

    fn link_of(descriptor: impl std::fmt::Display) -> String {
        let link = fs::read_link(format!("/proc/self/fd/{descriptor}")).expect("a descriptor");
        link.to_string_lossy().into_owned()
    }

    fn counts_descriptors() -> Report {
        let bound = bind("127.0.0.1:0");
        let listened = bind("127.0.0.1:0");
        let dropped = bind("127.0.0.1:0");
        let was = link_of(dropped.as_raw_fd());
        drop(dropped);
        serve(Prefork::new().workers(2).listen(listened), move |worker| {
            let descriptors: Vec<String> = own_descriptors().into_iter().collect();
            let count = |link: &str| descriptors.iter().filter(|descriptor| link_of(descriptor) == link).count();
            let sockets = [bound.as_raw_fd(), worker.listeners()[0].as_raw_fd()].map(link_of);
            let closes = |descriptor: &String| {
                let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("a descriptor");
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("the flags").trim();
                i32::from_str_radix(flags, 8).expect("a number") & libc::O_CLOEXEC != 0
            };
            let mut own = descriptors.iter().filter(|descriptor| sockets.contains(&link_of(descriptor)));
            say(&format!(
                "bound {}, listened {}, dropped {}, close-on-exec: {}",
                count(&sockets[0]),
                count(&sockets[1]),
                count(&was),
                own.all(closes)
            ));
        })
    }

    /// A worker replaces all sockets that it has inherited, before it binds.
    fn replaces_descriptors() -> Report {
        let file = scratch().join("address");
        if let Ok(address) = fs::read_to_string(&file) {
            let null = File::open("/dev/null").expect("a file");
            for descriptor in own_descriptors() {
                let number = descriptor.parse().expect("a number");
                if number > libc::STDERR_FILENO && link_of(&descriptor).starts_with("socket:") {
                    // SAFETY: dup2(2) takes integers. No code has used the number yet.
                    assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), number) }, number);
                }
            }
            let another = bind("127.0.0.1:0");
            let another = another.as_tcp().expect("a TCP listener").local_addr();
            say(&format!("bound another port: {}", another.is_ok_and(|another| another.to_string() != address)));
            return serve(Prefork::new().workers(1), |_| {});
        }
        let listener = bind("127.0.0.1:0");
        fs::write(&file, listener.to_string()).expect("a file");
        serve(Prefork::new().workers(1), move |_| say(&format!("{listener}")))
    }
}
