//! Workers are threads of this process.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::{fmt, mem};

use super::{ChildExit, ExitCause, Launcher, StartRequest, Started};
use crate::error::{Error, Result, WithSources};
use crate::exit::{Exit, Process};
use crate::scoreboard::{StatusWriter, Waker};
use crate::setup::WorkerSetup;
use crate::stop_flag::StopFlag;
use crate::sys::{self, CallError, Signal};
use crate::worker::{self, WorkResult, Worker};

/// What each of them does.
pub(crate) type Work = Arc<dyn Fn(Worker) -> WorkResult + Send + Sync>;

pub(crate) struct Thread {
    work: Work,
    setup: Option<WorkerSetup>,
    running: Vec<Member>,
    /// Those who are not waited for any more.
    stale: Vec<Member>,
    /// The same, as long as nobody was told of it.
    given_up: Vec<(Process, Arc<()>)>,
    /// Told by the threads themselves, at their ends.
    returned: Arc<Mutex<Vec<(Process, Return)>>>,
}

#[derive(Debug)]
struct Member {
    process: Process,
    stop: Arc<StopFlag>,
    handle: JoinHandle<()>,
    waker: Arc<Waker>,
    lease: Arc<()>,
}

/// How a thread ended: what went wrong, in words.
#[derive(Debug)]
enum Return {
    Normal,
    Error(String),
    Panic(String),
}

impl Thread {
    pub fn new(work: Work, setup: Option<WorkerSetup>) -> Thread {
        let returned = Arc::default();
        Thread { work, setup, running: Vec::new(), stale: Vec::new(), given_up: Vec::new(), returned }
    }

    /// A thread cannot be killed. One that has returned already was not in need of it.
    fn give_up(&mut self, process: Process) {
        let returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        if returned.iter().any(|(known, _)| *known == process) {
            return;
        }
        if let Some(member) = take(&mut self.running, process) {
            // Should it come to itself, it has nothing more to do.
            member.stop.make();
            member.waker.wake();
            self.given_up.push((process, Arc::clone(&member.lease)));
            self.stale.push(member);
        }
    }

    fn reap(&mut self) -> Vec<ChildExit> {
        // As a process that was killed by what nobody survives.
        let stale =
            |(process, lease)| ChildExit { process, exit: Exit::Stale, cause: ExitCause::Stale, lease: Some(lease) };
        let mut exits: Vec<ChildExit> = self.given_up.drain(..).map(stale).collect();
        let returned = mem::take(&mut *self.returned.lock().unwrap_or_else(PoisonError::into_inner));
        for (process, returned) in returned {
            let (exit, cause) = match returned {
                Return::Normal => (Exit::Code(0), ExitCause::Exited),
                Return::Error(message) => (Exit::Code(1), ExitCause::Failed(message)),
                Return::Panic(message) => (Exit::Code(101), ExitCause::Failed(format!("panicked: {message}"))),
            };
            if let Some(member) = take(&mut self.running, process) {
                let lease = Some(join(member));
                exits.push(ChildExit { process, exit, cause, lease });
            } else if let Some(member) = take(&mut self.stale, process) {
                let lease = Some(join(member));
                exits.push(ChildExit { process, exit, cause: ExitCause::ReturnedLate, lease });
            }
        }
        exits
    }
}

impl Launcher for Thread {
    fn start(&mut self, request: StartRequest<'_>) -> Result<Started> {
        let StartRequest { id, generation, count, slot_handle, listeners } = request;
        let Some(slot_handle) = slot_handle else { return Err(Error::unfit("backend", "a thread needs a handle")) };
        let process = Process { id, generation, pid: None };
        let (stop, lease, waker) = (Arc::<StopFlag>::default(), Arc::new(()), Arc::clone(slot_handle.waker));
        let status = StatusWriter::at(&slot_handle, &lease);
        let worker = Worker::in_thread(process, count, status, listeners.clone(), Arc::clone(&stop));
        let (returned, wake_receiver) = (Arc::clone(&self.returned), Arc::clone(&waker));
        let work = Arc::clone(&self.work);
        let setup = self.setup.as_ref().map(|setup| setup.for_worker(id)).unwrap_or_default();
        let body = move || {
            setup.pin(id);
            LAST_WORDS.set(Some(LastWords { process, how: Return::Normal, returned, wake_receiver }));
            let how = run(id, work, worker);
            LAST_WORDS.with_borrow_mut(|words| words.as_mut().map(|words| words.how = how));
        };
        let builder = thread::Builder::new().name(process.thread_name());
        let refused = |error| Error::from(error).starting(id);
        let spawned = sys::with_requests_blocked(|| builder.spawn(body)).map_err(refused)?;
        let handle = spawned.map_err(|error| refused(CallError::new(sys::THREAD_CALL, error)))?;
        self.running.push(Member { process, stop, handle, waker, lease });
        Ok(Started::Parent(None))
    }

    fn send(&mut self, process: Process, signal: Signal) -> Result<()> {
        match signal {
            Signal::Terminate | Signal::Interrupt | Signal::Quit => {
                if let Some(member) = self.running.iter().find(|member| member.process == process) {
                    member.stop.make();
                }
            }
            Signal::Abort | Signal::Kill => self.give_up(process),
            Signal::Hangup | Signal::TerminalInput | Signal::TerminalOutput | Signal::User1 | Signal::Child => {}
        }
        Ok(())
    }

    fn reap_one(&mut self, _: u32) -> Result<Option<ChildExit>> {
        Ok(None)
    }

    fn reap_missed(&mut self) -> Result<Vec<ChildExit>> {
        Ok(self.reap())
    }

    fn reap_all(&mut self) -> Result<Vec<ChildExit>> {
        Ok(self.reap())
    }

    fn ends_ring(&self) -> bool {
        true
    }
}

/// Whatever ended the supervision, those who are left are asked to go; nobody waits for them.
impl Drop for Thread {
    fn drop(&mut self) {
        for member in &self.running {
            member.stop.make();
        }
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("running", &self.running).field("stale", &self.stale).finish_non_exhaustive()
    }
}

/// In the thread.
fn run(id: usize, work: Work, worker: Worker) -> Return {
    worker::become_thread(id);
    let returned = panic::catch_unwind(AssertUnwindSafe(move || match work(worker) {
        Ok(()) => Return::Normal,
        Err(error) => {
            let message = WithSources(&*error).to_string();
            discard(error);
            Return::Error(message)
        }
    }));
    returned.unwrap_or_else(|payload| Return::Panic(message_of(payload)))
}

fn message_of(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("with something that is no text").to_owned();
    discard(payload);
    message
}

/// What happens when it is dropped, which may be to panic, is not to change the end.
fn discard<T>(value: T) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        mem::forget(payload);
    }
}

fn take(members: &mut Vec<Member>, process: Process) -> Option<Member> {
    let at = members.iter().position(|member| member.process == process)?;
    Some(members.swap_remove(at))
}

/// It has nothing left to do but to end; and what it panicked with was caught. Whoever it has left its handle to is to go too.
fn join(member: Member) -> Arc<()> {
    member.stop.make();
    let _ = member.handle.join();
    member.lease
}

thread_local! {
    /// Told when it goes. It is the first of the thread's own things, and the first goes last: what the work has left in others
    /// has gone before, however long that takes.
    static LAST_WORDS: RefCell<Option<LastWords>> = const { RefCell::new(None) };
}

struct LastWords {
    process: Process,
    how: Return,
    returned: Arc<Mutex<Vec<(Process, Return)>>>,
    wake_receiver: Arc<Waker>,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        let how = mem::replace(&mut self.how, Return::Normal);
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).push((self.process, how));
        self.wake_receiver.wake();
    }
}
