//! The channel from a candidate to the parent: a socket pair, through which a candidate sends text and descriptors.
//!
//! A message is sent in packets, because the size of a packet and the number of its descriptors are limited (unix(7)).
//! The first byte of each packet tells whether more packets of the message follow.
//!
//! # Safety
//! sendmsg(2) and recvmsg(2) get buffers of the given length. The control messages are read and written as cmsg(3)
//! describes. recvmsg(2) returns new descriptors, which have no other owner.

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::CallError;
use crate::sys::unix::descriptor::{above_standard, close_inherited};

/// The limits of one packet. Linux passes at most 253 descriptors with a packet (`SCM_MAX_FD`).
const PACKET_BYTES: usize = 32 * 1024;
const PACKET_FDS: usize = 250;

/// The limits of one message, so that a candidate cannot fill the memory of the parent.
const MESSAGE_BYTES: usize = 1024 * 1024;
const MESSAGE_FDS: usize = 4096;
const MESSAGE_PACKETS: usize = 1024;

const MORE: u8 = b'+';
const LAST: u8 = b'.';

/// The parent's end of the channel. It is readable after the candidate has sent something or has closed its end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    partial: Message,
    /// The number of packets in `partial`.
    packets: usize,
}

/// What a candidate has sent in one call of [`Channel::send_blocking`].
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Channel {
    /// Returns the parent's end, and the socket that the candidate inherits.
    pub fn pair() -> Result<(Channel, OwnedFd), CallError> {
        let mut ends: [RawFd; 2] = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: socketpair(2) writes two integers.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } == -1 {
            return Err(CallError::last("socketpair"));
        }
        // SAFETY: the descriptors were just opened and have no other owner.
        let [own, other] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let channel = Channel { socket: above_standard(own)?, partial: Message::default(), packets: 0 };
        Ok((channel, above_standard(other)?))
    }

    /// Returns the next message, or `None` if no complete message has arrived. Never blocks. Call it until it returns
    /// `None`.
    ///
    /// # Errors
    /// Returns an error of the kind `UnexpectedEof` if the candidate has closed its end, and of the kind `InvalidData`
    /// if a message is too long or is no message of a candidate.
    pub fn receive(&mut self) -> Result<Option<Message>, CallError> {
        let mut packet = vec![0; PACKET_BYTES];
        loop {
            let Some(len) = self.receive_packet(&mut packet)? else { return Ok(None) };
            let Some((&kind, bytes)) = packet[..len].split_first() else {
                return Err(CallError::new("recvmsg", ErrorKind::UnexpectedEof));
            };
            self.partial.bytes.extend_from_slice(bytes);
            self.packets += 1;
            let is_too_long = self.partial.bytes.len() > MESSAGE_BYTES
                || self.partial.fds.len() > MESSAGE_FDS
                || self.packets > MESSAGE_PACKETS;
            match kind {
                _ if is_too_long => return Err(invalid()),
                MORE => {}
                LAST => {
                    self.packets = 0;
                    return Ok(Some(mem::take(&mut self.partial)));
                }
                _ => return Err(invalid()),
            }
        }
    }

    /// Receives one packet and adds its descriptors to the message. Returns the length of the packet, or `None` if
    /// there is none. The length is 0 if the other end is closed.
    fn receive_packet(&mut self, packet: &mut [u8]) -> Result<Option<usize>, CallError> {
        let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        let mut control = Control::new();
        let mut header = control.header(&mut part);
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        let received = loop {
            // SAFETY: the header describes the two buffers, which outlive the call.
            let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, flags) };
            match usize::try_from(received) {
                Ok(received) => break received,
                Err(_) => match CallError::last("recvmsg") {
                    error if error.source.kind() == ErrorKind::WouldBlock => return Ok(None),
                    error if error.source.kind() == ErrorKind::Interrupted => {}
                    // The candidate has ended without reading everything that was sent to it.
                    error if error.source.kind() == ErrorKind::ConnectionReset => return Ok(Some(0)),
                    error => return Err(error),
                },
            }
        };
        // SAFETY: recvmsg(2) has filled in the header, and nothing has taken its descriptors yet.
        for fd in unsafe { take_descriptors(&header) } {
            self.partial.fds.push(above_standard(fd)?);
        }
        // Descriptors are left out if this process has too many of them.
        if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            return Err(invalid());
        }
        Ok(Some(received))
    }

    /// Closes, in a forked worker, the descriptors of the parent's end. The worker must not use or drop it afterwards.
    pub fn close_inherited(&self) {
        close_inherited(self.socket.as_fd());
        self.partial.fds.iter().for_each(|fd| close_inherited(fd.as_fd()));
    }

    /// Sends one message from the candidate's end. Waits while the channel is full.
    pub fn send_blocking(end: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), CallError> {
        let mut bytes = bytes;
        let mut fds = fds;
        loop {
            let (now, later) = bytes.split_at(bytes.len().min(PACKET_BYTES - 1));
            let (fds_now, fds_later) = fds.split_at(fds.len().min(PACKET_FDS));
            let is_last = later.is_empty() && fds_later.is_empty();
            let mut packet = vec![if is_last { LAST } else { MORE }];
            packet.extend_from_slice(now);
            send_packet(end, &mut packet, fds_now)?;
            if is_last {
                return Ok(());
            }
            bytes = later;
            fds = fds_later;
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn invalid() -> CallError {
    CallError::new("recvmsg", io::Error::from(ErrorKind::InvalidData))
}

/// The length of a control message with this number of descriptors, without and with its alignment.
const fn fds_size(count: usize) -> libc::c_uint {
    (count * size_of::<RawFd>()) as libc::c_uint
}

/// A buffer for a control message with descriptors. It has the alignment of a `cmsghdr`.
struct Control([u64; Control::WORDS]);

impl Control {
    // SAFETY: CMSG_SPACE(3) only calculates.
    const WORDS: usize = (unsafe { libc::CMSG_SPACE(fds_size(PACKET_FDS)) } as usize).div_ceil(8);

    fn new() -> Control {
        Control([0; Control::WORDS])
    }

    /// Returns a header for one part and the whole buffer.
    fn header(&mut self, part: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: zero bytes are a valid msghdr, which consists of integers and pointers.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = part;
        header.msg_iovlen = 1;
        header.msg_control = self.0.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&self.0) as _;
        header
    }
}

/// Takes ownership of the descriptors that recvmsg(2) has returned.
///
/// # Safety
/// recvmsg(2) must have filled in the header, and nothing may own its descriptors yet.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the caller guarantees that the header is valid. These functions return only addresses inside the control
    // buffer (cmsg(3)), which contains as many descriptors as the length of the control message gives.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_RIGHTS {
                let len = (*message).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(message).cast::<RawFd>();
                let count = len / size_of::<RawFd>();
                fds.extend((0..count).map(|at| OwnedFd::from_raw_fd(data.add(at).read_unaligned())));
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    fds
}

fn send_packet(end: BorrowedFd<'_>, packet: &mut [u8], fds: &[BorrowedFd<'_>]) -> Result<(), CallError> {
    let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
    let mut control = Control::new();
    let mut header = control.header(&mut part);
    if fds.is_empty() {
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
    } else {
        // SAFETY: CMSG_SPACE(3) and CMSG_LEN(3) only calculate. The buffer has room for PACKET_FDS descriptors, and
        // there are not more. CMSG_FIRSTHDR(3) returns its beginning.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(fds_size(fds.len())) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(fds_size(fds.len())) as _;
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            for (at, fd) in fds.iter().enumerate() {
                data.add(at).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: the header describes the two buffers, which outlive the call.
        if unsafe { libc::sendmsg(end.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) } != -1 {
            return Ok(());
        }
        let error = CallError::last("sendmsg");
        if error.source.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::thread;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// Returns the next message or error. (A process that another test is starting can keep the other end open for a
    /// moment.)
    fn received(channel: &mut Channel) -> Result<Message, ErrorKind> {
        loop {
            match channel.receive() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {
                    let mut readable = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                    poll(&mut readable, PollTimeout::NONE).expect("a socket");
                }
                Err(error) => return Err(error.source.kind()),
            }
        }
    }

    #[test]
    fn a_long_message_arrives_with_all_its_descriptors() {
        let (mut channel, end) = Channel::pair().expect("a channel");
        assert!(channel.receive().expect("an open channel").is_none());
        let text: Vec<u8> = (0..500_000_u32).map(|at| at as u8).collect();
        let null = File::open("/dev/null").expect("a file");
        let zero = File::open("/dev/zero").expect("a file");
        let sent = text.clone();
        let sender = thread::spawn(move || {
            let mut fds = vec![null.as_fd(); 300];
            fds.push(zero.as_fd());
            Channel::send_blocking(end.as_fd(), &sent, &fds).expect("an open channel");
            Channel::send_blocking(end.as_fd(), b"", &[]).expect("an open channel");
            end
        });
        let message = received(&mut channel).expect("a message");
        assert!(message.bytes == text);
        assert_eq!(message.fds.len(), 301);
        let device =
            |fd: &OwnedFd| File::from(fd.try_clone().expect("a descriptor")).metadata().expect("a file").rdev();
        assert_ne!(device(&message.fds[299]), device(&message.fds[300]));
        // SAFETY: fcntl(2) takes integers here.
        let flags = unsafe { libc::fcntl(message.fds[0].as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
        let empty = received(&mut channel).expect("a message");
        assert!(empty.bytes.is_empty() && empty.fds.is_empty());
        drop(sender.join().expect("the sender"));
        assert_eq!(received(&mut channel).expect_err("it is closed"), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_wrong_or_endless_message_is_an_error() {
        let (mut channel, end) = Channel::pair().expect("a channel");
        send_packet(end.as_fd(), &mut b"x".to_owned(), &[]).expect("an open channel");
        assert_eq!(channel.receive().expect_err("no message").source.kind(), ErrorKind::InvalidData);

        let (mut channel, end) = Channel::pair().expect("a channel");
        let sender = thread::spawn(move || Channel::send_blocking(end.as_fd(), &vec![0; MESSAGE_BYTES + 1], &[]));
        assert_eq!(received(&mut channel).expect_err("it is too long"), ErrorKind::InvalidData);
        drop(channel);
        let _ = sender.join().expect("the sender");
    }
}
