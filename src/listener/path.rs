//! Unix sockets that have a path in the file system. The kernel does not remove the socket file when the process that
//! has created it exits.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::accounts::{find_group, find_user};

/// The user and the group of a socket file. Each is a name, or a number if no user or group has that name. `None` keeps
/// the user or group that the new file has.
#[derive(Debug, Default)]
pub(super) struct Owner {
    pub user: Option<String>,
    pub group: Option<String>,
}

/// A socket file. When the process that has created the file drops this value, the file is removed. A different file
/// that has replaced it at the path is not removed.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
    pid: u32,
}

/// Opens a listening socket at `path`. Clients can connect only after this function has set the mode and the owner of
/// the socket file.
pub(super) fn listen(path: &Path, mode: u32, owner: &Owner, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
    let user = owner.user_id()?;
    let group = owner.group_id()?;
    let address = SockAddr::unix(path)?;
    remove_stale(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address)?;
    let metadata = fs::symlink_metadata(path)?;
    let device_and_inode = (metadata.dev(), metadata.ino());
    let file = SocketFile { path: path.to_owned(), device_and_inode, pid: process::id() };
    if user.is_some() || group.is_some() {
        chown(path, user, group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    // Before this call of listen(2), the kernel refuses connections.
    socket.listen(backlog)?;
    Ok((socket.into(), file))
}

/// Removes the socket file at `path` if no process listens on it. For example, a parent that was killed leaves such a
/// file. Returns an error if a process listens, or if the file is not a socket. Does nothing if there is no file.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is not a socket is at this path"));
    }
    let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // If the backlog of the listening process is full, a non-blocking connect(2) fails with EAGAIN. A blocking
    // connect(2) would wait.
    client.set_nonblocking(true)?;
    match client.connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Err(io::Error::new(ErrorKind::AddrInUse, "a process listens on this socket already")),
    }
}

impl Owner {
    fn user_id(&self) -> io::Result<Option<u32>> {
        self.user.as_deref().map(|name| find_user(name).map(|user| user.uid)).transpose()
    }

    fn group_id(&self) -> io::Result<Option<u32>> {
        self.group.as_deref().map(find_group).transpose()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_same = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.device_and_inode;
        if process::id() == self.pid && fs::symlink_metadata(&self.path).is_ok_and(is_same) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
