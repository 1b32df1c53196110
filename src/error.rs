//! The crate's error type.

use std::path::PathBuf;
use std::{fmt, io};

use crate::exit::Exit;
use crate::report::Reason;
use crate::sys::CallError;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The reason why workers could not be started, or why the parent stopped supervising them.
///
/// If there is one, the error names the system call that was refused ([`call`](Error::call)) and the worker that it
/// concerns ([`worker`](Error::worker)). When a function returns an error in the parent, no worker is left running, and
/// the signal mask and the dispositions are the same as before the call.
///
/// `Display` leaves out the system's answer, which [`source`](std::error::Error::source) returns. `Debug` includes it,
/// because a program whose `main` returns the error prints its `Debug` form.
pub struct Error(Box<Kind>);

enum Kind {
    /// The system refused a call. `worker` is the worker that the call would have started.
    Call {
        error: CallError,
        worker: Option<usize>,
    },
    /// There is more than one thread, so fork is unsound. `count` is the number of all threads, if it is known.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there is no fork to be refused"))]
    Threads {
        count: Option<usize>,
        worker: Option<usize>,
    },
    /// The parent cannot start the program again.
    Executable {
        path: PathBuf,
        error: CallError,
        worker: Option<usize>,
    },
    /// A listener cannot be opened.
    Listen {
        address: String,
        source: io::Error,
    },
    /// The call was made in a worker.
    InWorker {
        id: usize,
    },
    /// The call was made while this process supervises workers.
    Supervising,
    TooMany {
        asked: usize,
        limit: usize,
    },
    /// A setting is refused.
    Setting {
        name: &'static str,
        problem: String,
        source: Option<io::Error>,
    },
    /// The service has ended with a failure.
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

    /// Returns the error for a setting that cannot be applied, with the system's error as its source.
    #[cfg(unix)]
    pub(crate) fn unfit_for(name: &'static str, problem: String, source: io::Error) -> Error {
        Kind::Setting { name, problem, source: Some(source) }.into()
    }

    pub(crate) fn ended(reason: Reason) -> Error {
        Kind::Ended(reason).into()
    }

    /// Adds the id of the worker that could not be started.
    pub(crate) fn starting(mut self, id: usize) -> Error {
        if let Kind::Call { worker, .. } | Kind::Threads { worker, .. } | Kind::Executable { worker, .. } = &mut *self.0
        {
            *worker = Some(id);
        }
        self
    }

    /// Returns the system call that was refused, by the name in its manual: `fork`, `signalfd`, `CreateEventW`.
    ///
    /// If this program could not be started again, for whatever reason, this is `posix_spawn`, or `CreateProcessW` on
    /// Windows. If a listener could not be opened, for whatever reason, this is `bind`.
    pub fn call(&self) -> Option<&'static str> {
        match &*self.0 {
            Kind::Call { error, .. } | Kind::Executable { error, .. } => Some(error.call),
            Kind::Listen { .. } => Some("bind"),
            _ => None,
        }
    }

    /// Returns the task id of the worker that this error concerns: the worker that could not be started, or whose exit
    /// needed one restart more than [`max_restarts`](crate::Prefork::max_restarts) allows. If the call was made in a
    /// worker, this is the id of that worker.
    pub fn worker(&self) -> Option<usize> {
        match &*self.0 {
            Kind::Call { worker, .. } | Kind::Threads { worker, .. } | Kind::Executable { worker, .. } => *worker,
            Kind::InWorker { id } => Some(*id),
            Kind::Ended(reason) => reason.process().map(|process| process.id),
            Kind::Listen { .. } | Kind::Supervising | Kind::TooMany { .. } | Kind::Setting { .. } => None,
        }
    }

    /// Returns the refused setting, by the name of its method: `max_workers`, `heartbeat_timeout`, `listen`.
    pub fn setting(&self) -> Option<&'static str> {
        match &*self.0 {
            Kind::Listen { .. } => Some("listen"),
            Kind::Setting { name, .. } => Some(name),
            Kind::TooMany { .. } => Some("workers"),
            _ => None,
        }
    }

    /// Returns the system's answer to the refused call, or to a call that the refused setting needs.
    pub fn io_error(&self) -> Option<&io::Error> {
        match &*self.0 {
            Kind::Call { error, .. } | Kind::Executable { error, .. } => Some(&error.source),
            Kind::Listen { source, .. } => Some(source),
            Kind::Setting { source, .. } => source.as_ref(),
            _ => None,
        }
    }

    /// Returns the number of threads, if fork was refused because of them and the number is known. Without `/proc`,
    /// Linux shows only that there is more than one thread.
    pub fn thread_count(&self) -> Option<usize> {
        match &*self.0 {
            Kind::Threads { count, .. } => *count,
            _ => None,
        }
    }

    /// Returns how the last worker exited, if the restart limit was reached.
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
                f.write_str(", and fork is only sound with one: make this call before anything starts a thread")
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
                write!(f, "{asked} workers asked for, but this system can have at most {limit} processes")
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

/// Displays an error and all its sources.
pub(crate) struct WithSources<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |&error| error.source()).try_for_each(|source| write!(f, ": {source}"))
    }
}

/// Keeps the [`io::ErrorKind`] of the system's answer and, as the inner error, the whole error.
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
