//! The names of pools, as strings that live as long as the program.

use std::sync::{Mutex, PoisonError};

static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Returns a copy of the name that is never freed, so that a [`Process`](crate::Process) can contain it and stay `Copy`.
/// Equal names share one copy, so a program that starts many services does not leak memory for each of them.
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
}
