//! What identifies a listening socket for another process of this service: a spawned worker, or another version of the
//! program.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

use super::open::SocketFile;
use super::{Listener, borrow};
use crate::sys::{BorrowedSocket, OwnedSocket};

/// The identity of one socket. The text form is one word. Another version of this crate may read it, so it may get
/// further fields at its end, and a reader ignores fields that it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub origin: SpecOrigin,
    /// The pool of the listener. Empty for a `Prefork` that is used alone, and for sockets of [`bind`](super::bind).
    pub pool: String,
    /// The address as the program has written it, for example `127.0.0.1:0`.
    pub text: String,
    /// The position of this socket among the sockets of the same pool and origin that have the same text.
    pub ordinal: usize,
    /// The name of the listener.
    pub name: Option<String>,
    pub kind: SocketKind,
    /// The worker to which the socket belongs, if the listener is [per worker](super::ListenConfig::per_worker).
    pub worker: Option<usize>,
    /// The file of a Unix socket.
    pub file: Option<FileSpec>,
}

/// The function that has opened a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpecOrigin {
    /// [`Prefork::listen`](crate::Prefork::listen).
    Listen,
    /// A service manager has opened the socket for a listener of [`Prefork::listen`](crate::Prefork::listen).
    Activated,
    /// [`bind`](super::bind).
    Bind,
}

/// The kind of a socket. The parent passes it to a spawned worker together with the socket, because Wine does not
/// report the kind of an inherited socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketKind {
    Tcp,
    Udp,
    Unix,
}

/// The file of a Unix socket: its absolute path, and the numbers of its file system and of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSpec {
    pub path: PathBuf,
    pub device: u64,
    pub inode: u64,
}

/// A socket that this process passes to another one.
#[derive(Debug)]
pub(crate) struct Passed<'a> {
    pub spec: Spec,
    pub fd: BorrowedSocket<'a>,
}

/// A socket that another process has passed to this one.
#[derive(Debug)]
pub(crate) struct Given {
    pub spec: Spec,
    pub fd: OwnedSocket,
}

/// A line in a text that one process writes for another: the socket, and the position of its descriptor in the list of
/// descriptors that belongs to the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketLine {
    pub spec: Spec,
    pub position: usize,
}

const LINE_WORD: &str = "socket";
/// Also begins such a line.
const BIND_WORD: &str = "bind";

impl fmt::Display for SocketLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LINE_WORD} {} {}", self.spec, self.position)
    }
}

impl FromStr for SocketLine {
    type Err = ();

    fn from_str(line: &str) -> Result<SocketLine, ()> {
        let mut words = line.split(' ');
        if !matches!(words.next(), Some(LINE_WORD | BIND_WORD)) {
            return Err(());
        }
        let spec = words.next().ok_or(())?.parse()?;
        let position = words.next().ok_or(())?.parse().map_err(|_| ())?;
        Ok(SocketLine { spec, position })
    }
}

impl Spec {
    /// Returns whether both sockets belong to the same listener.
    pub fn is_sibling(&self, other: &Spec) -> bool {
        let Spec { origin, pool, text, ordinal, .. } = other;
        self.origin == *origin && self.pool == *pool && self.text == *text && self.ordinal == *ordinal
    }
}

impl Given {
    /// Returns this socket as one that is passed on to another process.
    #[cfg_attr(
        not(all(target_os = "linux", not(taskfork_portable))),
        allow(dead_code, reason = "only an upgrade needs it")
    )]
    pub fn passed(&self) -> Passed<'_> {
        Passed { spec: self.spec.clone(), fd: self.borrowed() }
    }

    pub fn borrowed(&self) -> BorrowedSocket<'_> {
        borrow(&self.fd)
    }

    /// Returns the listener with this socket. Returns `None` if this system does not have this kind of sockets.
    pub fn into_listener(self) -> Option<Listener> {
        Listener::given(self.spec.kind, self.fd)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spec { origin, pool, text, ordinal, name, kind, worker, file } = self;
        f.write_char(match origin {
            SpecOrigin::Listen => 'l',
            SpecOrigin::Activated => 'a',
            SpecOrigin::Bind => 'b',
        })?;
        f.write_char(kind.letter())?;
        write!(f, ",{},{},{ordinal},", Escaped(pool.as_bytes()), Escaped(text.as_bytes()))?;
        if let Some(name) = name {
            write!(f, "={}", Escaped(name.as_bytes()))?;
        }
        f.write_char(',')?;
        if let Some(worker) = worker {
            write!(f, "{worker}")?;
        }
        f.write_char(',')?;
        match file {
            Some(FileSpec { path, device, inode }) => {
                write!(f, "{device},{inode},{}", Escaped(path.as_os_str().as_encoded_bytes()))
            }
            None => f.write_str(",,"),
        }
    }
}

impl FromStr for Spec {
    type Err = ();

    fn from_str(word: &str) -> Result<Spec, ()> {
        let mut fields = word.split(',');
        let mut next = || fields.next().ok_or(());
        let (origin, kind) = letters(next()?)?;
        let pool = text_of(next()?)?;
        let text = text_of(next()?)?;
        let ordinal = number(next()?)?;
        let name = next()?;
        let name = match name.strip_prefix('=') {
            Some(name) => Some(text_of(name)?),
            None if name.is_empty() => None,
            None => return Err(()),
        };
        let worker = unless_empty(next()?).map(number).transpose()?;
        let device = unless_empty(next()?).map(number).transpose()?;
        let inode = unless_empty(next()?).map(number).transpose()?;
        let path = bytes_of(next()?)?;
        let file = match (device, inode) {
            (Some(device), Some(inode)) => Some(FileSpec { path: path_of(path)?, device, inode }),
            (None, None) if path.is_empty() => None,
            _ => return Err(()),
        };
        Ok(Spec { origin, pool, text, ordinal, name, kind, worker, file })
    }
}

#[cfg(unix)]
impl FileSpec {
    pub fn of(file: &SocketFile) -> FileSpec {
        file.spec()
    }
}

#[cfg(not(unix))]
impl FileSpec {
    pub fn of(file: &SocketFile) -> FileSpec {
        match *file {}
    }
}

impl SocketKind {
    pub fn letter(self) -> char {
        match self {
            SocketKind::Tcp => 't',
            SocketKind::Udp => 'u',
            SocketKind::Unix => 'x',
        }
    }

    pub fn of_letter(letter: char) -> Option<SocketKind> {
        match letter {
            't' => Some(SocketKind::Tcp),
            'u' => Some(SocketKind::Udp),
            'x' => Some(SocketKind::Unix),
            _ => None,
        }
    }
}

/// Parses the first field.
fn letters(field: &str) -> Result<(SpecOrigin, SocketKind), ()> {
    let mut letters = field.chars();
    let origin = match letters.next() {
        Some('l') => SpecOrigin::Listen,
        Some('a') => SpecOrigin::Activated,
        Some('b') => SpecOrigin::Bind,
        _ => return Err(()),
    };
    let kind = letters.next().and_then(SocketKind::of_letter).ok_or(())?;
    letters.next().is_none().then_some((origin, kind)).ok_or(())
}

fn unless_empty(field: &str) -> Option<&str> {
    (!field.is_empty()).then_some(field)
}

fn number<T: FromStr>(field: &str) -> Result<T, ()> {
    field.parse().map_err(|_| ())
}

fn text_of(field: &str) -> Result<String, ()> {
    String::from_utf8(bytes_of(field)?).map_err(|_| ())
}

/// Writes bytes without blanks, commas and control characters: `%` and two hexadecimal digits for each byte that is
/// not a letter, a digit or common in addresses.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b':' | b'[' | b']' | b'/' | b'-' | b'_' | b'@' => {
                f.write_char(byte.into())
            }
            _ => write!(f, "%{byte:02x}"),
        })
    }
}

/// Returns the bytes that [`Escaped`] has written.
fn bytes_of(field: &str) -> Result<Vec<u8>, ()> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(());
                bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
                after
            }
            (b'%', _) => return Err(()),
            (&byte, after) => {
                bytes.push(byte);
                after
            }
        };
    }
    Ok(bytes)
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> Result<PathBuf, ()> {
    use std::os::unix::ffi::OsStringExt;
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> Result<PathBuf, ()> {
    String::from_utf8(bytes).map(PathBuf::from).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Spec {
        Spec {
            origin: SpecOrigin::Listen,
            pool: String::new(),
            text: text.to_owned(),
            ordinal: 0,
            name: None,
            kind: SocketKind::Tcp,
            worker: None,
            file: None,
        }
    }

    fn examples() -> Vec<Spec> {
        let file = FileSpec { path: "/run/a b,c%20\n.sock".into(), device: u64::MAX, inode: 7 };
        vec![
            tcp("127.0.0.1:0"),
            tcp("[::]:80"),
            tcp(""),
            Spec { origin: SpecOrigin::Bind, kind: SocketKind::Udp, ordinal: 3, ..tcp("udp:localhost:53") },
            Spec { origin: SpecOrigin::Activated, ..tcp("0.0.0.0:8000") },
            Spec { worker: Some(12), pool: "größe 7".into(), name: Some(String::new()), ..tcp("0.0.0.0:8000") },
            Spec { kind: SocketKind::Unix, name: Some("a=b".into()), file: Some(file), ..tcp("unix:/run/a b,c") },
        ]
    }

    #[test]
    fn a_spec_round_trips_as_one_word() {
        for spec in examples() {
            let word = spec.to_string();
            assert!(word.bytes().all(|byte| byte.is_ascii_graphic()), "{word}");
            assert_eq!(word.parse(), Ok(spec.clone()), "{word}");
            assert_eq!(format!("{word},later").parse(), Ok(spec), "unknown fields are ignored");
        }
        assert_eq!(tcp("127.0.0.1:0").to_string(), "lt,,127.0.0.1:0,0,,,,,");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_need_not_be_text() {
        let path = path_of(b"/run/\xff".to_vec()).expect("a path");
        let spec = Spec { file: Some(FileSpec { path, device: 1, inode: 2 }), ..tcp("unix:/run/?") };
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }

    #[test]
    fn a_wrong_spec_is_refused() {
        let word = "lt,,127.0.0.1:0,0,,,,,";
        assert!(word.parse::<Spec>().is_ok());
        for wrong in [
            "",
            "lt",
            "lt,,127.0.0.1:0,0,,,,",
            "xt,,127.0.0.1:0,0,,,,,",
            "lz,,127.0.0.1:0,0,,,,,",
            "ltt,,127.0.0.1:0,0,,,,,",
            "lt,,127.0.0.1:0,x,,,,,",
            "lt,,127.0.0.1:0,0,name,,,,",
            "lt,,127.0.0.1:0,0,,-1,,,",
            "lt,,127.0.0.1:0,0,,,1,,",
            "lt,,127.0.0.1:0,0,,,,,/path",
            "lt,,%,0,,,,,",
            "lt,,%4,0,,,,,",
            "lt,,%4g,0,,,,,",
            "lt,,%ff,0,,,,,",
        ] {
            assert_eq!(wrong.parse::<Spec>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn only_lines_about_sockets_are_read() {
        for spec in examples() {
            let line = SocketLine { spec, position: 5 };
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        for other in
            ["", "socket", "socket lt,,a,0,,,,,", "socket lt,,a,0,,,,, x", "worker lt,,a,0,,,,, 5", "socket  5"]
        {
            assert_eq!(other.parse::<SocketLine>(), Err(()), "{other}");
        }
    }
}
