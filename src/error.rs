//! The one error type.

use std::path::PathBuf;
use std::{fmt, io};

use crate::exit::Exit;
use crate::report::Reason;
use crate::sys::CallError;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why workers could not be started, or why the parent stopped supervising them.
///
/// It names the system call and the worker where there are such: see [`call`](Error::call) and
/// [`worker`](Error::worker). When a call returns it, no worker is left running, and the caller's signal mask and
/// dispositions are what they were.
///
/// `Debug` gives the same text as `Display`, because that is what a user sees of an error that `main` returns.
pub struct Error(Box<Kind>);

enum Kind {
    /// The system refused a call; if it was made to start a worker, which.
    Call {
        error: CallError,
        worker: Option<usize>,
    },
    /// There are other threads, so fork is unsound; how many there are in all, where that can be told.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there is no fork to be refused"))]
    Threads {
        count: Option<usize>,
        worker: Option<usize>,
    },
    /// This program cannot be started again.
    Executable {
        path: PathBuf,
        error: CallError,
        worker: Option<usize>,
    },
    /// There can be no listener.
    Listen {
        address: String,
        source: io::Error,
    },
    /// Called inside a worker.
    InWorker {
        id: usize,
    },
    /// Called while this process supervises workers.
    Supervising,
    TooMany {
        asked: usize,
        limit: usize,
    },
    /// A setting that makes no sense.
    Setting {
        name: &'static str,
        problem: String,
        source: Option<io::Error>,
    },
    /// The service is over, and not as it should.
    Ended(Reason),
}

impl Error {
    pub(crate) fn in_worker(id: usize) -> Error {
        Kind::InWorker { id }.into()
    }

    pub(crate) fn supervising() -> Error {
        Kind::Supervising.into()
    }

    #[cfg(unix)]
    pub(crate) fn threads(count: Option<usize>) -> Error {
        Kind::Threads { count, worker: None }.into()
    }

    pub(crate) fn too_many(asked: usize, limit: usize) -> Error {
        Kind::TooMany { asked, limit }.into()
    }

    pub(crate) fn executable(path: PathBuf, error: CallError) -> Error {
        Kind::Executable { path, error, worker: None }.into()
    }

    pub(crate) fn listen(address: String, source: io::Error) -> Error {
        Kind::Listen { address, source }.into()
    }

    pub(crate) fn unfit(name: &'static str, problem: impl Into<String>) -> Error {
        Kind::Setting { name, problem: problem.into(), source: None }.into()
    }

    /// The same, because of what the system has answered.
    #[cfg(unix)]
    pub(crate) fn unfit_for(name: &'static str, problem: String, source: io::Error) -> Error {
        Kind::Setting { name, problem, source: Some(source) }.into()
    }

    pub(crate) fn ended(reason: Reason) -> Error {
        Kind::Ended(reason).into()
    }

    /// Names the worker that was to be started when this happened.
    pub(crate) fn starting(mut self, id: usize) -> Error {
        if let Kind::Call { worker, .. } | Kind::Threads { worker, .. } | Kind::Executable { worker, .. } = &mut *self.0
        {
            *worker = Some(id);
        }
        self
    }

    /// The system call that was refused, by its name in the manual: `fork`, `signalfd`, `CreateEventW`. `posix_spawn`, or
    /// `CreateProcessW` on Windows, if this program could not be started again, whatever the reason; `bind`, if there can
    /// be no listener, the same.
    pub fn call(&self) -> Option<&'static str> {
        match &*self.0 {
            Kind::Call { error, .. } | Kind::Executable { error, .. } => Some(error.call),
            Kind::Listen { .. } => Some("bind"),
            _ => None,
        }
    }

    /// The task id of the worker that this is about: the one that could not be started, or whose end was one too many.
    pub fn worker(&self) -> Option<usize> {
        match &*self.0 {
            Kind::Call { worker, .. } | Kind::Threads { worker, .. } | Kind::Executable { worker, .. } => *worker,
            Kind::InWorker { id } => Some(*id),
            Kind::Ended(reason) => reason.process().map(|process| process.id),
            Kind::Listen { .. } | Kind::Supervising | Kind::TooMany { .. } | Kind::Setting { .. } => None,
        }
    }

    /// The setting that was refused, by the name of its method: `max_workers`, `heartbeat_timeout`, `listen`.
    pub fn setting(&self) -> Option<&'static str> {
        match &*self.0 {
            Kind::Listen { .. } => Some("listen"),
            Kind::Setting { name, .. } => Some(name),
            Kind::TooMany { .. } => Some("workers"),
            _ => None,
        }
    }

    /// The answer of the system to the refused call, or to what a refused setting asks for.
    pub fn io_error(&self) -> Option<&io::Error> {
        match &*self.0 {
            Kind::Call { error, .. } | Kind::Executable { error, .. } => Some(&error.source),
            Kind::Listen { source, .. } => Some(source),
            Kind::Setting { source, .. } => source.as_ref(),
            _ => None,
        }
    }

    /// How many threads there were, if that is why fork was refused and their number is known (without `/proc`, Linux
    /// tells only whether there is more than one).
    pub fn thread_count(&self) -> Option<usize> {
        match &*self.0 {
            Kind::Threads { count, .. } => *count,
            _ => None,
        }
    }

    /// How the last worker ended, if the restart budget was spent.
    pub fn exit(&self) -> Option<Exit> {
        match &*self.0 {
            Kind::Ended(reason) => reason.exit(),
            _ => None,
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Error {
        Error(Box::new(kind))
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        Kind::Call { error, worker: None }.into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Kind::Call { worker: Some(id), .. }
        | Kind::Threads { worker: Some(id), .. }
        | Kind::Executable { worker: Some(id), .. } = &*self.0
        {
            write!(f, "cannot start worker {id}: ")?;
        }
        match &*self.0 {
            Kind::Call { error, .. } => write!(f, "{} failed", error.call),
            Kind::Threads { count, .. } => {
                match count {
                    Some(count) => write!(f, "{count} threads are running")?,
                    None => f.write_str("more than one thread is running")?,
                }
                f.write_str(", and fork is only sound with one: call it before anything that starts threads")
            }
            Kind::Executable { path, .. } => write!(f, "cannot run {}", path.display()),
            Kind::Listen { address, .. } => write!(f, "cannot listen on {address}"),
            Kind::InWorker { id } => {
                write!(f, "this process is worker {id} already, and a worker cannot start workers")
            }
            Kind::Supervising => {
                f.write_str("this process supervises workers already, and can do so only once at a time")
            }
            Kind::TooMany { asked, limit } => {
                write!(f, "{asked} workers asked for, and this system can have {limit} processes at most")
            }
            Kind::Setting { name, problem, .. } => write!(f, "{name}: {problem}"),
            Kind::Ended(Reason::RestartLimitReached { process, exit, restarts }) => {
                write!(f, "too many child restarts ({restarts}), giving up: {process} {exit}")
            }
            Kind::Ended(reason) => write!(f, "{reason}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&WithSources(self), f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.io_error().map(|error| error as _)
    }
}

/// An error, and what is behind it.
pub(crate) struct WithSources<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |&error| error.source()).try_for_each(|source| write!(f, ": {source}"))
    }
}

/// Keeps the kind of the system's answer, and the whole text.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &*error.0 {
            Kind::Call { error, .. } | Kind::Executable { error, .. } => error.source.kind(),
            Kind::Listen { source, .. } | Kind::Setting { source: Some(source), .. } => source.kind(),
            Kind::TooMany { .. } | Kind::Setting { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn display_leaves_the_source_to_source() {
        let refused = || io::Error::from(io::ErrorKind::AddrInUse);
        let call = || CallError { call: "fork", source: refused() };
        for (error, text) in [
            (Error::from(call()).starting(2), "cannot start worker 2: fork failed"),
            (Error::executable("/app".into(), call()).starting(2), "cannot start worker 2: cannot run /app"),
            (Error::listen("[::]:80".into(), refused()), "cannot listen on [::]:80"),
            #[cfg(unix)]
            (Error::unfit_for("user", "cannot look up me".into(), refused()), "user: cannot look up me"),
        ] {
            assert_eq!(error.to_string(), text);
            assert_eq!(error.source().map(ToString::to_string), Some(refused().to_string()));
            assert_eq!(format!("{error:?}"), format!("{text}: {}", refused()), "what `main` prints");
        }
    }
}
