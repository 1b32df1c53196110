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
//! The call is Tornado's [`fork_processes`][tornado]: it returns in every worker with its task id, and the parent stays in
//! it, restarts workers that end abnormally under the same id, and exits once all have ended. The supervision is what
//! users of nginx, gunicorn and Erlang expect of theirs.
//!
//! [`Prefork`] is the same with everything that can be chosen: readiness, heartbeats, lifetimes, restart policies, and a
//! [`Report`] in the parent instead of its exit. In a worker it gives a [`Worker`], by which to say that it is ready, to hear
//! that it is to stop, or to stop the whole service.
//!
//! ```no_run
//! use std::time::Duration;
//! use taskfork::{Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).ready_timeout(Duration::from_secs(10)).run(|worker| {
//!         let mut stopped = worker.stop_requested(); // from here on a SIGTERM is a request
//!         worker.ready();
//!         while !stopped {
//!             // A second's work of worker.id().
//!             stopped = worker.wait_for_stop(Some(Duration::from_secs(1)));
//!         }
//!         Ok(())
//!     })
//! }
//! ```
//!
//! [tornado]: https://www.tornadoweb.org/en/stable/process.html#tornado.process.fork_processes
//!
//! How to write a service, and to run it under systemd, in containers and under Kubernetes, is told in the [guide].
//!
//! # Why this is hard
//!
//! A fork copies everything, wanted or not. Signal handlers and blocked signals are copied, so that a worker may swallow the
//! SIGTERM that was to end it. Random generators are copied, so that siblings draw the same numbers. What was buffered for
//! standard output is copied, and printed twice. Locks that another thread held are copied, without the thread. A signal
//! that arrives just then is lost, or handled by the wrong process. And a parent that is killed does not take its workers
//! along: they stay, and keep its port.
//!
//! # What is promised
//!
//! A worker is as if the program had been started alone:
//!
//! - Its signal mask and all its dispositions are what they were before the call. SIGTERM kills it, or runs the handler that
//!   it installs, with signal-hook, `tokio::signal` or `sigaction`.
//! - No descriptor of the parent's supervision is open in it. With [`Prefork`] there is one, by which it wakes the parent to
//!   say that it is ready, and a page of memory that it shares with the parent.
//! - [`rand::rng()`](https://docs.rs/rand/0.10/rand/fn.rng.html) of rand 0.10 is reseeded.
//! - What the parent had buffered for standard output was written before, once; the C library's streams as well. (As far as
//!   standard output took it: what it refuses, stays in the buffer.)
//! - The parent's end, even by SIGKILL, is a SIGTERM to it, at any moment.
//! - [`task_id`] is its id. A second call in it is an error, not a second tree.
//! - A signal sent to it is never lost, not even one sent while it is being forked.
//!
//! The parent:
//!
//! - restarts a worker that exits with another status than 0, or is killed by a signal, under its id, while the budget
//!   lasts; exit status 0 is an end for good;
//! - gives up when the budget is spent, but stops the other workers first, and then returns an error or a report that says
//!   so, so that `main` ends with one;
//! - is never woken while nothing happens (with heartbeats, once per timeout; with systemd's watchdog, twice), and holds no
//!   descriptor per worker (but for [sockets that each has for itself](ListenConfig::per_worker));
//! - leaves nobody behind (but see the [limitations](#limitations)), and when it returns, its signal mask, dispositions and
//!   descriptors are what they were.
//!
//! # Restarts
//!
//! The first failure of an id is answered at once. A process that lived less than a second makes the next start of its id
//! wait: 10 ms, doubled each time up to 1 s, and of that a random part of the upper half, so that ids which failed together
//! do not come back together. A life of 10 s forgets the failures before it. A fork that the system refuses is tried again
//! after the same delays, and costs nothing of the budget; only the first starts, those of the workers that were asked
//! for, must succeed, or all are stopped and the error returned.
//!
//! By [`Prefork::restart_policy`] normal ends are followed by a restart as well, or none is; [`Prefork::restart_window`] counts the
//! restarts of the last minute, say, instead of all; and an exit status that [`Prefork::fatal_exit_code`] names is not answered by
//! a restart but by the end of everything.
//!
//! # Readiness
//!
//! With [`Prefork::ready_timeout`], a worker says by [`Worker::ready`] when it can do its work, and the parent learns of it
//! at once. It means two things. A worker that cannot be brought up at all, because it ends or is late before any process
//! of its id was ever ready, is not restarted for ever: everything is stopped, and the exit status of the [`Report`] is 3.
//! (Unless it was asked for later, by SIGTTIN: then it is given up alone, and those who serve go on.) And in a rolling
//! restart the replacement is ready before the old worker is asked to go, so that there are never fewer ready workers than
//! were asked for; a replacement that ends or is late is given up, the old worker stays, and the roll is over.
//!
//! Readiness is asked for at the start of a process only. Whether it goes on working is what heartbeats are for.
//!
//! # Heartbeats
//!
//! With [`Prefork::heartbeat_timeout`], a worker gives a sign of life by [`Worker::heartbeat`] at least once in that time: one
//! store to the shared page. The parent looks there once per timeout, however many workers there are, so that a silent one is
//! found after one to two timeouts. It gets SIGABRT, for a core dump or a trace, and a second later SIGKILL, of which a
//! stopped process dies too; then it is restarted under its id, whatever its exit status.
//!
//! A parent that is late itself, or has been stopped meanwhile, cannot tell a worker that hangs from a machine that slept. It
//! gives everybody one more timeout.
//!
//! # Lifetimes
//!
//! With [`Prefork::max_lifetime`], processes are replaced when they are old, in the way of a rolling restart: no two at a
//! time, each at an age of its own between three quarters of that time and the whole. It costs nothing of the restart budget.
//!
//! # Listeners
//!
//! [`Prefork::listen`] binds sockets in the parent, before the workers, and hands them to all of them, whatever they are:
//! TCP, UDP, and Unix stream sockets, by an address or a [`ListenConfig`] with its choices. They outlive every worker: who connects
//! while one is replaced waits for the next, and only what a worker had accepted is lost with it.
//!
//! By default there is one socket, and one queue, for all. Nothing is left in the queue of somebody who is gone, and nobody
//! waits while another worker is idle. It is not balanced either: whoever accepts first has it, and of workers that sleep in
//! epoll_wait(2) all are woken for one connection, or with `EPOLLEXCLUSIVE` mostly the one that came last.
//!
//! With [`ListenConfig::per_worker`] there is one for each worker, all with one address (`SO_REUSEPORT`, on Linux), which makes equal
//! shares and keeps a sender of datagrams with one worker. Where each process makes its own, as usual, what waits there is lost
//! when it ends. Here the sockets are the parent's: the next worker of the id finds what the last one has left, and when there is
//! to be one worker fewer, the kernel is told to leave its socket out, and the worker goes when that is empty.
//!
//! The parent removes a Unix socket's path at the end, and replaces one at the start that nobody answers on. Sockets that
//! systemd has made are taken over with `Prefork::socket_activation` (on Unix).
//!
//! ```no_run
//! use taskfork::{Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).listen("[::]:8000").run(|worker| {
//!         let Some(listener) = worker.listeners()[0].as_tcp() else { return Err("not TCP".into()) };
//!         loop {
//!             let (connection, client) = listener.accept()?;
//!             // ..
//! #           drop((connection, client));
//!         }
//!     })
//! }
//! ```
//!
//! # Privileges
//!
//! What takes root, such as a port below 1024, is done by the parent, and the workers are somebody else: [`Prefork::user`]
//! and [`Prefork::group`]. In each worker these come first, in this order, before the call returns there:
//!
//! 1. It goes to its CPU ([`Prefork::pin_cpus`]).
//! 2. It becomes its user: supplementary groups, group, user; and what could be undone of that is an error.
//! 3. The parent's end becomes its own, and it is a worker, with its id and random numbers of its own.
//! 4. The signals are put back to what they were, and the call returns.
//!
//! ```no_run
//! use taskfork::{Prefork, Report};
//!
//! # #[cfg(unix)]
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).listen("0.0.0.0:80").user("www-data").pin_cpus().run(|worker| {
//!         let port = worker.listeners()[0].as_tcp();
//!         // ..
//! #       drop(port);
//!         Ok(())
//!     })
//! }
//! # #[cfg(not(unix))]
//! # fn main() {}
//! ```
//!
//! # systemd
//!
//! With `Prefork::notify_systemd` (on Unix), systemd is told when all workers are ready, when a rolling restart begins and
//! ends, and when all stop, and its watchdog gets signs of life from the parent. The sockets of a socket unit are taken with
//! `Prefork::socket_activation`.
//!
//! # Worker contexts
//!
//! What is made before the call is there in every worker, at the price of a page that is copied when it is written to. So
//! data of each worker's own is an array that is made once and indexed with [`Worker::id`]; with [`Prefork::max_workers`]
//! as its length, whatever SIGTTIN asks for, no id is beyond its end. The example `contexts` is such a program.
//!
//! # Fork safety
//!
//! fork(2) copies the calling thread only. Whatever another thread holds at that moment, a lock of the allocator or half of
//! a change, stays so in the child for ever. So [`fork_processes`] is refused with an error that says how many threads there
//! are. That is what lets it be a safe function. The check is repeated before every restart. Call it first in `main`:
//! before a runtime is created, before a logger that writes from a thread of its own, before anything that starts a thread.
//! (A thread that has been joined does not count, although the system lists it for a moment longer.)
//!
//! What the program has done before the call is shared by all workers, which is often what is wanted: a configuration that
//! was read, a listening socket that was bound, a table that was loaded (its pages are copied only when written to). But:
//!
//! - `HashMap`s: the keys of `RandomState` are drawn once per thread. Make one in the parent, and all workers hash with the
//!   same keys, and std has no call to change that. This crate makes none.
//! - Random generators other than rand 0.10's `rng()`, those of other versions of rand among them, are copied. Seed them in
//!   the worker.
//! - Connections (to a database, say) and files with a position are shared. Open them in the worker.
//! - epoll(7) descriptors and signal handlers that write to a pipe keep their tie to the parent. Runtimes made before the
//!   call do not work in a worker.
//! - Memory that is shared with the kernel or with other processes, an io_uring for example, stays shared, whatever Rust's
//!   type for it says. Make such things in the worker.
//! - Every fork copies the parent's page tables: 0.1 ms for a small parent, about 17 ms for each GiB it has touched.
//!
//! # Spawn
//!
//! With [`Backend::Spawn`] workers are no forks: they are the program, started again, which runs from the top of `main` to
//! the same call and returns there as a worker. The supervision is the same. It costs a start of the program each time, but
//! the parent may have threads, and its memory costs nothing.
//!
//! What must be made once, such as a listening socket, cannot be made before the call then. [`Prefork::listen`] makes it in
//! the parent and hands it to the workers, whatever they are.
//!
//! # Threads
//!
//! With [`Backend::Thread`] the workers of [`Prefork::run`] are threads of this process, which share its memory, and have ids,
//! restarts, readiness, heartbeats and rolling replacement like others. What differs, above all that a thread cannot be killed,
//! is told there.
//!
//! ```no_run
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use taskfork::{Backend, Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     let served = AtomicU64::new(0); // one for all
//!     Prefork::new().workers(4).backend(Backend::Thread).run(move |worker| {
//!         while !worker.stop_requested() {
//!             // Something for somebody.
//!             served.fetch_add(1, Ordering::Relaxed);
//!         }
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # Windows
//!
//! There is no fork on Windows, so workers are spawned, by [`fork_processes`] as well: **what precedes the call runs again in
//! each of them**. All else is the same, with these in the place of what Windows has not:
//!
//! - The operator's signals are events that the parent makes, with its pid in their names: `taskfork-71-TERM`, `-QUIT`,
//!   `-HUP`, `-TTIN` and `-TTOU` for the parent with the pid 71. What sets them may be another program, a service's stop
//!   handler, or PowerShell: `[Threading.EventWaitHandle]::OpenExisting('taskfork-71-HUP').Set()`. The names are those of the
//!   parent's session (for a service, `Global\\` before them from any other), and whoever may open them is said by the
//!   system's defaults: the same user and administrators. A name that somebody else has made already is an error. A process that has had a service
//!   keeps its five events, for the next one; what they are set to in between counts for nothing.
//! - Ctrl-C and Ctrl-Break at the console are INT. They reach the workers as well. One that calls [`Worker::stop_requested`]
//!   or [`Worker::wait_for_stop`] is asked by the parent then; from the first of these calls on, handlers that were
//!   installed before do not run for them. One with a handler of its own does what that does. Any other ends with status
//!   0xC000013A, which is no failure then. To close the console or to shut the system down is TERM, and who listens hears it
//!   directly; the system ends a process about 5 s later whatever it does, so that a longer
//!   [`graceful_timeout`](Prefork::graceful_timeout) is of no use there. (Logging off, of which only services are told, is
//!   none of them.)
//! - The parent asks a worker to stop by an event of that worker's own, for which no console is needed. One that does not
//!   listen by then, because it has not called one of these two (which in the workers of [`fork_processes`] nobody can), is
//!   ended at once, as SIGTERM ends a process on Unix; unless it was the console that asked, and the worker older than a
//!   second, so that it does about that what it does.
//! - A worker that has to be killed is ended with status 1, as `taskkill /F` does it; one without a heartbeat as well, since
//!   nothing is like SIGABRT. USR1 has no counterpart.
//! - Exit statuses have 32 bits. An access violation or an abort is one as well: `exited with status 0xC0000005 (access
//!   violation)`. (While the system shows its dialog about a crash, the worker has not ended; servers switch that off.)
//! - The workers are in a job of the parent's: whatever ends the parent ends them, at once and without a request. Processes
//!   that they start are in it too, and end with the supervision, unless they are started with `CREATE_BREAKAWAY_FROM_JOB`.
//!   A parent that is in a job with limits to its user interface cannot have one of its own, and every start is refused.
//! - A worker inherits the standard streams, the listeners, and three handles that the call needs, and nothing else. It has
//!   the parent's console, or none. Its command line is the parent's, to the letter.
//!
//! # Signals
//!
//! (On Windows, [events](#windows) take their place.)
//!
//! | signal to the parent | effect |
//! |---|---|
//! | TERM, INT | stop: SIGTERM to all workers at once, SIGKILL after one common deadline ([`graceful_timeout`](Prefork::graceful_timeout), 30 s); a second one: SIGKILL now |
//! | QUIT | quick stop: SIGQUIT to all, SIGKILL after 2 s; a second one: SIGKILL now |
//! | HUP | rolling restart, one at a time: the replacement first, and once it is ready, or has lived 1 s where nobody asks for readiness, SIGTERM to the old worker, whose end comes before the next one's turn. If it dies or is late, the old one stays, and the roll is over. During a roll: one more after it |
//! | TTIN, TTOU | one worker more, under the lowest free id, up to [`max_workers`](Prefork::max_workers); one fewer, the highest id, which gets SIGTERM, or a little later with [a queue of its own](ListenConfig::per_worker) (never below one) |
//! | USR1 | passed on to the workers, for example to reopen logs. It kills those without a handler |
//! | CHLD | workers that ended are reaped; nobody else's children are, except as pid 1 (not with threads) |
//!
//! A signal of these that was ignored when the call was made stays ignored: HUP under `nohup`, for example. SIGCHLD alone is
//! put to its default in the parent, because wait(2) fails otherwise. TTIN and TTOU are for operators: when a terminal sends
//! them, to a service in its background, they are not the parent's. Handlers of the program's own for the signals above do
//! not run in the parent; those for others do.
//!
//! ^C reaches the workers as well as the parent, from the terminal. Signals are all taken before anybody is reaped, so it
//! is a stop and not a round of restarts. A worker that wants to drain on ^C handles SIGINT as it does SIGTERM; [`Worker`]
//! listens for both. A terminal that is closed sends HUP to all of them: to the parent that is a rolling restart, and
//! workers without a handler die of it and are restarted. A service that is to stay starts under nohup or in a session of
//! its own.
//!
//! The parent blocks these signals and reads them from a signalfd(2), and installs no handler. (With [`Backend::Spawn`],
//! where it may have threads that do not block them, it does: one that notes the signal and wakes it.) A library whose
//! handlers can only be installed once, such as signal-hook and tokio on top of it, could not serve both sides of a fork.
//!
//! # Log
//!
//! Through the [`log`](https://docs.rs/log) crate, with the target `taskfork` and, where Tornado has the line, its words:
//! `Starting 4 processes`; `child 2 (pid 71) killed by signal 9, restarting`; `child 2 (pid 71) exited with status 3,
//! restarting`; `child 2 (pid 71) exited normally`. A SIGKILL that was not the parent's is told as `(out of memory)` if the
//! cgroup's counter of such kills has grown, and as `(perhaps out of memory)` if there is none that can be read.
//!
//! [`Prefork::on_event`] is told the same as values, with what the log leaves out: an [`Event`] for every transition.
//!
//! # Limitations
//!
//! - What a worker gets when the parent is killed by SIGKILL is SIGTERM. One that ignores or blocks it, or is stopped, or is
//!   pid 1 of a pid namespace, survives.
//! - A worker that changes its user or group itself, instead of by [`Prefork::user`], or executes a program with other rights,
//!   loses that SIGTERM on Linux (`PR_SET_PDEATHSIG` is cleared, prctl(2)).
//! - A worker thread cannot be killed, only given up, and a fault of one is the end of all.
//! - A worker that becomes another user's, so that the parent may not signal it, cannot be stopped by the parent. (One that is
//!   root may signal all.)
//! - Processes that a worker starts are the worker's.
//! - Something in the parent that waits for any child (`waitpid` of -1: a handler or a thread of the program's own) may take the
//!   end of a worker away. It is noticed within a second of the next SIGCHLD, or of when the next thing is due, and is an
//!   abnormal end of [unknown status](Exit::Code), whatever it was. What is sent to the worker until then goes to whoever
//!   has its pid.
//! - A worker that writes where it should not can say something untrue through the shared page, that a worker is ready or
//!   alive, or that all are to stop. It cannot harm the parent.
//! - Who asks twice to stop within a moment has asked twice, and the workers are killed. `timeout` of coreutils may do so to a
//!   program that it runs, with TERM; with its option `--foreground` it asks once.
//! - A process that hangs for no longer than two heartbeat timeouts may go unnoticed. Workers that were stopped for about
//!   one, with a parent that was not, are taken for hung.
//! - The log is written by the parent itself. A log that blocks, such as a pipe that nobody reads, blocks the supervision.
//! - The parent keeps open what the program had open. While the workers drain, it still holds the listening socket: who
//!   connects then waits, and is turned away when the parent ends.
//! - An out-of-memory kill of a process that a worker had started is counted as well, and may be told of the next worker that
//!   gets a SIGKILL.
//! - Where seccomp forbids unshare(2) and there is no `/proc`, the number of threads cannot be told, and the call is refused.
//!
//! # Platforms
//!
//! Linux is built and tested. For macOS and FreeBSD the code is there and compiled, but it has not been run there: the parent
//! reads its signals through a handler and a pipe of its own, and its end reaches the workers by `procctl(2)` on FreeBSD and
//! by a thread that waits for a pipe to close on macOS. This way is tested too, on Linux (`--cfg taskfork_portable`).
//!
//! Windows 10 and later: built and tested with Wine 8, by the same scenarios. Not tested, because Wine has it not or has it
//! otherwise: Ctrl-Break; the closing of the console, logging off and shutting down; that a handle limit or the job's limit
//! of processes is told as the error of the start; what a security product that watches `CreateProcessW` does to it.
//!
//! Elsewhere the crate does not compile.
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
pub use listener::{ListenConfig, Listener};
pub use policy::RestartPolicy;
pub use prefork::{Backend, Prefork, Role};
pub use report::{Reason, Report, WorkerReport};
pub use worker::{WorkResult, Worker};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Forks `n` workers, returns in each with its task id, and keeps the parent as their supervisor.
///
/// On Windows they are spawned, [which makes a difference](crate#windows): the program starts again in each worker, and
/// runs to this call.
///
/// `n` is how many; `None` or 0 is one per CPU that this process may use, by its affinity and by the CPU quota of its cgroup.
/// `max_restarts` is how many restarts there may be of all workers together, in the whole lifetime; `None` is 100, and the
/// end that would need one more ends everything. Both as in Tornado.
///
/// In a worker it returns `Ok` with the id, from 0 to `n - 1`, at once. A restarted worker gets the id of its predecessor.
///
/// In the parent it does not return while workers live. Once all have ended normally, or were asked to stop and did, it
/// does not return at all: the process exits with status 0. (Destructors of `main` do not run in the parent then; what is
/// registered with atexit(3) does, with the signals of the parent still blocked.) Everything else is an error.
///
/// What signals to the parent do, and what is the same in a worker as before the call, is told in the
/// [documentation of the crate](crate#signals).
///
/// # Errors
///
/// Nothing is left running when an error is returned, and the signal mask, the dispositions and the descriptors are what
/// they were.
///
/// - There is more than one thread: [`Error::thread_count`]. (Not on Windows.)
/// - This process is a worker already.
/// - This process supervises workers already: another thread has made such a call, which has not returned yet, or
///   [`Prefork::on_event`] makes this one. A process can do so once at a time, since its signals and the ends of its
///   children are those of the whole process.
/// - `n` is more than the processes that the system can have.
/// - The system refuses a call, for example `fork` for want of memory or because of a limit: [`Error::call`],
///   [`Error::worker`], [`Error::io_error`]. Workers that were already started have been stopped.
/// - The budget is spent: [`Error::worker`] and [`Error::exit`] name the end that was one too many. The other workers have
///   been stopped, first gracefully, then by force.
///
/// No error is returned in a worker: one that the system has no random numbers for says so in the log and exits with
/// status 1.
///
/// # Examples
///
/// One socket for all workers, which the kernel hands the connections to (on Unix; [`Prefork::listen`] does it everywhere):
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

/// The task id of this worker: what [`fork_processes`] returned in it. `None` in every process that is not a worker, the
/// parent included.
///
/// A process that a worker forks without executing another program keeps it. Of a worker that is a
/// [thread](Backend::Thread), the thread has it, and those that it starts have not.
pub fn task_id() -> Option<usize> {
    worker::task_id()
}
