//! The sockets that the parent opens for the workers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::SockRef;

use super::config::{ListenConfig, Opened, SocketFile};
use super::group::SocketGroup;
use super::retry::Retry;
use super::{Listener, Listeners, steering};
use crate::error::{Error, Result};
use crate::sys;

/// All listening sockets of the service. The parent keeps them open.
///
/// Usually, all workers share the socket of a listener. If the listener is [per worker](ListenConfig::per_worker), each
/// worker id has its own socket. The sockets of a per-worker listener have the same address and form one `SO_REUSEPORT`
/// group (socket(7)).
///
/// # Steering
///
/// Without a BPF program, the kernel chooses among all sockets of a group by a hash of the addresses. It also chooses
/// the sockets of workers that must not get new connections, because they are not ready yet or are about to stop.
/// [`Sockets::serve`] attaches a [BPF program](steering::program) that chooses only among the given worker ids. The
/// kernel takes the result of the program as the index of a socket in the group. So the index of each socket must be
/// its worker id.
///
/// # Why per-worker sockets stay open
///
/// The parent keeps each per-worker socket open until the service ends, even if the number of workers is reduced. There
/// are two reasons:
///
/// - The kernel numbers the sockets of a group in the order in which they joined it. When a socket is closed, the last
///   socket of the group moves to the index of the closed socket (socket(7)). The indexes would then no longer be the
///   worker ids.
/// - Connections and datagrams in the queue of a closed socket are lost. In the queue of an open socket, they wait for
///   the next process with the same worker id.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// The files of Unix sockets. When the parent drops this value, it removes these files. They come before the
    /// sockets, because a [`SocketFile`] must be dropped before its listener.
    _files: Vec<SocketFile>,
    /// The listeners of each worker. The index is the worker id. If all workers share all listeners, there is only one
    /// entry.
    by_worker: Vec<Arc<[Listener]>>,
    /// The `SO_REUSEPORT` group of each listener. `None` if all workers share the socket of the listener.
    groups: Vec<Option<SocketGroup>>,
    /// The CPUs that the parent may use, in ascending order. Set only if a listener has [`ListenConfig::steer_by_cpu`].
    cpus: Vec<usize>,
    /// The ids of the workers that get new connections and datagrams, in ascending order.
    serving: Vec<usize>,
    /// The ids for which the last call of [`Sockets::serve`] has failed. While they are stored here, another call with
    /// the same ids does nothing.
    refused: Option<Vec<usize>>,
    /// Whether each group has a BPF program that chooses among the ids in `serving`.
    is_steered: bool,
    /// What is known about each listener.
    states: Vec<ListenerState>,
}

/// A listener on which shutdown(2) was called, most likely by a worker.
#[derive(Debug)]
pub(crate) struct ShutDown {
    /// The position of the listener.
    pub listener: usize,
    pub address: String,
    /// Whether the socket listens again.
    pub is_restored: bool,
}

/// What the parent needs to restore a listener after shutdown(2).
#[derive(Debug)]
struct ListenerState {
    /// The address of a TCP socket that all workers share. `None` for other sockets.
    tcp: Option<SocketAddr>,
    text: String,
    backlog: i32,
    /// Whether it was reported that the socket cannot be restored.
    is_lost: bool,
}

impl Sockets {
    /// Opens the sockets for this number of workers. If this fails, closes the sockets that are open already, and
    /// removes their files.
    pub fn open(listens: Vec<ListenConfig>, workers: usize, retry: &mut Retry<'_>) -> Result<Sockets> {
        let mut firsts = Vec::new();
        let mut sockets = Sockets::default();
        for listen in listens {
            let backlog = listen.backlog_len();
            let opened = listen.open(retry)?;
            sockets.states.push(ListenerState::of(&opened, backlog));
            firsts.push(opened.listener);
            sockets.groups.push(opened.group);
            sockets._files.extend(opened.file);
        }
        if firsts.is_empty() {
            return Ok(sockets);
        }
        sockets.by_worker.push(firsts.into());
        if !sockets.are_per_worker() {
            return Ok(sockets);
        }
        if sockets.groups.iter().flatten().any(|group| group.by_cpu) {
            sockets.cpus = sys::usable_cpus()?;
        }
        while sockets.by_worker.len() < workers {
            sockets.open_next()?;
        }
        sockets.serving = (0..workers).collect();
        let has_program = sockets.groups.iter().flatten().any(SocketGroup::opens_with_program);
        if has_program || !sockets.cpus.is_empty() {
            sockets.steer()?;
        }
        Ok(sockets)
    }

    /// Returns whether any listener has one socket for each worker.
    pub fn are_per_worker(&self) -> bool {
        self.groups.iter().any(Option::is_some)
    }

    /// Returns the address of each listener, in the order of the [`listen`](crate::Prefork::listen) calls.
    pub fn addresses(&self) -> Vec<String> {
        self.by_worker.first().map_or_else(Vec::new, |sockets| sockets.iter().map(Listener::to_string).collect())
    }

    /// Returns the listeners of worker `id`. If the id is new, this method first opens the sockets of the worker. The
    /// new sockets get no connections or datagrams until [`Sockets::serve`] is called with the new id.
    pub fn of(&mut self, id: usize) -> Result<Listeners> {
        if !self.are_per_worker() {
            return Ok(self.by_worker.first().cloned());
        }
        // Without a BPF program, the kernel would choose the new socket as soon as the socket is open.
        if id >= self.by_worker.len() && !self.is_steered {
            self.steer()?;
        }
        while id >= self.by_worker.len() {
            self.open_next()?;
        }
        Ok(Some(Arc::clone(&self.by_worker[id])))
    }

    /// Closes, in a forked worker, the per-worker sockets of the other workers. Does nothing if all sockets are shared:
    /// freeing the list would write to memory that the worker still shares with the parent, so the kernel would have to
    /// copy a page (copy-on-write).
    pub fn release_in_child(&mut self) {
        if self.are_per_worker() {
            self.by_worker = Vec::new();
        }
    }

    /// Makes the kernel send new connections and datagrams only to the workers with these ids. The ids must be in
    /// ascending order. Does nothing if `serving` is empty.
    ///
    /// If this method fails, the previous ids stay in effect. A later call with the ids that have failed does nothing.
    /// These ids are tried again only after a call of [`Sockets::retry`], or after a call with other ids.
    pub fn serve(&mut self, serving: impl Iterator<Item = usize> + Clone) -> Result<()> {
        if !self.are_per_worker() {
            return Ok(());
        }
        let is_same = |known: &Vec<usize>| serving.clone().eq(known.iter().copied());
        let is_known = is_same(&self.serving) || self.refused.as_ref().is_some_and(is_same);
        if is_known || serving.clone().next().is_none() {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.serving, serving.collect());
        self.refused = None;
        self.steer().inspect_err(|_| {
            self.refused = Some(std::mem::replace(&mut self.serving, before));
            // The call may have attached the new programs to some listeners before it failed. Attach the old programs
            // again.
            if self.is_steered {
                let _ = self.steer();
            }
        })
    }

    /// After this call, [`Sockets::serve`] no longer ignores the ids for which it has failed before.
    pub fn retry(&mut self) {
        self.refused = None;
    }

    /// Returns whether worker `id` gets no new connections and datagrams.
    pub fn is_left_out(&self, id: usize) -> bool {
        !self.serving.contains(&id)
    }

    /// Returns whether connections or datagrams wait in the queues of the worker's own sockets. Ignores shared sockets,
    /// because the other workers serve their queues as well.
    pub fn has_waiting(&self, id: usize) -> bool {
        let own = self.by_worker.get(id).into_iter().flat_map(|sockets| sockets.iter().zip(&self.groups));
        let mut own = own.filter_map(|(socket, group)| group.as_ref().map(|_| socket));
        own.any(|socket| sys::has_waiting(socket.as_passed()))
    }

    /// Finds the listeners of this worker on which shutdown(2) was called, and lets them listen again if possible. A
    /// listener that cannot be restored is returned once.
    pub fn restore(&mut self, id: usize) -> Vec<ShutDown> {
        let shared = self.by_worker.first();
        let Some(sockets) = self.by_worker.get(id).or(shared) else { return Vec::new() };
        let mut found = Vec::new();
        for (listener, (socket, state)) in sockets.iter().zip(&mut self.states).enumerate() {
            if state.is_lost || !sys::is_shut_down(socket.as_passed()) {
                continue;
            }
            let is_restored = state.restore(socket).is_ok();
            state.is_lost = !is_restored;
            found.push(ShutDown { listener, address: state.text.clone(), is_restored });
        }
        found
    }

    /// Opens the sockets of the next worker id.
    fn open_next(&mut self) -> Result<()> {
        let sockets = self.by_worker[0].iter().zip(&self.groups).map(|(first, group)| {
            let socket = group.as_ref().map_or_else(|| first.try_clone(), SocketGroup::open_next);
            socket.map_err(|error| Error::listen(first.to_string(), error))
        });
        let sockets = sockets.collect::<Result<Arc<[Listener]>>>()?;
        self.by_worker.push(sockets);
        Ok(())
    }

    /// Attaches a BPF program for the ids in `serving` to each group.
    fn steer(&mut self) -> Result<()> {
        for (socket, group) in self.by_worker[0].iter().zip(&self.groups) {
            let Some(group) = group else { continue };
            let cpus = if group.by_cpu { &self.cpus[..] } else { &[] };
            let Some(program) = steering::program(&self.serving, cpus) else {
                let count = self.serving.len();
                return Err(Error::unfit(
                    "per_worker",
                    format!("the program that steers to {count} workers is too long"),
                ));
            };
            sys::steer(socket.as_passed(), &program)
                .map_err(|error| Error::listen(socket.to_string(), error.source))?;
            self.is_steered = true;
        }
        Ok(())
    }
}

impl ListenerState {
    fn of(opened: &Opened, backlog: i32) -> ListenerState {
        let tcp = match (&opened.listener, &opened.group) {
            (Listener::Tcp(listener), None) => listener.local_addr().ok(),
            // Listening again would give the socket another index in its group, which must be the worker id.
            _ => None,
        };
        ListenerState { tcp, text: opened.listener.to_string(), backlog, is_lost: false }
    }

    /// Lets a TCP socket listen again. A UDP or Unix socket cannot be restored, because shutdown(2) is final for it.
    fn restore(&self, socket: &Listener) -> io::Result<()> {
        let (Listener::Tcp(listener), Some(address)) = (socket, self.tcp) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let socket = SockRef::from(listener);
        // If the system has chosen the port, shutdown(2) gives up the port. Otherwise the socket is still bound, and
        // bind(2) fails.
        let _ = socket.bind(&address.into());
        socket.listen(self.backlog)?;
        if listener.local_addr()? == address { Ok(()) } else { Err(io::ErrorKind::AddrInUse.into()) }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::ErrorKind;
    use std::net::{Shutdown, TcpStream, UdpSocket};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn open(listen: ListenConfig, workers: usize) -> Sockets {
        try_open(vec![listen], workers).expect("sockets")
    }

    fn try_open(listens: Vec<ListenConfig>, workers: usize) -> Result<Sockets> {
        Sockets::open(listens, workers, &mut Retry::never(&mut |_, _| {}))
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
                SockRef::from(sockets.by_worker[0][0].as_tcp().expect("TCP"))
                    .shutdown(Shutdown::Read)
                    .expect("shutdown");
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
}

#[cfg(all(test, not(target_os = "linux")))]
mod tests {
    use super::*;

    #[test]
    fn per_worker_is_refused_outside_linux() {
        for listen in [ListenConfig::from("127.0.0.1:0").per_worker(), ListenConfig::from("127.0.0.1:0").steer_by_cpu()]
        {
            let error = Sockets::open(vec![listen], 1, &mut Retry::never(&mut |_, _| {})).expect_err("a refusal");
            assert_eq!(error.setting(), Some("per_worker"), "{error}");
        }
    }
}
