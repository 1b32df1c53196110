//! Listeners with one socket for each worker.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use taskfork::{ListenConfig, Listener, Prefork, Report, Worker};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::Signal;
use crate::program::{has_threads, say, serve, up, up_until_signal};

/// The number of clients is so large that each of two sockets gets some. The probability that all clients get the same
/// socket is 1 in 2^39.
const CLIENTS: usize = 40;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("per_worker_sockets_share_one_port", three, |daemon| {
            daemon.workers(3);
            assert_eq!(daemon.count("log Listening on 127.0.0.1:"), 1, "{}", daemon.transcript());
            let answers: Vec<String> = connect(daemon).into_iter().map(answer).collect();
            for id in 0..3 {
                assert!(answers.iter().any(|answer| answer.starts_with(&format!("worker {id} "))), "{answers:?}");
            }
            stops(daemon);
        }),
        Scenario::reporting("a_worker_has_no_socket_of_its_siblings", three, |daemon| {
            daemon.workers(3);
            daemon.wait_for_times("sockets: 1", 3);
            stops(daemon);
        })
        .for_processes(),
        Scenario::reporting("shared_and_per_worker_sockets_can_be_combined", mixed, |daemon| {
            daemon.workers(2);
            daemon.wait_for_times("as configured: true", 2);
            stops(daemon);
        }),
        Scenario::reporting("the_next_process_answers_the_clients_in_the_queue", second_dies, |daemon| {
            let workers = daemon.workers(2);
            let clients = connect(daemon);
            daemon.send(workers[1], Signal::SIGKILL);
            let answers: Vec<String> = clients.into_iter().map(answer).collect();
            assert!(answers.iter().any(|answer| answer == "worker 1 1\n"), "{answers:?}");
            stops(daemon);
        }),
        Scenario::reporting("a_removed_worker_answers_the_clients_in_its_queue", second_is_slow, |daemon| {
            let workers = daemon.workers(2);
            let before = connect(daemon);
            daemon.signal(Signal::SIGTTOU);
            // Without draining its queue, worker 1 would exit before this rolling restart is done.
            daemon.signal(Signal::SIGHUP);
            daemon.wait_for("log Rolling restart done");
            for answer in connect(daemon).into_iter().map(answer) {
                assert_eq!(answer, "worker 0 1\n", "the removed worker gets no new connections");
            }
            daemon.send(workers[1], Signal::SIGUSR2);
            let answers: Vec<String> = before.into_iter().map(answer).collect();
            assert!(answers.iter().any(|answer| answer == "worker 1 0\n"), "{answers:?}");
            daemon.wait_for("stops 1");
            stops(daemon);
        }),
        Scenario::reporting("a_drain_is_finished_after_its_process_dies", second_dies, |daemon| {
            let workers = daemon.workers(2);
            let clients = connect(daemon);
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("log Scaled to 1 workers");
            daemon.send(workers[1], Signal::SIGKILL);
            let answers: Vec<String> = clients.into_iter().map(answer).collect();
            assert!(answers.iter().any(|answer| answer == "worker 1 1\n"), "{answers:?}");
            daemon.wait_for("stops 1");
            stops(daemon);
        }),
        Scenario::reporting("an_added_worker_gets_connections_once_ready", second_is_added, |daemon| {
            daemon.worker();
            daemon.wait_for_times("is ready", 1);
            daemon.signal(Signal::SIGTTIN);
            let added = daemon.worker();
            for answer in connect(daemon).into_iter().map(answer) {
                assert_eq!(answer, "worker 0 0\n");
            }
            daemon.send(added, Signal::SIGUSR2);
            daemon.wait_for_times("is ready", 2);
            while !connect(daemon).into_iter().map(answer).any(|answer| answer == "worker 1 0\n") {}
            stops(daemon);
        }),
        Scenario::reporting("queued_clients_wait_for_a_replacement_without_surge", second_accepts, |daemon| {
            daemon.workers(2);
            let clients = connect(daemon);
            daemon.signal(Signal::SIGHUP);
            let answers: Vec<String> = clients.into_iter().map(answer).collect();
            for id in 0..2 {
                assert!(answers.contains(&format!("worker {id} 1\n")), "{answers:?}");
            }
            daemon.wait_for("log Rolling restart done");
            stops(daemon);
        }),
        Scenario::reporting("datagrams_of_a_sender_stay_with_one_worker", on_udp, |daemon| {
            let workers = daemon.workers(2);
            let port = daemon.line("log Listening on udp:").rsplit(':').next().expect("a port").to_owned();
            let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
            client.connect(format!("127.0.0.1:{port}")).expect("an address");
            let first = ask(&client);
            assert_eq!(ask(&client), first);
            let id = usize::from(first.starts_with("worker 1 "));
            daemon.send(workers[id], Signal::SIGKILL);
            daemon.worker();
            assert_eq!(ask(&client), format!("worker {id} 1\n"));
            stops(daemon);
        })
        .for_processes(),
        Scenario::reporting("steer_by_cpu_gives_connections_to_the_cpus_worker", one_for_each_cpu, |daemon| {
            let cpus = cpus();
            daemon.workers(cpus.len());
            for (id, &cpu) in cpus.iter().enumerate() {
                for answer in on_cpu(cpu, || connect(daemon).into_iter().map(answer).collect::<Vec<_>>()) {
                    assert_eq!(answer, format!("worker {id} 0\n"));
                }
            }
            stops(daemon);
        }),
    ]
}

fn connect(daemon: &Daemon) -> Vec<TcpStream> {
    let port = daemon.line("log Listening on 127.0.0.1:").rsplit(':').next().expect("a port").to_owned();
    let connect = |_| TcpStream::connect(format!("127.0.0.1:{port}")).expect("a listening socket");
    (0..CLIENTS).map(connect).collect()
}

fn answer(client: TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line
}

fn ask(client: &UdpSocket) -> String {
    client.send(b"?").expect("a datagram");
    let mut answer = [0; 100];
    let len = client.recv(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer[..len]).into_owned()
}

fn stops(daemon: &mut Daemon) {
    daemon.signal(Signal::SIGTERM);
    daemon.ends_with(0);
}

/// Runs `run` on this CPU, because the kernel receives a loopback packet on the CPU that has sent it. Uses a new
/// thread, because the calling thread runs other tests later and must not stay on this CPU.
fn on_cpu<T: Send>(cpu: usize, run: impl FnOnce() -> T + Send) -> T {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU");
    let pinned = || {
        sched_setaffinity(Pid::from_raw(0), &set).expect("an allowed CPU");
        run()
    };
    thread::scope(|scope| scope.spawn(pinned).join()).expect("a result")
}

fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("an affinity");
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect()
}

fn service(workers: usize) -> Prefork {
    Prefork::new().workers(workers).listen(ListenConfig::from("127.0.0.1:0").per_worker())
}

/// Answers every client with the id and the generation until a stop request.
fn answer_clients(worker: &Worker) {
    let listener = &worker.listeners()[0];
    let answer = format!("worker {} {}\n", worker.id(), worker.generation());
    let answer_one = || match listener.as_udp() {
        Some(socket) => {
            let (_, client) = listener.recv_from(&mut [0; 8])?;
            socket.send_to(answer.as_bytes(), client).map(drop)
        }
        None => listener.accept()?.0.write_all(answer.as_bytes()),
    };
    assert!(!worker.stop_requested());
    let end = std::iter::repeat_with(answer_one).find_map(Result::err).expect("an end");
    assert_eq!(end.kind(), ErrorKind::Interrupted, "{end}");
    say(&format!("stops {}", worker.id()));
}

fn three() -> Report {
    serve(service(3), |worker| {
        assert!(!worker.stop_requested());
        if !has_threads() {
            say(&format!("sockets: {}", sockets()));
        }
        up(worker.id());
        answer_clients(&worker);
    })
}

/// Returns the number of listening TCP sockets that this process has. Descriptors of the standard streams and of
/// taskfork do not count, because they are no listening sockets.
fn sockets() -> usize {
    let inodes = fs::read_to_string("/proc/self/net/tcp").expect("the sockets of the system");
    let listening: Vec<String> = inodes
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&"0A"))
        .map(|fields| format!("socket:[{}]", fields[9]))
        .collect();
    let own = fs::read_dir("/proc/self/fd").expect("descriptors").filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    own.filter(|link| listening.iter().any(|socket| link.as_os_str() == socket.as_str())).count()
}

/// All workers share the sockets of two listeners: a socket that the program has opened, and a UDP address. The other
/// two listeners have one socket for each worker.
fn mixed() -> Report {
    let made = TcpListener::bind("127.0.0.2:0").expect("a port");
    let service = Prefork::new().workers(2).listen(made).listen(ListenConfig::from("127.0.0.1:0").per_worker());
    serve(service.listen("udp:127.0.0.3:0").listen(ListenConfig::from("udp:127.0.0.4:0").per_worker()), |worker| {
        assert!(!worker.stop_requested());
        let addresses: Vec<String> = worker.listeners().iter().map(Listener::to_string).collect();
        let hosts = ["127.0.0.2:", "127.0.0.1:", "udp:127.0.0.3:", "udp:127.0.0.4:"];
        let are_those = addresses.iter().zip(hosts).all(|(address, host)| address.starts_with(host));
        say(&format!("as configured: {}", are_those && addresses.len() == hosts.len()));
        up(worker.id());
        worker.wait_for_stop(None);
    })
}

/// The first processes accept no clients. Their replacements start after their exit.
fn second_accepts() -> Report {
    serve(service(2).max_surge(0).max_unavailable(1), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        if worker.generation() == 0 {
            assert!(worker.wait_for_stop(None));
        } else {
            answer_clients(&worker);
        }
    })
}

fn second_dies() -> Report {
    serve(service(2), |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 && worker.generation() == 0 {
            up_until_signal(1, Signal::SIGUSR2);
        }
        up(worker.id());
        answer_clients(&worker);
    })
}

/// Worker 1 begins to answer clients only when it gets SIGUSR2.
fn second_is_slow() -> Report {
    serve(service(2), |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 {
            up_until_signal(1, Signal::SIGUSR2);
        } else {
            up(0);
        }
        answer_clients(&worker);
    })
}

fn second_is_added() -> Report {
    serve(service(1).ready_timeout(Duration::from_secs(60)), |worker| {
        assert!(!worker.stop_requested());
        if worker.id() == 1 {
            up_until_signal(1, Signal::SIGUSR2);
        } else {
            up(0);
        }
        worker.ready();
        answer_clients(&worker);
    })
}

fn on_udp() -> Report {
    let service = Prefork::new().workers(2).listen(ListenConfig::from("udp:127.0.0.1:0").per_worker());
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        answer_clients(&worker);
    })
}

fn one_for_each_cpu() -> Report {
    let service = Prefork::new().workers(cpus().len()).pin_cpus();
    serve(service.listen(ListenConfig::from("127.0.0.1:0").steer_by_cpu()), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        answer_clients(&worker);
    })
}
