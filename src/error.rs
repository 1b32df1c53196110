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
/// [`call`](Error::call) returns the system call that failed, if there is one. [`worker`](Error::worker) returns the
/// worker that the error concerns, if there is one. When a function returns an error in the parent, no worker is
/// running, and the signal mask and the signal dispositions are the same as before the call.
///
/// If the error concerns a pool with a name, `Display` begins with this name. [`pool`](Error::pool) returns it.
///
/// `Display` does not include the system's error, because [`source`](std::error::Error::source) returns it. `Debug`
/// includes the system's error, because Rust prints the `Debug` form if `main` returns an error.
pub struct Error(Box<Inner>);

struct Inner {
    /// The name of the pool that the error concerns. Empty if the error concerns no pool, or a pool without a name.
    pool: &'static str,
    kind: Kind,
}

enum Kind {
    /// A system call failed. `worker` is the worker that was being started, if there is one.
    Call {
        error: CallError,
        worker: Option<usize>,
    },
    /// The process has more than one thread, so fork is unsound. `count` is the number of threads, if it is known.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there is no fork to be refused"))]
    Threads {
        count: Option<usize>,
        worker: Option<usize>,
    },
    /// The parent cannot start its own executable as a spawned worker.
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
    /// A worker called a function that starts workers.
    InWorker {
        id: usize,
    },
    /// A parent that already supervises workers called a function that starts workers.
    Supervising,
    TooMany {
        asked: usize,
        limit: usize,
    },
    /// A setting is invalid.
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
    pub(crate) fn unfit_for(name: &'static str, problem: String, source: io::Error) -> Error {
        Kind::Setting { name, problem, source: Some(source) }.into()
    }

    pub(crate) fn ended(reason: Reason) -> Error {
        Kind::Ended(reason).into()
    }

    /// Adds the id of the worker that could not be started to the error.
    pub(crate) fn starting(mut self, id: usize) -> Error {
        if let Kind::Call { worker, .. } | Kind::Threads { worker, .. } | Kind::Executable { worker, .. } =
            &mut self.0.kind
        {
            *worker = Some(id);
        }
        self
    }

    /// Adds the name of the pool that the error concerns.
    pub(crate) fn in_pool(mut self, pool: &'static str) -> Error {
        self.0.pool = pool;
        self
    }

    /// Returns the name of the pool that this error concerns, if there is one. Returns `None` for a
    /// [`Prefork`](crate::Prefork) that is used alone, because its pool has no name.
    pub fn pool(&self) -> Option<&str> {
        let pool = match &self.0.kind {
            Kind::Ended(reason) => reason.process().map_or("", |process| process.pool),
            _ => self.0.pool,
        };
        (!pool.is_empty()).then_some(pool)
    }

    /// Returns the name of the system call that failed, for example `fork`, `signalfd` or `CreateEventW`.
    ///
    /// If the executable could not be started as a [spawned](crate::Backend::Spawn) worker, the name is always
    /// `posix_spawn` (`CreateProcessW` on Windows), even if another call failed. If a listener could not be opened, the
    /// name is always `bind`.
    pub fn call(&self) -> Option<&'static str> {
        match &self.0.kind {
            Kind::Call { error, .. } | Kind::Executable { error, .. } => Some(error.call),
            Kind::Listen { .. } => Some("bind"),
            _ => None,
        }
    }

    /// Returns the task id of the worker that this error concerns. This worker could not be started, or it needed one
    /// restart more than [`max_restarts`](crate::Prefork::max_restarts) allows. If a worker called a function that
    /// starts workers, this is the id of the calling worker.
    pub fn worker(&self) -> Option<usize> {
        match &self.0.kind {
            Kind::Call { worker, .. } | Kind::Threads { worker, .. } | Kind::Executable { worker, .. } => *worker,
            Kind::InWorker { id } => Some(*id),
            Kind::Ended(reason) => reason.process().map(|process| process.id),
            Kind::Listen { .. } | Kind::Supervising | Kind::TooMany { .. } | Kind::Setting { .. } => None,
        }
    }

    /// Returns the name of the invalid setting, if there is one. It is the name of the method that makes the setting,
    /// for example `max_workers`, `heartbeat_timeout` or `listen`.
    pub fn setting(&self) -> Option<&'static str> {
        match &self.0.kind {
            Kind::Listen { .. } => Some("listen"),
            Kind::Setting { name, .. } => Some(name),
            Kind::TooMany { .. } => Some("workers"),
            _ => None,
        }
    }

    /// Returns the system's error, if a system call failed. This includes calls that an invalid setting required, for
    /// example to look up a user.
    pub fn io_error(&self) -> Option<&io::Error> {
        match &self.0.kind {
            Kind::Call { error, .. } | Kind::Executable { error, .. } => Some(&error.source),
            Kind::Listen { source, .. } => Some(source),
            Kind::Setting { source, .. } => source.as_ref(),
            _ => None,
        }
    }

    /// Returns the number of threads of this process, if fork was refused because there is more than one. `None` if the
    /// number is unknown: on Linux without `/proc`, the parent knows only that there is more than one thread.
    pub fn thread_count(&self) -> Option<usize> {
        match &self.0.kind {
            Kind::Threads { count, .. } => *count,
            _ => None,
        }
    }

    /// If the restart limit was reached, returns the exit that made one more restart necessary. If
    /// [`fork_processes`](crate::fork_processes) failed because a worker had called a function that starts workers,
    /// returns the exit of this worker.
    pub fn exit(&self) -> Option<Exit> {
        match &self.0.kind {
            Kind::Ended(reason) => reason.exit(),
            _ => None,
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Error {
        Error(Box::new(Inner { pool: "", kind }))
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Error {
        Kind::Call { error, worker: None }.into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.pool.is_empty() {
            write!(f, "{}: ", self.0.pool)?;
        }
        if let Kind::Call { worker: Some(id), .. }
        | Kind::Threads { worker: Some(id), .. }
        | Kind::Executable { worker: Some(id), .. } = &self.0.kind
        {
            write!(f, "cannot start worker {id}: ")?;
        }
        match &self.0.kind {
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

/// Displays an error, followed by all its sources.
pub(crate) struct WithSources<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for WithSources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |&error| error.source()).try_for_each(|source| write!(f, ": {source}"))
    }
}

/// Converts the error to an `io::Error` that has the [`io::ErrorKind`] of the system's error. The inner error of the
/// `io::Error` is the whole [`Error`].
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error.0.kind {
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
    fn only_debug_includes_the_source() {
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
