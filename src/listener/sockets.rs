//! The sockets that the parent opens for the workers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::vec;

use socket2::SockRef;

use super::column::{self, NewSockets};
use super::config::ListenConfig;
use super::group::SocketGroup;
use super::open::{Opened, SocketFile};
use super::retry::Retry;
use super::spec::{Given, Passed, Spec};
use super::{Listener, Listeners, steering};
use crate::error::{Error, Result};
use crate::sys;

/// All listening sockets of the service. The parent keeps them open until it stops the service.
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
/// The parent keeps each per-worker socket open until it stops the service, even if the number of workers is reduced.
/// There are two reasons:
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
    /// The identity of each listener's first socket. `None` for a socket that the program has opened.
    specs: Vec<Option<Spec>>,
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
    /// Opens the sockets of a pool for this number of workers. If this fails, closes the sockets that are open already,
    /// and removes their files.
    ///
    /// After an upgrade, `given` has the sockets of the program before. A listener takes its sockets out of this list,
    /// and opens them only if they are not there. Existing sockets are not changed, except for their backlog. If a
    /// per-worker listener exists already, its BPF program stays as it is until the next call of [`Sockets::serve`],
    /// which must come before the start of a worker with a new id.
    pub fn open(
        pool: &str,
        listens: Vec<ListenConfig>,
        workers: usize,
        given: &mut Vec<Given>,
        retry: &mut Retry<'_>,
    ) -> Result<Sockets> {
        let columns = column::find_or_open(pool, listens, given, retry)?;
        let mut sockets = Sockets::default();
        if columns.is_empty() {
            return Ok(sockets);
        }
        sockets.cpus = column::cpus_of(&columns)?;
        let rows = column::row_count(&columns, workers);
        let has_known_group = columns.iter().any(|column| !column.is_new && column.opened.group.is_some());
        let mut firsts = Vec::with_capacity(columns.len());
        let mut rests = Vec::with_capacity(columns.len());
        for mut column in columns {
            column.adopt();
            sockets.states.push(ListenerState::of(&column.opened, column.backlog));
            let Opened { file, listener, group } = column.opened;
            sockets._files.extend(file);
            sockets.groups.push(group);
            sockets.specs.push(column.spec);
            firsts.push(listener);
            rests.push(column.rest);
        }
        sockets.by_worker.push(firsts.into());
        if !sockets.are_per_worker() {
            return Ok(sockets);
        }
        while sockets.by_worker.len() < rows {
            sockets.open_next(&mut rests)?;
        }
        if has_known_group {
            return Ok(sockets);
        }
        sockets.serving = (0..rows).collect();
        let has_program = sockets.groups.iter().flatten().any(SocketGroup::opens_with_program);
        if has_program || !sockets.cpus.is_empty() {
            sockets.steer()?;
        }
        Ok(sockets)
    }

    /// Checks the listeners of a pool in the candidate of an upgrade. Returns new sockets for the listeners whose
    /// sockets are not in `given`. Changes nothing on existing sockets. If this succeeds, this process does not remove
    /// the files of new Unix sockets.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn check(
        pool: &str,
        listens: Vec<ListenConfig>,
        workers: usize,
        given: &mut Vec<Given>,
        retry: &mut Retry<'_>,
    ) -> Result<Vec<Given>> {
        let columns = column::find_or_open(pool, listens, given, retry)?;
        let cpus = column::cpus_of(&columns)?;
        let rows = column::row_count(&columns, workers);
        let ids: Vec<usize> = (0..rows.max(workers)).collect();
        if columns.iter().any(|column| column.opened.group.is_some()) && steering::program(&ids, &cpus).is_none() {
            return Err(too_many_steered(ids.len()));
        }
        let new = columns.into_iter().filter(|column| column.is_new).map(|column| column.into_given(rows));
        let new = new.collect::<Result<Vec<NewSockets>>>()?;
        let hand_over = |NewSockets { mut file, sockets }| {
            if let Some(file) = &mut file {
                file.release();
            }
            sockets
        };
        Ok(new.into_iter().flat_map(hand_over).collect())
    }

    /// Returns the listeners of worker `id` in a worker that starts before the upgrade. All sockets must be in `given`.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn for_trial(pool: &str, listens: Vec<ListenConfig>, id: usize, given: &mut Vec<Given>) -> Result<Listeners> {
        column::of_worker(pool, listens, id, given)
    }

    /// Returns all sockets of [`listen`](crate::Prefork::listen), for another program. The sockets of
    /// [`bind`](crate::bind) are not among them, and neither are those that the program has opened itself.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn passed(&self) -> Vec<Passed<'_>> {
        let mut passed = Vec::new();
        for (listener, (spec, group)) in self.specs.iter().zip(&self.groups).enumerate() {
            let Some(spec) = spec else { continue };
            let rows = if group.is_some() { self.by_worker.len() } else { 1 };
            for (worker, sockets) in self.by_worker.iter().take(rows).enumerate() {
                let spec = Spec { worker: group.as_ref().map(|_| worker), ..spec.clone() };
                passed.push(Passed { spec, fd: sockets[listener].as_passed() });
            }
        }
        passed
    }

    /// Closes the parent's copies of all sockets, and removes the files of Unix sockets.
    pub fn close(&mut self) {
        if !self.by_worker.is_empty() {
            *self = Sockets::default();
        }
    }

    /// Returns whether any listener has one socket for each worker.
    pub fn are_per_worker(&self) -> bool {
        self.groups.iter().any(Option::is_some)
    }

    /// Returns the address of each listener, in the order of the [`listen`](crate::Prefork::listen) calls.
    pub fn addresses(&self) -> Vec<String> {
        self.by_worker.first().map_or_else(Vec::new, |sockets| sockets.iter().map(Listener::to_string).collect())
    }

    /// Returns the number of connections that wait in the queue of each listener, in the order of the
    /// [`listen`](crate::Prefork::listen) calls. `None` if the number is unknown.
    pub fn queue_lengths(&self) -> Vec<Option<u32>> {
        let lengths = self.groups.iter().enumerate().map(|(listener, group)| {
            // The sockets of all workers, or the one socket that they share.
            let count = if group.is_some() { self.by_worker.len() } else { 1 };
            let sockets = self.by_worker.iter().take(count).map(|sockets| &sockets[listener]);
            sockets.map(|socket| sys::queue_length(socket.as_passed())).sum()
        });
        lengths.collect()
    }

    /// Returns the listeners of worker `id`. If the id is new, this method first opens the sockets of the worker. The
    /// new sockets get no connections or datagrams until [`Sockets::serve`] is called with the new id.
    pub fn of(&mut self, id: usize) -> Result<Listeners> {
        if !self.are_per_worker() {
            return Ok(self.by_worker.first().cloned());
        }
        // Without a BPF program, the kernel would choose the new socket as soon as the socket is open.
        if id >= self.by_worker.len() && !self.is_steered && !self.serving.is_empty() {
            self.steer()?;
        }
        while id >= self.by_worker.len() {
            self.open_next(&mut [])?;
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

    /// Closes all sockets in a forked worker of another pool, which has inherited copies of them. Otherwise the kernel
    /// would still accept clients for this pool after its own workers have stopped. Writes no memory, and leaves the
    /// files of Unix sockets to the parent. The worker must not use or drop this value afterwards.
    #[cfg(unix)]
    pub fn close_inherited(&self) {
        for socket in self.by_worker.iter().flat_map(|sockets| sockets.iter()) {
            sys::close_inherited(socket.as_passed());
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
    /// listener that cannot be restored is returned once. Also makes all listeners of this worker non-blocking again.
    pub fn restore(&mut self, id: usize) -> Vec<ShutDown> {
        let shared = self.by_worker.first();
        let Some(sockets) = self.by_worker.get(id).or(shared) else { return Vec::new() };
        let mut found = Vec::new();
        for (listener, (socket, state)) in sockets.iter().zip(&mut self.states).enumerate() {
            // Ignores errors: this makes no difference unless a worker has changed the socket.
            let _ = socket.set_nonblocking();
            if state.is_lost || !sys::is_shut_down(socket.as_passed()) {
                continue;
            }
            let is_restored = state.restore(socket).is_ok();
            state.is_lost = !is_restored;
            found.push(ShutDown { listener, address: state.text.clone(), is_restored });
        }
        found
    }

    /// Opens the sockets of the next worker id. `existing` has, for each listener, the next sockets that exist already.
    fn open_next(&mut self, existing: &mut [vec::IntoIter<Listener>]) -> Result<()> {
        let sockets = self.by_worker[0].iter().zip(&self.groups).enumerate().map(|(listener, (first, group))| {
            if let Some(socket) = existing.get_mut(listener).and_then(Iterator::next) {
                return Ok(socket);
            }
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
                return Err(too_many_steered(self.serving.len()));
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
        let tcp = match (opened.listener.as_tcp(), &opened.group) {
            (Some(listener), None) => listener.local_addr().ok(),
            // Listening again would give the socket another index in its group, which must be the worker id.
            _ => None,
        };
        ListenerState { tcp, text: opened.listener.to_string(), backlog, is_lost: false }
    }

    /// Lets a TCP socket listen again. A UDP or Unix socket cannot be restored, because shutdown(2) is final for it.
    fn restore(&self, socket: &Listener) -> io::Result<()> {
        let (Some(listener), Some(address)) = (socket.as_tcp(), self.tcp) else {
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

fn too_many_steered(workers: usize) -> Error {
    Error::unfit("per_worker", format!("the program that steers to {workers} workers is too long"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests;

#[cfg(all(test, not(target_os = "linux")))]
mod tests {
    use super::*;

    #[test]
    fn per_worker_is_refused_outside_linux() {
        for listen in [ListenConfig::from("127.0.0.1:0").per_worker(), ListenConfig::from("127.0.0.1:0").steer_by_cpu()]
        {
            let error = Sockets::open("", vec![listen], 1, &mut Vec::new(), &mut Retry::never(&mut |_, _| {}))
                .expect_err("a refusal");
            assert_eq!(error.setting(), Some("per_worker"), "{error}");
        }
    }
}
