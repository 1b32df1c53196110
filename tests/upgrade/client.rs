//! Clients of the service under test.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The time after which a client without an answer fails the test.
const LIMIT: Duration = Duration::from_secs(60);

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// A connection to a worker.
pub struct Client(BufReader<Box<dyn Stream>>);

/// The worker that has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub build: String,
    pub pool: String,
    pub id: usize,
    pub pid: u32,
}

impl Client {
    /// Connects to an address as the log names it.
    pub fn connect(address: &str) -> io::Result<Client> {
        let stream: Box<dyn Stream> = match address.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(LIMIT))?;
                Box::new(stream)
            }
            None => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(LIMIT))?;
                Box::new(stream)
            }
        };
        Ok(Client(BufReader::new(stream)))
    }

    pub fn ask(&mut self) -> Answer {
        self.0.get_mut().write_all(b"?\n").expect("a connection");
        self.answer()
    }

    /// Returns the answer to a question that was sent already.
    fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        Answer::of(&line)
    }
}

impl Answer {
    fn of(line: &str) -> Answer {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [build, pool, id, pid] = words[..] else { panic!("no answer: {line:?}") };
        Answer {
            build: build.into(),
            pool: pool.into(),
            id: id.parse().expect("an id"),
            pid: pid.parse().expect("a pid"),
        }
    }
}

/// Connects, and returns the answer to one question.
pub fn ask(address: &str) -> Answer {
    match address.strip_prefix("udp:") {
        Some(address) => {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
            socket.send_to(b"?", address).expect("a question");
            let mut answer = [0; 200];
            let length = socket.recv(&mut answer).expect("an answer");
            Answer::of(&String::from_utf8_lossy(&answer[..length]))
        }
        None => Client::connect(address).expect("a connection").ask(),
    }
}
