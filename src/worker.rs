//! The worker's side.

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

/// What a [`Prefork::run`](crate::Prefork::run) closure returns: any error will do.
pub type WorkResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

const NO_WORKER: usize = usize::MAX;

/// Set in a worker, once.
static TASK_ID: AtomicUsize = AtomicUsize::new(NO_WORKER);

thread_local! {
    /// The same in a thread that is one.
    static THREAD_ID: Cell<usize> = const { Cell::new(NO_WORKER) };
}

pub(crate) fn task_id() -> Option<usize> {
    [THREAD_ID.get(), TASK_ID.load(Ordering::Relaxed)].into_iter().find(|&id| id != NO_WORKER)
}

/// This thread becomes worker `id`.
pub(crate) fn become_thread(id: usize) {
    THREAD_ID.set(id);
}

/// Whether this process may start workers, as far as its own role goes.
pub(crate) fn check_no_worker() -> Result<()> {
    task_id().map_or(Ok(()), |id| Err(Error::in_worker(id)))
}

/// In the parent, before it forks: makes the thread's generator, so that the workers, which have to reseed it in any case,
/// need not each make one first (which takes them longer than all the rest).
#[cfg(unix)]
pub(crate) fn prepare() -> Result<()> {
    // The generator panics where this fails.
    let refused = |error: rand::rngs::SysError| Error::from(CallError::new("getrandom", error));
    rand::TryRng::try_next_u32(&mut SysRng).map_err(refused)?;
    rand::rng().next_u32();
    Ok(())
}

/// The process that was just forked becomes worker `id`. It was nobody's worker before: a worker does not fork workers.
#[inline]
pub(crate) fn become_worker(id: usize) -> Result<()> {
    TASK_ID.store(id, Ordering::Relaxed);
    // The generator's state was copied with everything else; without this, siblings draw the same numbers.
    rand::rng().reseed().map_err(|error| Error::from(CallError::new("getrandom", error)).starting(id))
}

/// A worker's own handle: who it is, what it tells the parent, and whether it is to stop.
///
/// It may be shared between threads. There is one in each process; what is told by it is told of the process. A process
/// that a worker forks is not a worker: in it, [`ready`](Worker::ready) and [`stop_all`](Worker::stop_all) do nothing, and
/// a signal sent to it is no request to the worker. (A [`beat`](Worker::heartbeat) in it counts for the worker.) A worker that
/// closes descriptors which are not its own may close the one that wakes the parent; what it says is then heard late.
///
/// # Stopping
///
/// The parent asks a worker to stop by SIGTERM. It kills the worker, as it does any process, until the worker first calls
/// [`stop_requested`](Worker::stop_requested), [`wait_for_stop`](Worker::wait_for_stop) or [`stop_fd`](Worker::stop_fd):
/// from then on SIGTERM, and SIGINT as well (which is what a ^C at the terminal sends to every process), only make these
/// three say so, and the worker has the parent's `graceful_timeout` to end by itself. They listen by
/// [signal-hook](https://docs.rs/signal-hook), beside the handlers of the program's own and those of `tokio::signal`; a
/// handler that `sigaction` installs afterwards takes their place. A SIGINT that was ignored when the program started
/// (which is how a shell starts a job in the background) stays ignored.
///
/// A worker that is to drain from its very first moment on calls one of the three first of all. What comes between the
/// fork and that call, kills it.
///
/// On Windows the parent asks by an event, and what is typed at the console counts as well: [the differences](crate#windows).
#[derive(Debug)]
pub struct Worker {
    id: usize,
    generation: u32,
    count: usize,
    /// None: nobody asked for a handle that could use it.
    status: Option<StatusWriter>,
    listeners: Listeners,
    listener_names: ListenerNames,
    stop: StopSource,
}

#[derive(Debug)]
enum StopSource {
    /// Of the process.
    Process(OnceLock<StopRequest>),
    /// Of this thread.
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

    /// Its task id: from 0 to one less than the workers asked for, unless more were asked for later by SIGTTIN; always less
    /// than [`max_workers`](crate::Prefork::max_workers). A restarted worker has the id of its predecessor.
    pub fn id(&self) -> usize {
        self.id
    }

    /// How many processes of this id there were before this one.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// How many workers were wanted when this process was started.
    pub fn worker_count(&self) -> usize {
        self.count
    }

    /// What [`Prefork::listen`](crate::Prefork::listen) was asked for, in that order: the same sockets in every worker, or, of
    /// what was asked for [per task](crate::ListenConfig::per_worker), those of this id. They outlive the worker.
    ///
    /// They belong to all, the parent and an id's next worker among them: whether one blocks is so for everybody who has it, and
    /// to drop a clone of one (`try_clone`) closes nothing, so that an epoll(7) goes on telling of it until it is deregistered.
    /// Who waits for one by poll(2) or the like has it not block (`set_nonblocking`): what was there may be another one's by
    /// the time of the accept.
    pub fn listeners(&self) -> &[Listener] {
        self.listeners.as_deref().unwrap_or_default()
    }

    /// Returns a clone of a TCP listener, for mio, tokio or a thread of its own. The listener is found by its position, which
    /// counts the calls of [`Prefork::listen`](crate::Prefork::listen) from 0, or by its [name](crate::ListenConfig::name).
    ///
    /// The clone is another descriptor for the same socket. Whether it blocks is a property of the socket, which all workers
    /// share: `set_nonblocking` on one clone reaches them all.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such listener, `InvalidInput` if it is not a TCP listener, or the error of dup(2), for example
    /// because of a limit on descriptors.
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

    /// Returns a clone of a UDP socket. Otherwise as [`tcp`](Worker::tcp).
    ///
    /// # Errors
    ///
    /// As for [`tcp`](Worker::tcp).
    pub fn udp(&self, which: impl ListenerIndex) -> io::Result<UdpSocket> {
        self.find(&which)?.as_udp().ok_or_else(|| not_of_kind(&which, "a UDP socket"))?.try_clone()
    }

    /// Returns a clone of a Unix stream listener. Otherwise as [`tcp`](Worker::tcp). Unix only.
    ///
    /// # Errors
    ///
    /// As for [`tcp`](Worker::tcp).
    #[cfg(unix)]
    pub fn unix(&self, which: impl ListenerIndex) -> io::Result<UnixListener> {
        self.find(&which)?.as_unix().ok_or_else(|| not_of_kind(&which, "a Unix listener"))?.try_clone()
    }

    fn find(&self, which: &impl ListenerIndex) -> io::Result<&Listener> {
        let position = which.position(self.listener_names.as_deref().unwrap_or_default());
        let listener = position.and_then(|position| self.listeners().get(position));
        listener.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no listener {which}")))
    }

    /// Tells the parent that this worker can do its work. The parent learns of it at once.
    ///
    /// With a [`ready_timeout`](crate::Prefork::ready_timeout), it is to be called within that time. In a rolling restart
    /// the old worker is asked to go only then. Without one, a replacement counts as ready after a second, or when it says
    /// so. A second call says nothing more.
    pub fn ready(&self) {
        if let Some(status) = &self.status {
            status.ready();
        }
    }

    /// Gives a sign of life: one store to shared memory, so that it may be called as often as is convenient. The parent is
    /// not woken by it.
    ///
    /// With a [`heartbeat_timeout`](crate::Prefork::heartbeat_timeout), it is to be called at least once in that time, from
    /// the code whose progress is meant: one that beats from a thread of its own only shows that this thread lives.
    pub fn heartbeat(&self) {
        if let Some(status) = &self.status {
            status.beat();
        }
    }

    /// Asks the parent to stop the whole service, gracefully: this worker and all others are asked to stop, and the parent
    /// ends as if it had got SIGTERM. However many ask, it happens once. This worker may go on, or end at once.
    pub fn stop_all(&self) {
        if let Some(status) = &self.status {
            status.stop_all();
        }
    }

    /// Makes SIGTERM, and SIGINT as well, a request that this worker answers by itself, from now on; see
    /// [above](Worker#stopping). [`stop_requested`](Worker::stop_requested), [`wait_for_stop`](Worker::wait_for_stop) and
    /// `stop_fd` do the same when they are first called. A second call does nothing.
    pub fn enable_graceful_stop(&self) {
        if let StopSource::Process(stop) = &self.stop {
            self.stop_request(stop);
        }
    }

    /// Whether this worker was asked to stop since the first call of this, [`wait_for_stop`](Worker::wait_for_stop) or
    /// [`stop_fd`](Worker::stop_fd): one load from memory. What the first call changes is told [above](Worker#stopping).
    pub fn stop_requested(&self) -> bool {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).is_made(),
            StopSource::Thread(stop) => stop.is_made(),
        }
    }

    /// Waits until this worker is asked to stop, and for this time at most; `None`: as long as it takes. Whether it was.
    ///
    /// Other signals do not cut it short. The thread sleeps meanwhile; only where no descriptor can be had for it (on
    /// Unix), it looks every 10 ms.
    pub fn wait_for_stop(&self, timeout: Option<Duration>) -> bool {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).wait(timeout),
            StopSource::Thread(stop) => stop.wait(timeout),
        }
    }

    /// A descriptor that becomes readable once this worker is asked to stop, and stays so: for mio, tokio's `AsyncFd`, or
    /// poll(2). It is not to be read from, and stays open until the process ends, also when this handle is dropped (but in a
    /// worker that is a thread only as long as the handle). Unix only.
    ///
    /// (In tokio, [`wait_for_stop`](Worker::wait_for_stop) in a task of `spawn_blocking` is often simpler.)
    ///
    /// # Errors
    ///
    /// The first call needs a few descriptors, and fails if the system has none. It may be tried again.
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
            // There the parent has to know, because who does not listen is not asked in vain.
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
    fn a_handle_may_be_shared_between_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Worker>();
    }
}
