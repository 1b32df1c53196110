//! Finds a listener by its position or by its name.

use std::fmt::Display;

/// A listener's position or its [name](crate::ListenConfig::name). This is the argument type of
/// [`Worker::tcp`](crate::Worker::tcp), [`Worker::udp`](crate::Worker::udp) and `Worker::unix`.
///
/// A `usize` is a position: the first call of [`Prefork::listen`](crate::Prefork::listen) adds listener 0, the next
/// call listener 1. A `&str` is a name. This trait cannot be implemented outside this crate.
pub trait ListenerIndex: Display + sealed::Position {}

impl ListenerIndex for usize {}
impl ListenerIndex for &str {}

pub(crate) mod sealed {
    pub trait Position {
        /// Returns the position of the listener. `names` contains the name of each listener, in the order of the
        /// listeners.
        fn position(&self, names: &[Option<String>]) -> Option<usize>;
    }

    impl Position for usize {
        fn position(&self, _: &[Option<String>]) -> Option<usize> {
            Some(*self)
        }
    }

    impl Position for &str {
        fn position(&self, names: &[Option<String>]) -> Option<usize> {
            names.iter().position(|name| name.as_deref() == Some(*self))
        }
    }
}
