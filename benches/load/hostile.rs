//! A server of which it is known what it does not answer: whether wrk's counters can be believed.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::generator::{Generator, Report};

const DURATION: Duration = Duration::from_secs(3);
/// It misbehaves at every seventh request of a connection, so only to those that are kept.
const PERIOD: u64 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    /// It says that it will close the connection, and does: no loss.
    Announces,
    /// It closes it instead of an answer: one loss.
    Closes,
    /// It answers, and then closes it, of which it has said nothing: wrk has one loss, whether or not it has asked again.
    Withdraws,
    /// It never answers: one loss per connection.
    Hangs,
    /// It does not listen any more: as many losses as wrk tries to connect, which is without a break.
    Refuses,
}

/// How many it accepts, if it will not listen for ever.
const ACCEPTS: usize = 100;

/// Fails if wrk has not noticed what it was to notice.
pub fn check(generator: &Generator) -> io::Result<()> {
    [Manners::Announces, Manners::Closes, Manners::Withdraws, Manners::Hangs, Manners::Refuses]
        .into_iter()
        .try_for_each(|manners| manners.check(generator))
}

impl Manners {
    fn check(self, generator: &Generator) -> io::Result<()> {
        let misdeeds = Arc::new(AtomicU64::new(0));
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let count = Arc::clone(&misdeeds);
        thread::spawn(move || self.listen(listener, &count));
        let report = generator.start(address, DURATION)?.finish()?;
        let misdeeds = misdeeds.load(Ordering::Relaxed);
        if misdeeds > 0 && self.is_noticed(&report, misdeeds, generator.connections as u64) {
            return Ok(());
        }
        Err(io::Error::other(format!("wrk is not to be trusted: {misdeeds} times {self:?}, and {report:?}")))
    }

    /// The last misdeed at each connection may have come too late for wrk to notice.
    fn is_noticed(self, report: &Report, misdeeds: u64, connections: u64) -> bool {
        let lost = report.lost();
        match self {
            Manners::Announces => lost == 0,
            Manners::Closes | Manners::Withdraws => lost <= misdeeds && misdeeds <= lost + connections,
            Manners::Hangs => lost == misdeeds && report.silent() == lost,
            Manners::Refuses => lost > ACCEPTS as u64,
        }
    }

    /// It ends with the driver, or closes the listener.
    fn listen(self, listener: TcpListener, misdeeds: &Arc<AtomicU64>) {
        let most = if self == Manners::Refuses { ACCEPTS } else { usize::MAX };
        for stream in listener.incoming().map_while(Result::ok).take(most) {
            let misdeeds = Arc::clone(misdeeds);
            thread::spawn(move || self.serve(stream, &misdeeds));
        }
    }

    fn serve(self, stream: TcpStream, misdeeds: &AtomicU64) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        for nth in 1.. {
            let Some(is_last) = read_request(&mut stream)? else { break };
            if nth % PERIOD == 0 {
                misdeeds.fetch_add(1, Ordering::Relaxed);
                return self.misbehave(stream);
            }
            answer(stream.get_mut(), is_last)?;
            if is_last {
                break;
            }
        }
        Ok(())
    }

    fn misbehave(self, mut stream: BufReader<TcpStream>) -> io::Result<()> {
        match self {
            Manners::Announces | Manners::Refuses => answer(stream.get_mut(), true),
            Manners::Closes => Ok(()),
            Manners::Withdraws => answer(stream.get_mut(), false),
            // Until wrk ends.
            Manners::Hangs => read_request(&mut stream).map(drop),
        }
    }
}

/// Whether it is the connection's last one, as the client says. None: the client has gone.
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
