//! Forks worker processes from the top of `main` and supervises them.
//!
//! ```no_run
//! fn main() -> taskfork::Result<()> {
//!     let id = taskfork::fork_processes(4, 100)?;
//!     // The call has returned in a worker: one of four processes, with its own `id`.
//!     println!("worker {id}, pid {}", std::process::id());
//!     Ok(())
//! }
//! ```
//!
//! [`fork_processes`] works like [Tornado's function of the same name][tornado]. In every worker, `fork_processes`
//! returns the task id of that worker. In the parent, `fork_processes` supervises the workers and restarts those that
//! exit abnormally. When all workers have exited normally, the parent exits without returning from the call. If the
//! service fails, the call returns an error in the parent.
//!
//! [`Prefork`] starts the same kind of service, but offers all settings: readiness, heartbeats, lifetimes, restart
//! policies, listeners. The return values of `Prefork` differ from those of `fork_processes`:
//!
//! - The parent gets a [`Report`] after the service has ended, and does not exit.
//! - A worker gets a [`Worker`] handle. Through this handle, the worker reports that it is ready, notices stop
//!   requests, requests its own replacement, or stops the whole service.
//! - The program can control the service from the parent, through a [`Handle`].
//!
//! [`Supervisor`] runs [several pools](#several-pools) of workers under one parent, each with its own settings.
//!
//! ```no_run
//! use std::time::Duration;
//! use taskfork::{Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).ready_timeout(Duration::from_secs(10)).run(|worker| {
//!         worker.enable_graceful_stop(); // from here on, SIGTERM is a stop request and does not kill the worker
//!         worker.ready();
//!         while !worker.wait_for_stop(Some(Duration::from_secs(1))) {
//!             // Work for one second.
//!         }
//!         Ok(())
//!     })
//! }
//! ```
//!
//! The [guide] shows how to write a service: [async servers](guide::async_runtimes), [job workers](guide::jobs),
//! [several pools](guide::pools), [configuration](guide::reloading), [logging](guide::logging) and
//! [limits](guide::limits). It also shows how to [deploy](guide::deploying) and upgrade a service, and how to run it
//! under [systemd](guide::systemd), in a [container](guide::containers) and under [Kubernetes](guide::kubernetes).
//!
//! [tornado]: https://www.tornadoweb.org/en/stable/process.html#tornado.process.fork_processes
//!
//! # Terms
//!
//! | term | meaning |
//! |---|---|
//! | worker | An id, also called task id as in Tornado, and the processes that serve it one after the other. During a replacement, two processes have the same id. Ids count from 0. |
//! | pool | The workers with the same settings. A [`Prefork`] describes one pool. Each pool has ids from 0. |
//! | service | The parent and all of its pools. A `Prefork` that is used alone, and `fork_processes`, make a service with one pool. |
//! | process | One life of a worker, from its start to its exit. A restarted worker has the same id and a new process. |
//! | parent | The process that calls `fork_processes`, or a method of `Prefork` or `Supervisor`. The parent starts the workers and supervises them. |
//! | restart | The start of a new process for a worker whose process has exited. |
//! | replacement | A new process that the parent starts to take over from the old process of the same worker. By default, the old process serves until the replacement is ready. |
//! | rolling restart | The replacement of the processes of all workers, a few workers at a time. |
//! | upgrade | The parent becomes a new version of the program, with the same pid, and replaces all workers by workers of this version. |
//! | graceful stop | The parent requests a stop, and the worker exits by itself. If the worker does not exit within a timeout, the parent kills it. |
//!
//! # Several pools
//!
//! A service can have several kinds of workers, for example web workers and job workers. [`Supervisor`] runs a pool for
//! each kind. Each pool has its own ids, settings, listeners, limits and timeouts, while the service has one parent,
//! one log and one report:
//!
//! ```no_run
//! use taskfork::{Prefork, Report, Supervisor};
//!
//! fn main() -> taskfork::Result<Report> {
//!     Supervisor::new()
//!         .pool("web", Prefork::new().workers(4).listen("[::]:8000"))
//!         .pool("jobs", Prefork::new().workers(2).optional())
//!         .run(|worker| match worker.pool() {
//!             "web" => Ok(()), // Serve clients.
//!             _ => Ok(()),     // Do jobs.
//!         })
//! }
//! ```
//!
//! The service ends when every pool is done. If a pool gives up or cannot start, the parent stops all pools, unless the
//! pool is [`optional`](Prefork::optional). The log names the pool: `jobs child 2 (pid 71) started, generation 0`. The
//! page [`guide::pools`] has the details.
//!
//! # Why fork is hard to use
//!
//! fork(2) copies almost the whole state of a process, and some of the copies cause errors in the child:
//!
//! - *Signal handlers and blocked signals.* The worker inherits the signal handlers and the blocked signals of the
//!   parent. If the parent handles or blocks SIGTERM, SIGTERM does not end the worker.
//! - *Random generators.* The worker inherits the state of the generator. So all workers draw the same random numbers.
//! - *Buffered output.* The parent and the worker both print the output that was in the buffer.
//! - *Locks.* If another thread holds a lock during the fork, the child gets the locked lock but not the thread. So the
//!   lock is never released in the child.
//!
//! A signal that arrives during the fork may be lost, or the wrong process may handle it. If the parent is killed, its
//! workers continue to run and keep its port in use.
//!
//! # Guarantees
//!
//! ## In a worker
//!
//! A worker behaves as if the program had been started without a supervisor:
//!
//! - The worker has the signal mask and all signal dispositions from before the call. By default, SIGTERM kills the
//!   worker. A handler that the worker installs with signal-hook, `tokio::signal` or `sigaction` works as usual.
//! - The worker does not inherit the descriptors that the parent uses for the supervision. There are two exceptions to
//!   this rule. A worker with a [`Worker`] handle has one descriptor through which the worker wakes the parent. On
//!   macOS, every worker has one more descriptor, through which the worker notices the end of the parent.
//! - Every worker shares some memory with the parent, in which it leaves its messages to the parent. A worker of
//!   `fork_processes` uses this memory only if it calls a function that starts workers.
//! - [`rand::rng()`](https://docs.rs/rand/0.10/rand/fn.rng.html) of rand 0.10 is reseeded, so each worker draws
//!   different random numbers.
//! - Buffered output is not printed twice: before the fork, the parent flushes standard output and the output streams
//!   of the C library. If the write to standard output fails, the output stays in the buffer.
//! - The worker gets SIGTERM when the parent ends, even if SIGKILL ends the parent. If the parent ends during the fork,
//!   the worker gets SIGTERM or exits at once.
//! - [`task_id`] returns the worker's id. A second call of `fork_processes` in the worker starts no workers and returns
//!   an error. If the worker then fails, the parent does not restart it, but [stops the service](#restarts).
//! - A signal that is sent to the worker is never lost, even if it arrives during the fork.
//!
//! ## In the parent
//!
//! - The parent restarts a worker that exits with a status other than 0 or is killed by a signal. The restarted worker
//!   has the same id. A worker that exits with status 0 by itself is not restarted. See [Restarts](#restarts).
//! - `fork_processes` limits the number of restarts. `Prefork` has no limit, unless the program sets one.
//! - If the restart limit is reached, the parent first stops the other workers. Then the call returns an error or a
//!   [`Report`], which `main` can return.
//! - The parent sleeps until an event happens. With [heartbeats](#heartbeats), the parent also wakes up once per
//!   heartbeat timeout. With systemd's watchdog, the parent also wakes up twice per watchdog timeout.
//! - The parent holds no descriptor per worker, unless [each worker has its own sockets](ListenConfig::per_worker).
//! - No worker outlives the parent, except in the cases that the section [Limitations](#limitations) lists.
//! - When the call returns in the parent, the signal mask, the signal dispositions and the open descriptors are the
//!   same as before the call.
//!
//! # Restarts
//!
//! If a worker's process exits abnormally, the parent starts a new process with the same id:
//!
//! - After the first failure of a worker, the parent restarts the worker at once.
//! - After each further failure, the parent waits before the restart if the process lived for less than a second. The
//!   delay is 10 ms at first. The delay doubles with each such failure, up to 1 s.
//! - The parent waits for a random part of the delay: at least half of it, and at most all of it. So workers that
//!   failed at the same time do not restart at the same time.
//! - If the process lived for at least 10 s, the delay is reset. The parent then restarts the worker at once, as after
//!   the first failure.
//!
//! Only restarts after failures count towards a [restart limit](Prefork::max_restarts). By default `Prefork` has no
//! limit, so a service survives a dependency that is away for a while, and requests that crash a worker. The delays
//! keep the restarts from using much CPU time.
//!
//! A service that *cannot start* ends instead. Its exit status is 3, and [`Report::reason`] is
//! [`StartupFailed`](Reason::StartupFailed). With [`ready_timeout`](Prefork::ready_timeout), one failure before the
//! first [readiness](#readiness) of a worker suffices. Without it, ten failures of one worker in a row are a startup
//! failure, until any process of the service has lived for 10 s. One failure also suffices if the worker has called a
//! function that starts workers, because its next process would make the same call. This also holds for
//! `fork_processes`, which then returns an error. If the worker was added by SIGTTIN, the parent removes only this
//! worker.
//!
//! A worker that exits with status 0 has not failed. In two cases the parent restarts it nevertheless:
//!
//! - The policy is [`RestartPolicy::Always`].
//! - The worker has obeyed a stop request that neither the parent nor the terminal made, for example `kill PID`
//!   ([`RestartReason::StopRequest`]).
//!
//! Such a restart follows at once if the process lived for at least a second, and otherwise after the delay.
//!
//! If the system refuses a fork, the parent tries again after the same delays. A refused fork does not count as a
//! restart. At the start of the service, however, each worker must start at the first attempt. Otherwise the parent
//! stops all workers and returns the error.
//!
//! These methods change the restarts:
//!
//! | setting | effect |
//! |---|---|
//! | [`restart_policy`](Prefork::restart_policy) | Makes the parent restart workers after every exit, or never. |
//! | [`max_restarts`](Prefork::max_restarts) | Limits the number of restarts after failures, counted over all workers. |
//! | [`restart_window`](Prefork::restart_window) | Makes only recent restarts count towards the limit, for example those of the last minute. |
//! | [`restart_backoff`](Prefork::restart_backoff) | Changes the first and the longest delay. |
//! | [`fatal_exit_code`](Prefork::fatal_exit_code) | Makes the whole service stop if a worker exits with this status. |
//!
//! # Readiness
//!
//! With [`Prefork::ready_timeout`], a worker calls [`Worker::ready`] as soon as it can do its work, and the call wakes
//! the parent. Readiness has two effects:
//!
//! - *A service that cannot start ends.* If a worker fails or is not ready in time, and none of its earlier processes
//!   was ready, a restart would not help. So the parent stops all workers, and the exit status of the [`Report`] is 3.
//!   But if the failed worker was added by SIGTTIN, the parent only removes this worker, and the other workers go on.
//! - *A rolling restart does not reduce the number of ready workers*, unless
//!   [`max_unavailable`](Prefork::max_unavailable) allows this. The parent stops an old process only after its
//!   replacement is ready. If the replacement exits or is not ready in time, the old process stays, and the parent
//!   aborts the rolling restart.
//!
//! Readiness shows that a process has started. Heartbeats show that a process still works.
//!
//! # Heartbeats
//!
//! With [`Prefork::heartbeat_timeout`], a worker calls [`Worker::heartbeat`] at least once per timeout. A heartbeat is
//! cheap: the worker writes one value to memory that it shares with the parent. Once per timeout, the parent checks the
//! heartbeats of all workers. So the parent finds a hung worker one to two timeouts after the worker's last heartbeat.
//!
//! The parent sends SIGABRT to a hung worker, so that the worker can write a core dump or a stack trace. A second later
//! the parent sends SIGKILL, which also kills a stopped process. Then the parent restarts the worker, whatever its exit
//! status is, except with [`RestartPolicy::Never`].
//!
//! If the parent wakes up late to check the heartbeats, the whole machine may have been suspended. In this case, a
//! missing heartbeat does not show that a worker hangs. So the parent gives the worker one more timeout.
//!
//! # Work
//!
//! A worker counts its work with [`Worker::begin_work`]: the method returns a guard, and the unit of work, for example
//! a request, is completed when the guard is dropped. If a worker dies, the log contains the number of units that it
//! had in progress. With [`Prefork::max_requests`], the parent replaces a process after a number of completed units. A unit
//! takes a few nanoseconds and no system call.
//!
//! # Recycling
//!
//! The parent replaces each process that has reached a certain age ([`Prefork::max_lifetime`]), has completed a number
//! of units of work ([`Prefork::max_requests`]) or uses too much private memory ([`Prefork::max_memory`]). A worker can
//! also request its own replacement ([`Worker::retire`]). The parent proceeds as in a [rolling
//! restart](#rolling-restarts), and by default replaces one worker at a time. These replacements do not count as
//! restarts. For each process, the parent chooses a random age and a random number of units, between three quarters of
//! the limit and the whole. The guide shows [which setting helps against which trouble](guide::recycling).
//!
//! # Listeners
//!
//! [`Prefork::listen`] adds a socket. The parent binds the socket before it starts the workers, and passes it to all
//! workers, whether they are forked, spawned or threads. The argument is the address of a TCP, UDP or Unix stream
//! socket, or a [`ListenConfig`] with more settings. In a worker, [`Worker::tcp`], [`Worker::udp`] and `Worker::unix`
//! (on Unix) return the socket. Every socket is [non-blocking](Listener#the-socket-is-non-blocking), as mio and tokio
//! need it. [`Listener::accept`] and [`Listener::recv_from`] wait for a client, and end at a stop request:
//!
//! ```no_run
//! use std::io::ErrorKind;
//!
//! use taskfork::{Prefork, Report};
//!
//! fn main() -> taskfork::Result<Report> {
//!     Prefork::new().workers(4).listen("[::]:8000").run(|worker| {
//!         worker.enable_graceful_stop();
//!         loop {
//!             let (connection, client) = match worker.listeners()[0].accept() {
//!                 Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()), // a stop was requested
//!                 accepted => accepted?,
//!             };
//!             // ..
//! #           drop((connection, client));
//!         }
//!     })
//! }
//! ```
//!
//! The parent keeps the sockets open while workers exit and restart. A client that connects during a restart waits
//! until a process accepts the connection. If a worker dies, only the connections that it had already accepted are
//! lost.
//!
//! - *One socket for all workers* is the default. If a worker exits, the other workers accept the connections in the
//!   queue. No connection waits for a busy worker while another worker is idle. But the load is not balanced, because
//!   the first worker to accept a connection gets it. If workers sleep in epoll_wait(2), Linux wakes all of them for
//!   each connection. With `EPOLLEXCLUSIVE`, Linux mostly wakes the worker that began to wait last.
//! - *One socket for each worker* is the setting [`ListenConfig::per_worker`], which uses `SO_REUSEPORT` on Linux. All
//!   workers get equal shares of the connections. All datagrams of one sender go to the same worker, as long as the
//!   number of workers does not change. The sockets belong to the parent. So if a process exits, the next process with
//!   the same id serves the connections that are left in the queue. (In most programs, each process makes its own
//!   `SO_REUSEPORT` socket. Then the connections in the socket's queue are lost when the process exits.) If a worker is
//!   removed, the kernel sends no new connections to the worker's socket, and the parent stops the worker when the
//!   socket's queue is empty.
//!
//! When the service stops, the parent closes its copies of the sockets as soon as every worker has been asked to stop.
//! A worker closes its own copies with [`Worker::stop_listening`], or by its exit. When the last copy is closed, the
//! system refuses new clients at once, although workers may still finish their work. Connections that are left in the
//! queue then are reset. Two kinds of sockets stay open, so that new clients wait: a socket of which the program keeps
//! a copy of its own in the parent, and a socket that systemd has passed. The next start of the service serves the
//! clients of the latter.
//!
//! The parent removes the file of a Unix socket when it closes the socket. So another service can start at the same
//! path while the workers still finish their work, and new clients find no socket there in the meantime. If there is
//! already a socket file at the same path when the service starts, the parent replaces the file, but only if no process
//! listens on that socket. `"unix:@name"` is an abstract name, which has no file (Linux only). If an address is in use,
//! the start tries again for up to 3 s. `Prefork::socket_activation` (on Unix) uses sockets that systemd has opened.
//!
//! # Privileges
//!
//! The parent can run as root, for example to bind a port below 1024, while the workers run as another user.
//! [`Prefork::user`] and [`Prefork::group`] set the user and the group of the workers.
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
//! A new forked worker takes these steps, in this order, before any code of the program runs in it:
//!
//! 1. The worker names its process, if [`Prefork::name`] is set, and pins itself to its CPU, if [`Prefork::pin_cpus`]
//!    is set.
//! 2. The worker changes its supplementary groups, its group and its user. If it could still change back to its old
//!    user, it logs an error and exits with status 1.
//! 3. The worker arranges that it gets SIGTERM when the parent ends. Then it stores its id and reseeds its random
//!    generator.
//! 4. The worker restores the signal mask and the signal dispositions from before the call. Then `fork_processes` or
//!    `start` returns, or `run` calls its closure.
//!
//! # systemd
//!
//! With `Prefork::notify_systemd` (on Unix), the parent notifies systemd when all workers are ready, when a rolling
//! restart or an upgrade begins and ends, and when the service stops. The parent also sends the messages that systemd's
//! watchdog requires. With `Prefork::socket_activation`, the service uses the sockets of a systemd socket unit.
//!
//! # Data for each worker
//!
//! Every forked worker can use all values that the program created before the call. The parent and the workers share
//! the memory of these values. When a process writes to a page of this memory, the kernel gives that process its own
//! copy of the page (copy-on-write).
//!
//! So a program can create an array before the call, with one element for each worker. Each worker uses its
//! [`Worker::id`] as the index of its element. Set [`Prefork::max_workers`] to the length of the array. Then every id
//! is a valid index, even if SIGTTIN adds workers. The example `contexts` is such a program.
//!
//! While a process is replaced, for example in a rolling restart, [two processes have the same
//! id](guide::jobs#two-processes-with-the-same-id). If two processes must not use an element at the same time, set
//! [`max_surge(0)`](Prefork::max_surge) and [`max_unavailable(1)`](Prefork::max_unavailable).
//!
//! # Fork safety
//!
//! fork(2) copies only the calling thread. If another thread holds a lock during the fork, for example the lock of the
//! allocator, the lock is never released in the child. If another thread is changing a data structure during the fork,
//! the change stays half finished in the child.
//!
//! So if the process has more than one thread, [`fork_processes`] returns an error with the number of threads. Because
//! of this check, `fork_processes` is a safe function. The parent repeats the check before every fork.
//!
//! Call `fork_processes` as early as possible in `main`: before the program creates an async runtime, sets up a logger
//! that writes from its own thread, or starts a thread in any other way. The check does not count threads that have
//! been joined, although the system may list such a thread for a moment longer.
//!
//! Workers inherit everything that the program has created before the call. This is often useful: for example for a
//! configuration, a bound socket, or a large table, whose pages the kernel copies only when a process writes to them.
//! But the following objects need care:
//!
//! - *`HashMap`*: std draws random hash keys (`RandomState`) once per thread. If the parent creates a `HashMap` before
//!   the fork, all workers use the same hash keys, and std has no function to change the keys. This crate itself
//!   creates no `HashMap` in the parent.
//! - *Random generators* are copied, including those of other versions of rand. Seed them in the worker. Only `rng()`
//!   of rand 0.10 is reseeded automatically.
//! - *Connections*, for example to a database, and *open files with a position* are shared by all workers. Open them in
//!   the worker.
//! - *epoll(7) descriptors*, and pipes that signal handlers write to, are shared with the parent. So an async runtime
//!   that was created before the call does not work in a worker. If an epoll(7) descriptor is open at the call, the
//!   parent logs a warning with its number (Linux). A runtime that the program has dropped before the call is no
//!   problem.
//! - *Memory that is shared with the kernel or another process*, such as an io_uring, stays shared after the fork. The
//!   Rust type of a value does not show that its memory is shared. Create such memory in the worker.
//! - *Page tables* are copied by every fork. On the machine of the benchmarks, a fork takes 0.13 to 0.25 ms if the
//!   parent is small, and 23 to 40 ms if the parent has 1 GiB of memory in pages of 4 KiB.
//!
//! The page [`guide::fork_safety`] has the details.
//!
//! # Spawn
//!
//! With [`Backend::Spawn`], the parent does not fork, but starts the program's executable again for each worker. The
//! new process runs `main` from its beginning. When it reaches the call that started the service in the parent, it
//! becomes a worker: `start` returns, or `run` calls its closure. The parent supervises spawned workers in the same way
//! as forked workers.
//!
//! So each new worker runs the code before this call again. In return, the parent may have several threads, and a start
//! takes the same time however much memory the parent uses.
//!
//! If the program itself creates a socket before the call, each worker creates the socket again. Use
//! [`Prefork::listen`] or [`bind`] instead: then the parent creates the socket once and passes it to the workers.
//!
//! # Threads
//!
//! With [`Prefork::run_threads`], the workers are threads of this process and share its memory. Worker threads have
//! ids, restarts, readiness, heartbeats and rolling restarts, like worker processes. But the parent cannot kill a
//! thread, and if one thread crashes, for example with a segmentation fault, the whole process ends. The documentation
//! of `run_threads` lists the differences from worker processes.
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
//! An operator controls the service with signals to the parent. On Windows, [event objects](#windows) replace the
//! signals.
//!
//! | signal | effect in the parent |
//! |---|---|
//! | TERM, INT | **Graceful stop.** The parent sends SIGTERM to all workers of all pools at once. After the pool's [`graceful_timeout`](Prefork::graceful_timeout) (default: 30 s), it sends SIGKILL to the workers that still run. A second TERM or INT sends SIGKILL at once. |
//! | QUIT | **Quick stop.** The parent sends SIGQUIT to all workers, and SIGKILL 2 s later. After a TERM or INT, a QUIT shortens the graceful stop in this way. A further stop request sends SIGKILL at once. |
//! | HUP | **[Rolling restart](#rolling-restarts)** of the same program, one pool after another. |
//! | USR2 | **[Upgrade](#upgrades)** to the program that is on disk now (Linux). USR2 kills a worker that has no handler for it, so it must be sent to the parent only. |
//! | TTIN | **Adds a worker** to the first pool, with the lowest free id. If there are already [`max_workers`](Prefork::max_workers) workers, the parent only logs a warning. |
//! | TTOU | **Removes the worker** with the highest id from the first pool: the parent sends SIGTERM to it. If the worker has [its own socket](ListenConfig::per_worker), the parent first waits until the socket's queue is empty, but not longer than the `graceful_timeout`. The last worker is never removed: the parent only logs a warning. |
//! | USR1 | **Sent on** to all workers, for example to make them reopen their logs. USR1 kills a worker that has no handler for it. |
//! | CHLD | **Reaps** the workers that have exited. The parent does not reap other children of the process. Exception: if the parent is pid 1 or a subreaper (prctl(2)) and the workers are processes, it also reaps all other children, such as orphaned processes, [about a second after they have exited](guide::containers#zombies). |
//!
//! - If the program ignored one of these signals before the call, the parent ignores the signal too. For example,
//!   `nohup` makes a program ignore HUP. SIGCHLD is an exception: the parent does not ignore it, because wait(2) would
//!   fail. USR2 is left to the program also if the program installed a handler for it before the call.
//! - The kernel sends TTIN and TTOU to a background job that uses its terminal. The parent ignores such a signal, and
//!   reacts only to a TTIN or TTOU that a process has sent. (macOS does not mark the signals of the kernel. There,
//!   while the parent is in the background, it also ignores TTIN and TTOU from a process of its own process group.)
//! - For the signals in this table, the program's own handlers do not run in the parent. Its handlers for other signals
//!   run as usual. If all workers are [threads](Prefork::run_threads), the parent does not use USR1 and CHLD, so the
//!   program's handlers for these two signals run as usual too.
//!
//! The program itself makes the same requests through a [`Handle`], for example [`Handle::scale`]. The callback of
//! [`Prefork::on_event`] gets this handle. [`Handle::in_pool`] limits a request to one pool.
//!
//! ## Rolling restarts
//!
//! By default, the parent replaces one worker at a time:
//!
//! 1. The parent starts the replacement.
//! 2. The parent waits until the replacement is ready. Without a [`ready_timeout`](Prefork::ready_timeout), a
//!    replacement counts as ready when it calls [`Worker::ready`], or after it has lived for 1 s.
//! 3. The parent sends SIGTERM to the old process, and goes on with the next worker. It does not wait for the exit of
//!    the old process. So **a rolling restart of `n` workers can have up to `2 * n` processes**, if the old processes
//!    take long to finish their work. A worker never has more than two processes: a worker whose old process still runs
//!    is not replaced again.
//!
//! The rolling restart is over when all old processes have exited.
//!
//! If the replacement exits or is not ready in time, the old process stays, and the parent aborts the rolling restart.
//! Other replacements that have begun continue. If the parent gets HUP during a rolling restart, it begins another
//! rolling restart after the current one.
//!
//! Two settings change how the parent proceeds. They have the meanings of `maxSurge` and `maxUnavailable` in
//! Kubernetes, and hold for all replacements together: those of rolling restarts, of [recycling](#recycling) and
//! of [`Handle::replace`].
//!
//! | [`max_surge`](Prefork::max_surge) | [`max_unavailable`](Prefork::max_unavailable) | effect |
//! |---|---|---|
//! | 1 | 0 | The default, as above. |
//! | `s` | 0 | Up to `s` replacements start at the same time. This is faster, and needs more memory and CPU time. |
//! | 0 | 1 | The old process of a worker exits before the new one starts, one worker after the other. No worker ever has two processes. For workers that own a port, a file lock or a job by their id. |
//! | 0 | `u` | The same, with up to `u` workers at a time. |
//! | `s` | `u` | Up to `s + u` workers at a time. For `s` of them the new process starts first, for `u` of them the old process exits first. |
//!
//! Where the old process exits first, there is no old process to go back to. If the new process fails, the parent
//! aborts the rolling restart and restarts the worker as after any other failure.
//!
//! A replacement runs the same version of the program as the parent. Only an upgrade or a restart of the service runs a
//! new version.
//!
//! ## Upgrades
//!
//! On Linux, USR2 or [`Handle::upgrade`] replaces the program of the whole service, without losing a connection:
//!
//! 1. The parent opens the program at the path by which it was started, or at the path that [`Prefork::program`] sets.
//! 2. *Trial.* The parent starts the new program beside the running service. It must reach its call, its settings must
//!    be valid, and one of its workers must become ready in each pool. If anything fails, the upgrade is aborted
//!    ([`Event::UpgradeAborted`]), and nothing has changed. The trial takes at most [`Prefork::upgrade_timeout`].
//! 3. *Execution.* The parent executes the new program in its own process. So the service keeps its pid. The workers
//!    and the connections in the queues of the listeners stay.
//! 4. *Adoption.* The call in the new program takes over the workers and begins a rolling restart, which replaces all
//!    processes of the old program.
//!
//! The sockets must be opened by [`Prefork::listen`] or by [`bind`]. The code before the call runs again: in the trial,
//! and then in the new parent. A rollback is an upgrade to the old program. The page [`guide::deploying`] has the
//! details, and the [limitations](#limitations) list what an upgrade cannot do.
//!
//! ## Signals from a terminal
//!
//! ^C sends SIGINT to the parent and to the workers, so a worker may exit before the parent has read its own SIGINT.
//! But the parent reads all pending signals before it handles the exit of any worker. So ^C stops the service, and the
//! parent restarts no worker. A worker that should finish its work after ^C must handle SIGINT like SIGTERM. The
//! graceful stop of [`Worker`] handles both signals.
//!
//! When a terminal is closed, the parent and the workers that run in it get SIGHUP. The parent then begins a rolling
//! restart. SIGHUP also kills the workers that have no handler for SIGHUP, and the parent restarts these workers. If a
//! service should continue after its terminal is closed, start it with `nohup`, or in its own session with setsid(1).
//!
//! ## How the parent reads signals
//!
//! On Linux, a parent that only forks its workers blocks the signals in the table above and reads them from a
//! signalfd(2). The parent installs no signal handlers, so that the workers can install theirs. The crate signal-hook,
//! which tokio uses too, installs its handler for a signal only once. If the parent had installed that handler and
//! removed it again, a forked worker could not install it a second time.
//!
//! A parent with spawned workers or worker threads may have other threads, which do not block the signals. A parent
//! that spawns workers also unblocks the signals at each start, because the worker inherits the signal mask. So these
//! parents install a signal handler, which records the signal and wakes the parent. A forked worker of such a parent
//! gets the program's own signal handling back before the call returns in it.
//!
//! If all workers are threads, SIGUSR1 and SIGCHLD are left to the program. If another pool of the service has spawned
//! workers, the parent receives these signals, and forwards SIGUSR1 to the spawned workers only.
//!
//! # Messages
//!
//! The parent writes a line to the log for each [`Event`], with the crate [log](https://docs.rs/log) and the target
//! `taskfork`. The program chooses the logger and installs it before the call.
//!
//! | level | lines |
//! |---|---|
//! | error | The service or a pool stops because of a failure. A rolling restart, a replacement or an added worker has failed. |
//! | warn | A worker has failed or has exceeded a timeout. A request has no effect. |
//! | info | Each start, with the pid: `child 2 (pid 71) started, generation 0`. Normal exits, stops, scaling, rolling restarts, listeners. |
//! | debug | A process is ready. |
//!
//! Worker processes log their own failures: for example, the error that the closure of [`run`](Prefork::run) has
//! returned.
//!
//! **If no logger takes errors** of this target, these lines go to standard error instead, and begin with `taskfork:`.
//! So a failed start never shows only an exit status:
//!
//! ```text
//! taskfork: worker 0: cannot connect: Connection refused (os error 111)
//! taskfork: failed to start: child 0 (pid 71) exited with status 1
//! ```
//!
//! - The first line is the failure of a worker that `run` or [`run_threads`](Prefork::run_threads) has started, or
//!   whose user could not be changed.
//! - The second line is the reason why the service has failed, if the call returns a [`Report`]. If the service ends
//!   normally, nothing is printed.
//! - If an [optional](Prefork::optional) pool fails, a line names the pool and the reason when the pool has ended.
//! - If the call returns an [`Error`], the crate neither logs nor prints it, because the program gets it. If `main`
//!   returns the error, Rust prints it.
//!
//! With [`Prefork::name`], tools such as ps(1) show which process is the parent, and which worker each process serves.
//!
//! # Windows
//!
//! Windows has no fork, so every worker process is spawned, even by [`fork_processes`]: **the code before the call runs
//! again in each worker**. There, [`bind`] returns the socket that the parent has opened. Apart from this, taskfork
//! works as on Unix, with the following differences.
//!
//! **Requests to the parent** use event objects, which the parent creates:
//!
//! - The names of the events contain the parent's pid. For example, a parent with pid 71 creates `taskfork-71-TERM`,
//!   `taskfork-71-QUIT`, `taskfork-71-HUP`, `taskfork-71-TTIN` and `taskfork-71-TTOU`. There is no event for USR1.
//! - Any program can set an event, for example the stop handler of a Windows service. In PowerShell:
//!   `[Threading.EventWaitHandle]::OpenExisting('taskfork-71-HUP').Set()`.
//! - The names exist only in the parent's Windows session. If the parent is a Windows service, programs in other
//!   sessions must write `Global\` before the name.
//! - The events have the default permissions of the system: programs of the same user and of administrators may open
//!   them.
//! - If an event with one of these names already exists when the parent creates its events, the call returns an error.
//!   Another user can create such an event for a pid that it guesses. This prevents the start, but gives no control
//!   over the service.
//! - After the service has ended, the process keeps its five events for its next service. Requests that arrive between
//!   the two services have no effect.
//!
//! **The console** sends its own events to the parent and to the workers:
//!
//! - Ctrl-C and Ctrl-Break have the effect of INT on the parent, which then stops the service. A worker reacts in one
//!   of three ways:
//!     - The worker has enabled the graceful stop, by [`Worker::enable_graceful_stop`] or by another method that
//!       implies it. Such a worker ignores Ctrl-C and Ctrl-Break, and the parent requests the stop through the worker's
//!       event object. Handlers that were installed before the graceful stop was enabled do not run.
//!     - The worker has installed its own handler and has not enabled the graceful stop. Then this handler runs.
//!     - The worker has neither. Then Windows ends the worker with status 0xC000013A. This exit does not count as a
//!       failure, because the parent is already stopping the service.
//! - The closing of the console and the shutdown of the system have the effect of TERM on the parent. For a worker that
//!   has enabled the graceful stop, both events are stop requests too, so the worker does not wait for the parent's
//!   request. Windows ends a process about 5 s after these events. So a longer
//!   [`graceful_timeout`](Prefork::graceful_timeout) has no effect there.
//! - A logoff has no effect. (Windows reports a logoff only to services.)
//!
//! **Stopping a worker** does not require a console, because each worker has an event object for stop requests:
//!
//! - If a worker has not enabled the graceful stop, a stop request ends the worker at once, as SIGTERM ends a process
//!   on Unix. Workers of [`fork_processes`] cannot enable the graceful stop, because they have no `Worker` handle.
//!   There is one exception: the parent does not end workers that were older than a second when the console sent an
//!   event. These workers have received the event themselves and react to it.
//! - If the parent must kill a worker, it ends the worker with status 1, as `taskkill /F` does. The parent also ends a
//!   worker without a heartbeat in this way, because Windows has no counterpart of SIGABRT.
//!
//! **Exit statuses** have 32 bits. A process that crashes or aborts also has an exit status. The log names the cause of
//! a common status, for example: `exited with status 0xC0000005 (access violation)`. While Windows shows a dialog about
//! the crash, the process has not exited yet. So on servers, disable this dialog.
//!
//! **Processes:**
//!
//! - All workers belong to a job object of the parent. When the parent ends, for whatever reason, Windows ends the
//!   workers at once, without a stop request.
//! - A process that a worker starts belongs to the job too, and ends when the parent ends. To start a process outside
//!   the job, use the flag `CREATE_BREAKAWAY_FROM_JOB`.
//! - If the parent itself belongs to a job with user interface limits, it cannot use a job object of its own. Then
//!   every start of a worker fails.
//! - A worker inherits the standard streams, the listeners and three handles that the supervision requires, but no
//!   other handles. It uses the parent's console, or has no console if the parent has none. Its command line is
//!   identical to the parent's.
//!
//! # Log
//!
//! The parent logs through the [`log`](https://docs.rs/log) crate, with the target `taskfork`. If Tornado logs the same
//! event, the line has the same words as Tornado's line:
//!
//! - `Starting 4 processes`
//! - `child 2 (pid 71) killed by signal 9, restarting`
//! - `child 2 (pid 71) exited with status 3, restarting`
//! - `child 2 (pid 71) exited normally`
//!
//! In these lines, `child 2 (pid 71)` is a process of worker 2, as in Tornado's log.
//!
//! If SIGKILL kills a worker and the parent has not sent this SIGKILL, the cause may be the kernel's out-of-memory
//! killer. The kernel counts its out-of-memory kills in each cgroup. If the counter of the parent's cgroup has grown,
//! the log line contains `(out of memory)`. If the parent cannot read the counter, the line contains `(perhaps out of
//! memory)`.
//!
//! [`Prefork::on_event`] sets a callback that gets the same information as values of the type [`Event`]. The callback
//! also gets events that are not logged, and a [`Handle`] with which it can control the service.
//!
//! # Status
//!
//! [`Prefork::on_interval`] sets a callback that regularly gets the [`Status`] of the service: its state, the number of
//! ready workers in each pool, the processes with their ages, restarts and work in progress, and the lengths of the
//! listeners' queues. The guide shows how to make [metrics](guide::observability) of it, and how to write an
//! [autoscaler](guide::autoscaling).
//!
//! # Limitations
//!
//! The death of the parent:
//!
//! - If SIGKILL ends the parent, the workers get SIGTERM. A worker that has enabled the [graceful
//!   stop](Worker#stopping) also gets SIGKILL after the [`graceful_timeout`](Prefork::graceful_timeout). But a worker
//!   continues to run if it ignores or blocks SIGTERM, handles SIGTERM without this crate, or is stopped (SIGSTOP). A
//!   program that a worker executes in its place (execve(2)) gets no SIGKILL.
//! - If the parent is in another pid namespace than a worker, the worker does not know the pid of its parent. So this
//!   worker gets SIGTERM, but no SIGKILL. If such a worker is pid 1 of its pid namespace, the kernel drops SIGTERM too,
//!   unless the worker handles SIGTERM.
//! - On Linux, some changes in a worker clear its `PR_SET_PDEATHSIG` setting (prctl(2)). Then the worker does not get
//!   this SIGTERM. The changes are: the worker changes its user or group itself, instead of by [`Prefork::user`], or it
//!   executes a program with other rights, for example a set-user-ID program.
//!
//! Processes that the parent cannot stop or does not know:
//!
//! - The parent cannot kill a worker thread, only abandon it. If one thread crashes, the whole process ends.
//! - If a worker changes its user itself, a parent without root cannot send signals to the worker. So the parent cannot
//!   stop this worker.
//! - The parent does not supervise the processes that a worker starts.
//! - Other code in the parent may reap a worker, for example a signal handler or a thread that calls waitpid(2) for any
//!   child. The parent notices the exit within a second after the next SIGCHLD or after the next timeout of its own.
//!   The exit then counts as abnormal, with [unknown status](Exit::Unknown). Until the parent notices, the system may
//!   give the worker's pid to another process. The parent's signals to the worker then go to that process.
//!
//! Upgrades:
//!
//! - Upgrades need Linux and worker processes. On other systems and for worker threads, a request for an upgrade only
//!   leads to [`Event::UpgradeAborted`]. The same holds for a program with rights of its own (set-user-ID,
//!   set-group-ID, file capabilities), for a script, and for a parent with listening sockets that neither `listen` nor
//!   `bind` has made.
//! - Between the execution and the call of the new program, nothing supervises the workers. If the new program crashes
//!   there, the service ends: its workers get SIGTERM. If the new program does not reach its call within
//!   [`upgrade_timeout`](Prefork::upgrade_timeout), it is killed.
//! - With spawned workers, other threads of the parent end at the execution without cleanup, and a signal that such a
//!   thread takes at this instant can be lost.
//! - The execution takes longer if the parent has touched much memory: 30 to 140 ms for each GiB. The kernel kills the
//!   parent if it cannot complete the execution after it has given up the old program.
//!
//! Wrong conclusions of the parent:
//!
//! - A bug in a worker may overwrite the memory that the workers of its pool share with the parent. Then the parent may
//!   wrongly treat a worker of this pool as ready or alive, may replace workers of this pool, or may stop the pool or
//!   the service. A worker cannot harm the parent through this memory in any other way.
//! - Two stop requests in quick succession count as two requests, so the parent kills the workers. For example,
//!   `timeout` of coreutils may send TERM twice to the program that it runs. `timeout --foreground` sends TERM only
//!   once.
//! - If a process hangs for less than two heartbeat timeouts, the parent may not notice it. If only the workers are
//!   stopped (SIGSTOP) for about one heartbeat timeout and the parent is not, the parent takes them for hung workers.
//! - The kernel's counter of out-of-memory kills includes processes that a worker has started. If such a process was
//!   killed, the log may contain `(out of memory)` for the next worker that is killed by SIGKILL.
//!
//! Resources:
//!
//! - On Linux before 6.16, a hostile worker can delay the parent. It can send a TCP socket with `SO_LINGER` and unsent
//!   data through the socket that wakes the parent. The parent then waits for the linger time.
//! - The parent writes the log in the same thread that supervises the workers. If a write blocks, for example to a pipe
//!   that no process reads, the parent does not react to events.
//! - The parent keeps all descriptors open that the program has opened. If one of them is a listening socket, a client
//!   that connects while the workers finish their work at the end of the service waits, and its connection fails when
//!   the parent ends. The parent closes the sockets of [`Prefork::listen`] before: see [Listeners](#listeners).
//! - If seccomp forbids unshare(2) and `/proc` is not mounted, the parent cannot count its threads. Then the call
//!   returns an error.
//!
//! # Platforms
//!
//! - *Linux*: tested.
//! - *Windows 10 and later*: tested with Wine 8, by the same tests as on Linux. Some behaviour is not tested, because
//!   Wine does not have it or differs from Windows: Ctrl-Break; the closing of the console, a logoff and the shutdown
//!   of the system; the error of a start if a handle limit or a job's process limit is reached; security products that
//!   monitor `CreateProcessW`.
//! - *macOS and FreeBSD*: the code compiles, but has not run yet. There, a signal handler writes to a pipe, and the
//!   parent reads from the pipe. On FreeBSD, the workers use procctl(2) to get SIGTERM when the parent ends. On macOS,
//!   each worker has a thread that waits until the parent's end of a socket pair is closed, and then sends SIGTERM to
//!   its own process. On Linux, `--cfg taskfork_portable` selects the code for macOS, and this code passes the tests
//!   there.
//!
//! On other systems, the crate does not compile.
#![deny(unsafe_code)]

#[cfg(unix)]
mod accounts;
mod backend;
mod error;
mod event;
mod exit;
mod failure;
pub mod guide;
mod handle;
mod listener;
mod pid_file;
mod policy;
mod pool_name;
mod prefork;
mod report;
mod scoreboard;
mod service;
mod setup;
mod start;
mod status;
mod stop_flag;
mod stopped;
mod supervisor;
mod sys;
mod waker_set;
mod waker_thread;
mod worker;

use listener::Retry;

pub use error::{Error, Result};
pub use event::{Event, RecycleReason, RestartReason};
pub use exit::{Exit, OutOfMemory, Process};
pub use handle::Handle;
pub use listener::{Connection, ListenConfig, Listener, ListenerIndex};
pub use policy::RestartPolicy;
pub use prefork::{Backend, Prefork, Role};
pub use report::{PoolReport, Reason, Report, WorkerReport};
pub use service::Supervisor;
pub use status::{
    ListenerStatus, PoolStatus, PrivateMemory, ServiceState, Status, UpgradeOutcome, WorkerState, WorkerStatus,
};
pub use stopped::Stopped;
pub use worker::{WorkGuard, WorkResult, Worker};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Starts `n` workers. In each worker, returns the worker's task id. In the parent, supervises the workers.
///
/// On Windows, each worker is a new process that runs `main` from its beginning until it reaches this call: see [the
/// differences on Windows](crate#windows).
///
/// - `n` is the number of workers. `None` and 0 mean one worker per CPU that this process may use. The number of usable
///   CPUs depends on the CPU affinity of the process and on the CPU quota of its cgroup.
/// - `max_restarts` limits the number of restarts, counted over all workers since the start of the service. `None`
///   means 100. If a worker needs one more restart, the parent stops all workers.
///
/// Both parameters have the same meaning as in Tornado. The limit applies for as long as the service runs. A service
/// that should survive any number of failures uses [`Prefork`], which has no limit by default.
///
/// **In a worker**, the call returns `Ok` with the task id as soon as the worker has started. The first `n` workers
/// have the ids 0 to `n - 1`. A worker that SIGTTIN adds may have a higher id. A worker keeps its id when it is
/// restarted.
///
/// **In the parent**, the call does not return while workers are running. If all workers have exited normally, or a
/// signal has stopped the service, the parent exits with status 0. Then the destructors of values in `main` do not run
/// in the parent. Functions that are registered with atexit(3) run, while the parent's signals are still blocked. In
/// every other case the call returns an error.
///
/// The documentation of the crate lists [the signals that the parent handles](crate#signals) and [the guarantees to a
/// worker](crate#in-a-worker).
///
/// # Errors
///
/// Before the call returns an error in the parent, all workers have exited. The signal mask, the signal dispositions
/// and the open descriptors are then the same as before the call. The errors are:
///
/// - The process has more than one thread. [`Error::thread_count`] returns the number of threads. (Not on Windows.)
/// - The calling process is itself a worker. If this worker then exits with a status other than 0 or is killed by a
///   signal, its parent does not restart it: the next process would make the same call.
/// - The calling process already runs a service: another thread has started the service, or the service's callback
///   ([`Prefork::on_event`]) makes this call. A process can run only one service at a time, because signals and the
///   exits of children concern the whole process.
/// - `n` is greater than the number of processes that the system allows.
/// - A system call fails, for example fork(2) because of a limit or because memory is short. [`Error::call`],
///   [`Error::worker`] and [`Error::io_error`] describe the failure. The parent has stopped the workers that it had
///   started.
/// - The restart limit is reached. [`Error::worker`] and [`Error::exit`] describe the exit that made one more restart
///   necessary. The parent has stopped the other workers gracefully, and has killed those that did not exit in time.
/// - A worker called this function or another function that starts workers, and then failed. [`Error::worker`] and
///   [`Error::exit`] describe its exit. The parent has stopped the other workers.
///
/// In a forked worker, the call never returns an error. If the system returns no random numbers for the worker's
/// generator, the worker logs the error and exits with status 1. In a spawned worker, the call may return an error: see
/// [`Backend::Spawn`].
///
/// # Examples
///
/// All workers accept connections from one socket, which [`bind`] opens before the call.
///
/// ```no_run
/// use std::io::Write;
///
/// let listener = taskfork::bind("127.0.0.1:8000")?;
/// let id = taskfork::fork_processes(None, None)?;
/// loop {
///     let (mut connection, _) = listener.accept()?;
///     writeln!(connection, "hello from worker {id}")?;
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn fork_processes(n: impl Into<Option<usize>>, max_restarts: impl Into<Option<u32>>) -> Result<usize> {
    /// Tornado's default.
    const MAX_RESTARTS: u32 = 100;
    Prefork::new()
        .workers(n.into().unwrap_or(0))
        .max_restarts(max_restarts.into().unwrap_or(MAX_RESTARTS))
        .start_plain()
}

/// Opens a socket for use before the call: a TCP listener, a UDP socket or a Unix listener. All workers share the
/// socket.
///
/// A forked worker inherits the socket, as it inherits all descriptors of the program. A
/// [spawned](Backend::Spawn) worker runs `main` from its beginning. There, this function returns the socket that the
/// parent has opened, so the same program works with both backends, and on Windows.
///
/// The argument is an address, or a [`ListenConfig`] with an address and settings, as for [`Prefork::listen`]. The
/// [socket is non-blocking](Listener#the-socket-is-non-blocking). [`Listener::accept`] and [`Listener::recv_from`] wait.
/// [`Listener::as_tcp`] and similar methods return the type of the standard library.
///
/// `Prefork::listen` is the simpler choice for a program that uses [`Prefork`]. A socket of this function can also be
/// passed to `Prefork::listen`. This is useful if the program needs the port before the call. A socket that was not
/// passed to `Prefork::listen` belongs to the program:
///
/// - The parent does not close it when the service stops. A client that connects while the workers finish their work
///   waits, and its connection fails when the parent ends.
/// - [`Worker::stop_listening`] ends the waits of [`Listener::accept`], but does not close the socket.
/// - In worker threads, a stop request does not end the waits of [`Listener::accept`].
///
/// # Which socket a spawned worker gets
///
/// The parent passes every socket of this function that is open when the worker starts. A call in the worker gets the
/// socket that was opened by the same call in the parent: a socket for the same address, as the program has written it.
/// If several open sockets have the same address, for example `127.0.0.1:0`, their order decides. So all workers have
/// the same port. A call for an address that the parent has not opened, or has closed again, opens a new socket. So
/// make the same calls in every process. A call after the worker has reached its call of `start` or `fork_processes`
/// always opens a new socket.
///
/// # Unix sockets
///
/// The parent removes the file when it drops the [`Listener`], or when it exits because [`fork_processes`] has ended. A
/// worker never removes the file. [`ListenConfig::unix`] describes what happens to a file that is at the path already.
///
/// # Errors
///
/// - The system refuses to open the socket. If the address is in use by another process, this function tries again for
///   3 s before it fails.
/// - The program already has an open socket of this function with the same address. This fails at once.
/// - [`ListenConfig::per_worker`] is set, or the argument is a socket that is bound already.
/// - [`Error::setting`] returns the name of a setting that is invalid for this address.
///
/// # Examples
///
/// ```no_run
/// use std::io::Write;
///
/// let listener = taskfork::bind("127.0.0.1:8000")?;
/// let id = taskfork::fork_processes(None, None)?;
/// loop {
///     let (mut connection, _) = listener.accept()?;
///     writeln!(connection, "hello from worker {id}")?;
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn bind(on: impl Into<ListenConfig>) -> Result<Listener> {
    let mut on_wait = supervisor::warn_of_wait;
    listener::bind(on.into(), &mut Retry::new(&mut on_wait))
}

/// Returns the task id of this worker, or `None` in a process that is not a worker, such as the parent. In a worker of
/// [`fork_processes`], this is the id that `fork_processes` has returned.
///
/// [Two processes can have the same id](guide::jobs#two-processes-with-the-same-id) for some time: while a process is
/// replaced, for example in a rolling restart, the old process finishes its work.
///
/// If a worker forks a process, the forked process has the worker's id too, until it executes another program. With
/// [worker threads](Prefork::run_threads), only the worker's own thread has the id. In the threads that this thread
/// starts, this function returns `None`.
pub fn task_id() -> Option<usize> {
    worker::task_id()
}
