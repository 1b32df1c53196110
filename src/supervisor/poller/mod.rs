//! How the parent waits: mio's `Poll`, and the table of its poll sources.

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod system;
pub(super) use system::Poller;

/// Something that ends a wait. To add one, add it here and [register](Poller::register) it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollSource {
    /// Signals, or what stands for them.
    Signals,
    /// A worker rings the doorbell after it has reported something urgent.
    Doorbell,
}

impl PollSource {
    const COUNT: usize = PollSource::Doorbell as usize + 1;
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// A source is ready, or the time is over.
    Completed,
    /// A signal handler, of this crate or of the program, interrupted it; or this process was stopped and continued, and
    /// perhaps others with it.
    Interrupted,
}
