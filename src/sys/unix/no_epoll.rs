//! Replaces `epoll.rs` on systems other than Linux. They have no epoll(7), and a fork does not inherit a kqueue(2).

use std::os::fd::RawFd;

#[derive(Debug)]
pub(crate) struct OpenEpoll {
    pub fd: RawFd,
    pub may_be_inherited: bool,
}

/// Returns no epoll instances, because this system has none.
pub(crate) fn other_epolls(_: RawFd) -> Vec<OpenEpoll> {
    Vec::new()
}
