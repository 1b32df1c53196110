//! The sockets of one listener: existing ones that another process has passed, or new ones.

use std::vec;

use super::config::ListenConfig;
use super::matching::{self, Place};
use super::open::{Opened, SocketFile};
use super::retry::Retry;
use super::spec::{FileSpec, Given, Spec, SpecOrigin};
use super::{Listener, Listeners};
use crate::error::{Error, Result};
use crate::listener::group::SocketGroup;
use crate::sys;

/// The sockets of one listener, not yet sorted by worker.
pub(super) struct Column {
    /// The first socket, or the only one.
    pub opened: Opened,
    /// The other sockets of a per-worker listener that exist already.
    pub rest: vec::IntoIter<Listener>,
    /// The identity of the first socket. `None` for a socket that the program has opened.
    pub spec: Option<Spec>,
    pub backlog: i32,
    /// Whether this process has opened the first socket.
    pub is_new: bool,
}

/// Finds the sockets of all listeners of a pool in `given`, and takes them out. Opens those that are not there. Changes
/// nothing on an existing socket.
pub(super) fn find_or_open(
    pool: &str,
    listens: Vec<ListenConfig>,
    given: &mut Vec<Given>,
    retry: &mut Retry<'_>,
) -> Result<Vec<Column>> {
    let mut columns: Vec<Column> = Vec::with_capacity(listens.len());
    for listen in listens {
        let spec = new_spec(pool, &listen, &columns);
        let column = match &spec {
            Some(spec) if !given.is_empty() => Column::find(spec, &listen, given, retry)?,
            _ => None,
        };
        columns.push(match column {
            Some(column) => column,
            None => Column::open(spec, listen, retry)?,
        });
    }
    Ok(columns)
}

/// Returns the listeners of one worker. All of them must be in `given`, except those that the program has opened.
#[cfg_attr(
    not(all(target_os = "linux", not(taskfork_portable))),
    allow(dead_code, reason = "only an upgrade needs it")
)]
pub(super) fn of_worker(
    pool: &str,
    listens: Vec<ListenConfig>,
    id: usize,
    given: &mut Vec<Given>,
) -> Result<Listeners> {
    let mut on_wait = |_: &str, _| {};
    // Nothing is opened here, so there is nothing to wait for.
    let retry = &mut Retry::new(&mut on_wait);
    let mut columns: Vec<Column> = Vec::with_capacity(listens.len());
    for listen in listens {
        let spec = new_spec(pool, &listen, &columns);
        columns.push(match spec {
            None => Column::open(None, listen, retry)?,
            Some(spec) => Column::find(&spec, &listen, given, retry)?
                .ok_or_else(|| Error::unfit("listen", format!("the parent has passed no socket for {}", spec.text)))?,
        });
    }
    let listeners = columns.into_iter().map(|column| column.into_socket_of(id)).collect::<Result<Vec<Listener>>>()?;
    Ok((!listeners.is_empty()).then(|| listeners.into()))
}

/// Returns the number of sockets that a per-worker listener gets first. Existing listeners get no more sockets, because
/// a new socket may receive connections at once.
pub(super) fn row_count(columns: &[Column], workers: usize) -> usize {
    let groups = || columns.iter().filter(|column| column.opened.group.is_some());
    let known = groups().filter(|column| !column.is_new).map(|column| 1 + column.rest.len()).max();
    known.or_else(|| groups().next().map(|_| workers)).unwrap_or(1)
}

/// Returns the identity that the first socket of a listener would have. `None` for a socket that the program has
/// opened.
fn new_spec(pool: &str, listen: &ListenConfig, before: &[Column]) -> Option<Spec> {
    let text = listen.written()?;
    let is_same = |column: &&Column| column.spec.as_ref().is_some_and(|spec| spec.text == text);
    Some(Spec {
        origin: if listen.is_activated() { SpecOrigin::Activated } else { SpecOrigin::Listen },
        pool: pool.to_owned(),
        ordinal: before.iter().filter(is_same).count(),
        text,
        name: listen.own_name().map(str::to_owned),
        kind: listen.kind(),
        worker: listen.per_worker.then_some(0),
        file: None,
    })
}

impl Column {
    fn open(spec: Option<Spec>, listen: ListenConfig, retry: &mut Retry<'_>) -> Result<Column> {
        let backlog = listen.backlog_len();
        let opened = listen.open(retry)?;
        let file = opened.file.as_ref().map(FileSpec::of);
        let spec = spec.map(|spec| Spec { file, ..spec });
        Ok(Column { opened, rest: Vec::new().into_iter(), spec, backlog, is_new: true })
    }

    fn find(
        spec: &Spec,
        listen: &ListenConfig,
        given: &mut Vec<Given>,
        retry: &mut Retry<'_>,
    ) -> Result<Option<Column>> {
        listen.check(&spec.text)?;
        let place = Place { pool: &spec.pool, text: &spec.text, ordinal: spec.ordinal };
        let found = matching::take(place, listen, given)?;
        let Some(first) = found.first() else { return Ok(None) };
        // The socket keeps its origin, because this decides about its backlog. Its other names are those of this
        // program, by which the next program finds it.
        let origin = if first.spec.origin == SpecOrigin::Activated { SpecOrigin::Activated } else { spec.origin };
        let spec = Spec { origin, kind: first.spec.kind, file: first.spec.file.clone(), ..spec.clone() };
        let unknown = || Error::unfit("listen", format!("{} is a kind of socket that this system lacks", spec.text));
        let listeners = found.into_iter().map(Given::into_listener).collect::<Option<Vec<_>>>().ok_or_else(unknown)?;
        let mut rest = listeners.into_iter();
        let listener = rest.next().ok_or_else(unknown)?;
        retry.note_opened(spec.text.clone());
        let group = listen.per_worker.then(|| SocketGroup::of(&listener, listen)).transpose();
        let group = group.map_err(|error| Error::listen(spec.text.clone(), error))?;
        let opened = Opened { listener, file: None, group };
        Ok(Some(Column { opened, rest, spec: Some(spec), backlog: listen.backlog_len(), is_new: false }))
    }

    /// Makes this process the owner of existing sockets: it removes the file, and sets the backlog.
    pub fn adopt(&mut self) {
        let Some(spec) = self.spec.as_ref().filter(|_| !self.is_new) else { return };
        self.opened.file = spec.file.as_ref().and_then(SocketFile::adopt);
        if spec.origin != SpecOrigin::Activated {
            for listener in std::iter::once(&self.opened.listener).chain(self.rest.as_slice()) {
                // The socket listens in any case, with the backlog that it has.
                let _ = listener.set_backlog(self.backlog);
            }
        }
    }

    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    fn into_socket_of(mut self, id: usize) -> Result<Listener> {
        match &self.spec {
            Some(spec) if self.opened.group.is_some() && id > 0 => {
                let missing = || Error::unfit("listen", format!("worker {id} has no socket for {}", spec.text));
                self.rest.nth(id - 1).ok_or_else(missing)
            }
            _ => Ok(self.opened.listener),
        }
    }

    /// Opens all sockets of a new listener. Returns them for another process, with the file of a Unix socket, which
    /// this process still owns.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn into_given(self, rows: usize) -> Result<NewSockets> {
        let mut new = NewSockets { file: self.opened.file, sockets: Vec::new() };
        let Some(spec) = self.spec else { return Ok(new) };
        let refused = |error| Error::listen(spec.text.clone(), error);
        let mut listeners = vec![self.opened.listener];
        if let Some(group) = &self.opened.group {
            while listeners.len() < rows {
                listeners.push(group.open_next().map_err(refused)?);
            }
        }
        for (worker, listener) in listeners.iter().enumerate() {
            let fd = listener.as_passed().try_clone_to_owned().map_err(refused)?;
            let worker = self.opened.group.as_ref().map(|_| worker);
            new.sockets.push(Given { spec: Spec { worker, ..spec.clone() }, fd });
        }
        Ok(new)
    }
}

/// New sockets of one listener. The file is dropped first, because the sockets must be open until then.
#[cfg_attr(
    not(all(target_os = "linux", not(taskfork_portable))),
    allow(dead_code, reason = "only an upgrade needs it")
)]
pub(super) struct NewSockets {
    pub file: Option<SocketFile>,
    pub sockets: Vec<Given>,
}

/// Returns the CPUs for listeners that are steered by CPU.
pub(super) fn cpus_of(columns: &[Column]) -> Result<Vec<usize>> {
    let by_cpu = columns.iter().filter_map(|column| column.opened.group.as_ref()).any(|group| group.by_cpu);
    Ok(if by_cpu { sys::usable_cpus()? } else { Vec::new() })
}
