//! The parent's wait for events, by mio's `Poll`, and the list of poll sources.

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod system;
pub(super) use system::Poller;

/// A source of events that can end a wait. To add a source, add a variant here and [register](Poller::register) the
/// source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollSource {
    /// Signals. On Windows, the events that replace signals.
    Signals,
    /// The doorbell. A worker that has written an urgent message wakes the parent through the doorbell.
    Doorbell,
    /// The channels to the processes that try a new program. Several channels may be registered.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only Linux has upgrades")
    )]
    Candidate,
}

impl PollSource {
    const COUNT: usize = PollSource::Candidate as usize + 1;
}

/// The way in which a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A source is ready, or the timeout has passed.
    Completed,
    /// The wait was interrupted by a signal handler of this crate or of the program, or because this process was
    /// stopped and continued. In the second case other processes may have been stopped as well.
    Interrupted,
}
