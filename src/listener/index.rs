//! Finding a listener by its position or by its name.

use std::fmt::Display;

/// A listener's position or its [name](crate::ListenConfig::name), for [`Worker::tcp`](crate::Worker::tcp) and its
/// siblings.
///
/// Implemented for `usize`, which counts the calls of [`Prefork::listen`](crate::Prefork::listen) from 0, and for
/// `&str`. It cannot be implemented outside this crate.
pub trait ListenerIndex: Display + sealed::Position {}

impl ListenerIndex for usize {}
impl ListenerIndex for &str {}

pub(crate) mod sealed {
    pub trait Position {
        /// Returns the position among listeners with these names.
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
