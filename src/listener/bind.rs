//! Sockets that the program opens before the call: [`bind`].
//!
//! The program opens the socket again in each process that runs it from the beginning: in a spawned worker, and after
//! an upgrade. There, [`bind`] returns the socket that exists already. It finds the socket by the address as the
//! program has written it, and by its position among the open sockets with the same address.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::config::{ListenConfig, Source};
use super::open::{Opened, SocketFile};
use super::retry::Retry;
use super::spec::{FileSpec, Passed, SocketLine, Spec, SpecOrigin};
use super::{Listener, SharedSocket, matching};
use crate::error::{Error, Result};
use crate::sys::{self, PassedText};

/// Locked while a socket is bound, so that two threads do not get the same position.
static BINDING: Mutex<()> = Mutex::new(());

/// The sockets that [`bind`] has returned. Not locked for long, because the parent reads it when it starts a worker.
static BOUND: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// A socket that [`bind`] has returned. The program owns the socket, and may have closed it since.
#[derive(Debug)]
struct Entry {
    spec: Spec,
    socket: Weak<SharedSocket>,
    /// The line by which this process was passed the socket. `None` if this process has opened the socket.
    passed: Option<SocketLine>,
}

/// An open socket that [`bind`] has returned.
#[derive(Debug)]
pub(crate) struct BoundListener {
    spec: Spec,
    socket: Arc<SharedSocket>,
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    is_new: bool,
}

impl BoundListener {
    pub fn passed(&self) -> Passed<'_> {
        Passed { spec: self.spec.clone(), fd: self.socket.as_passed() }
    }

    /// Returns whether this process has opened the socket, and was not passed it by another process.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn is_new(&self) -> bool {
        self.is_new
    }
}

/// Opens a socket, or returns the one that the parent has opened for the same call.
pub(crate) fn bind(on: ListenConfig, retry: &mut Retry<'_>) -> Result<Listener> {
    let _binding = BINDING.lock().unwrap_or_else(PoisonError::into_inner);
    let text = on.to_string();
    check(&on, &text)?;
    let ordinal = next_ordinal(&text);
    if let Some((listener, entry)) = find_passed(&on, &text, ordinal) {
        entries().push(entry);
        return Ok(listener);
    }
    let name = on.own_name().map(str::to_owned);
    let Opened { listener, file, .. } = on.open(retry)?;
    let spec = Spec {
        origin: SpecOrigin::Bind,
        pool: String::new(),
        text,
        ordinal,
        name,
        kind: listener.kind(),
        worker: None,
        file: file.as_ref().map(FileSpec::of),
    };
    let listener = listener.with_file(file);
    entries().push(Entry { spec, socket: Arc::downgrade(&listener.shared), passed: None });
    Ok(listener)
}

/// Returns all open sockets that [`bind`] has returned, in the order of the calls.
pub(crate) fn bound() -> Vec<BoundListener> {
    let open = |entry: &Entry| {
        let socket = entry.socket()?;
        Some(BoundListener { spec: entry.spec.clone(), socket, is_new: entry.passed.is_none() })
    };
    entries().iter().filter_map(open).collect()
}

/// Returns the addresses of all open sockets that [`bind`] has returned, as the program has written them.
pub(super) fn bound_addresses() -> Vec<String> {
    entries().iter().filter(|entry| entry.socket().is_some()).map(|entry| entry.spec.text.clone()).collect()
}

/// Returns the specifications of the open sockets that [`bind`] has returned and another process has passed to this
/// one. They are written as that process has written them.
pub(super) fn passed_specs() -> Vec<Spec> {
    let mut entries = entries();
    entries.retain(|entry| entry.socket().is_some());
    entries.iter().filter_map(|entry| Some(entry.passed.as_ref()?.spec.clone())).collect()
}

/// Removes the files of all sockets that [`bind`] has opened. Called before this process exits without dropping the
/// values of the program.
pub(crate) fn remove_files() {
    let sockets: Vec<_> = entries().iter().filter_map(Entry::socket).collect();
    let files: Vec<_> = sockets.iter().filter_map(|socket| socket.take_file()).collect();
    drop(files);
}

/// Refuses settings that a socket of [`bind`] cannot have.
fn check(on: &ListenConfig, address: &str) -> Result<()> {
    if on.per_worker {
        return Err(Error::unfit("per_worker", format!("{address} is opened by bind(), for all workers")));
    }
    match on.source {
        Source::Bound(_) => Err(Error::unfit("bind", format!("{address} is bound already"))),
        _ => Ok(()),
    }
}

/// Returns the lowest position that no open socket with this text has.
fn next_ordinal(text: &str) -> usize {
    let mut entries = entries();
    entries.retain(|entry| entry.socket().is_some());
    let is_used =
        |ordinal: &usize| entries.iter().any(|entry| entry.spec.text == text && entry.spec.ordinal == *ordinal);
    (0..).find(|ordinal| !is_used(ordinal)).unwrap_or(0)
}

/// Returns the socket that another process has passed to this one for this call of [`bind`].
fn find_passed(on: &ListenConfig, text: &str, ordinal: usize) -> Option<(Listener, Entry)> {
    let PassedText { text: passed, to_parent } = sys::passed_text()?;
    let used = passed_specs();
    let lines = passed.lines().filter_map(|line| line.parse::<SocketLine>().ok());
    let mut free: Vec<SocketLine> =
        lines.filter(|line| line.spec.worker.is_none() && !used.contains(&line.spec)).collect();
    let is_same = |line: &SocketLine| {
        let spec = &line.spec;
        spec.origin == SpecOrigin::Bind && spec.text == text && spec.ordinal == ordinal
    };
    let same = free.iter().position(is_same).map(|at| free.swap_remove(at));
    let same = same.and_then(|line| Some((copy_of(&line)?, line)));
    // A new version of the program may write an address in another way, or may have called `listen` before.
    let (listener, line) = same.or_else(|| {
        let addresses = matching::fixed_addresses(on);
        let mut copies = free.into_iter().filter_map(|line| Some((copy_of(&line)?, line)));
        copies.find(|(listener, _)| addresses.has(listener.kind(), listener.as_passed()))
    })?;
    let file = line.spec.file.clone();
    let name = on.own_name().map(str::to_owned);
    let kind = listener.kind();
    let spec = Spec {
        origin: SpecOrigin::Bind,
        pool: String::new(),
        text: text.to_owned(),
        ordinal,
        name,
        kind,
        worker: None,
        file,
    };
    // Only the parent removes the file.
    let file = spec.file.as_ref().filter(|_| to_parent).and_then(SocketFile::adopt);
    let listener = listener.with_file(file);
    let entry = Entry { spec, socket: Arc::downgrade(&listener.shared), passed: Some(line) };
    Some((listener, entry))
}

fn copy_of(line: &SocketLine) -> Option<Listener> {
    Listener::given(line.spec.kind, sys::copy_passed(line.position)?)
}

fn entries() -> MutexGuard<'static, Vec<Entry>> {
    BOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// Returns the socket, unless the program has closed it.
    fn socket(&self) -> Option<Arc<SharedSocket>> {
        self.socket.upgrade().filter(|socket| socket.users.load(Ordering::Acquire) > 0)
    }
}
