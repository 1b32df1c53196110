//! [`Worker`], the handle that a worker uses, and the functions that make a process or a thread a worker.

mod this_worker;
mod work_guard;

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::ops::Deref;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
#[cfg(unix)]
use std::os::unix::net::UnixListener;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::{Level, log};

use crate::error::Error;
use crate::exit::Process;
use crate::listener::{self, Listener, ListenerIndex, ListenerNames, Listeners};
use crate::pool_name::WorkerName;
use crate::scoreboard::{StatusWriter, WorkMeter};
use crate::stop_flag::StopFlag;
use crate::stopped::{ProcessStop, Source, Stopped};
use crate::sys::{Gate, StopRequest};
pub(crate) use this_worker::{become_thread, become_worker, check_no_worker, task_id};
#[cfg(unix)]
pub(crate) use this_worker::{prepare, share_nested_calls};
pub use work_guard::WorkGuard;

/// The result of the closure that [`Prefork::run`](crate::Prefork::run) or [`run_threads`](crate::Prefork::run_threads)
/// runs in each worker. The operator `?` converts any error to the error type of this result.
pub type WorkResult = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The handle that a worker uses to read its id, get its listeners, report to the parent and notice stop requests.
///
/// Several threads can share a handle. A report through the handle counts for the whole process, or for the whole
/// [worker thread](crate::Prefork::run_threads).
///
/// If a worker forks a process, that process is not a worker. In that process, [`ready`](Worker::ready),
/// [`retire`](Worker::retire), [`stop_pool`](Worker::stop_pool), [`stop_all`](Worker::stop_all) and
/// [`begin_work`](Worker::begin_work) have no effect, and SIGTERM does not request a stop of the worker.
/// But a call of [`heartbeat`](Worker::heartbeat) in that process counts as a heartbeat of the worker, until the worker
/// ends.
///
/// A worker wakes the parent through a descriptor that the worker inherits. If the worker closes that descriptor, it
/// sends SIGCHLD to the parent instead. The system refuses this signal if the worker runs as another
/// [user](crate::Prefork::user). Then the parent notices a call of [`ready`](Worker::ready),
/// [`retire`](Worker::retire), [`stop_pool`](Worker::stop_pool) or [`stop_all`](Worker::stop_all) only when it wakes
/// for another reason, for example at the next timeout. The crate never writes to a file that the worker has opened
/// under the number of a closed descriptor.
///
/// # Stopping
///
/// To stop a worker, the parent sends SIGTERM. By default SIGTERM kills a worker, as it kills any other process. With a
/// **graceful stop**, the worker notices the request and exits by itself. A worker enables the graceful stop by its
/// first call of one of these methods:
///
/// - [`enable_graceful_stop`](Worker::enable_graceful_stop) only enables the graceful stop.
/// - [`stop_requested`](Worker::stop_requested) also returns whether a stop was requested.
/// - [`wait_for_stop`](Worker::wait_for_stop) also waits for a stop request.
/// - [`stopped`](Worker::stopped) also returns a future that completes when a stop is requested.
/// - `stop_fd` (on Unix) also returns a descriptor that becomes readable when a stop is requested.
///
/// After this first call, SIGTERM and SIGINT do not kill the worker but are stop requests. (^C in a terminal sends
/// SIGINT to the parent and to all workers.) After a stop request, the worker must exit within the
/// [`graceful_timeout`](crate::Prefork::graceful_timeout). A SIGTERM that arrives before the first call kills the
/// worker. So a worker that must always finish its work should call `enable_graceful_stop` before it does anything
/// else.
///
/// If the parent ends without stopping its workers, for example by SIGKILL, each worker gets a stop request. A worker
/// that does not exit within the [`graceful_timeout`](crate::Prefork::graceful_timeout) then kills itself by SIGKILL,
/// even if all of its threads hang. On Linux and FreeBSD, the first call creates a timer (timer_create(2)) for this. If
/// the system refuses the timer, the worker logs a warning and ignores the error. See the
/// [limitations](crate#limitations). On Windows, the system ends all workers at once when the parent ends.
///
/// - If a stop request comes neither from the parent nor from a terminal, as with `kill PID`, the parent [replaces the
///   worker](crate::guide::signals#replace-or-stop-one-worker) after it has exited with status 0.
/// - The graceful stop installs signal handlers through signal-hook-registry, on which
///   [signal-hook](https://docs.rs/signal-hook) and tokio are based. Handlers that the program installs through
///   signal-hook or `tokio::signal` run as well. If the program installs a handler with
///   `sigaction` afterwards, this handler replaces all others for the signal.
/// - If the worker ignores SIGINT, the graceful stop does not change this. For example, some shells start background
///   jobs with SIGINT ignored.
/// - On Windows, event objects and the console's Ctrl-C take the place of signals: see [the differences on
///   Windows](crate#windows).
/// - A [worker thread](crate::Prefork::run_threads) cannot be killed, so its stop is always graceful.
#[derive(Debug)]
pub struct Worker {
    pool: &'static str,
    id: usize,
    generation: u32,
    count: usize,
    /// `None` in a forked worker of `fork_processes`, because this function gives the program no handle.
    status: Option<Status>,
    /// Created by the first call of [`Worker::begin_work`]. `None` if units do not count in this process.
    meter: OnceLock<Option<WorkMeter>>,
    listeners: Listeners,
    listener_names: ListenerNames,
    stop: StopSource,
}

/// Gives access to the worker's status slot.
#[derive(Clone, Debug)]
enum Status {
    OfProcess(&'static StatusWriter),
    OfThread(Arc<StatusWriter>),
}

impl Deref for Status {
    type Target = StatusWriter;

    fn deref(&self) -> &StatusWriter {
        match self {
            Status::OfProcess(status) => status,
            Status::OfThread(status) => status,
        }
    }
}

#[derive(Debug)]
enum StopSource {
    /// The worker is a process. It receives the request as a signal (on Windows, as an event).
    Process(OnceLock<Arc<ProcessStop>>),
    /// The worker is a thread. The parent sets this flag to request its stop.
    Thread(Arc<StopFlag>),
}

impl Worker {
    pub(crate) fn new(
        pool: &'static str,
        id: usize,
        generation: u32,
        count: usize,
        status: Option<StatusWriter>,
        listeners: Listeners,
    ) -> Worker {
        let stop = StopSource::Process(OnceLock::new());
        let status = status.map(|status| Status::OfProcess(this_worker::keep_status(status)));
        let meter = OnceLock::new();
        Worker { pool, id, generation, count, status, meter, listeners, listener_names: None, stop }
    }

    pub(crate) fn in_thread(
        process: Process,
        count: usize,
        status: StatusWriter,
        listeners: Listeners,
        stop: Arc<StopFlag>,
    ) -> Worker {
        let Process { pool, id, generation, .. } = process;
        let listeners = listener::for_thread(&listeners, stop.gate());
        let stop = StopSource::Thread(stop);
        let status = Some(Status::OfThread(Arc::new(status)));
        let meter = OnceLock::new();
        Worker { pool, id, generation, count, status, meter, listeners, listener_names: None, stop }
    }

    pub(crate) fn with_listener_names(self, names: ListenerNames) -> Worker {
        Worker { listener_names: names, ..self }
    }

    /// Returns the name of the worker's pool, as the program has passed it to
    /// [`Supervisor::pool`](crate::Supervisor::pool). Returns an empty string if the program uses a
    /// [`Prefork`](crate::Prefork) alone, because its pool has no name.
    pub fn pool(&self) -> &str {
        self.pool
    }

    pub(crate) fn name(&self) -> WorkerName {
        WorkerName { pool: self.pool, id: self.id }
    }

    /// Returns the worker's task id. Each pool has ids of its own. The initial workers have the ids from 0 to one less
    /// than the number of [`workers`](crate::Prefork::workers). A worker that is added later may have a higher id.
    /// Every id is less than [`max_workers`](crate::Prefork::max_workers). A worker keeps its id when it is restarted.
    ///
    /// **Two processes have the same id while a process is replaced**, as in a rolling restart: the old process
    /// finishes its work while the new one already works. So the id is no lock. If only one process may use what
    /// belongs to an id, for example a port, a file or the unfinished jobs, there are two remedies:
    ///
    /// - With [`max_surge(0)`](crate::Prefork::max_surge) and [`max_unavailable(1)`](crate::Prefork::max_unavailable),
    ///   the parent starts the new process only after the old one has exited.
    /// - With a lock on a file whose name contains the id, the new process waits until the old one has exited. This
    ///   also covers the workers of an earlier parent that was killed.
    ///
    /// [`generation`](Worker::generation) distinguishes the processes of an id. See [the guide for
    /// job workers](crate::guide::jobs#two-processes-with-the-same-id).
    pub fn id(&self) -> usize {
        self.id
    }

    /// Returns the number of processes that this worker had before the current process.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the number of workers of this worker's pool at the time when the parent started this process. This
    /// includes workers that were waiting for a restart at that time.
    pub fn worker_count(&self) -> usize {
        self.count
    }

    /// Returns the sockets that [`Prefork::listen`](crate::Prefork::listen) has added, in the order of its calls. Every
    /// worker gets the same sockets. The exception is a listener with [one socket for each
    /// worker](crate::ListenConfig::per_worker): the worker gets the socket of its own id. The parent keeps all sockets
    /// open until it stops the service, so they outlive the worker.
    ///
    /// The parent, all workers and later processes of this worker share these sockets. Every socket is
    /// [non-blocking](Listener#the-socket-is-non-blocking), in all of them.
    ///
    /// If a worker drops a clone of a socket (`try_clone`), the socket stays open. An epoll(7) instance with this clone
    /// would continue to report the socket. So remove the clone from the instance before you drop it. (mio and tokio do
    /// so.)
    pub fn listeners(&self) -> &[Listener] {
        self.listeners.as_deref().unwrap_or_default()
    }

    /// Returns a clone of a TCP listener, for example to pass it to mio, tokio or a thread. `which` is the listener's
    /// [name](crate::ListenConfig::name), or its position: 0 for the first call of
    /// [`Prefork::listen`](crate::Prefork::listen), 1 for the second.
    ///
    /// The clone is another descriptor for the same socket, which all workers share. It is
    /// [non-blocking](Listener#the-socket-is-non-blocking), so mio and tokio can use it as it is. A program that wants
    /// to wait for connections without them calls [`Listener::accept`] instead.
    ///
    /// # Errors
    ///
    /// - `NotFound`: there is no listener with this name or position. The error names the listeners that exist.
    /// - `InvalidInput`: the listener is not a TCP listener. The error names its kind and address.
    /// - `NotConnected`: the worker has called [`stop_listening`](Worker::stop_listening).
    /// - The system's error if the descriptor cannot be duplicated, for example because the process has too many open
    ///   descriptors.
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
        let listener = self.find(&which)?;
        listener.as_tcp().ok_or_else(|| not_of_kind(&which, listener, "a TCP listener"))?.try_clone()
    }

    /// Returns a clone of a UDP socket. See [`tcp`](Worker::tcp).
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`tcp`](Worker::tcp), but `InvalidInput` if the listener is not a UDP socket.
    pub fn udp(&self, which: impl ListenerIndex) -> io::Result<UdpSocket> {
        let listener = self.find(&which)?;
        listener.as_udp().ok_or_else(|| not_of_kind(&which, listener, "a UDP socket"))?.try_clone()
    }

    /// Returns a clone of a Unix stream listener. Unix only. See [`tcp`](Worker::tcp).
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`tcp`](Worker::tcp), but `InvalidInput` if the listener is not a Unix stream
    /// listener.
    #[cfg(unix)]
    pub fn unix(&self, which: impl ListenerIndex) -> io::Result<UnixListener> {
        let listener = self.find(&which)?;
        listener.as_unix().ok_or_else(|| not_of_kind(&which, listener, "a Unix listener"))?.try_clone()
    }

    fn find(&self, which: &impl ListenerIndex) -> io::Result<&Listener> {
        if self.gate().is_closed() {
            return Err(listener::stopped_listening());
        }
        let names = self.listener_names.as_deref().unwrap_or_default();
        let position = which.position(names);
        let listener = position.and_then(|position| self.listeners().get(position));
        listener.ok_or_else(|| not_found(which, self.listeners(), names))
    }

    /// Closes this worker's copies of all [`listeners`](Worker::listeners). Call it when the worker begins to stop and
    /// has taken the last connection. After a success, further calls have no effect.
    ///
    /// The parent closes its own copies as soon as it has requested the stop of every worker of the service. So when
    /// the last worker has called this method or has exited, the system refuses new clients at once. Without this call,
    /// new clients would wait in the queue while the workers finish their work, and would be reset at the end. While
    /// other workers listen, as in a rolling restart, new clients get to them. Connections in the queue wait for them
    /// too. If other threads of the worker wait in [`Listener::accept`], join them first: they return the connections
    /// that wait already, and then end.
    ///
    /// After the call:
    ///
    /// - Calls of [`Listener::accept`] and [`Listener::recv_from`] that wait in other threads return an error, and so
    ///   do later calls.
    /// - [`tcp`](Worker::tcp), [`udp`](Worker::udp) and `unix` return `NotConnected`.
    /// - [`listeners`](Worker::listeners) still returns the listeners. On Unix, a socket that is not bound is behind
    ///   each of their descriptors, so a call on it fails.
    ///
    /// This method does not close the clones that [`tcp`](Worker::tcp), [`udp`](Worker::udp) and `unix` have returned,
    /// or `try_clone`. The program has to drop them. (`axum::serve` drops its listener when its graceful shutdown
    /// begins.) Remove a listener from an epoll(7) instance before this call: otherwise the instance continues to
    /// report it while another process has it open.
    ///
    /// [Worker threads](crate::Prefork::run_threads) share one descriptor for each socket. There the call affects only
    /// this worker's listeners, and the last worker that stops listening closes the descriptor.
    ///
    /// On Windows, the sockets stay open until the worker exits, because Windows cannot replace a socket behind its
    /// handle. There new clients wait until then.
    ///
    /// If the system has no descriptor for the replacement of the sockets, the sockets stay open until a further call
    /// succeeds or the worker exits, and the call logs a warning. Calls of `Listener::accept` end nevertheless.
    pub fn stop_listening(&self) {
        self.gate().close();
        for listener in self.listeners() {
            if let Err(error) = listener.close() {
                let error = Error::from(error);
                let name = self.name();
                log!(target: "taskfork", Level::Warn, "{name} cannot close {listener} before its end: {error:?}");
            }
        }
    }

    fn gate(&self) -> &Gate {
        match &self.stop {
            StopSource::Process(_) => Gate::of_process(),
            StopSource::Thread(stop) => stop.gate(),
        }
    }

    /// Reports to the parent that this worker can do its work, and wakes the parent. Further calls have no effect.
    ///
    /// If a [`ready_timeout`](crate::Prefork::ready_timeout) is set, the worker must call `ready` within that time. In
    /// a rolling restart, the parent stops an old process only after its replacement has called `ready`. Without a
    /// `ready_timeout`, the parent waits for this call for at most one second.
    pub fn ready(&self) {
        if let Some(status) = &self.status {
            status.ready();
        }
    }

    /// Reports to the parent that this worker makes progress. A call is cheap, because it only writes one value to
    /// shared memory and does not wake the parent.
    ///
    /// If a [`heartbeat_timeout`](crate::Prefork::heartbeat_timeout) is set, the worker must call `heartbeat` at least
    /// once within that time. Call `heartbeat` in the code that does the worker's work. If a separate thread calls
    /// `heartbeat`, the parent notices only whether that thread runs.
    pub fn heartbeat(&self) {
        if let Some(status) = &self.status {
            status.beat();
        }
    }

    /// Begins a unit of work, for example a request or a job, and returns a guard. The unit is completed when the guard
    /// is dropped. A worker may have any number of units in progress at the same time, in all of its threads.
    ///
    /// The parent uses the counts in two ways:
    ///
    /// - If the worker exits or is killed, the log and [`Event::Exited`](crate::Event::Exited) contain the number of
    ///   units that it had in progress, as in `child 2 (pid 71) killed by signal 9 with 3 units of work in progress`.
    /// - With [`max_requests`](crate::Prefork::max_requests), the worker wakes the parent when it has completed a
    ///   certain number of units, and the parent replaces it.
    ///
    /// Beginning and completing a unit takes a few nanoseconds and makes no system call. Both only add to a value in
    /// the worker's own cache line. The thread that makes the first call is the fastest, because it needs no atomic
    /// addition. Any other thread needs about 10 ns more. Threads that do so at the same moment wait for each other.
    ///
    /// - The guard can be moved to another thread, and be held across an `.await`. It does not borrow the worker. So
    ///   begin the unit where the work arrives, and move the guard into the task that does the work.
    /// - If the worker forks a process, units do not count in that process, neither new ones nor those that were in
    ///   progress at the fork. On Unix, the first call of this method registers a handler for that (pthread_atfork(3)).
    ///   A process that was made without the handlers, for example by the bare system call clone(2), is not recognized.
    /// - A unit that ends by a panic counts as completed, because the panic drops the guard.
    /// - Each process counts from 0, and so does each [worker thread](crate::Prefork::run_threads). A guard that
    ///   outlives its worker thread does not count for the thread's successor.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::thread;
    ///
    /// use taskfork::{Prefork, Report};
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     Prefork::new().workers(4).listen("[::]:8000").run(|worker| {
    ///         while let Ok(connection) = worker.listeners()[0].accept() {
    ///             let unit = worker.begin_work();
    ///             thread::spawn(move || {
    ///                 // Respond to the request.
    /// #               drop(connection);
    ///                 drop(unit);
    ///             });
    ///         }
    ///         Ok(())
    ///     })
    /// }
    /// ```
    #[inline]
    pub fn begin_work(&self) -> WorkGuard {
        WorkGuard::begin(self.meter.get_or_init(|| self.new_meter()).as_ref())
    }

    #[cold]
    fn new_meter(&self) -> Option<WorkMeter> {
        match self.status.as_ref()? {
            Status::OfProcess(status) => WorkMeter::of_process(status),
            Status::OfThread(status) => WorkMeter::of_thread(status),
        }
    }

    /// Requests a graceful stop of the whole service, as SIGTERM to the parent does. All workers get a stop request,
    /// including this worker. Further calls, in this worker or in others, have no effect. After the call, this worker
    /// may exit at once, or go on until it gets its stop request.
    pub fn stop_all(&self) {
        if let Some(status) = &self.status {
            status.stop_all();
        }
    }

    /// Requests a graceful stop of this worker's pool. All workers of the pool get a stop request, including this
    /// worker, and none of them is restarted. The other pools go on. The service ends when all of its pools have ended.
    /// Further calls, in this worker or in others of the pool, have no effect. After the call, this worker may exit at
    /// once, or go on until it gets its stop request.
    ///
    /// If the program uses a [`Prefork`](crate::Prefork) alone, its only pool is the whole service, so this method does
    /// the same as [`stop_all`](Worker::stop_all). In mpservice, the corresponding function is
    /// `stop_server(server_id)`.
    pub fn stop_pool(&self) {
        if let Some(status) = &self.status {
            status.stop_pool();
        }
    }

    /// Requests a replacement of this worker's process, and wakes the parent. The parent starts the new process first.
    /// When the new process is ready, this process gets a stop request, as in a [rolling
    /// restart](crate#rolling-restarts). Until then, this process should go on with its work. Further calls have no
    /// effect. The replacement does not count as a restart.
    ///
    /// Use this method if the process should not run much longer, for example because it has used too much memory or
    /// has processed a certain number of jobs.
    ///
    /// - The parent postpones the replacement if the process is not ready yet, or has lived for less than a second. So
    ///   a process that calls `retire` at its start does not make the parent start processes without a pause. The
    ///   parent also postpones it if it is already replacing as many workers as
    ///   [`max_surge`](crate::Prefork::max_surge) and [`max_unavailable`](crate::Prefork::max_unavailable) allow.
    /// - With `max_surge(0)`, the parent stops this process first, and starts the new one after its exit.
    /// - If the replacement fails, this process goes on, and the parent tries again after 10 s. With `max_surge(0)`
    ///   this process has exited by then, and the worker is restarted as after any failure.
    /// - If this process exits with status 0 before its replacement has started, the worker is restarted. This restart
    ///   does not count. It waits for the [backoff](crate::Prefork::restart_backoff) if the process has lived for less
    ///   than a second.
    /// - The call has no effect if the parent already stops this process or the service.
    /// - With [`RestartPolicy::Never`](crate::RestartPolicy::Never) the worker is replaced too. But if the process
    ///   exits before its replacement has started, the worker has ended.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use taskfork::{Prefork, Report};
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     Prefork::new().workers(4).run(|worker| {
    ///         let mut jobs = 0;
    ///         while !worker.stop_requested() {
    ///             // Process one job.
    ///             jobs += 1;
    ///             if jobs == 10_000 {
    ///                 worker.retire();
    ///             }
    ///         }
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn retire(&self) {
        if let Some(status) = &self.status {
            status.retire();
        }
    }

    /// Enables the [graceful stop](Worker#stopping): after this call, SIGTERM and SIGINT do not kill this worker but
    /// are stop requests. The first call of [`stop_requested`](Worker::stop_requested),
    /// [`wait_for_stop`](Worker::wait_for_stop), [`stopped`](Worker::stopped) or `stop_fd` also enables the graceful
    /// stop. Further calls have no effect.
    pub fn enable_graceful_stop(&self) {
        if let StopSource::Process(stop) = &self.stop {
            self.stop_request(stop);
        }
    }

    /// Returns whether a stop of this worker has been requested since the worker enabled the [graceful
    /// stop](Worker#stopping). The first call enables the graceful stop. Further calls are cheap: they only read a
    /// value in memory.
    pub fn stop_requested(&self) -> bool {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).request.is_made(),
            StopSource::Thread(stop) => stop.is_made(),
        }
    }

    /// Waits until a stop of this worker is requested or `timeout` has passed. With `None`, waits without a time limit.
    /// Returns whether a stop has been requested. The first call enables the [graceful stop](Worker#stopping).
    ///
    /// Other signals do not end the wait. The calling thread sleeps during the wait. On Unix the wait requires two
    /// descriptors. If the system has no more descriptors, the thread wakes up every 10 ms to check for a request.
    ///
    /// Async code uses [`stopped`](Worker::stopped) instead. Do not call `wait_for_stop(None)` in a `spawn_blocking`
    /// task: a tokio runtime waits for such a task when the runtime is dropped. Then a worker that returns an error or
    /// panics would not exit until its stop is requested, so the parent would not restart it.
    pub fn wait_for_stop(&self, timeout: Option<Duration>) -> bool {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).request.wait(timeout),
            StopSource::Thread(stop) => stop.wait(timeout),
        }
    }

    /// Returns a descriptor that becomes readable when a stop of this worker is requested, and then stays readable. Use
    /// this descriptor with mio, tokio's `AsyncFd` or poll(2). The first call enables the [graceful
    /// stop](Worker#stopping). Unix only.
    ///
    /// Do not read from the descriptor. It stays open until the process ends, even if this handle is dropped. But in a
    /// [worker thread](crate::Prefork::run_threads), the descriptor may be closed as soon as the handle is dropped.
    ///
    /// In async code, [`stopped`](Worker::stopped) is simpler.
    ///
    /// # Errors
    ///
    /// The first call opens two descriptors. It returns the system's error if no more descriptors can be opened. The
    /// call may be repeated after an error.
    #[cfg(unix)]
    pub fn stop_fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.stop {
            StopSource::Process(stop) => self.stop_request(stop).request.fd(),
            StopSource::Thread(stop) => stop.fd(),
        }
    }

    /// Returns a future that completes when a stop of this worker is requested. The first call enables the [graceful
    /// stop](Worker#stopping): the call itself does so, not the first poll of the future.
    ///
    /// The future works in every async runtime. It can be cloned and moved to other tasks, and does not borrow the
    /// handle. It completes at once if the stop has been requested already. If a runtime is dropped while the future is
    /// pending, the runtime does not wait. See [`Stopped`] for the thread that wakes the tasks.
    ///
    /// After the request, a server drops its listener and calls [`stop_listening`](Worker::stop_listening), so that the
    /// system refuses new clients while the worker finishes its requests.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use taskfork::{Prefork, Report};
    /// use tokio::net::TcpListener;
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     Prefork::new().listen("[::]:8000").run(|worker| {
    ///         // Each worker creates its own runtime, after the fork.
    ///         tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    ///             let mut stopped = worker.stopped();
    ///             let listener = TcpListener::from_std(worker.tcp(0)?)?;
    ///             worker.ready();
    ///             loop {
    ///                 tokio::select! {
    ///                     () = &mut stopped => return Ok(()),
    ///                     accepted = listener.accept() => {
    ///                         let (client, address) = accepted?;
    ///                         // ..
    /// #                       drop((client, address));
    ///                     }
    ///                 }
    ///             }
    ///         })
    ///     })
    /// }
    /// ```
    pub fn stopped(&self) -> Stopped {
        Stopped::new(match &self.stop {
            StopSource::Process(stop) => Source::Process(Arc::clone(self.stop_request(stop))),
            StopSource::Thread(stop) => Source::Thread(Arc::clone(stop)),
        })
    }

    fn stop_request<'a>(&self, stop: &'a OnceLock<Arc<ProcessStop>>) -> &'a Arc<ProcessStop> {
        stop.get_or_init(|| {
            let name = self.name();
            let on_error = |error| {
                let error = Error::from(error);
                log!(target: "taskfork", Level::Warn, "{name} is not killed if it hangs after the end of the parent: {error:?}");
            };
            let status = self.status.clone();
            // Runs in the signal handler, so it only reads the pointers and calls an async-signal-safe method.
            let note = move || status.iter().for_each(|status| status.note_stop());
            let stop = StopRequest::listen(on_error, note);
            // On Windows, report to the parent that this worker reads stop requests. The parent kills all other workers
            // at once instead of sending a request.
            #[cfg(windows)]
            if let Some(status) = &self.status {
                status.listen();
            }
            Arc::new(ProcessStop::new(stop))
        })
    }
}

fn not_of_kind(which: &impl ListenerIndex, listener: &Listener, kind: &str) -> io::Error {
    let problem = format!("listener {which} is {} ({listener}), not {kind}", listener.description());
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

fn not_found(which: &impl ListenerIndex, listeners: &[Listener], names: &[Option<String>]) -> io::Error {
    let describe = |(position, listener): (usize, &Listener)| {
        let name = names.get(position).and_then(Option::as_deref);
        let name = name.map_or_else(String::new, |name| format!(", named {name}"));
        format!("{position} ({listener}{name})")
    };
    let existing: Vec<String> = listeners.iter().enumerate().map(describe).collect();
    let existing = match existing.is_empty() {
        true => "the service has none".to_owned(),
        false => format!("the listeners are {}", existing.join(", ")),
    };
    io::Error::new(io::ErrorKind::NotFound, format!("there is no listener {which}: {existing}"))
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
