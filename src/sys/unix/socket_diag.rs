//! Facts about a Unix socket that only the kernel's socket diagnosis reports (sock_diag(7)).
//!
//! # Safety
//! socket(2) takes integers and returns a new descriptor, which nothing else owns.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::stat::fstat;

/// Asks the kernel about a Unix socket. `show` selects the information, and `attribute` is the attribute that carries
/// it in the response. Returns the first four bytes of this attribute. Returns `None` if the kernel cannot answer this.
pub(super) fn unix_diag(socket: BorrowedFd<'_>, show: u32, attribute: u16) -> Option<u32> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const ANY: u32 = u32::MAX;
    const REQUEST: usize = 40;
    let inode = u32::try_from(fstat(socket).ok()?.st_ino).ok()?;
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: see the top of this file.
    let netlink = match unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG) } {
        -1 => return None,
        // SAFETY: see the top of this file.
        fd => unsafe { OwnedFd::from_raw_fd(fd) },
    };
    let mut netlink = File::from(netlink);
    // struct nlmsghdr: the length, the type and the flags; the sequence number and the sender are 0.
    let mut request = Vec::with_capacity(REQUEST);
    request.extend((REQUEST as u32).to_ne_bytes());
    request.extend([SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST].map(u16::to_ne_bytes).concat());
    request.extend([0; 8]);
    // struct unix_diag_req: the family; any state; the inode; what to show; any cookie.
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend([ANY, inode, show, ANY, ANY].map(u32::to_ne_bytes).concat());
    netlink.write_all(&request).ok()?;
    let mut response = [0; 1024];
    let len = netlink.read(&mut response).ok()?;
    let is_about = |response: &[u8]| u16_at(response, 4) == Some(SOCK_DIAG_BY_FAMILY);
    Some(&response[..len]).filter(|response| is_about(response)).and_then(|response| find(response, attribute))
}

/// Finds an attribute in a response: attributes follow a header of 16 bytes and a `struct unix_diag_msg` of 16 bytes.
fn find(response: &[u8], attribute: u16) -> Option<u32> {
    let mut attributes = response.get(32..)?;
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        if u16_at(attributes, 2)? == attribute {
            let value = attributes.get(4..8)?;
            return Some(u32::from_ne_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_without_the_attribute_is_unknown() {
        let response = |attribute: [u8; 8]| [[0; 32].as_slice(), &attribute].concat();
        assert_eq!(find(&response([8, 0, 2, 0, 7, 0, 0, 0]), 2), Some(7));
        let second = [response([8, 0, 1, 0, 7, 0, 0, 0]), vec![8, 0, 2, 0, 9, 0, 0, 0]].concat();
        assert_eq!(find(&second, 2), Some(9));
        for wrong in [[8, 0, 1, 0, 7, 0, 0, 0], [0; 8], [255; 8]] {
            assert_eq!(find(&response(wrong), 2), None);
        }
        assert_eq!(find(&[0; 31], 2), None);
    }
}
