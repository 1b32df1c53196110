//! One descriptor by which any of the workers wakes the parent. What for is written elsewhere.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::sys::CallError;

/// The parent's end.
#[derive(Debug)]
pub(crate) struct Bell(UnixStream);

/// The end that all workers have.
#[derive(Debug)]
pub(crate) struct Button(UnixStream);

/// A pair of sockets, which std makes close-on-exec everywhere, and writes to without SIGPIPE.
pub(crate) fn doorbell() -> Result<(Bell, Button), CallError> {
    let (bell, button) = UnixStream::pair().map_err(|error| CallError::new("socketpair", error))?;
    for end in [&bell, &button] {
        end.set_nonblocking(true).map_err(|error| CallError::new("ioctl", error))?;
    }
    Ok((Bell(bell), Button(button)))
}

impl Bell {
    /// Until it rings again. All that is there is read, because a full socket takes no byte that would wake anybody; but not
    /// what comes meanwhile, which wakes again, so that a worker which rings without end does not hold up the parent.
    pub fn silence(&self) -> Result<(), CallError> {
        let mut bytes = [0; 4096];
        loop {
            match (&self.0).read(&mut bytes) {
                Ok(read) if read == bytes.len() => {}
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(CallError::new("read", error)),
            }
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Button {
    /// A socket that is full wakes the parent as well, and a parent that is gone needs no waking.
    pub fn ring(&self) {
        while (&self.0).write(&[0]).is_err_and(|error| error.kind() == ErrorKind::Interrupted) {}
    }
}
