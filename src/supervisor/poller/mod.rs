//! How the parent sleeps until there is something to be done: mio's `Poll`.

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod system;
pub(super) use system::Poller;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// There is something to be done, or the time is over.
    ToTheEnd,
    /// By a handler, of ours or of the program's own; or this process had been stopped, and others perhaps with it.
    Interrupted,
}
