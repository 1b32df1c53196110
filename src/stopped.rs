//! [`Stopped`], the future that completes when a stop of the worker is requested.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use log::{Level, log};

use crate::error::Error;
use crate::stop_flag::StopFlag;
use crate::sys::{CallError, StopRequest};
use crate::waker_set::{WakerKey, WakerSet};
use crate::waker_thread;

/// A future that completes when a stop of the worker is requested. [`Worker::stopped`](crate::Worker::stopped) returns
/// it.
///
/// The future works in every async runtime, and without a runtime. It needs neither a reactor nor a timer of the
/// runtime, because a small thread of this crate wakes the tasks.
///
/// - The future does not borrow the [`Worker`](crate::Worker). It may outlive the handle, and it may be moved to
///   another task or thread.
/// - A clone is a future of its own: each clone completes when the stop is requested.
/// - After completion, the future may be polled again. It is then ready at once. So `&mut stopped` works in a loop with
///   `select!`.
/// - A future that is dropped before its completion leaves nothing behind. So a loop may also create a new future in
///   each round.
///
/// # The thread
///
/// The first poll in a process starts a thread with the name `taskfork-stop`, in which all signals are blocked. All
/// futures of the process use the same thread. The thread ends after it has woken all tasks. A call of
/// [`Worker::stopped`](crate::Worker::stopped) without a poll starts no thread.
///
/// If the system refuses the thread, the crate logs a warning. Until the thread can be started, the future waits for 1
/// ms in each poll and then wakes its own task, so that it still completes. On Unix, the thread also needs two
/// descriptors. If the system refuses the descriptors, the crate logs a warning, and the thread checks for a stop
/// request every 10 ms.
///
/// The thread ignores a panic of a [`Waker`](std::task::Waker), and wakes the other tasks.
///
/// # Forked processes
///
/// A process that the worker forks has no copy of the thread, and is not the worker. In that process, a future that was
/// not ready before the fork never completes.
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled or awaited"]
pub struct Stopped {
    source: Source,
    /// The place of this future's waker. `None` if the future was not polled yet, or has completed.
    key: Option<WakerKey>,
}

/// The origin of the stop request.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Process(Arc<ProcessStop>),
    Thread(Arc<StopFlag>),
}

impl Stopped {
    pub(crate) fn new(source: Source) -> Stopped {
        Stopped { source, key: None }
    }

    fn unregister(&mut self) {
        if let Some(key) = self.key.take() {
            self.source.wakers().remove(key);
        }
    }
}

impl Future for Stopped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !self.source.is_made() {
            let key = self.source.wakers().set(self.key, context.waker());
            self.key = Some(key);
            let watched = self.source.watch();
            // A stop may have been requested before the waker was stored, and then no thread wakes this task.
            if !self.source.is_made() {
                if let Err(error) = watched {
                    retry_later(error, context);
                }
                return Poll::Pending;
            }
        }
        self.unregister();
        Poll::Ready(())
    }
}

impl Clone for Stopped {
    fn clone(&self) -> Stopped {
        Stopped::new(self.source.clone())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.unregister();
    }
}

/// Makes the runtime poll the future again after a short time, because no thread will wake the task.
fn retry_later(error: CallError, context: &Context<'_>) {
    /// The pause between two attempts to start the thread. Without a pause, this would be a busy loop.
    const PAUSE: Duration = Duration::from_millis(1);
    static IS_LOGGED: AtomicBool = AtomicBool::new(false);
    if !IS_LOGGED.swap(true, Ordering::Relaxed) {
        let error = Error::from(error);
        log!(target: "taskfork", Level::Warn, "Worker::stopped() has no thread yet, checking in each poll: {error:?}");
    }
    thread::sleep(PAUSE);
    context.waker().wake_by_ref();
}

impl Source {
    fn is_made(&self) -> bool {
        match self {
            Source::Process(stop) => stop.request.is_made(),
            Source::Thread(stop) => stop.is_made(),
        }
    }

    fn wakers(&self) -> &WakerSet {
        match self {
            Source::Process(stop) => &stop.wakers,
            Source::Thread(stop) => stop.wakers(),
        }
    }

    /// Makes sure that a thread wakes the tasks when the stop is requested.
    fn watch(&self) -> Result<(), CallError> {
        match self {
            Source::Process(stop) => stop.watch(),
            Source::Thread(stop) => stop.watch(),
        }
    }
}

/// The stop request of a worker process, and the tasks that wait for it.
#[derive(Debug)]
pub(crate) struct ProcessStop {
    pub request: StopRequest,
    wakers: WakerSet,
    /// Whether the thread that waits for the request has been started.
    is_watched: Mutex<bool>,
}

impl ProcessStop {
    pub fn new(request: StopRequest) -> ProcessStop {
        ProcessStop { request, wakers: WakerSet::default(), is_watched: Mutex::new(false) }
    }

    /// Starts the thread that waits for the request, unless it has been started already.
    fn watch(self: &Arc<Self>) -> Result<(), CallError> {
        let mut is_watched = self.is_watched.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_watched {
            let stop = Arc::clone(self);
            waker_thread::start(move || stop.wait_and_wake())?;
            *is_watched = true;
        }
        Ok(())
    }

    fn wait_and_wake(&self) {
        #[cfg(unix)]
        if let Err(error) = self.request.fd() {
            let error = Error::from(CallError::new("socketpair", error));
            log!(target: "taskfork", Level::Warn, "Worker::stopped() checks every 10 ms for a stop request: {error:?}");
        }
        if self.request.wait(None) {
            self.wakers.wake_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic;
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Wake, Waker};
    use std::thread::Thread;

    use super::*;

    /// Sends its thread when it is woken.
    struct Notify(mpsc::Sender<Thread>);

    impl Wake for Notify {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(thread::current());
        }
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic::resume_unwind(Box::new("a waker"));
        }
    }

    fn pair() -> (Arc<StopFlag>, Stopped) {
        let flag = Arc::<StopFlag>::default();
        (Arc::clone(&flag), Stopped::new(Source::Thread(flag)))
    }

    fn notify() -> (Waker, mpsc::Receiver<Thread>) {
        let (sender, receiver) = mpsc::channel();
        (Waker::from(Arc::new(Notify(sender))), receiver)
    }

    fn poll(stopped: &mut Stopped, waker: &Waker) -> Poll<()> {
        Pin::new(stopped).poll(&mut Context::from_waker(waker))
    }

    /// The smallest executor: parks its thread until the future's waker unparks it.
    fn block_on(future: impl Future<Output = ()>) {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            thread::park();
        }
    }

    #[test]
    fn stopped_has_the_promised_traits() {
        fn promised<T: Future<Output = ()> + Send + Sync + Unpin + Clone + 'static>() {}
        promised::<Stopped>();
    }

    #[test]
    fn every_clone_completes_after_the_request() {
        let (flag, stopped) = pair();
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let stopped = stopped.clone();
                thread::spawn(move || block_on(stopped))
            })
            .collect();
        flag.make();
        waiting.into_iter().for_each(|thread| thread.join().expect("no panic"));
        block_on(stopped);
    }

    #[test]
    fn a_completed_future_stays_completed() {
        let (flag, mut stopped) = pair();
        let (waker, woken) = notify();
        assert!(poll(&mut stopped, &waker).is_pending() && poll(&mut stopped, &waker).is_pending());
        flag.make();
        woken.recv().expect("a wakeup");
        assert!(poll(&mut stopped, &waker).is_ready() && poll(&mut stopped, &waker).is_ready());
        assert!(poll(&mut stopped.clone(), &waker).is_ready());
        assert_eq!(flag.wakers().len(), 0);
    }

    #[test]
    fn another_thread_than_the_requesting_one_wakes_the_tasks() {
        let (flag, mut stopped) = pair();
        let (waker, woken) = notify();
        assert!(poll(&mut stopped, &waker).is_pending());
        flag.make();
        let thread = woken.recv().expect("a wakeup");
        assert_ne!(thread.id(), thread::current().id());
        assert_eq!(thread.name(), Some("taskfork-stop"));
    }

    #[test]
    fn a_moved_future_wakes_only_its_last_task() {
        let (flag, mut stopped) = pair();
        let (first, first_woken) = notify();
        let (second, second_woken) = notify();
        assert!(poll(&mut stopped, &first).is_pending() && poll(&mut stopped, &second).is_pending());
        assert_eq!(flag.wakers().len(), 1);
        drop(first);
        assert!(first_woken.recv().is_err(), "the replaced waker is dropped");
        flag.make();
        second_woken.recv().expect("a wakeup");
    }

    #[test]
    fn dropped_futures_leave_no_waker() {
        let (flag, stopped) = pair();
        let (waker, _woken) = notify();
        for _ in 0..100_000 {
            assert!(poll(&mut stopped.clone(), &waker).is_pending());
        }
        assert_eq!(flag.wakers().len(), 0);
        flag.make();
    }

    #[test]
    fn a_panicking_waker_does_not_stop_the_others() {
        let (flag, stopped) = pair();
        let (waker, woken) = notify();
        let mut futures: Vec<_> = (0..3).map(|_| stopped.clone()).collect();
        let panics = Waker::from(Arc::new(Panics));
        for (future, waker) in futures.iter_mut().zip([&panics, &waker, &panics]) {
            assert!(poll(future, waker).is_pending());
        }
        flag.make();
        woken.recv().expect("a wakeup");
    }

    /// A waker may own a task, which owns another future of the same worker.
    #[test]
    fn a_waker_may_drop_another_future() {
        struct Owns(#[expect(dead_code, reason = "dropped with the waker")] Stopped);
        impl Wake for Owns {
            fn wake(self: Arc<Self>) {}
        }
        let (flag, mut stopped) = pair();
        let (other, _woken) = notify();
        for _ in 0..2 {
            let mut owned = stopped.clone();
            assert!(poll(&mut owned, &other).is_pending());
            let owns = Waker::from(Arc::new(Owns(owned)));
            assert!(poll(&mut stopped, &owns).is_pending());
        }
        assert!(poll(&mut stopped, &other).is_pending(), "replaces the waker, which drops a future");
        drop(stopped);
        assert_eq!(flag.wakers().len(), 0);
        flag.make();
    }
}
