//! [`Handle`], with which a program controls its service from the parent, and the inbox that collects its requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, mem, process, ptr};

use crate::policy::{PendingRequests, Request};
use crate::status::Status;
use crate::sys::{Lent, Waker};

thread_local! {
    /// Returns the status of the service while a callback of the service runs in this thread. The argument is the inbox
    /// of the handle that asks: a handle of an earlier service gets no status.
    static STATUS: Lent<Inbox, Option<Status>> = const { Lent::nothing() };
}

/// The handle with which the program controls its service from the parent. The callback of
/// [`Prefork::on_event`](crate::Prefork::on_event) gets a reference to it, and can clone and keep it.
///
/// Each method only notes a request and returns at once. The parent executes the request after the callback has
/// returned, and reports the effect as an [`Event`](crate::Event). A [stop](Handle::stop) overtakes all other requests.
/// Until the parent executes them, several requests of the same kind count as one, like
/// [signals](crate#signals). So a program can call a method as often as it likes.
///
/// - **Threads.** A clone can be used at any time. If the workers are [spawned](crate::Backend::Spawn) or
///   [threads](crate::Prefork::run_threads), the clone can also be used by other threads of the parent's process,
///   including worker threads. A call then wakes the parent at once. If the workers are forks, the parent has no other
///   threads.
/// - **In a worker process, a handle has no effect.** A forked worker has a copy of every handle that the program has
///   kept in the parent. Use [`Worker::stop_all`](crate::Worker::stop_all) there instead.
/// - **After the end of the service**, a handle has no effect. It keeps no descriptor open.
///
/// # Several pools
///
/// In a service with [several pools](crate::Supervisor), [`stop`](Handle::stop), [`roll`](Handle::roll) and
/// [`upgrade`](Handle::upgrade) concern all pools, and [`scale`](Handle::scale) and [`replace`](Handle::replace) concern the first pool, as the signals do. The
/// handle that [`in_pool`](Handle::in_pool) returns concerns one pool.
///
/// # Examples
///
/// ```no_run
/// use taskfork::{Event, Prefork, Report};
///
/// fn main() -> taskfork::Result<Report> {
///     let service = Prefork::new().workers(4).on_event(|event, handle| {
///         // Without worker 0, this service is of no use.
///         if matches!(event, Event::Exited { process, restarting: false, .. } if process.id == 0) {
///             handle.stop();
///         }
///     });
///     service.run(|worker| {
///         // ..
/// #       drop(worker);
///         Ok(())
///     })
/// }
/// ```
#[derive(Clone)]
pub struct Handle {
    inbox: Arc<Inbox>,
    target: Target,
}

/// The part of the service that a request concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Service,
    /// The pool at this position.
    Pool(usize),
    /// A pool of this name, which the service does not have.
    Unknown(String),
}

impl Handle {
    /// Returns a handle for one pool of the service: its methods concern the pool with this name only.
    ///
    /// - [`scale`](Handle::scale), [`replace`](Handle::replace) and [`roll`](Handle::roll) then concern the workers of
    ///   this pool.
    /// - [`stop`](Handle::stop) stops this pool, and the other pools go on. The pool is not started again. The service
    ///   ends when all of its pools have ended.
    ///
    /// If the service has no pool of this name, or if the pool is stopping or has ended, a request has no effect. The
    /// parent then logs a warning and reports [`Event::RequestIgnored`](crate::Event::RequestIgnored), except for a
    /// request to stop a pool that is already stopping or has ended. A [`Prefork`](crate::Prefork) that is used alone
    /// has one pool with an empty name.
    ///
    /// ```no_run
    /// use taskfork::{Event, Prefork, Report, Supervisor};
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     let service = Supervisor::new()
    ///         .pool("web", Prefork::new().workers(4))
    ///         .pool("jobs", Prefork::new().workers(1))
    ///         .on_event(|event, handle| {
    ///             // The first restart in the pool `web` gives the pool `jobs` a second worker.
    ///             if matches!(event, Event::Restarting { process, .. } if process.pool == "web") {
    ///                 handle.in_pool("jobs").scale(2);
    ///             }
    ///         });
    ///     service.run(|worker| {
    ///         // ..
    /// #       drop(worker);
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn in_pool(&self, name: &str) -> Handle {
        let position = self.inbox.pools.iter().position(|pool| *pool == name);
        let target = position.map_or_else(|| Target::Unknown(name.into()), Target::Pool);
        Handle { inbox: Arc::clone(&self.inbox), target }
    }

    /// Sets the number of workers. The parent adds workers under the lowest free ids, or removes those with the highest
    /// ids. With [its own socket](crate::ListenConfig::per_worker), a removed worker first serves the connections that
    /// wait there, as after SIGTTOU. The parent reports [`Event::Scaled`](crate::Event::Scaled).
    ///
    /// The parent limits the number to at least 1, and at most [`max_workers`](crate::Prefork::max_workers) and the
    /// number of processes that the system allows. Of several calls, the last one counts.
    pub fn scale(&self, workers: usize) {
        self.add(Request::Scale(workers));
    }

    /// Requests the replacement of the process of worker `id`. The parent starts the new process first, and requests a
    /// stop of the old process when the new one is ready. The replacement does not count as a restart. The parent
    /// reports [`Event::Recycling`](crate::Event::Recycling).
    ///
    /// The replacement keeps to [`max_surge`](crate::Prefork::max_surge) and
    /// [`max_unavailable`](crate::Prefork::max_unavailable). So with `max_surge(0)`, the old process stops first.
    ///
    /// If the replacement fails, the old process goes on, and the parent reports
    /// [`Event::RecyclingAborted`](crate::Event::RecyclingAborted). With `max_surge(0)` the old process has exited by
    /// then, and the worker is restarted as after any failure. If the next process of the worker is about to start,
    /// the call has no effect. If there is no worker `id`, the parent logs a warning and reports
    /// [`Event::RecyclingRefused`](crate::Event::RecyclingRefused).
    pub fn replace(&self, id: usize) {
        self.add(Request::Replace(id));
    }

    /// Requests a [rolling restart](crate#rolling-restarts), as SIGHUP to the parent does: the parent replaces the
    /// processes of all workers, by default one worker at a time. A request during a rolling restart leads to one more
    /// rolling restart after it. With several pools, the parent rolls one pool after the other.
    pub fn roll(&self) {
        self.add(Request::Roll);
    }

    /// Requests an upgrade of the service to the program that is on disk now, as SIGUSR2 to the parent does. The parent
    /// keeps its pid, its listeners and its workers, and replaces the workers by those of the new program. Linux only:
    /// on other systems, and if the workers are threads, the parent only reports
    /// [`Event::UpgradeAborted`](crate::Event::UpgradeAborted).
    ///
    /// An upgrade always concerns the whole service, also with a handle for [one pool](Handle::in_pool).
    ///
    /// - The parent first tries the new program. If the trial fails, nothing has changed, and the parent reports
    ///   [`Event::UpgradeAborted`](crate::Event::UpgradeAborted) with the reason.
    /// - Then the parent executes the new program. From then on, the callbacks of the old program are gone, and the
    ///   handles with them. The callbacks of the new program get the events that follow, up to
    ///   [`Event::UpgradeFinished`](crate::Event::UpgradeFinished).
    /// - A request during the trial ends the trial and begins a new one, with the program that is on disk by then.
    ///
    /// [`Prefork::program`](crate::Prefork::program) sets the path of the new program, and
    /// [`Prefork::upgrade_timeout`](crate::Prefork::upgrade_timeout) the time limit.
    /// [`Status::last_upgrade`] returns the result.
    pub fn upgrade(&self) {
        self.add(Request::Upgrade);
    }

    /// Requests a graceful stop of the whole service with all of its pools, as SIGTERM to the parent does. Then
    /// [`Report::reason`] is [`Stopped`](crate::Reason::Stopped). Has no effect if the service already stops.
    ///
    /// A second call does not kill the workers, unlike a second SIGTERM. The call does not count as one of these two
    /// signals.
    ///
    /// [`Report::reason`]: crate::Report::reason
    pub fn stop(&self) {
        self.add(Request::Stop);
    }

    /// Returns the status of the service, if a callback of the service calls this method:
    /// [`on_event`](crate::Prefork::on_event) or [`on_interval`](crate::Prefork::on_interval). The status is created
    /// when the method is called. This takes about 1 µs per process, so with many workers, do not call the method for
    /// every event. Requests that the callback has made have not taken effect yet.
    ///
    /// Returns `None` in every other case, because the parent's state can be read only between two of its steps: in
    /// another thread, in code that runs after the callback, in a worker process, and after the end of the service. To
    /// give the status to another thread, for example to one that serves metrics, clone the [`Status`] in `on_interval`
    /// and send the clone.
    ///
    /// In a service with several pools, the status contains all pools, also if this handle is for [one
    /// pool](Handle::in_pool).
    ///
    /// ```no_run
    /// use taskfork::{Event, Prefork, Report};
    ///
    /// fn main() -> taskfork::Result<Report> {
    ///     let service = Prefork::new().workers(4).on_event(|event, handle| {
    ///         if let (Event::Restarting { .. }, Some(status)) = (event, handle.status()) {
    ///             let pool = &status.pools()[0];
    ///             println!("{} of {} workers are ready", pool.ready(), pool.wanted());
    ///         }
    ///     });
    ///     service.run(|worker| {
    ///         // ..
    /// #       drop(worker);
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn status(&self) -> Option<Status> {
        if process::id() != self.inbox.pid {
            return None;
        }
        STATUS.with(|status| status.call(&self.inbox).flatten())
    }

    /// Runs a callback of the service. While it runs, [`Handle::status`] calls `status`.
    pub(crate) fn with_status(&self, status: &dyn Fn() -> Status, callback: impl FnOnce()) {
        let own = &self.inbox;
        let status_for = |asking: &Inbox| ptr::eq(asking, &raw const **own).then(status);
        STATUS.with(|place| place.lend(&status_for, callback));
    }

    fn add(&self, request: Request) {
        let target = match (&self.target, request) {
            // These requests concern one pool. Noted for this pool, so that the last of several numbers counts.
            (Target::Service, Request::Scale(_) | Request::Replace(_)) => Target::Pool(0),
            // The service has one program for all pools.
            (Target::Pool(_), Request::Upgrade) => Target::Service,
            (target, _) => target.clone(),
        };
        self.inbox.add(target, request);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// The requests that handles have made and the parent has not taken yet.
struct Inbox {
    /// The names of the pools, in their order.
    pools: Vec<&'static str>,
    /// The pid of the parent. A process with another pid has only a copy of the inbox, and leaves it alone. In
    /// particular it takes no lock, because another thread of the parent may have held the lock during the fork.
    pid: u32,
    /// Whether `state` contains a request. The parent reads this flag after each action, because reading writes to no
    /// page of memory, unlike locking (copy-on-write).
    has_requests: AtomicBool,
    state: Mutex<State>,
}

struct State {
    /// The requests for each target, in the order in which the first request for the target arrived. All requests for
    /// unknown pools share one target, which has the first name. So the list is no longer than the number of pools
    /// plus 2.
    pending: Vec<Pending>,
    /// Wakes the parent. `None` after the end of the service. Then the waker's descriptor can be closed.
    waker: Option<Arc<Waker>>,
}

struct Pending {
    target: Target,
    requests: PendingRequests,
}

impl Inbox {
    fn add(&self, target: Target, request: Request) {
        if process::id() == self.pid {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.waker.is_none() {
                return;
            }
            state.requests_for(target).add(request);
            if !self.has_requests.swap(true, Ordering::Release) {
                state.waker.iter().for_each(|waker| waker.wake());
            }
        }
    }
}

impl State {
    fn requests_for(&mut self, target: Target) -> &mut PendingRequests {
        let is_same = |pending: &Pending| match (&pending.target, &target) {
            (Target::Unknown(_), Target::Unknown(_)) => true,
            (pending, target) => pending == target,
        };
        let position = self.pending.iter().position(is_same).unwrap_or_else(|| {
            self.pending.push(Pending { target, requests: PendingRequests::default() });
            self.pending.len() - 1
        });
        &mut self.pending[position].requests
    }
}

/// The parent's end of all handles, which takes their requests. After this value is dropped, the handles have no
/// effect.
pub(crate) struct HandleReceiver(Handle);

impl HandleReceiver {
    /// Creates the inbox of a service that has pools with these names.
    pub fn new(waker: Arc<Waker>, pools: Vec<&'static str>) -> HandleReceiver {
        HandleReceiver::in_process(process::id(), waker, pools)
    }

    fn in_process(pid: u32, waker: Arc<Waker>, pools: Vec<&'static str>) -> HandleReceiver {
        let state = Mutex::new(State { pending: Vec::new(), waker: Some(waker) });
        let inbox = Arc::new(Inbox { pools, pid, has_requests: AtomicBool::new(false), state });
        HandleReceiver(Handle { inbox, target: Target::Service })
    }

    pub fn handle(&self) -> Handle {
        self.0.clone()
    }

    pub fn has_requests(&self) -> bool {
        self.0.inbox.has_requests.load(Ordering::Acquire)
    }

    /// Removes all requests and returns them with their targets: first the others in about the order in which they
    /// arrived, then the replacements of single workers. Of the requests for unknown pools, only the name in the first
    /// one is known.
    pub fn take(&self) -> Vec<(Target, Request)> {
        let mut state = self.0.inbox.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.inbox.has_requests.store(false, Ordering::Relaxed);
        let mut taken = Vec::new();
        for Pending { target, mut requests } in mem::take(&mut state.pending) {
            taken.extend(requests.take().into_iter().map(|request| (target.clone(), request)));
        }
        // A stable sort, so it changes nothing else.
        taken.sort_by_key(|(_, request)| matches!(request, Request::Replace(_)));
        taken
    }
}

impl Drop for HandleReceiver {
    fn drop(&mut self) {
        let inbox = &self.0.inbox;
        if process::id() == inbox.pid {
            inbox.state.lock().unwrap_or_else(PoisonError::into_inner).waker = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::sys::{self, Drained};

    #[test]
    fn a_handle_can_be_shared_between_threads() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        shared::<Handle>();
    }

    fn receiver() -> HandleReceiver {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        HandleReceiver::new(Arc::new(waker), vec!["web", "jobs"])
    }

    #[test]
    fn requests_of_one_kind_coalesce_until_they_are_taken() {
        let receiver = receiver();
        let handle = receiver.handle();
        assert!(!receiver.has_requests());
        for n in 0..1000 {
            handle.roll();
            handle.scale(n);
            handle.replace(n % 2);
            handle.clone().stop();
        }
        assert!(receiver.has_requests());
        let first = Target::Pool(0);
        let expected = [
            (Target::Service, Request::Roll),
            (Target::Service, Request::Stop),
            (first.clone(), Request::Scale(999)),
            (first.clone(), Request::Replace(0)),
            (first, Request::Replace(1)),
        ];
        assert_eq!(receiver.take(), expected);
        assert!(!receiver.has_requests());
        assert_eq!(receiver.take(), []);
        handle.roll();
        assert_eq!(receiver.take(), [(Target::Service, Request::Roll)]);
    }

    #[test]
    fn requests_in_a_pool_concern_this_pool_only() {
        let receiver = receiver();
        let jobs = receiver.handle().in_pool("jobs");
        jobs.scale(3);
        jobs.roll();
        jobs.replace(1);
        jobs.stop();
        let requests = [Request::Scale(3), Request::Roll, Request::Stop, Request::Replace(1)];
        assert_eq!(receiver.take(), requests.map(|request| (Target::Pool(1), request)));
        jobs.in_pool("web").stop();
        receiver.handle().in_pool("jobs").roll();
        assert_eq!(receiver.take(), [(Target::Pool(0), Request::Stop), (Target::Pool(1), Request::Roll)]);
    }

    #[test]
    fn an_upgrade_concerns_the_whole_service() {
        let receiver = receiver();
        receiver.handle().in_pool("jobs").upgrade();
        receiver.handle().upgrade();
        assert_eq!(receiver.take(), [(Target::Service, Request::Upgrade)]);
        receiver.handle().in_pool("mail").upgrade();
        assert_eq!(receiver.take(), [(Target::Unknown("mail".into()), Request::Upgrade)]);
    }

    #[test]
    fn replacements_of_single_workers_come_last() {
        let receiver = receiver();
        receiver.handle().replace(2);
        receiver.handle().roll();
        assert_eq!(receiver.take(), [(Target::Service, Request::Roll), (Target::Pool(0), Request::Replace(2))]);
    }

    #[test]
    fn the_last_number_counts_through_any_handle() {
        let receiver = receiver();
        let service = receiver.handle();
        service.scale(2);
        service.in_pool("web").scale(3);
        assert_eq!(receiver.take(), [(Target::Pool(0), Request::Scale(3))]);
        service.in_pool("web").scale(4);
        service.scale(5);
        assert_eq!(receiver.take(), [(Target::Pool(0), Request::Scale(5))]);
    }

    #[test]
    fn only_the_first_unknown_pool_is_kept() {
        let receiver = receiver();
        let handle = receiver.handle();
        for n in 0..1000 {
            handle.in_pool(&format!("pool {n}")).roll();
        }
        assert_eq!(receiver.take(), [(Target::Unknown("pool 0".into()), Request::Roll)]);
        handle.in_pool("").stop();
        assert_eq!(receiver.take(), [(Target::Unknown("".into()), Request::Stop)]);
    }

    #[test]
    fn only_the_first_request_wakes_the_parent() {
        let (wake_receiver, waker) = sys::doorbell().expect("a doorbell");
        let waker = Arc::new(waker);
        let receiver = HandleReceiver::new(Arc::clone(&waker), vec![""]);
        let handle = receiver.handle();
        handle.roll();
        if cfg!(unix) {
            assert_eq!(wake_receiver.drain().expect("a doorbell"), Drained::Partly);
        }
        handle.stop();
        assert_eq!(wake_receiver.drain().expect("a doorbell"), Drained::Empty, "the parent is awake already");
    }

    #[test]
    fn a_handle_has_no_effect_after_the_service() {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let waker = Arc::new(waker);
        let receiver = HandleReceiver::new(Arc::clone(&waker), vec![""]);
        let handle = receiver.handle();
        drop(receiver);
        assert_eq!(Arc::strong_count(&waker), 1, "the handle keeps no descriptor open");
        handle.stop();
        assert!(!handle.inbox.has_requests.load(Ordering::Relaxed));
    }

    fn a_status() -> Status {
        let state = crate::status::ServiceState::Running;
        let started_at = std::time::UNIX_EPOCH;
        Status {
            name: None,
            pid: 71,
            started_at,
            age: std::time::Duration::ZERO,
            state,
            last_upgrade: None,
            pools: Vec::new(),
        }
    }

    #[test]
    fn only_the_callback_of_the_same_service_gets_a_status() {
        let receiver = receiver();
        let handle = receiver.handle();
        let other = self::receiver().handle();
        assert!(handle.status().is_none());
        handle.with_status(&a_status, || {
            assert_eq!(handle.clone().in_pool("jobs").status().map(|status| status.pid()), Some(71));
            assert!(other.status().is_none(), "a handle of another service");
            thread::scope(|scope| {
                let status = scope.spawn(|| handle.status()).join().expect("the thread");
                assert!(status.is_none(), "another thread");
            });
        });
        assert!(handle.status().is_none());
    }

    #[test]
    fn a_handle_in_another_process_gets_no_status() {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let handle = HandleReceiver::in_process(process::id() + 1, Arc::new(waker), vec![""]).handle();
        handle.with_status(&a_status, || assert!(handle.status().is_none()));
    }

    #[test]
    fn a_handle_in_another_process_takes_no_lock() {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let receiver = HandleReceiver::in_process(process::id() + 1, Arc::new(waker), vec![""]);
        let inbox = Arc::clone(&receiver.0.inbox);
        let _lock = inbox.state.lock().expect("a lock");
        receiver.handle().stop();
        assert!(!receiver.has_requests());
        drop(receiver);
    }
}
