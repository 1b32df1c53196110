//! [`Handle`], with which a program controls its service from the parent, and the inbox that collects its requests.

use std::fmt;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::policy::{PendingRequests, Request};
use crate::sys::Waker;

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
}

impl Handle {
    /// Sets the number of workers. The parent adds workers under the lowest free ids, or removes those with the highest
    /// ids. With [its own socket](crate::ListenConfig::per_worker), a removed worker first serves the connections that
    /// wait there, as after SIGTTOU. The parent reports [`Event::Scaled`](crate::Event::Scaled).
    ///
    /// The parent limits the number to at least 1, and at most [`max_workers`](crate::Prefork::max_workers) and the
    /// number of processes that the system allows. Of several calls, the last one counts.
    pub fn scale(&self, workers: usize) {
        self.inbox.add(Request::Scale(workers));
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
        self.inbox.add(Request::Replace(id));
    }

    /// Requests a [rolling restart](crate#rolling-restarts), as SIGHUP to the parent does: the parent replaces the
    /// processes of all workers, by default one worker at a time. A request during a rolling restart leads to one more
    /// rolling restart after it.
    pub fn roll(&self) {
        self.inbox.add(Request::Roll);
    }

    /// Requests a graceful stop of the whole service, as SIGTERM to the parent does. Then [`Report::reason`] is
    /// [`Stopped`](crate::Reason::Stopped). Has no effect if the service already stops.
    ///
    /// A second call does not kill the workers, unlike a second SIGTERM. The call does not count as one of these two
    /// signals.
    ///
    /// [`Report::reason`]: crate::Report::reason
    pub fn stop(&self) {
        self.inbox.add(Request::Stop);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// The requests that handles have made and the parent has not taken yet.
struct Inbox {
    /// The pid of the parent. A process with another pid has only a copy of the inbox, and leaves it alone. In
    /// particular it takes no lock, because another thread of the parent may have held the lock during the fork.
    pid: u32,
    /// Whether `state` contains a request. The parent reads this flag after each action, because reading writes to no
    /// page of memory, unlike locking (copy-on-write).
    has_requests: AtomicBool,
    state: Mutex<State>,
}

struct State {
    requests: PendingRequests,
    /// Wakes the parent. `None` after the end of the service. Then the waker's descriptor can be closed.
    waker: Option<Arc<Waker>>,
}

impl Inbox {
    fn add(&self, request: Request) {
        if process::id() == self.pid {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let State { requests, waker } = &mut *state;
            let Some(waker) = waker else { return };
            requests.add(request);
            if !self.has_requests.swap(true, Ordering::Release) {
                waker.wake();
            }
        }
    }
}

/// The parent's end of all handles, which takes their requests. After this value is dropped, the handles have no
/// effect.
pub(crate) struct HandleReceiver(Handle);

impl HandleReceiver {
    pub fn new(waker: Arc<Waker>) -> HandleReceiver {
        let state = State { requests: PendingRequests::default(), waker: Some(waker) };
        let inbox = Inbox { pid: process::id(), has_requests: AtomicBool::new(false), state: Mutex::new(state) };
        HandleReceiver(Handle { inbox: Arc::new(inbox) })
    }

    pub fn handle(&self) -> Handle {
        self.0.clone()
    }

    pub fn has_requests(&self) -> bool {
        self.0.inbox.has_requests.load(Ordering::Acquire)
    }

    /// Removes all requests and returns them in the order in which they arrived.
    pub fn take(&self) -> Vec<Request> {
        let mut state = self.0.inbox.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.inbox.has_requests.store(false, Ordering::Relaxed);
        state.requests.take()
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
    use super::*;
    use crate::sys::{self, Drained};

    #[test]
    fn a_handle_can_be_shared_between_threads() {
        fn shared<T: Clone + Send + Sync + 'static>() {}
        shared::<Handle>();
    }

    #[test]
    fn requests_of_one_kind_coalesce_until_they_are_taken() {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let receiver = HandleReceiver::new(Arc::new(waker));
        let handle = receiver.handle();
        assert!(!receiver.has_requests());
        for n in 0..1000 {
            handle.roll();
            handle.scale(n);
            handle.replace(n % 2);
            handle.clone().stop();
        }
        assert!(receiver.has_requests());
        let taken = receiver.take();
        assert_eq!(
            taken,
            [Request::Roll, Request::Stop, Request::Scale(999), Request::Replace(0), Request::Replace(1)]
        );
        assert!(!receiver.has_requests());
        assert_eq!(receiver.take(), []);
        handle.roll();
        assert_eq!(receiver.take(), [Request::Roll]);
    }

    #[test]
    fn only_the_first_request_wakes_the_parent() {
        let (wake_receiver, waker) = sys::doorbell().expect("a doorbell");
        let waker = Arc::new(waker);
        let receiver = HandleReceiver::new(Arc::clone(&waker));
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
        let receiver = HandleReceiver::new(Arc::clone(&waker));
        let handle = receiver.handle();
        drop(receiver);
        assert_eq!(Arc::strong_count(&waker), 1, "the handle keeps no descriptor open");
        handle.stop();
        assert!(!handle.inbox.has_requests.load(Ordering::Relaxed));
    }

    #[test]
    fn a_handle_in_another_process_takes_no_lock() {
        let (_receiver, waker) = sys::doorbell().expect("a doorbell");
        let state = State { requests: PendingRequests::default(), waker: Some(Arc::new(waker)) };
        let inbox = Inbox { pid: process::id() + 1, has_requests: AtomicBool::new(false), state: Mutex::new(state) };
        let receiver = HandleReceiver(Handle { inbox: Arc::new(inbox) });
        let inbox = Arc::clone(&receiver.0.inbox);
        let _lock = inbox.state.lock().expect("a lock");
        receiver.handle().stop();
        assert!(!receiver.has_requests());
        drop(receiver);
    }
}
