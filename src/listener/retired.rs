//! Sockets of the program before an upgrade that this program does not use.

use super::bind;
use super::open::SocketFile;
use super::spec::Given;

/// The files of Unix sockets that only workers of the program before an upgrade use. Dropping this value removes the
/// files. The parent keeps it until none of these workers is left.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    _files: Vec<SocketFile>,
}

impl Retired {
    /// Closes the parent's copies of the sockets that no listener has taken. So clients are refused as soon as the last
    /// worker has closed its copy. A socket that the program has got from [`bind`](super::bind) is in use, because the
    /// program has a copy of it.
    pub fn new(given: Vec<Given>) -> Retired {
        let in_use = bind::passed_specs();
        let unused = given.into_iter().filter(|given| !in_use.contains(&given.spec));
        Retired { _files: unused.filter_map(|given| SocketFile::adopt(given.spec.file.as_ref()?)).collect() }
    }
}

/// Closes new sockets of an upgrade that was aborted, and removes their files.
pub(crate) fn discard(given: Vec<Given>) {
    drop(Retired::new(given));
}
