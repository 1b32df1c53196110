//! There are no cgroups here, and no counter of out-of-memory kills.

#[derive(Debug)]
pub(crate) struct OomCounter;

impl OomCounter {
    pub fn open() -> OomCounter {
        OomCounter
    }

    /// It cannot be told.
    pub fn is_zero(&self) -> bool {
        false
    }

    /// It cannot be told.
    pub fn take(&mut self) -> Option<bool> {
        None
    }
}
