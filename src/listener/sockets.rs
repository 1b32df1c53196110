//! What the parent holds for the workers: the same for all of them, or some of it for each.

use std::sync::Arc;

use super::config::{ListenConfig, Series, SocketFile};
use super::{Listener, Listeners, steering};
use crate::error::{Error, Result};
use crate::sys;

/// All sockets of the service. Those that each worker has for itself are never closed before the end: by that, the place of
/// one among those with its address is the id, and what waits there stays.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// By id, what each has; if it is the same for all, there is one.
    of: Vec<Arc<[Listener]>>,
    /// For each that was asked for, how there come to be more of it; none is the same for all.
    series: Vec<Option<Series>>,
    /// Of those that the parent may use, in order.
    cpus: Vec<usize>,
    /// Who gets what comes, ascending.
    serving: Vec<usize>,
    /// Who was to get it, and the system has refused that.
    refused: Option<Vec<usize>>,
    /// A program says so, and not the kernel.
    is_steered: bool,
    /// Removed from the disk when this is dropped, in the parent.
    _files: Vec<SocketFile>,
}

impl Sockets {
    /// For so many workers. If one cannot be had, nothing is left of the others.
    pub fn open(listens: Vec<ListenConfig>, workers: usize) -> Result<Sockets> {
        let (mut firsts, mut sockets) = (Vec::new(), Sockets::default());
        for listen in listens {
            let opened = listen.open()?;
            firsts.push(opened.listener);
            sockets.series.push(opened.series);
            sockets._files.extend(opened.file);
        }
        if firsts.is_empty() {
            return Ok(sockets);
        }
        sockets.of.push(firsts.into());
        if !sockets.are_per_worker() {
            return Ok(sockets);
        }
        if sockets.series.iter().flatten().any(|series| series.by_cpu) {
            sockets.cpus = sys::usable_cpus()?;
        }
        while sockets.of.len() < workers {
            sockets.add()?;
        }
        sockets.serving = (0..workers).collect();
        let is_first_for_all = sockets.series.iter().flatten().any(|series| series.goes_to_the_first());
        if is_first_for_all || !sockets.cpus.is_empty() {
            sockets.steer()?;
        }
        Ok(sockets)
    }

    /// Some of them are not for all workers.
    pub fn are_per_worker(&self) -> bool {
        self.series.iter().any(Option::is_some)
    }

    /// By the order in which they were asked for; of those for each worker, the first.
    pub fn addresses(&self) -> Vec<String> {
        self.of.first().map_or_else(Vec::new, |sockets| sockets.iter().map(Listener::to_string).collect())
    }

    /// What the worker has. Nobody else's gets in the way of it, and nothing comes there before it [serves](Sockets::serve).
    pub fn of(&mut self, id: usize) -> Result<Listeners> {
        if !self.are_per_worker() {
            return Ok(self.of.first().cloned());
        }
        if id >= self.of.len() && !self.is_steered {
            self.steer()?;
        }
        while id >= self.of.len() {
            self.add()?;
        }
        Ok(Some(Arc::clone(&self.of[id])))
    }

    /// In a forked worker: of the others' sockets it is to have none. (What is the same for all is left as it is: to free it would
    /// be to copy it first.)
    pub fn release_in_child(&mut self) {
        if self.are_per_worker() {
            self.of = Vec::new();
        }
    }

    /// From here on these get what comes, and nobody else; their ids ascend. If it cannot be had, it stays as it was, and is
    /// tried again when others are to get it, or after [`Sockets::retry`].
    pub fn serve(&mut self, serving: impl Iterator<Item = usize> + Clone) -> Result<()> {
        if !self.are_per_worker() {
            return Ok(());
        }
        let is_it = |known: &Vec<usize>| serving.clone().eq(known.iter().copied());
        let is_known = is_it(&self.serving) || self.refused.as_ref().is_some_and(is_it);
        if is_known || serving.clone().next().is_none() {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.serving, serving.collect());
        self.refused = None;
        self.steer().inspect_err(|_| {
            self.refused = Some(std::mem::replace(&mut self.serving, before));
            // Of several, those before the one that was refused have had it already.
            if self.is_steered {
                let _ = self.steer();
            }
        })
    }

    pub fn retry(&mut self) {
        self.refused = None;
    }

    /// Whether this one gets nothing new.
    pub fn is_left_out(&self, id: usize) -> bool {
        !self.serving.contains(&id)
    }

    /// Whether something is left in the queue of this worker, and of no other.
    pub fn has_waiting(&self, id: usize) -> bool {
        let own = self.of.get(id).into_iter().flat_map(|sockets| sockets.iter().zip(&self.series));
        let mut own = own.filter_map(|(socket, series)| series.as_ref().map(|_| socket));
        own.any(|socket| sys::has_waiting(socket.as_passed()))
    }

    fn add(&mut self) -> Result<()> {
        let sockets = self.of[0].iter().zip(&self.series).map(|(first, series)| {
            let socket = series.as_ref().map_or_else(|| first.try_clone(), Series::next);
            socket.map_err(|error| Error::listen(first.to_string(), error))
        });
        let sockets = sockets.collect::<Result<Arc<[Listener]>>>()?;
        self.of.push(sockets);
        Ok(())
    }

    fn steer(&mut self) -> Result<()> {
        for (socket, series) in self.of[0].iter().zip(&self.series) {
            let Some(series) = series else { continue };
            let cpus = if series.by_cpu { &self.cpus[..] } else { &[] };
            let Some(program) = steering::program(&self.serving, cpus) else {
                return Err(Error::unfit("per_worker", format!("{} workers are too many", self.serving.len())));
            };
            sys::steer(socket.as_passed(), &program)
                .map_err(|error| Error::listen(socket.to_string(), error.source))?;
            self.is_steered = true;
        }
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpStream, UdpSocket};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn open(listen: ListenConfig, workers: usize) -> Sockets {
        Sockets::open(vec![listen], workers).expect("sockets")
    }

    fn bound(sockets: &Sockets) -> std::net::SocketAddr {
        sockets.of[0][0].address().expect("an address")
    }

    /// From each of so many senders one datagram, in turns: who got whose.
    fn shares(sockets: &Sockets, senders: &[UdpSocket]) -> Vec<Vec<u16>> {
        let address = bound(sockets);
        for sender in senders {
            sender.send_to(b"!", address).expect("a datagram");
        }
        let sockets: Vec<&UdpSocket> = sockets.of.iter().map(|own| own[0].as_udp().expect("UDP")).collect();
        sockets.iter().for_each(|socket| socket.set_nonblocking(true).expect("nonblocking"));
        let port = |socket: &UdpSocket| Some(socket.recv_from(&mut [0; 8]).ok()?.1.port());
        let mut shares = gathered(senders.len(), &sockets, |socket| port(socket));
        shares.iter_mut().for_each(|ports| ports.sort());
        shares
    }

    /// What comes to each of them, until it is so much in all. It may be on its way.
    fn gathered<S, T>(total: usize, sockets: &[S], next: impl Fn(&S) -> Option<T>) -> Vec<Vec<T>> {
        /// What takes longer than this will never come.
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
    fn each_has_its_share_and_who_does_not_serve_has_none() {
        for host in ["127.0.0.1", "[::1]"] {
            let mut sockets = open(ListenConfig::from(format!("udp:{host}:0")).per_worker(), 4);
            let senders = senders(host.trim_matches(['[', ']']));
            let all = shares(&sockets, &senders);
            assert!(all.iter().all(|share| share.len() > 10), "from the beginning: {all:?}");
            for serving in [&[0, 2][..], &[1, 2, 3], &[3], &[0, 1, 2, 3]] {
                sockets.serve(serving.iter().copied()).expect("a program");
                let shares = [shares(&sockets, &senders), shares(&sockets, &senders)];
                assert_eq!(shares[0], shares[1], "a flow stays where it is");
                assert_eq!(shares[0].iter().map(Vec::len).sum::<usize>(), senders.len());
                for (id, share) in shares[0].iter().enumerate() {
                    assert_eq!(share.len() > 10, serving.contains(&id), "{serving:?}: {:?}", shares[0]);
                }
            }
        }
    }

    #[test]
    fn who_is_added_gets_nothing_before_it_serves() {
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
    fn connections_wait_where_they_were_when_their_socket_gets_no_more() {
        let mut sockets = open(ListenConfig::from("127.0.0.1:0").per_worker(), 2);
        let address = bound(&sockets);
        let connect = || TcpStream::connect(address).expect("a connection");
        let before: Vec<TcpStream> = (0..50).map(|_| connect()).collect();
        assert!(sockets.has_waiting(0) && sockets.has_waiting(1));
        sockets.serve([0].into_iter()).expect("a program");
        let after: Vec<TcpStream> = (0..50).map(|_| connect()).collect();
        let listeners = [0, 1].map(|id: usize| sockets.of[id][0].as_tcp().expect("TCP"));
        listeners.iter().for_each(|listener| listener.set_nonblocking(true).expect("nonblocking"));
        let accepted = gathered(before.len() + after.len(), &listeners, |listener| Some(listener.accept().ok()?.1));
        let (first, second) = (&accepted[0], &accepted[1]);
        assert_eq!(first.len() + second.len(), before.len() + after.len(), "none was lost");
        let own = |stream: &TcpStream| stream.local_addr().expect("an address");
        assert!(!second.is_empty() && !after.iter().any(|stream| second.contains(&own(stream))));
        assert!(!sockets.has_waiting(1));
    }

    #[test]
    fn who_has_the_address_already_is_not_joined() {
        for transport in ["", "udp:"] {
            let first = open(ListenConfig::from(format!("{transport}127.0.0.1:0")).per_worker(), 2);
            let address = format!("{transport}{}", bound(&first));
            for second in [ListenConfig::from(&*address), ListenConfig::from(&*address).per_worker()] {
                let error = Sockets::open(vec![second], 2).expect_err("a refusal");
                assert_eq!(error.io_error().map(std::io::Error::kind), Some(ErrorKind::AddrInUse), "{error}");
            }
        }
    }

    #[test]
    fn one_socket_alone_is_steered_as_well_and_more_come_to_it() {
        for transport in ["", "udp:"] {
            let listen = || ListenConfig::from(format!("{transport}127.0.0.1:0"));
            let mut sockets = open(listen().per_worker(), 1);
            sockets.of(1).expect("one more");
            open(listen().steer_by_cpu(), 1);
        }
        let mut sockets = open(ListenConfig::from("udp:127.0.0.1:0").per_worker(), 1);
        sockets.of(1).expect("one more");
        sockets.serve([1].into_iter()).expect("a program");
        assert_eq!(shares(&sockets, &senders("127.0.0.1"))[1].len(), 200);
    }

    #[test]
    fn what_could_not_be_had_is_not_taken_for_done() {
        let mut sockets = open(ListenConfig::from("127.0.0.1:0").per_worker(), 2);
        let sparse = || (0..4000).step_by(2);
        sockets.serve(sparse()).expect_err("too many");
        sockets.serve(sparse()).expect("nothing new");
        assert!(!sockets.is_left_out(1));
        sockets.retry();
        sockets.serve(sparse()).expect_err("tried again");
        sockets.of(2).expect("one more can still be had");
        sockets.serve([0, 2].into_iter()).expect("a program");
        assert!(sockets.is_left_out(1));
    }

    #[test]
    fn of_several_listeners_none_is_steered_otherwise_if_one_cannot_be() {
        let [first, second] = ["udp:127.0.0.1:0"; 2].map(ListenConfig::from);
        let mut sockets = Sockets::open(vec![first.per_worker(), second.steer_by_cpu()], 2).expect("sockets");
        let senders = senders("127.0.0.1");
        let before = shares(&sockets, &senders);
        // By CPU it takes a program of twice the length.
        sockets.serve((1..2000).step_by(2)).expect_err("too many for the second");
        assert_eq!(shares(&sockets, &senders), before);
    }

    #[test]
    fn of_what_there_is_only_one_there_is_none_for_each() {
        let made = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        for listen in [ListenConfig::from(made), ListenConfig::from("unix:/nowhere/at/all")] {
            let error = Sockets::open(vec![listen.per_worker()], 2).expect_err("a refusal");
            assert_eq!(error.setting(), Some("per_worker"), "{error}");
        }
    }

    #[test]
    fn more_workers_than_a_program_can_tell_apart_are_refused() {
        let (sparse, dense): (Vec<_>, Vec<_>) = ((0..4000).step_by(2).collect(), (0..4000).collect());
        assert!(steering::program(&sparse, &[]).is_none());
        assert!(steering::program(&dense, &[]).is_some());
    }

    #[test]
    fn by_cpu_each_gets_what_comes_in_there() {
        let cpus = sys::usable_cpus().expect("CPUs");
        // Two for each, and nobody for the last of them if there are several.
        let workers = 2 * cpus.len() - 1;
        let mut sockets = open(ListenConfig::from("udp:127.0.0.1:0").steer_by_cpu(), workers);
        let senders = senders("127.0.0.1");
        for (place, &cpu) in cpus.iter().enumerate() {
            // In a thread of its own, which has nothing else to do.
            let pinned = || {
                sys::pin_to(cpu).expect("a CPU of ours");
                shares(&sockets, &senders)
            };
            let shares = std::thread::scope(|scope| scope.spawn(pinned).join()).expect("the shares");
            for (id, share) in shares.iter().enumerate() {
                assert_eq!(!share.is_empty(), id % cpus.len() == place, "CPU {cpu}, worker {id}");
            }
        }
        sockets.serve([0].into_iter()).expect("a program");
        assert_eq!(shares(&sockets, &senders)[0].len(), senders.len(), "where nobody is, all are");
    }
}

#[cfg(all(test, not(target_os = "linux")))]
mod tests {
    use super::*;

    #[test]
    fn a_socket_for_each_worker_there_is_on_linux_alone() {
        for listen in [ListenConfig::from("127.0.0.1:0").per_worker(), ListenConfig::from("127.0.0.1:0").steer_by_cpu()]
        {
            let error = Sockets::open(vec![listen], 1).expect_err("a refusal");
            assert_eq!(error.setting(), Some("per_worker"), "{error}");
        }
    }
}
