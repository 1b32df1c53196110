//! Tests of listeners: Unix sockets, UDP, dual-stack sockets, socket activation, and addresses that are refused. Unix
//! only.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use taskfork::{ListenConfig, Prefork, Report, Supervisor};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, idle};
use crate::program::{
    answer_clients, drain, fail, own_backend, own_host, prepare, run, run_pools, say, scratch, serve, up,
};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("every_listener_stays_non_blocking", makes_listeners_blocking, |daemon| {
            daemon.wait_for("non-blocking 1: true");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(daemon.said("non-blocking 0: true"), "{}", daemon.transcript());
        }),
        Scenario::reporting("unix_socket_outlives_workers_and_is_removed_at_stop", on_a_path, |daemon| {
            let workers = daemon.workers(2);
            let path = daemon.scratch().join("socket");
            let metadata = fs::metadata(&path).expect("a socket");
            assert!(metadata.file_type().is_socket());
            assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
            assert!(ask_path(daemon).starts_with("worker "));
            daemon.send(workers[0], Signal::SIGKILL);
            daemon.worker();
            assert!(ask_path(daemon).starts_with("worker "), "a killed worker leaves the socket file in place");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!path.exists());
        }),
        Scenario::reporting("stale_unix_socket_file_is_replaced", on_a_stale_path, |daemon| {
            daemon.workers(2);
            assert!(ask_path(daemon).starts_with("worker "));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.scratch().join("socket").exists());
        }),
        Scenario::reporting("another_services_socket_file_is_left_in_place", on_a_path, |daemon| {
            daemon.workers(2);
            let path = daemon.scratch().join("socket");
            // The other service first opens its socket under another name, because its file must not get the inode
            // number of the removed file.
            let _other = UnixListener::bind(daemon.scratch().join("other")).expect("a socket");
            fs::rename(daemon.scratch().join("other"), &path).expect("a rename");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            UnixStream::connect(&path).expect("the socket of the other service");
        }),
        Scenario::new("listen_error_names_the_address_and_leaves_no_socket", prints_listen_errors, |daemon| {
            daemon.ends_with(0);
            for refusal in [
                "live: Some(AddrInUse) cannot listen on unix:",
                "file: Some(AlreadyExists) cannot listen on unix:",
                "long: Some(InvalidInput) cannot listen on unix:",
                "nowhere: Some(NotFound) cannot listen on unix:",
                "owner: Some(NotFound) cannot listen on unix:",
                "second: Some(AddrInUse) cannot listen on 127.0.0.1:",
            ] {
                assert_eq!(daemon.count(refusal), 1, "{refusal}:\n{}", daemon.transcript());
            }
            assert!(daemon.said("there is no user nobody-of-this-name"));
            assert!(daemon.said("left: [\"file\", \"live\"]"), "{}", daemon.transcript());
            assert!(!daemon.said("log Starting"), "nothing was started");
        }),
        Scenario::reporting("udp_datagram_is_answered_by_a_worker", on_udp, |daemon| {
            daemon.workers(2);
            let address = daemon.line("log Listening on udp:").trim_start_matches("log Listening on udp:").to_owned();
            let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
            client.send_to(b"?", address).expect("a datagram");
            let mut answer = [0; 100];
            let len = client.recv(&mut answer).expect("an answer");
            assert!(answer[..len].starts_with(b"worker "));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("ipv6_wildcard_accepts_ipv4_unless_only_v6_is_set", dual, |daemon| {
            daemon.worker();
            let ports: Vec<u16> = daemon
                .transcript()
                .lines()
                .filter_map(|line| line.strip_prefix("log Listening on [::]:")?.parse().ok())
                .collect();
            assert_eq!(ports.len(), 2, "{}", daemon.transcript());
            TcpStream::connect(("127.0.0.1", ports[0])).expect("the dual-stack socket accepts IPv4");
            TcpStream::connect((own_host(daemon.pid()), ports[1])).expect_err("the IPv6-only socket refuses IPv4");
            TcpStream::connect(("::1", ports[1])).expect("the IPv6-only socket accepts IPv6");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .needs(no_ipv6),
        Scenario::reporting("activated_sockets_match_by_name_and_then_by_order", activated, |daemon| {
            daemon.worker();
            let lines: Vec<_> = (0..3).map(|at| daemon.line(&format!("listener {at} ")).to_owned()).collect();
            assert!(lines[0].ends_with("is passed first: true"), "{lines:?}");
            assert!(lines[1].ends_with("is passed second: true"), "{lines:?}");
            assert!(lines[2].contains("unix:"), "{lines:?}");
            assert!(daemon.said("left in the environment: false"));
            assert!(daemon.said("non-blocking: true"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("activated_sockets_go_to_the_pools_in_order", activated_pools, |daemon| {
            daemon.ends_with(0);
            for line in ["web 0 got socket 0", "jobs 0 got socket 2", "jobs 1 got socket 1"] {
                assert_eq!(daemon.count(line), 1, "{line}: {}", daemon.transcript());
            }
        }),
        Scenario::reporting("an_activated_connection_is_an_error", activated_with_a_connection, |daemon| {
            daemon.ends_with(1);
            let error = "error cannot listen on the activated socket 1 (): the socket is a connection";
            assert!(daemon.said(error), "{}", daemon.transcript());
        }),
        Scenario::reporting("an_activated_socket_must_listen", activated_with_a_bound_socket, |daemon| {
            daemon.ends_with(1);
            let error = "error cannot listen on the activated socket 0 (web): the socket does not listen";
            assert!(daemon.said(error), "{}", daemon.transcript());
        }),
        Scenario::new("a_nonsensical_number_of_activated_sockets_is_an_error", prints_listen_fds_errors, |daemon| {
            daemon.ends_with(0);
            for value in ["abc", "-1", "", "4294967295"] {
                let line = format!("{value}: socket_activation: LISTEN_FDS is \"{value}\", which is not a number");
                assert_eq!(daemon.count(&line), 1, "{line}: {}", daemon.transcript());
            }
            let surplus = "2147483644: socket_activation: 2147483644 sockets were passed for 1 listeners";
            assert!(daemon.said(surplus), "{}", daemon.transcript());
            assert!(daemon.said("of another process: cannot listen on unix:"), "{}", daemon.transcript());
        }),
        Scenario::reporting("activation_with_other_threads_keeps_the_environment", activated_with_a_thread, |daemon| {
            daemon.worker();
            assert!(daemon.said("in the environment: Some(\"1\")"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let second = "the second service: cannot listen on unix:/no/such/directory";
            assert!(daemon.said(second), "{}", daemon.transcript());
        })
        .for_parents_with_threads(),
        Scenario::reporting("equal_names_of_activated_sockets_go_to_pools_in_order", equal_names_in_pools, |daemon| {
            daemon.wait_for_times(" has [", 2);
            assert!(daemon.said("web has [Some(0), Some(1)]"), "{}", daemon.transcript());
            assert!(daemon.said("jobs has [None, Some(2)]"), "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("surplus_activated_sockets_are_an_error", activated_with_surplus_sockets, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said("error socket_activation: 2 sockets were passed for 1"), "{}", daemon.transcript());
        }),
    ]
}

fn no_ipv6() -> Option<&'static str> {
    TcpListener::bind("[::1]:0").is_err().then_some("IPv6")
}

fn ask_path(daemon: &Daemon) -> String {
    let client = UnixStream::connect(daemon.scratch().join("socket")).expect("a listening socket");
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line
}

/// Runs a service whose workers send each client their id. A thread of each worker does this until the process exits.
fn answers(service: Prefork) -> Report {
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        let id = worker.id();
        let worker = Arc::new(worker);
        answer_clients(&worker, format!("worker {id}"));
        up(id);
        drain(&worker);
    })
}

/// The first process makes all listeners blocking and fails.
fn makes_listeners_blocking() -> Report {
    let own_tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let own_udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let service = Prefork::new().workers(1).listen("127.0.0.1:0").listen("udp:127.0.0.1:0").listen(own_tcp);
    let service = service.listen(own_udp).listen(ListenConfig::unix(scratch().join("socket")));
    #[cfg(target_os = "linux")]
    let service = service
        .listen(format!("unix:@taskfork-test-blocking-{}", std::process::id()))
        .listen(ListenConfig::from("127.0.0.1:0").per_worker())
        .listen(ListenConfig::from("udp:127.0.0.1:0").per_worker());
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        let listeners = worker.listeners();
        let all = listeners.iter().all(is_non_blocking) && is_non_blocking(&worker.tcp(0).expect("a clone"));
        say(&format!("non-blocking {}: {all}", worker.generation()));
        if worker.generation() == 0 {
            for listener in listeners {
                // SAFETY: fcntl(2) takes integers here.
                assert_eq!(unsafe { libc::fcntl(listener.as_raw_fd(), libc::F_SETFL, 0) }, 0);
            }
            fail(1);
        }
        drain(&worker);
    })
}

fn is_non_blocking(socket: &impl AsRawFd) -> bool {
    // SAFETY: fcntl(2) takes integers here.
    unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK != 0 }
}

fn on_a_path() -> Report {
    answers(Prefork::new().workers(2).listen(ListenConfig::unix(scratch().join("socket")).mode(0o640)))
}

fn on_a_stale_path() -> Report {
    let path = scratch().join("socket");
    // Creates a socket file as a killed program would leave it. In a spawned worker, this path has the parent's socket
    // already, which must not be replaced.
    if !path.exists() {
        drop(UnixListener::bind(&path).expect("a socket"));
    }
    answers(Prefork::new().workers(2).listen(format!("unix:{}", path.display())))
}

fn prints_listen_errors() {
    prepare();
    let directory = scratch();
    let _live = UnixListener::bind(directory.join("live")).expect("a socket");
    fs::write(directory.join("file"), "not a socket").expect("a file");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let print_error = |name: &str, service: Prefork| {
        let error = service.workers(1).start().expect_err("a refusal");
        say(&format!("{name}: {:?} {error:?}", error.io_error().map(std::io::Error::kind)));
    };
    let unix = |name: &str| Prefork::new().listen(ListenConfig::unix(directory.join(name)));
    print_error("live", unix("live"));
    print_error("file", unix("file"));
    print_error("long", unix(&"x".repeat(200)));
    print_error("nowhere", unix("no/such/directory"));
    print_error(
        "owner",
        Prefork::new().listen(ListenConfig::unix(directory.join("owned")).user("nobody-of-this-name")),
    );
    print_error("second", unix("first").listen(taken.local_addr().expect("an address")));
    let mut left: Vec<_> =
        fs::read_dir(&directory).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
    left.sort();
    say(&format!("left: {left:?}"));
}

fn on_udp() -> Report {
    answers(Prefork::new().workers(2).listen("udp:127.0.0.1:0"))
}

fn dual() -> Report {
    let service = Prefork::new().workers(1).listen("[::]:0").listen(ListenConfig::from("[::]:0").only_v6(true));
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

/// Executes this program again, and passes it `sockets` as descriptors from 3 on, as systemd does. In the executed
/// program and in a spawned worker, this function does nothing.
fn launch(sockets: &[OwnedFd], names: &str) {
    let variables = ["LISTEN_FDS", "LAUNCHED"];
    if variables.iter().any(|name| std::env::var_os(name).is_some()) || taskfork_worker() {
        return;
    }
    for (at, socket) in sockets.iter().enumerate() {
        // SAFETY: dup2(2) may close what the descriptors from 3 on refer to, because nothing uses them before the exec.
        assert_ne!(unsafe { libc::dup2(socket.as_raw_fd(), 3 + at as libc::c_int) }, -1);
    }
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(std::env::args_os().skip(1)).env("LAUNCHED", "yes").env("LISTEN_FDS", sockets.len().to_string());
    command.env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDNAMES", names);
    panic!("{}", command.exec());
}

fn taskfork_worker() -> bool {
    std::env::var_os("TASKFORK_WORKER").is_some()
}

fn ports(n: usize) -> Vec<TcpListener> {
    (0..n).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect()
}

/// Returns copies with numbers from 10 on, so that `launch` does not overwrite a socket before it has passed it.
fn high<S: AsRawFd>(sockets: &[S]) -> Vec<OwnedFd> {
    let copy = |socket: &S| {
        // SAFETY: fcntl(2) with F_DUPFD_CLOEXEC makes a new descriptor, and changes no other one.
        let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
        // SAFETY: the descriptor is new, and nothing else owns it.
        unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
    };
    sockets.iter().map(copy).collect()
}

/// Executes this program again with new sockets as [`launch`] does, and returns their addresses in the executed program
/// and in spawned workers.
fn launch_with_ports(n: usize, names: &str) -> Vec<String> {
    let passed = ports(n);
    let known: Vec<String> = passed.iter().map(|socket| socket.local_addr().expect("an address").to_string()).collect();
    // The executed program reads the addresses from this file.
    let file = scratch().join("passed");
    if std::env::var_os("LAUNCHED").is_none() {
        fs::write(&file, known.join(" ")).expect("a file");
    }
    launch(&high(&passed), names);
    let text = fs::read_to_string(&file).expect("a text");
    text.split(' ').map(str::to_owned).collect()
}

/// Each pool has a listener without a name and one with the name `admin`.
fn equal_names_in_pools() -> Report {
    let known = launch_with_ports(3, "other:admin:admin");
    prepare();
    let admin = || ListenConfig::from("127.0.0.1:0").name("admin");
    let pool = || own_backend(Prefork::new().workers(1).listen("127.0.0.1:0").listen(admin()));
    run_pools(Supervisor::new().socket_activation().pool("web", pool()).pool("jobs", pool()), move |worker| {
        worker.enable_graceful_stop();
        let origin = |address: String| known.iter().position(|known| *known == address);
        let origins: Vec<_> = worker.listeners().iter().map(|listener| origin(listener.to_string())).collect();
        say(&format!("{} has {origins:?}", worker.pool()));
        assert!(worker.wait_for_stop(None));
        Ok(())
    })
}

fn activated() -> Report {
    let known = launch_with_ports(2, "first:second");
    let service =
        Prefork::new().workers(1).listen("127.0.0.1:0").listen(ListenConfig::from("127.0.0.1:0").name("second"));
    let service = service.listen(ListenConfig::unix(scratch().join("socket"))).socket_activation();
    serve(service, move |worker| {
        assert!(!worker.stop_requested());
        let addresses: Vec<String> = worker.listeners().iter().map(ToString::to_string).collect();
        say(&format!("listener 0 {} is passed first: {}", addresses[0], addresses[0] == known[0]));
        say(&format!("listener 1 {} is passed second: {}", addresses[1], addresses[1] == known[1]));
        say(&format!("listener 2 {}", addresses[2]));
        say(&format!("non-blocking: {}", worker.listeners().iter().all(is_non_blocking)));
        let left = std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("LISTEN_"));
        say(&format!("left in the environment: {left}"));
        up(worker.id());
        drain(&worker);
    })
}

/// The last socket goes to the listener that has its name. The others go to the remaining listeners of all pools.
fn activated_pools() -> Report {
    let known = launch_with_ports(3, "a:b:queue");
    prepare();
    let web = own_backend(Prefork::new().workers(1).listen("127.0.0.1:0"));
    let jobs = own_backend(Prefork::new().workers(1).listen(ListenConfig::from("127.0.0.1:0").name("queue")));
    let service = Supervisor::new().pool("web", web).pool("jobs", jobs.listen("127.0.0.1:0")).socket_activation();
    run_pools(service, move |worker| {
        for (at, listener) in worker.listeners().iter().enumerate() {
            if let Some(socket) = known.iter().position(|address| *address == listener.to_string()) {
                say(&format!("{} {at} got socket {socket}", worker.pool()));
            }
        }
        Ok(())
    })
}

fn activated_with_surplus_sockets() -> Report {
    launch(&high(&ports(2)), "");
    serve(Prefork::new().workers(1).listen("127.0.0.1:0").socket_activation(), |_| {})
}

/// The second passed socket is a connection, as with `Accept=yes`.
fn activated_with_a_connection() -> Report {
    let ports = ports(2);
    let client = TcpStream::connect(ports[1].local_addr().expect("an address")).expect("a connection");
    let server = ports[1].accept().expect("a connection").0;
    launch(&high(&[ports[0].as_raw_fd(), server.as_raw_fd()]), "");
    drop(client);
    serve(Prefork::new().workers(1).listen("127.0.0.1:0").listen("127.0.0.1:0").socket_activation(), |_| {})
}

/// The passed socket is bound, but does not listen.
fn activated_with_a_bound_socket() -> Report {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    launch(&high(&[socket]), "web");
    serve(Prefork::new().workers(1).listen("127.0.0.1:0").socket_activation(), |_| {})
}

fn prints_listen_fds_errors() {
    prepare();
    let refused = |count: &str, pid: u32| {
        for (name, value) in [("LISTEN_FDS", count), ("LISTEN_PID", &pid.to_string())] {
            // SAFETY: this program has a single thread.
            unsafe { std::env::set_var(name, value) };
        }
        let service = Prefork::new().workers(1).listen(ListenConfig::unix("/no/such/directory/socket"));
        service.socket_activation().start().expect_err("a refusal")
    };
    for value in ["abc", "-1", "", "4294967295", "2147483644"] {
        say(&format!("{value}: {:?}", refused(value, std::process::id())));
    }
    say(&format!("of another process: {:?}", refused("abc", std::process::id() + 1)));
}

/// The program starts a second service after the first one. The variables still describe the sockets of the first one.
fn activated_with_a_thread() -> Report {
    launch(&high(&ports(1)), "");
    std::thread::spawn(idle);
    let service = |listen: ListenConfig| Prefork::new().workers(1).listen(listen).socket_activation();
    let report = serve(service("127.0.0.1:0".into()), |worker| {
        assert!(!worker.stop_requested());
        say(&format!("in the environment: {:?}", std::env::var("LISTEN_FDS").ok()));
        up(worker.id());
        drain(&worker);
    });
    let second = run(service("unix:/no/such/directory/socket".into()), |_| Ok(()));
    say(&format!("the second service: {:?}", second.expect_err("a refusal")));
    report
}
