//! Sockets of the program before an upgrade that this program does not use.

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use std::os::fd::AsFd;

use super::bind;
use super::open::SocketFile;
use super::spec::Given;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use super::spec::Passed;
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use crate::sys;

/// The sockets that only workers of the program before an upgrade use, and the files of Unix sockets among them.
/// Dropping this value closes the parent's copies and removes the files. The parent keeps it until none of these
/// workers is left.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    /// Empty after `close`.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        expect(dead_code, reason = "only Linux has upgrades")
    )]
    sockets: Vec<Given>,
    _files: Vec<SocketFile>,
}

impl Retired {
    /// Keeps the sockets that no listener has taken. A socket that the program has got from [`bind`](super::bind) is in
    /// use, because the program has a copy of it.
    pub fn new(given: Vec<Given>) -> Retired {
        let in_use = bind::passed_specs();
        let sockets: Vec<Given> = given.into_iter().filter(|given| !in_use.contains(&given.spec)).collect();
        let files = sockets.iter().filter_map(|given| SocketFile::adopt(given.spec.file.as_ref()?));
        Retired { _files: files.collect(), sockets }
    }
}

#[cfg(all(target_os = "linux", not(taskfork_portable)))]
impl Retired {
    /// Closes the parent's copies. So clients are refused as soon as the last worker has closed its copy.
    pub fn close(&mut self) {
        self.sockets.clear();
    }

    /// Closes, in a forked worker, the worker's copies. Writes to no memory, because the kernel would have to copy it
    /// (copy-on-write). The worker must not use or drop this value afterwards.
    pub fn close_inherited(&self) {
        self.sockets.iter().for_each(|given| sys::close_inherited(given.fd.as_fd()));
    }

    /// Returns what another program needs to use these sockets.
    pub fn passed(&self) -> impl Iterator<Item = Passed<'_>> {
        self.sockets.iter().map(Given::passed)
    }
}

/// Closes new sockets of an upgrade that was aborted, and removes their files.
#[cfg_attr(
    not(all(target_os = "linux", not(taskfork_portable))),
    allow(dead_code, reason = "only an upgrade needs it")
)]
pub(crate) fn discard(given: Vec<Given>) {
    drop(Retired::new(given));
}
