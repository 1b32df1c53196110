//! The names of pools, as strings that live as long as the program, and the names of workers in messages.

use std::fmt;
use std::sync::{Mutex, PoisonError};

static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Returns a copy of the name that is never freed, so that a [`Process`](crate::Process) can contain it and stay
/// `Copy`. Equal names share one copy, so a program that starts many services does not leak memory for each of them.
pub(crate) fn intern(name: &str) -> &'static str {
    if name.is_empty() {
        return "";
    }
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.iter().find(|known| **known == name) {
        return known;
    }
    let name: &'static str = Box::leak(name.into());
    names.push(name);
    name
}

/// A worker, as the messages of this crate name it: `worker 2`, or `jobs worker 2` in the pool `jobs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerName {
    pub pool: &'static str,
    pub id: usize,
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerName { pool, id } = self;
        if pool.is_empty() { write!(f, "worker {id}") } else { write!(f, "{pool} worker {id}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_copy() {
        let first = intern(&String::from("a name of this test"));
        let second = intern("a name of this test");
        assert_eq!(first, "a name of this test");
        assert!(std::ptr::eq(first, second));
        assert_eq!(intern(""), "");
    }

    #[test]
    fn messages_name_the_pool_of_a_worker() {
        assert_eq!(WorkerName { pool: "", id: 2 }.to_string(), "worker 2");
        assert_eq!(WorkerName { pool: "jobs", id: 2 }.to_string(), "jobs worker 2");
    }
}
