//! Unix sockets at a path. The socket file outlives the process that made it.
//!
//! Another user may own the directory of the path, and can replace each file there at any moment. So the directory is
//! opened once, and the owner and the mode are set by a descriptor of the file that bind(2) has created.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::retry::Attempt;
use super::spec::FileSpec;
use crate::accounts::{find_group, find_user};
use crate::sys::{self, CallError, Directory, FileHandle, FileStatus};

/// The mode of the file until it has its owner: only this user and root can connect.
const PRIVATE: u32 = 0o600;

/// The user and group of a socket file: names, or numbers if there is no such name.
#[derive(Debug, Default)]
pub(super) struct Owner {
    pub user: Option<String>,
    pub group: Option<String>,
}

/// The ids of a socket file's owner. `None`: the file keeps the user or group that it has.
#[derive(Clone, Copy)]
struct OwnerIds {
    user: Option<u32>,
    group: Option<u32>,
}

/// A socket file. Dropping it in the process that made it removes the file, unless another file is at the path by then.
///
/// Drop it before the listener: while the socket is open, no other file gets the same inode number.
#[derive(Debug)]
pub(crate) struct SocketFile {
    /// An absolute path, because the program may change its directory.
    path: PathBuf,
    id: (u64, u64),
    pid: u32,
}

/// A connection to a socket that its parent has left behind: the process that called listen(2) has ended, but others
/// have copies of the socket. They may be workers that drain, and accept no more connections.
#[derive(Debug)]
pub(super) struct Probe {
    client: Socket,
    /// The id of the socket file.
    id: (u64, u64),
}

/// The directory of a socket file, opened once, and the file's name in it.
struct Place {
    directory: Directory,
    name: OsString,
}

/// Opens a listening socket at `path`. No other user can connect before the file has its mode and owner.
///
/// Fails with `AddrInUse` if a process listens at the path, or if another process opens a socket there right now. In
/// the last attempt, replaces a socket whose parent has ended, if no process has accepted a connection since the first
/// one.
pub(super) fn listen(
    path: &Path,
    mode: u32,
    owner: &Owner,
    backlog: i32,
    attempt: &mut Attempt,
) -> io::Result<(UnixListener, SocketFile)> {
    let owner = owner.ids()?;
    let address = SockAddr::unix(path)?;
    let place = Place::open(path)?;
    let lock_name = place.lock_name();
    let Some(_lock) = place.directory.lock(&lock_name).map_err(to_io)? else {
        let problem = format!("another process has the lock {}", path.with_file_name(&lock_name).display());
        return Err(io::Error::new(ErrorKind::AddrInUse, problem));
    };
    place.remove_stale(&address, attempt)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    sys::limit_future_mode(socket.as_fd(), PRIVATE).map_err(to_io)?;
    socket.bind(&address)?;
    let id = place.file()?.ok_or_else(replaced)?.id;
    if let Err(error) = place.publish(&socket, id, backlog, owner, mode) {
        place.remove(id);
        return Err(error);
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok((socket.into(), SocketFile { path, id, pid: process::id() }))
}

impl SocketFile {
    /// Takes over the file of a socket that another process has opened, or this process with another program. Then this
    /// process removes the file.
    #[expect(clippy::unnecessary_wraps, reason = "other systems have no socket files")]
    pub fn adopt(spec: &FileSpec) -> Option<SocketFile> {
        let FileSpec { path, device, inode } = spec;
        Some(SocketFile { path: path.clone(), id: (*device, *inode), pid: process::id() })
    }

    pub fn spec(&self) -> FileSpec {
        let SocketFile { path, id: (device, inode), .. } = self;
        FileSpec { path: path.clone(), device: *device, inode: *inode }
    }

    /// Leaves the file to another process.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn release(&mut self) {
        self.pid = 0;
    }
}

impl Place {
    fn open(path: &Path) -> io::Result<Place> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the path has no file name"));
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Place { directory: Directory::open(parent).map_err(to_io)?, name: name.to_owned() })
    }

    /// Returns the name of the lock that a process has while it opens or removes the socket.
    fn lock_name(&self) -> OsString {
        [OsStr::new("."), &self.name, OsStr::new(".taskfork")].into_iter().collect()
    }

    fn file(&self) -> io::Result<Option<FileStatus>> {
        self.directory.file(&self.name).map_err(to_io)
    }

    /// Removes a socket file if no service uses it any more, such as one that a killed parent has left. Refuses any
    /// other file. Requires the lock: otherwise two processes could find the same file, and the slower one would remove
    /// the file that the faster one has made meanwhile.
    fn remove_stale(&self, address: &SockAddr, attempt: &mut Attempt) -> io::Result<()> {
        let Some(found) = self.file()? else { return Ok(()) };
        if !found.is_socket {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is not a socket is at this path"));
        }
        if let Some(probe) = attempt.probe.take().filter(|probe| probe.is_waiting(found.id)) {
            if attempt.is_last {
                return self.directory.remove(&self.name).map_err(to_io);
            }
            attempt.probe = Some(probe);
            return Err(in_use());
        }
        match self.connect(address) {
            Ok(client) => {
                attempt.probe =
                    Some(Probe { client, id: found.id }).filter(|probe| sys::has_ended(probe.client.as_fd()));
                Err(in_use())
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.directory.remove(&self.name).map_err(to_io)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            // The queue is full.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(in_use()),
            Err(error) => Err(error),
        }
    }

    /// Connects to the socket file. Never blocks: if the queue is full, connect(2) fails with EAGAIN.
    fn connect(&self, address: &SockAddr) -> io::Result<Socket> {
        let handle = self.directory.handle(&self.name).map_err(to_io)?;
        let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        client.set_nonblocking(true)?;
        match handle {
            Some(handle) => client.connect(&SockAddr::unix(handle.path())?)?,
            None => client.connect(address)?,
        }
        Ok(client)
    }

    /// Lets clients connect, after it has set the owner and the mode of the file.
    fn publish(&self, socket: &Socket, id: (u64, u64), backlog: i32, owner: OwnerIds, mode: u32) -> io::Result<()> {
        let Some(handle) = self.directory.handle(&self.name).map_err(to_io)? else {
            return self.publish_by_name(socket, backlog, owner, mode);
        };
        if handle.status().map_err(to_io)?.id != id {
            return Err(replaced());
        }
        // The file has the mode PRIVATE, so no other user can connect yet.
        socket.listen(backlog)?;
        check_leads_to(&handle, socket)?;
        if owner.is_some() {
            handle.set_owner(owner.user, owner.group).map_err(to_io)?;
        }
        handle.set_mode(mode).map_err(to_io)
    }

    /// Does the same on systems that cannot open a socket file. There it takes a directory in which no other user can
    /// replace the file.
    fn publish_by_name(&self, socket: &Socket, backlog: i32, owner: OwnerIds, mode: u32) -> io::Result<()> {
        if !self.directory.is_trusted().map_err(to_io)? {
            let problem = "another user can replace the socket, because that user may write to the directory";
            return Err(io::Error::new(ErrorKind::PermissionDenied, problem));
        }
        if owner.is_some() {
            self.directory.set_owner(&self.name, owner.user, owner.group).map_err(to_io)?;
        }
        self.directory.set_mode(&self.name, mode).map_err(to_io)?;
        // Connections are refused until here.
        socket.listen(backlog)
    }

    /// Removes the file with this id. Requires the lock.
    fn remove(&self, id: (u64, u64)) {
        if self.file().is_ok_and(|file| file.is_some_and(|file| file.id == id)) {
            let _ = self.directory.remove(&self.name);
        }
    }
}

/// Checks that a connection to this file reaches this listening socket.
///
/// The owner of the directory could have put another socket of this user in the place of the new file. That socket's
/// file must not get the new owner and mode.
fn check_leads_to(handle: &FileHandle, socket: &Socket) -> io::Result<()> {
    let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // With an empty address, bind(2) chooses a name that no other socket has.
    client.bind(&SockAddr::unix("")?)?;
    client.set_nonblocking(true)?;
    client.connect(&SockAddr::unix(handle.path())?)?;
    let name = client.local_addr()?;
    loop {
        match socket.accept() {
            Ok((_, peer)) if peer == name => return Ok(()),
            // Another process of this user or of root was faster. It has to connect again.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(replaced()),
            Err(error) => return Err(error),
        }
    }
}

impl Probe {
    /// Returns whether this connection still waits for a process to accept it, and the file at the path is the same.
    fn is_waiting(&self, id: (u64, u64)) -> bool {
        let client = self.client.as_fd();
        self.id == id && !sys::is_shut_down(client) && sys::is_accepted(client) == Some(false)
    }
}

fn in_use() -> io::Error {
    io::Error::new(ErrorKind::AddrInUse, "a process listens on this socket already")
}

fn replaced() -> io::Error {
    io::Error::other("another process has replaced the socket or its directory")
}

fn to_io(error: CallError) -> io::Error {
    error.source
}

impl Owner {
    fn ids(&self) -> io::Result<OwnerIds> {
        let user = self.user.as_deref().map(|name| find_user(name).map(|user| user.uid)).transpose()?;
        let group = self.group.as_deref().map(find_group).transpose()?;
        Ok(OwnerIds { user, group })
    }
}

impl OwnerIds {
    fn is_some(self) -> bool {
        self.user.is_some() || self.group.is_some()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        /// A process has the lock for less than this time.
        const PAUSES: u32 = 100;
        if process::id() != self.pid {
            return;
        }
        let Ok(place) = Place::open(&self.path) else { return };
        for _ in 0..PAUSES {
            match place.directory.lock(&place.lock_name()) {
                Ok(Some(_lock)) => return place.remove(self.id),
                Ok(None) => thread::sleep(Duration::from_millis(1)),
                Err(_) => return,
            }
        }
        // The file stays. The next service at this path replaces it.
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;

    use super::*;

    /// A directory for one test, which is removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("taskfork-{name}-{}", process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a directory");
            Scratch(path)
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.0).expect("a directory").count()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn open(path: &Path) -> io::Result<(SocketFile, UnixListener)> {
        listen(path, 0o660, &Owner::default(), 10, &mut Attempt::default()).map(|(listener, file)| (file, listener))
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("a file").permissions().mode() & 0o7777
    }

    #[test]
    fn only_one_of_two_services_gets_a_stale_path() {
        const ROUNDS: usize = 300;
        let scratch = Scratch::new("two-services");
        let path = scratch.0.join("socket");
        for round in 0..ROUNDS {
            drop(UnixListener::bind(&path).expect("a stale file"));
            let start = Barrier::new(2);
            let race = || {
                start.wait();
                open(&path)
            };
            let opened: Vec<_> = thread::scope(|scope| {
                let services = [(); 2].map(|()| scope.spawn(race));
                services.into_iter().filter_map(|service| service.join().expect("a result").ok()).collect()
            });
            assert_eq!(opened.len(), 1, "round {round}");
            UnixStream::connect(&path).expect("the service is at its path");
            assert_eq!(scratch.files(), 1, "the lock is removed");
            drop(opened);
            assert_eq!(scratch.files(), 0);
        }
    }

    #[test]
    fn a_failed_start_leaves_no_file() {
        let scratch = Scratch::new("failed");
        let path = scratch.0.join("socket");
        let owner = Owner { user: Some("4000000001".to_owned()), group: Some("4000000001".to_owned()) };
        let opened = listen(&path, 0o660, &owner, 10, &mut Attempt::default());
        match &opened {
            Ok(_) => assert_eq!(mode(&path), 0o660),
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "only root can do this"),
        }
        drop(opened.map(|(listener, file)| (file, listener)));
        assert_eq!(scratch.files(), 0);
    }

    #[test]
    fn only_the_own_socket_is_removed_at_the_end() {
        let scratch = Scratch::new("other");
        let path = scratch.0.join("socket");
        let (file, _listener) = open(&path).expect("a socket");
        fs::remove_file(&path).expect("a file");
        let _other = UnixListener::bind(&path).expect("a socket");
        drop(file);
        UnixStream::connect(&path).expect("the other service is at the path");
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        for path in ["", "/", "..", "\0name"] {
            assert_eq!(open(Path::new(path)).expect_err(path).kind(), ErrorKind::InvalidInput, "{path:?}");
        }
    }

    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    mod attacks {
        use std::fs::Permissions;
        use std::os::unix::fs::symlink;
        use std::sync::atomic::{AtomicBool, Ordering};

        use super::*;

        /// Opens the socket again and again, while a thread puts `bait` in its place whenever it appears.
        fn attack(scratch: &Scratch, bait: impl Fn(&Path) + Sync) {
            const STARTS: usize = 3000;
            let path = scratch.0.join("socket");
            let has_ended = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let hook = scratch.0.join("hook");
                    while !has_ended.load(Ordering::Relaxed) {
                        bait(&hook);
                        while !path.exists() && !has_ended.load(Ordering::Relaxed) {}
                        let _ = fs::rename(&hook, &path);
                        while path.exists() && !has_ended.load(Ordering::Relaxed) {}
                    }
                });
                for _ in 0..STARTS {
                    let _ = open(&path);
                    let _ = fs::remove_file(&path);
                }
                has_ended.store(true, Ordering::Relaxed);
            });
        }

        #[test]
        fn a_link_in_the_place_of_the_socket_is_not_followed() {
            let scratch = Scratch::new("link");
            let secret = scratch.0.join("secret");
            fs::write(&secret, "").expect("a file");
            fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("a mode");
            attack(&scratch, |hook| drop(symlink(&secret, hook)));
            assert_eq!(mode(&secret), 0o600);
        }

        #[test]
        fn another_socket_in_the_place_of_the_socket_is_left_alone() {
            let scratch = Scratch::new("socket");
            let admin = scratch.0.join("admin");
            let _listener = UnixListener::bind(&admin).expect("a socket");
            fs::set_permissions(&admin, Permissions::from_mode(0o600)).expect("a mode");
            attack(&scratch, |hook| drop(fs::hard_link(&admin, hook)));
            assert_eq!(mode(&admin), 0o600);
        }
    }

    #[test]
    #[cfg(not(all(target_os = "linux", not(taskfork_portable))))]
    fn a_directory_of_other_users_is_refused() {
        let scratch = Scratch::new("shared");
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).expect("a mode");
        let error = open(&scratch.0.join("socket")).expect_err("another user can replace the file");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert_eq!(scratch.files(), 0);
    }
}
