//! The worker's handle, and the steps by which a process or a thread becomes a worker.

use std::cell::Cell;
use std::io;
use std::net::{TcpListener, UdpSocket};
#[cfg(unix)]
use std::os::fd::BorrowedFd;
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

#[cfg(unix)]
use rand::{Rng, rngs::SysRng};

use crate::error::{Error, Result};
use crate::exit::Process;
use crate::listener::{Listener, ListenerIndex, ListenerNames, Listeners};
use crate::scoreboard::StatusWriter;
use crate::stop_flag::StopFlag;
use crate::sys::{CallError, StopRequest};

/// The result of a closure for [`Prefork::run`](crate::Prefork::run) and [`run_threads`](crate::Prefork::run_threads).
/// `?` converts any error into it.
pub type WorkResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

const NO_WORKER: usize = usize::MAX;

/// The id of the worker that this process is. Set once.
static TASK_ID: AtomicUsize = AtomicUsize::new(NO_WORKER);

thread_local! {
    /// The id of the worker that this thread is.
    static THREAD_ID: Cell<usize> = const { Cell::new(NO_WORKER) };
}

pub(crate) fn task_id() -> Option<usize> {
    [THREAD_ID.get(), TASK_ID.load(Ordering::Relaxed)].into_iter().find(|&id| id != NO_WORKER)
}

/// Makes this thread worker `id`.
pub(crate) fn become_thread(id: usize) {
    THREAD_ID.set(id);
}

/// Refuses a call that is made in a worker.
pub(crate) fn check_no_worker() -> Result<()> {
    task_id().map_or(Ok(()), |id| Err(Error::in_worker(id)))
}

/// Creates the thread's random generator in the parent, before the first fork. Each worker must reseed it anyway.
/// Without this, each would also have to create one, which takes longer than the rest of its start.
#[cfg(unix)]
pub(crate) fn prepare() -> Result<()> {
    // `rand::rng()` would panic if the system had no random numbers.
    let refused = |error: rand::rngs::SysError| Error::from(CallError::new("getrandom", error));
    rand::TryRng::try_next_u32(&mut SysRng).map_err(refused)?;
    rand::rng().next_u32();
    Ok(())
}

/// Makes this process, which has just been forked or spawned, worker `id`.
#[inline]
pub(crate) fn become_worker(id: usize) -> Result<()> {
    TASK_ID.store(id, Ordering::Relaxed);
    // The fork has copied the generator's state, so without this, siblings draw the same numbers.
    rand::rng().reseed().map_err(|error| Error::from(CallError::new("getrandom", error)).starting(id))
}

/// A worker's own handle. With it the worker reads its id, gets its listeners, reports to the parent and notices stop
/// requests.
///
/// A handle can be shared between threads. All that is reported through it concerns the whole process (or the whole
/// [worker thread](crate::Prefork::run_threads)).
///
/// A process that a worker forks is not a worker. In it, [`ready`](Worker::ready) and [`stop_all`](Worker::stop_all) do
/// nothing, and a signal that it gets is not a stop request to the worker. But [`heartbeat`](Worker::heartbeat) in it
/// counts for the worker.
///
/// A worker must not close descriptors that it has not opened. One of them wakes the parent, which otherwise notices
/// [`ready`](Worker::ready) and [`stop_all`](Worker::stop_all) late.
///
/// # Stopping
///
/// The parent requests a stop by SIGTERM. At first, SIGTERM kills a worker like any other process. The first call of
/// one of these methods enables the **graceful stop**:
///
/// - [`enable_graceful_stop`](Worker::enable_graceful_stop) does nothing else.
/// - [`stop_requested`](Worker::stop_requested) returns whether a stop was requested.
/// - [`wait_for_stop`](Worker::wait_for_stop) waits for the request.
/// - `stop_fd` (on Unix) returns a descriptor that becomes readable with the request.
///
/// From then on SIGTERM and SIGINT are requests. (^C at a terminal sends SIGINT to every process.) The worker has the
/// parent's [`graceful_timeout`](crate::Prefork::graceful_timeout) to exit by itself. Call `enable_graceful_stop` first
/// of all in a worker that must always finish its work: a SIGTERM between the fork and this call kills it.
///
/// - The signal handlers are installed through [signal-hook](https://docs.rs/signal-hook). They run in addition to the
///   program's own handlers from signal-hook and `tokio::signal`. A handler that `sigaction` installs afterwards
///   replaces them.
/// - A SIGINT that is ignored stays ignored. A shell starts a background job in this way.
/// - On Windows, events and the console take the place of the signals: [the differences](crate#windows).
/// - In a [worker thread](crate::Prefork::run_threads) every stop is graceful.
#[derive(Debug)]
pub struct Worker {
    id: usize,
    generation: u32,
    count: usize,
    /// `None` in a forked worker of `fork_processes`, which gets no handle.
    status: Option<StatusWriter>,
    listeners: Listeners,
    listener_names: ListenerNames,
    stop: StopSource,
}

#[derive(Debug)]
enum StopSource {
    /// A request to the process.
    Process(OnceLock<StopRequest>),
    /// A request to this thread only.
    Thread(Arc<StopFlag>),
}

impl Worker {
    pub(crate) fn new(
        id: usize,
        generation: u32,
        count: usize,
        status: Option<StatusWriter>,
        listeners: Listeners,
    ) -> Worker {
        let stop = StopSource::Process(OnceLock::new());
        Worker { id, generation, count, status, listeners, listener_names: None, stop }
    }

    pub(crate) fn in_thread(
        process: Process,
        count: usize,
        status: StatusWriter,
        listeners: Listeners,
        stop: Arc<StopFlag>,
    ) -> Worker {
        let Process { id, generation, .. } = process;
        let stop = StopSource::Thread(stop);
        Worker { id, generation, count, status: Some(status), listeners, listener_names: None, stop }
    }

    pub(crate) fn with_listener_names(self, names: ListenerNames) -> Worker {
        Worker { listener_names: names, ..self }
    }

    /// Returns the task id: 0 to one less than the number of [`workers`](crate::Prefork::workers), or higher for a
    /// worker that SIGTTIN has added, but always less than [`max_workers`](crate::Prefork::max_workers). A restarted
    /// worker has the id of its predecessor.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Returns the number of earlier processes of this id.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the number of workers that the service should have had when this process was started.
    pub fn worker_count(&self) -> usize {
        self.count
    }

    /// Returns the sockets that [`Prefork::listen`](crate::Prefork::listen) has added, in the same order. They are the
    /// same in every worker. The exception are those with [one socket for each
    /// worker](crate::ListenConfig::per_worker), of which this returns the sockets of this id. The sockets outlive the
    /// worker.
    ///
    /// All workers and the parent share these sockets, and so does the next process of this id:
    ///
    /// - Whether a socket blocks is the same for all of them (`set_nonblocking`).
    /// - A worker that waits by poll(2), epoll(7) or the like should make the socket non-blocking, because another
    ///   worker may have taken the connection by the time of the accept.
    /// - To drop a clone (`try_clone`) does not close the socket, so an epoll(7) continues to report it until it is
    ///   deregistered.
    pub fn listeners(&self) -> &[Listener] {
        self.listeners.as_deref().unwrap_or_default()
    }

    /// Returns a clone of a TCP listener, for example for mio, tokio or a thread. `which` is its position, which counts
    /// the calls of [`Prefork::listen`](crate::Prefork::listen) from 0, or its [name](crate::ListenConfig::name).
    ///
    /// The clone is another descriptor for the same socket. Whether it blocks is a property of the socket, which all
    /// workers share: `set_nonblocking` on one clone affects all of them.
    ///
    /// # Errors
    ///
    /// Returns `NotFound` if there is no such listener, `InvalidInput` if it is not a TCP listener, or the system's
    /// error if the descriptor cannot be duplicated, for example because of a limit.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use taskfork::{ListenConfig, Prefork, Report};
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     let admin = ListenConfig::from("127.0.0.1:9000").name("admin");
    ///     Prefork::new().workers(4).listen("[::]:8000").listen(admin).run(|worker| {
    ///         let public = worker.tcp(0)?;
    ///         let admin = worker.tcp("admin")?;
    ///         // ..
    /// #       drop((public, admin));
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn tcp(&self, which: impl ListenerIndex) -> io::Result<TcpListener> {
        self.find(&which)?.as_tcp().ok_or_else(|| not_of_kind(&which, "a TCP listener"))?.try_clone()
    }

    /// Returns a clone of a UDP socket. See [`tcp`](Worker::tcp).
    ///
    /// # Errors
    ///
    /// As for [`tcp`](Worker::tcp), with UDP in place of TCP.
    pub fn udp(&self, which: impl ListenerIndex) -> io::Result<UdpSocket> {
        self.find(&which)?.as_udp().ok_or_else(|| not_of_kind(&which, "a UDP socket"))?.try_clone()
    }

    /// Returns a clone of a Unix stream listener. Unix only. See [`tcp`](Worker::tcp).
    ///
    /// # Errors
    ///
    /// As for [`tcp`](Worker::tcp), with a Unix stream listener in place of a TCP listener.
    #[cfg(unix)]
    pub fn unix(&self, which: impl ListenerIndex) -> io::Result<UnixListener> {
        self.find(&which)?.as_unix().ok_or_else(|| not_of_kind(&which, "a Unix listener"))?.try_clone()
    }

    fn find(&self, which: &impl ListenerIndex) -> io::Result<&Listener> {
        let position = which.position(self.listener_names.as_deref().unwrap_or_default());
        let listener = position.and_then(|position| self.listeners().get(position));
        listener.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no listener {which}")))
    }

    /// Reports to the parent that this worker can do its work. The parent is woken at once. Further calls have no
    /// effect.
    ///
    /// With a [`ready_timeout`](crate::Prefork::ready_timeout), call it within that time. A rolling restart stops the
    /// old process only after this call in the replacement. Without a `ready_timeout`, a replacement counts as ready
    /// after a second, or when it calls this.
    pub fn ready(&self) {
        if let Some(status) = &self.status {
            status.ready();
        }
    }

    /// Reports to the parent that this worker makes progress. This is one store to shared memory and does not wake the
    /// parent, so it may be called often.
    ///
    /// With a [`heartbeat_timeout`](crate::Prefork::heartbeat_timeout), call it at least once in that time, from the
    /// code whose progress matters. A heartbeat from a separate thread shows only that this thread runs.
    pub fn heartbeat(&self) {
        if let Some(status) = &self.status {
            status.beat();
        }
    }

    /// Requests a graceful stop of the whole service. All workers get a stop request, this one included, and the parent
    /// ends as if it had received SIGTERM. Several calls, from this or from other workers, are one request. This worker
    /// may go on or exit at once.
    pub fn stop_all(&self) {
        if let Some(status) = &self.status {
            status.stop_all();
        }
    }

    /// Makes SIGTERM and SIGINT stop requests from now on, which this worker [carries out by itself](Worker#stopping).
    /// [`stop_requested`](Worker::stop_requested), [`wait_for_stop`](Worker::wait_for_stop) and `stop_fd` do this too
    /// when they are first called. Further calls have no effect.
    pub fn enable_graceful_stop(&self) {
        if let StopSource::Process(stop) = &self.stop {
            self.stop_request(stop);
        }
    }

    /// Returns whether a stop of this worker has been requested since it enabled the [graceful stop](Worker#stopping).
    /// The first call enables it. This is one load from memory.
    pub fn stop_requested(&self) -> bool {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).is_made(),
            StopSource::Thread(stop) => stop.is_made(),
        }
    }

    /// Waits until a stop of this worker is requested, for at most `timeout`; `None` waits without limit. Returns
    /// whether a stop has been requested. The first call enables the [graceful stop](Worker#stopping).
    ///
    /// Other signals do not interrupt the wait. The thread sleeps meanwhile. If the system has no descriptor left for
    /// it (on Unix), it checks every 10 ms instead.
    pub fn wait_for_stop(&self, timeout: Option<Duration>) -> bool {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).wait(timeout),
            StopSource::Thread(stop) => stop.wait(timeout),
        }
    }

    /// Returns a descriptor that becomes readable once a stop of this worker is requested, and stays readable: for mio,
    /// tokio's `AsyncFd` or poll(2). The first call enables the [graceful stop](Worker#stopping). Unix only.
    ///
    /// Do not read from it. It stays open until the process ends, even if this handle is dropped. In a [worker
    /// thread](crate::Prefork::run_threads) it is open only as long as the handle exists.
    ///
    /// In tokio, [`wait_for_stop`](Worker::wait_for_stop) in a `spawn_blocking` task is often simpler.
    ///
    /// # Errors
    ///
    /// The first call needs a few descriptors and fails if the system has none left. It may be repeated.
    #[cfg(unix)]
    pub fn stop_fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).fd(),
            StopSource::Thread(stop) => stop.fd(),
        }
    }

    fn stop_request<'a>(&self, stop: &'a OnceLock<StopRequest>) -> &'a StopRequest {
        stop.get_or_init(|| {
            let stop = StopRequest::listen();
            // On Windows the parent must know, because it ends workers that do not wait for the request.
            #[cfg(windows)]
            if let Some(status) = &self.status {
                status.listen();
            }
            stop
        })
    }
}

fn not_of_kind(which: &impl ListenerIndex, kind: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("listener {which} is not {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_can_be_shared_between_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Worker>();
    }
}
