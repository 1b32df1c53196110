//! Sockets that the parent opens before it starts its workers. They stay open when workers exit.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;

use taskfork::{ListenConfig, Prefork, Report, Supervisor};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
use crate::program::{answer_clients, drain, own_backend, own_host, prepare, run_pools, say, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_listener_outlives_the_workers", two_on_one_port, |daemon| {
            let address = address(daemon);
            let workers = daemon.workers(2);
            assert_eq!(daemon.count(&format!("address {address}")), 2, "{}", daemon.transcript());
            let client = TcpStream::connect(address).expect("a listening socket");
            for worker in workers {
                daemon.send(worker, Signal::SIGKILL);
            }
            daemon.workers(2);
            assert!(answer(client).starts_with("worker "), "the connection waits for a replacement");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            TcpStream::connect(address).expect_err("the socket is closed");
        }),
        Scenario::reporting("listeners_keep_their_order", three_ports, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("in order: true"), 2, "{}", daemon.transcript());
        }),
        Scenario::reporting("workers_find_listeners_by_index_and_by_name", named_listeners, |daemon| {
            daemon.ends_with(0);
            for line in [
                "tcp(0) is the first: true",
                "tcp(web) is the first: true",
                "udp(1) is the second: true",
                "udp(dns) is the second: true",
                "tcp(1): InvalidInput listener 1 is a UDP socket (udp:127.0.0.1:",
                "udp(web): InvalidInput listener web is a TCP listener (127.0.0.1:",
                "tcp(2): NotFound there is no listener 2: the listeners are 0 (127.0.0.1:",
                "tcp(Web): NotFound there is no listener Web: the listeners are 0 (127.0.0.1:",
            ] {
                assert_eq!(daemon.count(line), 2, "{line}: {}", daemon.transcript());
            }
        }),
        Scenario::reporting("workers_find_the_listeners_of_their_own_pool", listeners_of_pools, |daemon| {
            daemon.ends_with(0);
            for line in
                ["web has http: true, has queue: false, 1 in all", "jobs has http: false, has queue: true, 2 in all"]
            {
                assert_eq!(daemon.count(line), 1, "{line}: {}", daemon.transcript());
            }
        }),
        Scenario::new("a_failed_bind_names_the_address", no_such_address, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("refused Some(\"listen\"): cannot listen on 127.0.0.1:"), "{}", daemon.transcript());
            assert!(daemon.said("refused Some(\"listen\"): cannot listen on nonsense: "), "{}", daemon.transcript());
            assert!(!daemon.said("log Starting"), "nothing was started");
            assert_eq!(daemon.count("is in use, trying again"), 1, "{}", daemon.transcript());
        }),
    ]
}

fn address(daemon: &mut Daemon) -> SocketAddr {
    let line = daemon.wait_for("address ");
    line.trim_start_matches("address ").parse().expect("an address")
}

fn answer(client: TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line
}

/// The first process of each worker answers no clients. A replacement answers clients in a thread until the replacement
/// exits.
fn two_on_one_port() -> Report {
    let own = SocketAddr::from((own_host(std::process::id()), 0));
    serve(Prefork::new().workers(2).listen(own), |worker| {
        assert!(!worker.stop_requested());
        let id = worker.id();
        let worker = Arc::new(worker);
        say(&format!("address {}", worker.listeners()[0]));
        if worker.generation() > 0 {
            answer_clients(&worker, format!("worker {id}"));
        }
        up(id);
        drain(&worker);
    })
}

/// The first listener is a UDP socket. The program itself has opened the second and the third listener.
fn three_ports() -> Report {
    let own = TcpListener::bind("127.0.0.1:0").expect("a port");
    let v6 = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.3:0")).expect("a port");
    let service = Prefork::new().workers(2).listen("udp:127.0.0.1:0").listen(own).listen(v6);
    serve(service, |worker| {
        let addresses: Vec<String> = worker.listeners().iter().map(ToString::to_string).collect();
        let hosts: Vec<&str> = addresses.iter().filter_map(|address| Some(address.rsplit_once(':')?.0)).collect();
        let are_in_order = hosts[..2] == ["udp:127.0.0.1", "127.0.0.1"] && ["[::1]", "127.0.0.3"].contains(&hosts[2]);
        say(&format!("in order: {}", are_in_order && hosts.len() == 3));
    })
}

fn named_listeners() -> Report {
    let web = ListenConfig::from("127.0.0.1:0").name("web");
    let dns = ListenConfig::from("udp:127.0.0.1:0").name("dns");
    serve(Prefork::new().workers(2).listen(web).listen(dns), |worker| {
        let first = worker.listeners()[0].to_string();
        let second = worker.listeners()[1].to_string();
        let is_first = |found: TcpListener| found.local_addr().expect("an address").to_string() == first;
        let is_second = |found: UdpSocket| format!("udp:{}", found.local_addr().expect("an address")) == second;
        say(&format!("tcp(0) is the first: {}", is_first(worker.tcp(0).expect("a listener"))));
        say(&format!("tcp(web) is the first: {}", is_first(worker.tcp("web").expect("a listener"))));
        say(&format!("udp(1) is the second: {}", is_second(worker.udp(1).expect("a socket"))));
        say(&format!("udp(dns) is the second: {}", is_second(worker.udp("dns").expect("a socket"))));
        let refused = |error: std::io::Error| format!("{:?} {error}", error.kind());
        say(&format!("tcp(1): {}", refused(worker.tcp(1).expect_err("a UDP socket"))));
        say(&format!("udp(web): {}", refused(worker.udp("web").expect_err("a TCP listener"))));
        say(&format!("tcp(2): {}", refused(worker.tcp(2).expect_err("no third listener"))));
        say(&format!("tcp(Web): {}", refused(worker.tcp("Web").expect_err("another case"))));
    })
}

fn listeners_of_pools() -> Report {
    prepare();
    let web = own_backend(Prefork::new().workers(1).listen(ListenConfig::from("127.0.0.1:0").name("http")));
    let jobs = own_backend(Prefork::new().workers(1).listen("127.0.0.1:0"));
    let jobs = jobs.listen(ListenConfig::from("127.0.0.1:0").name("queue"));
    run_pools(Supervisor::new().pool("web", web).pool("jobs", jobs), |worker| {
        let has = |name: &str| worker.tcp(name).is_ok();
        let count = worker.listeners().len();
        say(&format!("{} has http: {}, has queue: {}, {count} in all", worker.pool(), has("http"), has("queue")));
        Ok(())
    })
}

fn no_such_address() {
    prepare();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address");
    for service in [Prefork::new().workers(1).listen(taken), Prefork::new().workers(1).listen("nonsense")] {
        let error = service.start().expect_err("a refusal");
        say(&format!("refused {:?}: {error:?}", error.setting()));
    }
}
