//! The worker of all the Rust programs. It writes one line, and then sends the same small answer to every client.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use std::{env, process, thread};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";

/// Writes the pid and the time to the pipe that the measurement reads. If PEERS_FATE is `broken`, this function then
/// returns an error. If it is `dies`, the worker exits after 100 ms.
pub fn begin() -> io::Result<()> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let line = format!("{} {}{:09}\n", process::id(), now.tv_sec(), now.tv_nsec());
    OpenOptions::new().append(true).open(setting("PEERS_LINES"))?.write_all(line.as_bytes())?;
    match env::var("PEERS_FATE").as_deref() {
        Ok("broken") => Err(io::Error::other("this worker cannot start")),
        Ok("dies") => {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(100));
                process::exit(1)
            });
            Ok(())
        }
        _ => Ok(()),
    }
}

pub fn address() -> String {
    format!("127.0.0.1:{}", setting("PEERS_PORT"))
}

pub fn setting(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// Answers the clients one after the other until `stop` is readable. Calls `beat` before each wait for a client. `beat`
/// returns the timeout of that wait.
#[allow(dead_code, reason = "one of the programs is asynchronous")]
pub fn serve(
    listener: &TcpListener,
    stop: Option<BorrowedFd<'_>>,
    mut beat: impl FnMut() -> PollTimeout,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let awaited: Vec<_> = [Some(listener.as_fd()), stop].into_iter().flatten().collect();
    loop {
        let mut awaited: Vec<_> = awaited.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        // A signal interrupts the wait. If the signal is a stop request, `stop` is readable at the next wait.
        if poll(&mut awaited, beat()) == Err(Errno::EINTR) {
            continue;
        }
        if awaited.get(1).is_some_and(|stop| stop.any() == Some(true)) {
            return Ok(());
        }
        // `accept` fails if another worker has accepted the connection, or if the client has closed it.
        if let Ok((connection, _)) = listener.accept() {
            let _ = answer(connection);
        }
    }
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    let _ = connection.read(&mut [0; 1024])?;
    connection.write_all(ANSWER)
}
