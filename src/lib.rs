//! Forks worker processes from the top of `main` and supervises them.
//!
//! ```no_run
//! fn main() -> taskfork::Result<()> {
//!     let id = taskfork::fork_processes(4, 100)?;
//!     // From here on this is worker `id`, one of four.
//!     println!("worker {id}, pid {}", std::process::id());
//!     Ok(())
//! }
//! ```
//!
//! [`fork_processes`] works like [Tornado's function of this name][tornado]. It returns in every worker, with the task
//! id of that worker. In the parent it does not return: the parent supervises the workers, restarts those that exit
//! abnormally, and exits once all of them have exited.
//!
//! [`Prefork`] does the same with every setting available: readiness, heartbeats, lifetimes, restart policies,
//! listeners. It differs in what each side gets:
//!
//! - The parent gets a [`Report`] once the service has ended, and does not exit.
//! - A worker gets a [`Worker`]. With this handle it reports that it is ready, notices that it should stop, or stops
//!   the whole service.
//!
//! ```no_run
//! use std::time::Duration;
//! use taskfork::{Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).ready_timeout(Duration::from_secs(10)).run(|worker| {
//!         worker.enable_graceful_stop(); // from here on SIGTERM is a request and kills no longer
//!         worker.ready();
//!         while !worker.wait_for_stop(Some(Duration::from_secs(1))) {
//!             // One second's work of worker.id().
//!         }
//!         Ok(())
//!     })
//! }
//! ```
//!
//! The [guide] shows how to write a service and how to run it under systemd, in a container and under Kubernetes.
//!
//! [tornado]: https://www.tornadoweb.org/en/stable/process.html#tornado.process.fork_processes
//!
//! # Terms
//!
//! | term | meaning |
//! |---|---|
//! | worker | A task id and whatever serves it. Ids count from 0. |
//! | process | One life of a worker, from its start to its exit. A worker that is restarted has the same id and a new process. |
//! | parent | The process that makes the call. It starts the workers and supervises them. |
//! | restart | A new process for a worker whose process has exited. |
//! | replacement | A new process that is started while the old process of the same worker still serves. |
//! | rolling restart | The replacement of every worker, one after the other. |
//! | graceful stop | The parent requests an exit, and the worker exits by itself. After a timeout the parent kills it. |
//!
//! # Why fork is hard to use
//!
//! fork(2) copies everything, and some of the copies do harm:
//!
//! - *Signal handlers and blocked signals.* A worker may ignore the SIGTERM that should end it.
//! - *Random generators.* Siblings draw the same numbers.
//! - *Buffered output.* The parent and the worker both print it.
//! - *Locks.* A lock that another thread holds is copied without that thread, so it is never released.
//!
//! A signal that arrives during the fork is lost or handled by the wrong process. And if the parent is killed, its
//! workers go on and keep its port.
//!
//! # Guarantees
//!
//! ## In a worker
//!
//! A worker behaves as if the program had been started alone:
//!
//! - Its signal mask and all its signal dispositions are the same as before the call. SIGTERM kills it, or runs the
//!   handler that it installs with signal-hook, `tokio::signal` or `sigaction`.
//! - It inherits no descriptor of the supervision, with one exception: a worker with a [`Worker`] handle has one
//!   descriptor with which it wakes the parent, and shares one page of memory with it. (On macOS every worker has one
//!   more, which shows the end of the parent.)
//! - [`rand::rng()`](https://docs.rs/rand/0.10/rand/fn.rng.html) of rand 0.10 is reseeded.
//! - Output that the parent had buffered for standard output has been written once, before the fork. This includes the
//!   C library's streams. Output that standard output does not accept stays in the buffer.
//! - It gets SIGTERM when the parent ends, even by SIGKILL, and even during the fork.
//! - [`task_id`] returns its id. A second call in it returns an error and starts no workers.
//! - No signal sent to it is lost, not even one that arrives during the fork.
//!
//! ## In the parent
//!
//! - A worker is restarted under its id if it exits with a status other than 0 or is killed by a signal, as long as the
//!   restart limit allows it. A worker that exits with status 0 is done. See [Restarts](#restarts).
//! - If the restart limit is reached, the parent stops the other workers first. Then it returns an error or a
//!   [`Report`], so that `main` can end with it.
//! - The parent sleeps until something happens. With [heartbeats](#heartbeats) it also wakes up once per timeout, and
//!   with systemd's watchdog twice per timeout.
//! - It holds no descriptor per worker, except for [sockets of each worker's own](ListenConfig::per_worker).
//! - No worker outlives it, apart from those that the [limitations](#limitations) name.
//! - When the call returns in the parent, its signal mask, dispositions and descriptors are the same as before.
//!
//! # Restarts
//!
//! The parent restarts a worker under the same id when its process exits abnormally:
//!
//! - The first failure of an id is followed by a restart at once.
//! - After later failures, the next start waits if the process lived for less than a second. The delay is 10 ms at
//!   first and doubles up to 1 s. Of each delay a random part between half and all of it is used, so that ids which
//!   failed together do not restart together.
//! - A process that has lived for 10 s resets the delay.
//!
//! A fork that the system refuses is repeated after the same delays and does not count as a restart. Only the first
//! start of each initial worker must succeed: otherwise the parent stops all workers and returns the error.
//!
//! The settings:
//!
//! | setting | effect |
//! |---|---|
//! | [`restart_policy`](Prefork::restart_policy) | Restarts workers after every exit, or never. |
//! | [`max_restarts`](Prefork::max_restarts) | Limits the restarts of all workers together. |
//! | [`restart_window`](Prefork::restart_window) | Counts only the recent restarts, for example those of the last minute. |
//! | [`restart_backoff`](Prefork::restart_backoff) | Changes the first and the longest delay. |
//! | [`fatal_exit_code`](Prefork::fatal_exit_code) | Names an exit status after which the whole service stops. |
//!
//! # Readiness
//!
//! With [`Prefork::ready_timeout`] a worker calls [`Worker::ready`] once it can do its work. The parent learns of it at
//! once. This has two effects:
//!
//! - *A service that cannot start stops.* If a process exits abnormally or is late before any process of its id was
//!   ready, a restart would not help. So the parent stops everything, and the exit status of the [`Report`] is 3. A
//!   worker that was added later, by SIGTTIN, is only dropped: the others go on.
//! - *A rolling restart never has fewer ready workers.* The replacement must be ready before the old process is
//!   stopped. If the replacement exits or is late, it is dropped, the old process stays, and the rolling restart is
//!   aborted.
//!
//! Readiness concerns the start of a process. Heartbeats show whether it continues to work.
//!
//! # Heartbeats
//!
//! With [`Prefork::heartbeat_timeout`] a worker calls [`Worker::heartbeat`] at least once per timeout. A heartbeat is
//! one store to the shared page. The parent checks the page once per timeout, however many workers there are, so it
//! finds a hung worker after one to two timeouts.
//!
//! A hung worker gets SIGABRT, so that it can write a core dump or a trace. A second later it gets SIGKILL, which also
//! kills a stopped process. Then the worker is restarted under its id, whatever its exit status, except with
//! [`RestartPolicy::Never`].
//!
//! A parent that wakes up late, or has been stopped itself, cannot distinguish a hung worker from a machine that was
//! suspended. So it gives every worker one more timeout.
//!
//! # Lifetimes
//!
//! With [`Prefork::max_lifetime`] each process is replaced when it is old, in the same way as in a rolling restart and
//! never two at a time. The age is random, between three quarters of the setting and all of it. These replacements do
//! not count as restarts.
//!
//! # Listeners
//!
//! [`Prefork::listen`] binds sockets in the parent, before it starts the workers, and passes them to all workers:
//! forked, spawned or threads. It takes an address for TCP, UDP or a Unix stream socket, or a [`ListenConfig`] with
//! more settings. [`Worker::tcp`], [`Worker::udp`] and `Worker::unix` (on Unix) return such a socket in a worker.
//!
//! ```no_run
//! use taskfork::{Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).listen("[::]:8000").run(|worker| {
//!         let listener = worker.tcp(0)?;
//!         loop {
//!             let (connection, client) = listener.accept()?;
//!             // ..
//! #           drop((connection, client));
//!         }
//!     })
//! }
//! ```
//!
//! The sockets outlive every worker. A client that connects during a restart waits for the next process. Only
//! connections that a worker had already accepted are lost with it.
//!
//! - *One socket for all workers* is the default. No connection is left in the queue of a worker that is gone, and none
//!   waits while another worker is idle. But the load is not balanced: the first worker to accept gets the connection.
//!   Of workers that sleep in epoll_wait(2), Linux wakes all for one connection, or with `EPOLLEXCLUSIVE` mostly the
//!   one that came last.
//! - *One socket for each worker*, [`ListenConfig::per_worker`], uses `SO_REUSEPORT` on Linux. Every worker gets an
//!   equal share, and all datagrams of one sender go to the same worker as long as the number of workers stays the
//!   same. If each process made its own socket, as is usual, the socket's queue would be lost when the process exits.
//!   Here the sockets belong to the parent, so the next process of an id serves what is left in the id's queue. When a
//!   worker is removed, the kernel sends nothing more to its socket, and the worker is stopped once its queue is empty.
//!
//! The parent removes the path of a Unix socket at the end. At the start it replaces a Unix socket on which no process
//! answers. Sockets made by systemd are used with `Prefork::socket_activation` (on Unix).
//!
//! # Privileges
//!
//! The parent does what requires root, such as binding a port below 1024. The workers run as another user:
//! [`Prefork::user`] and [`Prefork::group`].
//!
//! ```no_run
//! use taskfork::{Prefork, Report};
//!
//! # #[cfg(unix)]
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).listen("0.0.0.0:80").user("www-data").pin_cpus().run(|worker| {
//!         let listener = worker.tcp(0)?;
//!         // ..
//! #       drop(listener);
//!         Ok(())
//!     })
//! }
//! # #[cfg(not(unix))]
//! # fn main() {}
//! ```
//!
//! A new worker takes these steps, in this order, before any code of the program runs in it:
//!
//! 1. It moves to its CPU ([`Prefork::pin_cpus`]).
//! 2. It changes its supplementary groups, its group and its user. The start fails if it could get its old rights back.
//! 3. It arranges to get SIGTERM when the parent ends, and becomes a worker with an id and random numbers of its own.
//! 4. It restores the signals. Then `fork_processes` or `start` returns, or `run` calls its closure.
//!
//! # systemd
//!
//! With `Prefork::notify_systemd` (on Unix) the parent notifies systemd when all workers are ready, when a rolling
//! restart begins and ends, and when the service stops. It also answers systemd's watchdog.
//! `Prefork::socket_activation` uses the sockets of a socket unit.
//!
//! # Data for each worker
//!
//! Every worker sees what the program made before the call. Memory is shared until a process writes to it: then the
//! page that is written to is copied (copy-on-write).
//!
//! So data for each worker can be an array that is made once and indexed with [`Worker::id`]. Set
//! [`Prefork::max_workers`] to its length: then no id is beyond its end, however often SIGTTIN adds a worker. The
//! example `contexts` shows this.
//!
//! # Fork safety
//!
//! fork(2) copies only the calling thread. A lock that another thread holds at that moment, for example the
//! allocator's, is never released in the child, and a change that it has half finished is never completed. So with more
//! than one thread, [`fork_processes`] returns an error that names their number. This makes it a safe function. The
//! parent repeats the check before every restart.
//!
//! Call it first in `main`: before a runtime is created, before a logger that writes from its own thread, before
//! anything else that starts a thread. A thread that has been joined does not count, although the system lists it for a
//! moment longer.
//!
//! All workers share what the program did before the call. Often this is what a program wants: a configuration that was
//! read, a socket that was bound, a table that was loaded (its pages are copied only when they are written to). But:
//!
//! - *`HashMap`* draws the keys of its `RandomState` once per thread. If the parent makes one, all workers hash with
//!   the same keys, and std has no function to change that. This crate makes none in the parent.
//! - *Random generators* are copied, except for rand 0.10's `rng()`. This includes those of other versions of rand.
//!   Seed them in the worker.
//! - *Connections*, for example to a database, and *files with a position* are shared. Open them in the worker.
//! - *epoll(7) descriptors*, and signal handlers that write to a pipe, stay connected to the parent. A runtime that was
//!   made before the call does not work in a worker.
//! - *Memory that the kernel or another process shares*, such as an io_uring, stays shared, whatever its type in Rust
//!   claims. Make it in the worker.
//! - *Page tables* are copied by every fork. This takes 0.1 ms for a small parent, and about 17 ms for each GiB that
//!   the parent has touched.
//!
//! The page [`guide::fork_safety`] has the details.
//!
//! # Spawn
//!
//! With [`Backend::Spawn`] a worker is no fork. The parent starts the program again, it runs from the top of `main` to
//! the same call, and the call returns there as a worker. The supervision is the same.
//!
//! Each start runs the program's beginning again. In return the parent may have threads, and its memory does not slow
//! down a start.
//!
//! A socket that the program makes before the call is then made once per worker. Use [`Prefork::listen`] instead: it
//! makes the socket in the parent and passes it to the workers.
//!
//! # Threads
//!
//! With [`Prefork::run_threads`] the workers are threads of this process and share its memory. They have ids, restarts,
//! readiness, heartbeats and rolling restarts like other workers. But a thread cannot be killed, and a fault in one
//! ends all of them. The method's page lists the differences.
//!
//! ```no_run
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use taskfork::{Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     let served = AtomicU64::new(0); // shared by all workers
//!     Prefork::new().workers(4).run_threads(move |worker| {
//!         while !worker.stop_requested() {
//!             // Serve one request.
//!             served.fetch_add(1, Ordering::Relaxed);
//!         }
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # Signals
//!
//! An operator controls the service with signals to the parent. On Windows [events](#windows) replace them.
//!
//! | signal | effect in the parent |
//! |---|---|
//! | TERM, INT | **Graceful stop.** All workers get SIGTERM at once, and SIGKILL after one common timeout ([`graceful_timeout`](Prefork::graceful_timeout), 30 s). A second TERM or INT sends SIGKILL at once. |
//! | QUIT | **Quick stop.** All workers get SIGQUIT, and SIGKILL after 2 s. This also speeds up a graceful stop. A further stop request sends SIGKILL at once. |
//! | HUP | **[Rolling restart](#rolling-restarts).** |
//! | TTIN | **One worker more**, with the lowest free id, up to [`max_workers`](Prefork::max_workers). |
//! | TTOU | **One worker fewer**: the one with the highest id gets SIGTERM, but never the last worker. A worker with [a queue of its own](ListenConfig::per_worker) gets it a little later. |
//! | USR1 | **Passed on** to the workers, for example to reopen logs. It kills a worker without a handler for it. |
//! | CHLD | **Reaps** workers that have exited. Other children of the process are not reaped, except by a parent that is pid 1 and whose workers are not threads. |
//!
//! - If the program ignored one of these signals before the call, the signal stays ignored: for example HUP under
//!   `nohup`. SIGCHLD is the exception: the parent does not ignore it, because wait(2) fails otherwise.
//! - TTIN and TTOU from an operator count. The kernel sends the same signals to a background job that uses its
//!   terminal; the parent ignores those.
//! - The program's own handlers for the signals above do not run in the parent. Its handlers for other signals do. With
//!   worker [threads](Prefork::run_threads), USR1 and CHLD belong to the program too.
//!
//! ## Rolling restarts
//!
//! The parent replaces one worker at a time:
//!
//! 1. It starts the replacement.
//! 2. It waits until the replacement is ready. Without a [`ready_timeout`](Prefork::ready_timeout), a replacement that
//!    has lived for 1 s counts as ready, or one that calls [`Worker::ready`] before.
//! 3. It sends SIGTERM to the old process and waits for its exit. Then it goes on with the next worker.
//!
//! If the replacement exits or is late, the old process stays and the rolling restart is aborted. A HUP during a
//! rolling restart starts one more after it.
//!
//! The replacements run the program as the parent loaded it. To run a new version of the program, start the service
//! anew.
//!
//! ## Signals from a terminal
//!
//! ^C sends SIGINT to the parent and to the workers. The parent handles all pending signals before it reaps any worker,
//! so ^C stops the service and restarts no worker. A worker that wants to finish its work on ^C must handle SIGINT like
//! SIGTERM; [`Worker`] handles both.
//!
//! A terminal that is closed sends SIGHUP to all processes. The parent takes it as a request for a rolling restart,
//! while workers without a handler die of it and are restarted. Start a service that should survive this under `nohup`
//! or in a session of its own.
//!
//! ## How the parent reads signals
//!
//! A parent of forks blocks these signals and reads them from a signalfd(2). It installs no handler, because
//! signal-hook, and tokio on top of it, can install their handlers only once: they could not serve the parent and,
//! after the fork, the worker.
//!
//! A parent of spawned workers or threads may have other threads that do not block the signals. So it installs a
//! handler, which notes the signal and wakes the parent.
//!
//! # Windows
//!
//! Windows has no fork, so workers are spawned, by [`fork_processes`] too: **what precedes the call runs again in each
//! worker**. All else is the same, except for the following.
//!
//! **Requests to the parent** are events, which the parent creates:
//!
//! - Their names contain the parent's pid. A parent with pid 71 has `taskfork-71-TERM`, `-QUIT`, `-HUP`, `-TTIN` and
//!   `-TTOU`. USR1 has no counterpart.
//! - Any program can set them: a service's stop handler, for example, or PowerShell with
//!   `[Threading.EventWaitHandle]::OpenExisting('taskfork-71-HUP').Set()`.
//! - The names belong to the parent's session. If the parent is a service, programs in other sessions write `Global\`
//!   before the name.
//! - The system's default permissions apply: the same user and administrators may open them.
//! - If another program has already created an event of that name, the call returns an error.
//! - A process keeps its five events after the service has ended, for its next service. Requests in between have no
//!   effect.
//!
//! **The console** sends its own events to the parent and to the workers:
//!
//! - Ctrl-C and Ctrl-Break are INT. The parent then stops the workers that have called
//!   [`Worker::enable_graceful_stop`], or a method that implies it, through their events. From that call on, handlers
//!   that were installed before it do not run for Ctrl-C and Ctrl-Break. In a worker with a handler of its own, that
//!   handler runs. Any other worker ends with status 0xC000013A, which does not count as a failure then.
//! - Closing the console or shutting the system down is TERM. Workers with the graceful stop receive it directly. The
//!   system ends a process about 5 s later in any case, so a longer [`graceful_timeout`](Prefork::graceful_timeout) has
//!   no effect there.
//! - Logging off has no effect. (Windows reports it only to services.)
//!
//! **Stopping a worker** needs no console, because each worker has an event for it:
//!
//! - A worker that has not enabled the graceful stop is ended at once, as SIGTERM ends a process on Unix. Workers of
//!   [`fork_processes`] have no handle and cannot enable it. Exception: if the request came from the console and the
//!   worker is older than a second, the worker has received the console's event itself, and the parent leaves the
//!   reaction to it.
//! - A worker that must be killed is ended with status 1, as by `taskkill /F`. So is a worker without a heartbeat,
//!   because Windows has no counterpart of SIGABRT.
//!
//! **Exit statuses** have 32 bits. An access violation or an abort is a status too:
//! `exited with status 0xC0000005 (access violation)`. While the system shows its dialog about a crash, the worker has
//! not exited; servers switch the dialog off.
//!
//! **Processes:**
//!
//! - All workers belong to a job of the parent. When the parent ends, for whatever reason, they are ended at once and
//!   without a request.
//! - Processes that a worker starts belong to the job as well, and end with the supervision, unless they are started
//!   with `CREATE_BREAKAWAY_FROM_JOB`.
//! - A parent that is itself in a job with limits on its user interface cannot have a job of its own. Every start is
//!   refused.
//! - A worker inherits the standard streams, the listeners and three handles that the call needs, and nothing else. It
//!   has the parent's console, or none. Its command line equals the parent's to the letter.
//!
//! # Log
//!
//! The parent logs through the [`log`](https://docs.rs/log) crate with the target `taskfork`. Lines that Tornado
//! also logs have its words:
//!
//! - `Starting 4 processes`
//! - `child 2 (pid 71) killed by signal 9, restarting`
//! - `child 2 (pid 71) exited with status 3, restarting`
//! - `child 2 (pid 71) exited normally`
//!
//! After a SIGKILL that the parent did not send, the line names the kernel's out-of-memory killer as a cause:
//! `(out of memory)` if the cgroup's counter of such kills has grown, `(perhaps out of memory)` if the counter cannot
//! be read.
//!
//! [`Prefork::on_event`] gets the same information as values: an [`Event`] for every transition, also for those that
//! have no line in the log.
//!
//! # Limitations
//!
//! The death of the parent:
//!
//! - After a SIGKILL of the parent, its workers get SIGTERM and nothing more. A worker survives if it ignores or blocks
//!   SIGTERM, is stopped, or is pid 1 of a pid namespace.
//! - A worker does not get that SIGTERM on Linux if it changes its user or group itself instead of by
//!   [`Prefork::user`], or executes a program that has other rights (`PR_SET_PDEATHSIG` is cleared, prctl(2)).
//!
//! Processes that the parent cannot stop or does not know:
//!
//! - A worker thread cannot be killed, only abandoned. A fault in one thread ends the whole process.
//! - A worker that changes to another user can no longer be signalled by a parent without root, and so not be stopped
//!   by it.
//! - The parent does not supervise processes that a worker starts.
//! - Other code in the parent may wait for any child (`waitpid` with -1, in a handler or a thread of the program's own)
//!   and so take a worker's exit status. The parent notices this within a second of the next SIGCHLD or the next
//!   deadline. The exit counts as abnormal, with [unknown status](Exit::Unknown). Until then signals to this worker go
//!   to whichever process has its pid by then.
//!
//! Misleading signs:
//!
//! - A worker that writes to wrong memory may write to the shared page. Then a worker may look ready or alive, or all
//!   workers may be stopped. Apart from that it cannot harm the parent.
//! - Two stop requests in quick succession are two requests, so the workers are killed. `timeout` of coreutils may send
//!   TERM twice to the program that it runs. With `--foreground` it sends it once.
//! - A process that hangs for less than two heartbeat timeouts may go unnoticed. Workers that were stopped for about
//!   one timeout while the parent was not look hung.
//! - The kernel's counter of out-of-memory kills includes processes that a worker has started. After such a kill, the
//!   log may name this cause for the next worker that gets a SIGKILL.
//!
//! Resources:
//!
//! - The parent writes the log itself. A log that blocks, such as a pipe that is not read, blocks the supervision.
//! - The parent keeps everything open that the program had opened. While the workers finish their work, it still holds
//!   the listening sockets: new clients wait, and are refused when the parent ends.
//! - If seccomp forbids unshare(2) and there is no `/proc`, the parent cannot count its threads, and the call is
//!   refused.
//!
//! # Platforms
//!
//! - *Linux*: built and tested.
//! - *Windows 10 and later*: built, and tested with Wine 8, by the same tests as Linux. The following is untested,
//!   because Wine does not have it, or not as Windows does: Ctrl-Break; closing the console, logging off and shutting
//!   down; whether a handle limit or a job's limit of processes appears as the error of the start; security products
//!   that watch `CreateProcessW`.
//! - *macOS and FreeBSD*: written and compiled, but not yet run. A signal handler writes to a
//!   pipe from which the parent reads. Workers notice the parent's end by procctl(2) on FreeBSD, and on macOS by a
//!   thread that waits until a pipe from the parent closes. The code for macOS also runs on Linux, where
//!   `--cfg taskfork_portable` selects it, and passes the tests there.
//!
//! On other systems the crate does not compile.
#![deny(unsafe_code)]

#[cfg(unix)]
mod accounts;
mod backend;
mod error;
mod event;
mod exit;
pub mod guide;
mod listener;
mod policy;
mod prefork;
mod report;
mod scoreboard;
mod setup;
mod stop_flag;
mod supervisor;
mod sys;
mod worker;

pub use error::{Error, Result};
pub use event::Event;
pub use exit::{Exit, OutOfMemory, Process};
pub use listener::{ListenConfig, Listener, ListenerIndex};
pub use policy::RestartPolicy;
pub use prefork::{Backend, Prefork, Role};
pub use report::{Reason, Report, WorkerReport};
pub use worker::{WorkResult, Worker};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Starts `n` workers, returns in each of them with its task id, and supervises them in the parent.
///
/// On Windows the workers are spawned, [which makes a difference](crate#windows): the program starts again in each
/// worker and runs to this call.
///
/// - `n` is the number of workers. `None` and 0 mean one per CPU that this process may use, by its affinity and by the
///   CPU quota of its cgroup.
/// - `max_restarts` limits the restarts of all workers together, over the whole lifetime of the service. `None` means
///   100. If one more restart is needed, the parent stops all workers.
///
/// Both are as in Tornado.
///
/// **In a worker** the call returns `Ok` with the id at once. Ids are 0 to `n - 1`. A restarted worker has the id of
/// its predecessor.
///
/// **In the parent** the call does not return while workers live. If all of them have exited normally, or the service
/// was stopped by a signal, the process exits with status 0. Destructors of `main` do not run in the parent then.
/// Functions that are registered with atexit(3) do, while the parent's signals are still blocked. In every other case
/// the call returns an error.
///
/// The documentation of the crate has [the signals that the parent handles](crate#signals) and [the guarantees to a
/// worker](crate#in-a-worker).
///
/// # Errors
///
/// The call returns an error only after all workers are gone. The signal mask, the dispositions and the descriptors are
/// the same as before the call.
///
/// - The process has more than one thread: [`Error::thread_count`]. (Not on Windows.)
/// - This process is a worker already.
/// - This process supervises workers already: another thread is in such a call, or [`Prefork::on_event`] makes this
///   one. Only one call at a time is possible, because signals and the exits of children concern the whole process.
/// - `n` is more than the number of processes that the system can have.
/// - The system refuses a call, for example fork(2) because of a limit or a lack of memory: [`Error::call`],
///   [`Error::worker`], [`Error::io_error`]. Workers that were started before have been stopped.
/// - The restart limit is reached: [`Error::worker`] and [`Error::exit`] name the exit that needed one more restart.
///   The other workers have been stopped, first gracefully, then by force.
///
/// A forked worker never gets an error. If the system has no random numbers for it, the worker logs this and exits with
/// status
/// 1. A spawned worker may get one: see [`Backend::Spawn`].
///
/// # Examples
///
/// All workers accept from one socket. This works on Unix; [`Prefork::listen`] works everywhere.
///
/// ```no_run
/// use std::io::Write;
/// use std::net::TcpListener;
///
/// let listener = TcpListener::bind("127.0.0.1:8000")?;
/// let id = taskfork::fork_processes(None, None)?;
/// loop {
///     let (mut connection, _) = listener.accept()?;
///     writeln!(connection, "hello from worker {id}")?;
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn fork_processes(n: impl Into<Option<usize>>, max_restarts: impl Into<Option<u32>>) -> Result<usize> {
    let mut prefork = Prefork::new().workers(n.into().unwrap_or(0));
    if let Some(max_restarts) = max_restarts.into() {
        prefork = prefork.max_restarts(max_restarts);
    }
    prefork.start_plain()
}

/// Returns the task id of this worker, as [`fork_processes`] returned it. Returns `None` in every process that is not a
/// worker, including the parent.
///
/// A process that a worker forks has the worker's id too, until it executes another program. With [worker
/// threads](Prefork::run_threads), only the worker's own thread has the id, and threads that it starts have none.
pub fn task_id() -> Option<usize> {
    worker::task_id()
}
