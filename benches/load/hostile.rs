//! A server that fails in known ways, to check that wrk counts the losses correctly.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::generator::{Generator, Report};

const DURATION: Duration = Duration::from_secs(3);
/// The server misbehaves at every seventh request on a connection. So a connection for a single request has no fault.
const PERIOD: u64 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Answers with `connection: close`, and closes the connection: no loss.
    Announces,
    /// Closes the connection instead of answering: one loss.
    Closes,
    /// Answers with `connection: keep-alive`, but closes the connection: wrk counts one loss, whether or not it has
    /// sent the next request.
    Withdraws,
    /// Never answers: one loss per connection.
    Hangs,
    /// Closes the listener: one loss for each failed attempt to connect. wrk repeats these attempts without a pause.
    Refuses,
}

/// The number of connections that the server accepts before it closes the listener (`Refuses`).
const ACCEPTS: usize = 100;

/// Fails if wrk does not count the losses of each fault correctly.
pub fn check(generator: &Generator) -> io::Result<()> {
    [Fault::Announces, Fault::Closes, Fault::Withdraws, Fault::Hangs, Fault::Refuses]
        .into_iter()
        .try_for_each(|fault| fault.check(generator))
}

impl Fault {
    fn check(self, generator: &Generator) -> io::Result<()> {
        let fault_count = Arc::new(AtomicU64::new(0));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let count = Arc::clone(&fault_count);
        thread::spawn(move || self.listen(listener, &count));
        let report = generator.start(address, DURATION)?.finish()?;
        let fault_count = fault_count.load(Ordering::Relaxed);
        if fault_count > 0 && self.is_noticed(&report, fault_count, generator.connections as u64) {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "wrk does not count losses correctly: {fault_count} times {self:?}, and {report:?}"
        )))
    }

    /// Returns whether the report has the expected number of losses. wrk may end before it notices the last fault on a
    /// connection.
    fn is_noticed(self, report: &Report, fault_count: u64, connections: u64) -> bool {
        let lost = report.lost();
        match self {
            Fault::Announces => lost == 0,
            Fault::Closes | Fault::Withdraws => lost <= fault_count && fault_count <= lost + connections,
            Fault::Hangs => lost == fault_count && report.silent() == lost,
            Fault::Refuses => lost > ACCEPTS as u64,
        }
    }

    /// Accepts connections until the driver ends. For `Refuses`, closes the listener after `ACCEPTS` connections.
    fn listen(self, listener: TcpListener, fault_count: &Arc<AtomicU64>) {
        let most = if self == Fault::Refuses { ACCEPTS } else { usize::MAX };
        for stream in listener.incoming().map_while(Result::ok).take(most) {
            let fault_count = Arc::clone(fault_count);
            thread::spawn(move || self.serve(stream, &fault_count));
        }
    }

    fn serve(self, stream: TcpStream, fault_count: &AtomicU64) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        for nth in 1.. {
            let Some(is_last) = read_request(&mut stream)? else { break };
            if nth % PERIOD == 0 {
                fault_count.fetch_add(1, Ordering::Relaxed);
                return self.commit(stream);
            }
            answer(stream.get_mut(), is_last)?;
            if is_last {
                break;
            }
        }
        Ok(())
    }

    fn commit(self, mut stream: BufReader<TcpStream>) -> io::Result<()> {
        match self {
            Fault::Announces | Fault::Refuses => answer(stream.get_mut(), true),
            Fault::Closes => Ok(()),
            Fault::Withdraws => answer(stream.get_mut(), false),
            // This call returns when wrk ends and so closes the connection.
            Fault::Hangs => read_request(&mut stream).map(drop),
        }
    }
}

/// Reads a request. Returns whether it has `Connection: close`, or `None` if the client has closed the connection.
fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<bool>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head.contains("Connection: close")))
}

fn answer(stream: &mut TcpStream, is_last: bool) -> io::Result<()> {
    let connection = if is_last { "close" } else { "keep-alive" };
    stream.write_all(format!("HTTP/1.1 200 OK\r\nconnection: {connection}\r\ncontent-length: 0\r\n\r\n").as_bytes())
}
