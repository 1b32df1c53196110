//! Tests of the sockets, above all of the per-worker sockets, which only Linux has.

use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::super::Retired;
use super::super::spec::SpecOrigin;
use super::*;

fn open(listen: ListenConfig, workers: usize) -> Sockets {
    try_open(vec![listen], workers).expect("sockets")
}

fn try_open(listens: Vec<ListenConfig>, workers: usize) -> Result<Sockets> {
    Sockets::open("", listens, workers, &mut Vec::new(), &mut Retry::never(&mut |_, _| {}))
}

fn bound(sockets: &Sockets) -> std::net::SocketAddr {
    sockets.by_worker[0][0].address().expect("an address")
}

/// Sends one datagram from each sender. Returns a list for each worker: the ports of the senders whose datagrams
/// the worker has received.
fn shares(sockets: &Sockets, senders: &[UdpSocket]) -> Vec<Vec<u16>> {
    let address = bound(sockets);
    for sender in senders {
        sender.send_to(b"!", address).expect("a datagram");
    }
    let sockets: Vec<&UdpSocket> = sockets.by_worker.iter().map(|own| own[0].as_udp().expect("UDP")).collect();
    sockets.iter().for_each(|socket| socket.set_nonblocking(true).expect("nonblocking"));
    let port = |socket: &UdpSocket| Some(socket.recv_from(&mut [0; 8]).ok()?.1.port());
    let mut shares = receive_all(senders.len(), &sockets, |socket| port(socket));
    shares.iter_mut().for_each(|ports| ports.sort());
    shares
}

/// Polls all sockets until they have received `total` items in sum, because the kernel may not have delivered all
/// of them yet. Returns the items that each socket has received.
fn receive_all<S, T>(total: usize, sockets: &[S], next: impl Fn(&S) -> Option<T>) -> Vec<Vec<T>> {
    /// If an item is not received within this time, it counts as lost.
    const LIMIT: Duration = Duration::from_secs(60);
    let until = Instant::now() + LIMIT;
    let mut shares: Vec<Vec<T>> = sockets.iter().map(|_| Vec::new()).collect();
    while shares.iter().map(Vec::len).sum::<usize>() < total && Instant::now() < until {
        for (share, socket) in shares.iter_mut().zip(sockets) {
            share.extend(std::iter::from_fn(|| next(socket)));
        }
        thread::yield_now();
    }
    shares
}

fn senders(host: &str) -> Vec<UdpSocket> {
    (0..200).map(|_| UdpSocket::bind((host, 0)).expect("a port")).collect()
}

#[test]
fn two_listeners_with_one_address_are_refused_at_once() {
    let port = std::net::TcpListener::bind("127.77.0.1:0").expect("a port").local_addr().expect("an address");
    let name = format!("unix:@taskfork-{}-{}", std::process::id(), port.port());
    for address in [port.to_string(), format!("udp:{port}"), name] {
        let mut on_wait = |_: &str, _| panic!("the address stays in use");
        let mut retry = Retry::new(&mut on_wait);
        let first = Sockets::open("", vec![address.as_str().into()], 1, &mut Vec::new(), &mut retry).expect("sockets");
        let error =
            Sockets::open("", vec![address.as_str().into()], 1, &mut Vec::new(), &mut retry).expect_err("a refusal");
        let text = format!("cannot listen on {address}: another listener of this service has this address");
        assert_eq!(format!("{error:?}"), text);
        drop(first);
    }
}

#[test]
fn only_the_serving_workers_receive_datagrams() {
    for host in ["127.0.0.1", "[::1]"] {
        let mut sockets = open(ListenConfig::from(format!("udp:{host}:0")).per_worker(), 4);
        let senders = senders(host.trim_matches(['[', ']']));
        let all = shares(&sockets, &senders);
        assert!(all.iter().all(|share| share.len() > 10), "before the first serve(): {all:?}");
        for serving in [&[0, 2][..], &[1, 2, 3], &[3], &[0, 1, 2, 3]] {
            sockets.serve(serving.iter().copied()).expect("a program");
            let shares = [shares(&sockets, &senders), shares(&sockets, &senders)];
            assert_eq!(shares[0], shares[1], "each sender stays with its worker");
            assert_eq!(shares[0].iter().map(Vec::len).sum::<usize>(), senders.len());
            for (id, share) in shares[0].iter().enumerate() {
                assert_eq!(share.len() > 10, serving.contains(&id), "{serving:?}: {:?}", shares[0]);
            }
        }
    }
}

#[test]
fn an_added_worker_receives_nothing_before_it_serves() {
    let mut sockets = open(ListenConfig::from("udp:127.0.0.1:0").per_worker(), 2);
    let senders = senders("127.0.0.1");
    sockets.of(3).expect("sockets");
    assert_eq!(
        shares(&sockets, &senders).iter().map(|share| !share.is_empty()).collect::<Vec<_>>(),
        [true, true, false, false]
    );
    sockets.serve([0, 1, 3].into_iter()).expect("a program");
    assert_eq!(
        shares(&sockets, &senders).iter().map(|share| !share.is_empty()).collect::<Vec<_>>(),
        [true, true, false, true]
    );
}

#[test]
fn queued_connections_stay_when_their_worker_stops_serving() {
    let mut sockets = open(ListenConfig::from("127.0.0.1:0").per_worker(), 2);
    let address = bound(&sockets);
    let connect = || TcpStream::connect(address).expect("a connection");
    let before: Vec<TcpStream> = (0..50).map(|_| connect()).collect();
    assert!(sockets.has_waiting(0) && sockets.has_waiting(1));
    sockets.serve([0].into_iter()).expect("a program");
    let after: Vec<TcpStream> = (0..50).map(|_| connect()).collect();
    let listeners = [0, 1].map(|id: usize| sockets.by_worker[id][0].as_tcp().expect("TCP"));
    listeners.iter().for_each(|listener| listener.set_nonblocking(true).expect("nonblocking"));
    let accepted = receive_all(before.len() + after.len(), &listeners, |listener| Some(listener.accept().ok()?.1));
    let first = &accepted[0];
    let second = &accepted[1];
    assert_eq!(first.len() + second.len(), before.len() + after.len(), "no connection was lost");
    let own = |stream: &TcpStream| stream.local_addr().expect("an address");
    assert!(!second.is_empty() && !after.iter().any(|stream| second.contains(&own(stream))));
    assert!(!sockets.has_waiting(1));
}

#[test]
fn shared_tcp_sockets_listen_again_after_shutdown() {
    let free = std::net::TcpListener::bind("127.13.0.1:0").expect("a port");
    let fixed = free.local_addr().expect("an address");
    drop(free);
    for listen in [ListenConfig::from(fixed), ListenConfig::from("127.0.0.1:0")] {
        let mut sockets = open(listen, 1);
        assert!(sockets.restore(0).is_empty());
        let address = bound(&sockets);
        for _ in 0..2 {
            SockRef::from(sockets.by_worker[0][0].as_tcp().expect("TCP")).shutdown(Shutdown::Read).expect("shutdown");
            TcpStream::connect(address).expect_err("the socket does not listen");
            let restored = sockets.restore(0);
            assert!(matches!(restored[..], [ShutDown { listener: 0, is_restored: true, .. }]), "{restored:?}");
            TcpStream::connect(address).expect("the socket listens");
        }
    }
}

#[test]
fn a_lost_listener_is_returned_once() {
    let listens = ["udp:127.0.0.1:0", "127.0.0.1:0"].map(|on| ListenConfig::from(on).per_worker());
    let mut sockets = try_open(listens.into(), 2).expect("sockets");
    for socket in sockets.by_worker[1].iter() {
        // For a UDP socket, this reports ENOTCONN and takes effect nevertheless.
        let _ = SockRef::from(&socket.as_passed()).shutdown(Shutdown::Both);
    }
    assert!(sockets.restore(0).is_empty(), "worker 0 has other sockets");
    let lost = sockets.restore(1);
    assert!(lost.len() == 2 && lost.iter().all(|lost| !lost.is_restored), "{lost:?}");
    assert!(sockets.restore(1).is_empty());
}

#[test]
fn an_address_in_use_is_refused() {
    for transport in ["", "udp:"] {
        let first = open(ListenConfig::from(format!("{transport}127.0.0.1:0")).per_worker(), 2);
        let address = format!("{transport}{}", bound(&first));
        for second in [ListenConfig::from(&*address), ListenConfig::from(&*address).per_worker()] {
            let error = try_open(vec![second], 2).expect_err("a refusal");
            assert_eq!(error.io_error().map(std::io::Error::kind), Some(ErrorKind::AddrInUse), "{error}");
        }
    }
}

#[test]
fn a_group_of_one_socket_can_be_steered_and_extended() {
    for transport in ["", "udp:"] {
        let listen = || ListenConfig::from(format!("{transport}127.0.0.1:0"));
        let mut sockets = open(listen().per_worker(), 1);
        sockets.of(1).expect("a second socket");
        open(listen().steer_by_cpu(), 1);
    }
    let mut sockets = open(ListenConfig::from("udp:127.0.0.1:0").per_worker(), 1);
    sockets.of(1).expect("a second socket");
    sockets.serve([1].into_iter()).expect("a program");
    assert_eq!(shares(&sockets, &senders("127.0.0.1"))[1].len(), 200);
}

#[test]
fn serve_tries_refused_ids_again_after_retry() {
    let mut sockets = open(ListenConfig::from("127.0.0.1:0").per_worker(), 2);
    let sparse = || (0..4000).step_by(2);
    sockets.serve(sparse()).expect_err("the program is too long");
    sockets.serve(sparse()).expect("the refused ids are not tried again");
    assert!(!sockets.is_left_out(1));
    sockets.retry();
    sockets.serve(sparse()).expect_err("the refused ids are tried again");
    sockets.of(2).expect("a third socket");
    sockets.serve([0, 2].into_iter()).expect("a program");
    assert!(sockets.is_left_out(1));
}

#[test]
fn a_refused_listener_leaves_the_other_listeners_unchanged() {
    let [first, second] = ["udp:127.0.0.1:0"; 2].map(ListenConfig::from);
    let mut sockets = try_open(vec![first.per_worker(), second.steer_by_cpu()], 2).expect("sockets");
    let senders = senders("127.0.0.1");
    let before = shares(&sockets, &senders);
    // The program of the second listener chooses by CPU, so it is about twice as long as that of the first
    // listener. Only the second program exceeds the kernel's limit.
    sockets.serve((1..2000).step_by(2)).expect_err("the second program is too long");
    assert_eq!(shares(&sockets, &senders), before);
}

#[test]
fn per_worker_is_refused_for_bound_and_unix_sockets() {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    for listen in [ListenConfig::from(bound), ListenConfig::from("unix:/nowhere/at/all")] {
        let error = try_open(vec![listen.per_worker()], 2).expect_err("a refusal");
        assert_eq!(error.setting(), Some("per_worker"), "{error}");
    }
}

#[test]
fn a_steering_program_beyond_the_kernel_limit_is_refused() {
    let sparse: Vec<_> = (0..4000).step_by(2).collect();
    let dense: Vec<_> = (0..4000).collect();
    assert!(steering::program(&sparse, &[]).is_none());
    assert!(steering::program(&dense, &[]).is_some());
}

#[test]
fn steer_by_cpu_chooses_a_worker_of_the_packets_cpu() {
    let cpus = sys::usable_cpus().expect("CPUs");
    // The last CPU has one worker. Each of the other CPUs has two workers.
    let workers = 2 * cpus.len() - 1;
    let mut sockets = open(ListenConfig::from("udp:127.0.0.1:0").steer_by_cpu(), workers);
    let senders = senders("127.0.0.1");
    for (place, &cpu) in cpus.iter().enumerate() {
        // This runs in its own thread, because the thread stays pinned to the CPU.
        let pinned = || {
            sys::pin_to(cpu).expect("a usable CPU");
            shares(&sockets, &senders)
        };
        let shares = thread::scope(|scope| scope.spawn(pinned).join()).expect("the shares");
        for (id, share) in shares.iter().enumerate() {
            assert_eq!(!share.is_empty(), id % cpus.len() == place, "CPU {cpu}, worker {id}");
        }
    }
    sockets.serve([0].into_iter()).expect("a program");
    assert_eq!(shares(&sockets, &senders)[0].len(), senders.len(), "a CPU without a worker uses all workers");
}

#[test]
fn closed_inherited_sockets_refuse_clients_and_keep_their_files() {
    let path = std::env::temp_dir().join(format!("taskfork-inherited-{}", std::process::id()));
    // No other test uses this address, so no other socket gets the port.
    let tcp = ListenConfig::from("127.0.0.77:0").per_worker();
    let sockets = try_open(vec![tcp, format!("unix:{}", path.display()).into()], 2).expect("sockets");
    // If the test fails, the sockets must not be closed a second time.
    let sockets = ManuallyDrop::new(sockets);
    let address = bound(&sockets);
    drop(TcpStream::connect(address).expect("a connection"));
    sockets.close_inherited();
    assert_eq!(TcpStream::connect(address).expect_err("no socket").kind(), ErrorKind::ConnectionRefused);
    assert_eq!(UnixStream::connect(&path).expect_err("no socket").kind(), ErrorKind::ConnectionRefused);
    std::fs::remove_file(&path).expect("the file of the socket");
}

/// Passes all sockets to another program, as exec(2) would.
fn pass(pool: &str, sockets: &Sockets) -> Vec<Given> {
    let passed = sockets.passed();
    assert!(passed.iter().all(|passed| passed.spec.pool == pool));
    let give = |Passed { spec, fd }: Passed<'_>| {
        // The text form is what the other program reads.
        let spec = spec.to_string().parse().expect("a specification");
        Given { spec, fd: fd.try_clone_to_owned().expect("a descriptor") }
    };
    passed.into_iter().map(give).collect()
}

fn open_with(given: &mut Vec<Given>, listens: Vec<ListenConfig>, workers: usize) -> Sockets {
    Sockets::open("", listens, workers, given, &mut Retry::never(&mut |_, _| {})).expect("sockets")
}

fn check_with(given: &mut Vec<Given>, listens: Vec<ListenConfig>, workers: usize) -> Result<Vec<Given>> {
    Sockets::check("", listens, workers, given, &mut Retry::never(&mut |_, _| {}))
}

#[test]
fn the_next_program_keeps_the_sockets() {
    let listens = || {
        let named = ListenConfig::from("127.0.0.1:0").name("web");
        vec![ListenConfig::from("127.0.0.1:0"), named, "udp:127.0.0.1:0".into()]
    };
    let before = try_open(listens(), 1).expect("sockets");
    let mut given = pass("", &before);
    assert_eq!(given.len(), 3);
    given.reverse();
    let after = open_with(&mut given, listens(), 1);
    assert_eq!(after.addresses(), before.addresses());
    assert!(given.is_empty());
    assert_eq!(pass("", &after).len(), 3, "they can be passed on");
}

#[test]
fn another_spelling_or_pool_keeps_a_fixed_address() {
    let before = try_open(vec!["127.78.0.1:0".into()], 1).expect("sockets");
    let port = bound(&before).port();
    let mut given = pass("", &before);
    given[0].spec.pool = "web".to_owned();
    given[0].spec.text = format!("localhost:{port}");
    let after = open_with(&mut given, vec![format!("127.78.0.1:{port}").into()], 1);
    assert_eq!(after.addresses(), before.addresses());
    let mut given = pass("", &before);
    let after = open_with(&mut given, vec!["127.78.0.2:0".into()], 1);
    assert_ne!(after.addresses(), before.addresses());
    assert_eq!(given.len(), 1, "a socket that is not used is left over");
}

#[test]
fn the_backlog_of_an_existing_socket_is_set_again() {
    let name = format!("unix:@taskfork-backlog-{}", std::process::id());
    let listen = |backlog| vec![ListenConfig::from(name.as_str()).backlog(backlog)];
    let before = try_open(listen(7), 1).expect("sockets");
    assert_eq!(longest_queue(&before), 7 + 1);
    open_with(&mut pass("", &before), listen(9), 1);
    assert_eq!(longest_queue(&before), 9 + 1);
    check_with(&mut pass("", &before), listen(11), 1).expect("no refusal");
    assert_eq!(longest_queue(&before), 9 + 1, "the check changes nothing");
    let mut given = pass("", &before);
    given[0].spec.origin = SpecOrigin::Activated;
    open_with(&mut given, listen(13), 1);
    assert_eq!(longest_queue(&before), 9 + 1, "the service manager has opened the socket");
}

/// Returns how many connections a Unix socket accepts before its queue is full. Linux accepts one more than the
/// backlog.
fn longest_queue(sockets: &Sockets) -> usize {
    let listener = sockets.by_worker[0][0].as_unix().expect("a Unix listener");
    let address = SockRef::from(listener).local_addr().expect("an address");
    let connect = || {
        let client = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        client.set_nonblocking(true).expect("nonblocking");
        client.connect(&address).ok().map(|()| client)
    };
    let clients: Vec<_> = std::iter::from_fn(connect).collect();
    while listener.accept().is_ok() {}
    clients.len()
}

#[test]
fn per_worker_sockets_keep_their_workers() {
    let listens = || vec![ListenConfig::from("udp:127.0.0.1:0").per_worker(), "127.0.0.1:0".into()];
    let mut before = try_open(listens(), 4).expect("sockets");
    before.serve([0, 2].into_iter()).expect("steering");
    let mut given = pass("", &before);
    assert_eq!(given.len(), 5);
    given.reverse();
    let mut after = open_with(&mut given, listens(), 6);
    assert_eq!((after.addresses(), after.by_worker.len()), (before.addresses(), 4));
    let senders = senders("127.0.0.1");
    let counts = |shares: Vec<Vec<u16>>| shares.iter().map(Vec::len).collect::<Vec<_>>();
    let shares_before = counts(shares(&after, &senders));
    assert!(shares_before[0] > 10 && shares_before[2] > 10, "{shares_before:?}");
    assert_eq!((shares_before[1], shares_before[3]), (0, 0), "nothing has changed before serve()");
    after.serve([1, 3].into_iter()).expect("steering");
    after.of(4).expect("another socket");
    let shares_after = counts(shares(&after, &senders));
    assert!(shares_after[1] > 10 && shares_after[3] > 10, "{shares_after:?}");
    assert_eq!((shares_after[0], shares_after[2], shares_after[4]), (0, 0, 0), "{shares_after:?}");
}

#[test]
fn the_check_opens_new_listeners_only() {
    let old = || ListenConfig::from("udp:127.0.0.1:0").per_worker();
    let before = try_open(vec![old()], 3).expect("sockets");
    let new = || ListenConfig::from("127.0.0.1:0").per_worker();
    let listens = || vec![new(), old(), "127.0.0.1:0".into()];
    let opened = check_with(&mut pass("", &before), listens(), 5).expect("no refusal");
    assert_eq!(opened.len(), 4, "three for the workers, and one for all");
    let mut given = pass("", &before);
    given.extend(opened);
    let listeners = Sockets::for_trial("", listens(), 2, &mut pass_copies(&given)).expect("no refusal");
    let listeners = listeners.expect("listeners");
    let after = open_with(&mut given, listens(), 5);
    assert!(given.is_empty());
    assert_eq!(after.by_worker.len(), 3);
    for (passed, own) in listeners.iter().zip(after.by_worker[2].iter()) {
        assert_eq!(inode(passed), inode(own), "{passed}");
    }
}

#[test]
fn a_trial_worker_opens_no_socket() {
    let error = Sockets::for_trial("", vec!["127.0.0.1:0".into()], 0, &mut Vec::new()).expect_err("a refusal");
    assert_eq!(error.to_string(), "listen: the parent has passed no socket for 127.0.0.1:0");
    let group = || vec![ListenConfig::from("127.0.0.1:0").per_worker()];
    let before = try_open(group(), 2).expect("sockets");
    let error = Sockets::for_trial("", group(), 2, &mut pass("", &before)).expect_err("a refusal");
    assert_eq!(error.to_string(), "listen: worker 2 has no socket for 127.0.0.1:0");
}

#[test]
fn an_upgrade_cannot_change_per_worker() {
    let shared = || vec![ListenConfig::from("127.0.0.1:0")];
    let group = || vec![ListenConfig::from("127.0.0.1:0").per_worker()];
    for (one, other) in [(shared(), group()), (group(), shared())] {
        let before = try_open(one, 2).expect("sockets");
        let error = check_with(&mut pass("", &before), other, 2).expect_err("a refusal");
        let problem = "per_worker: 127.0.0.1:0 is open already, and an upgrade cannot change this setting";
        assert_eq!(error.to_string(), problem);
    }
}

#[test]
fn the_file_of_a_unix_socket_belongs_to_the_next_program() {
    let path = |name: &str| std::env::temp_dir().join(format!("taskfork-{name}-{}", std::process::id()));
    let kept = || ListenConfig::unix(path("kept"));
    let before = ManuallyDrop::new(try_open(vec![kept(), ListenConfig::unix(path("retired"))], 1).expect("sockets"));
    let mut given = pass("", &before);
    let opened = check_with(&mut pass("", &before), vec![kept(), ListenConfig::unix(path("new"))], 1);
    let opened = opened.expect("no refusal");
    assert!(path("new").exists(), "the checker leaves the new file");
    Retired::new(opened);
    assert!(!path("new").exists());
    let after = open_with(&mut given, vec![kept()], 1);
    let retired = Retired::new(given);
    UnixStream::connect(path("retired")).expect("the socket still listens");
    drop(retired);
    assert!(!path("retired").exists());
    UnixStream::connect(path("kept")).expect("the socket listens");
    drop(after);
    assert!(!path("kept").exists());
}

#[test]
fn a_failed_check_leaves_no_file() {
    let path = std::env::temp_dir().join(format!("taskfork-failed-check-{}", std::process::id()));
    let listens = vec![ListenConfig::unix(&path), "nonsense".into()];
    check_with(&mut Vec::new(), listens, 1).expect_err("a refusal");
    assert!(!path.exists());
}

fn pass_copies(given: &[Given]) -> Vec<Given> {
    let copy = |given: &Given| Given { spec: given.spec.clone(), fd: given.fd.try_clone().expect("a descriptor") };
    given.iter().map(copy).collect()
}

fn inode(socket: &Listener) -> std::path::PathBuf {
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(socket));
    std::fs::read_link(link).expect("a descriptor")
}
