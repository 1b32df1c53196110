//! Unix sockets have a name on the disk, which outlives whoever has made it.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::accounts::{find_group, find_user};

/// By name, or by number where there is no such name.
#[derive(Debug, Default)]
pub(super) struct Owner {
    pub user: Option<String>,
    pub group: Option<String>,
}

/// Removed by the process that has made it, if it is the same still.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    file: (u64, u64),
    pid: u32,
}

/// Nobody can connect before mode and owner are those that were asked for.
pub(super) fn listen(path: &Path, mode: u32, owner: &Owner, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
    let (user, group) = (owner.user_id()?, owner.group_id()?);
    let address = SockAddr::unix(path)?;
    make_room(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address)?;
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), file: (metadata.dev(), metadata.ino()), pid: process::id() };
    if user.is_some() || group.is_some() {
        chown(path, user, group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    // Only from here on it is answered.
    socket.listen(backlog)?;
    Ok((socket.into(), file))
}

/// Takes away what a program has left there that did not live to do so.
fn make_room(path: &Path, address: &SockAddr) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "something that is no socket is there"));
    }
    let client = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Who is asked and has no room for one more connection lives, too.
    client.set_nonblocking(true)?;
    match client.connect(address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Err(io::Error::new(ErrorKind::AddrInUse, "somebody answers there")),
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
        let is_the_same = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.file;
        if process::id() == self.pid && fs::symlink_metadata(&self.path).is_ok_and(is_the_same) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
