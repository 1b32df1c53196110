//! The state that the program before an upgrade passes to the one after it: a file without a name, like the offer to a
//! spawned worker. It is addressed to one process, by its pid and the time of its start, which execve(2) does not
//! change.
//!
//! # Safety
//! [`record`] runs before `main` and allocates no memory. A descriptor is owned only if it is the one that was passed,
//! and only once.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::{self, FromStr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::super::program::take_env_var;
use super::super::recorded::Recorded;
use super::super::start_offer::{Passed, digits_of, parse_list, receive, write_message};
use super::super::start_record;
use super::{deadline, restore_signals, signal_words, start, supervised};
use crate::sys::offer::{Offer, ProgramId, Secret, Variable};
use crate::sys::{CallError, PassedText};

/// The environment variable of a program after an upgrade. Its value has the form of [`Variable`]. The first number is
/// the pid of the process, and the program is replaced by the time of the start.
pub(super) const VARIABLE: &str = "TASKFORK_UPGRADE";
const VARIABLE_C: &CStr = c"TASKFORK_UPGRADE";

static MESSAGE: Recorded = Recorded::new();
static SECRET: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

/// When the program before the upgrade has called execve(2), on the clock of [`monotonic_nanos`].
static EXEC_AT: AtomicU64 = AtomicU64::new(0);

/// Set if the variable is addressed to this process, but there is no such state.
static IS_LOST: AtomicBool = AtomicBool::new(false);
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// What the program before the upgrade has passed.
#[derive(Debug)]
pub(crate) struct TakenState {
    pub text: String,
    /// The descriptors in their order.
    pub fds: Vec<OwnedFd>,
    /// How long ago the program was executed.
    pub since_exec: Duration,
}

/// Writes the state into a file without a name. Returns the file and the value of the environment variable.
pub(super) fn write(
    secret: Secret,
    name: &str,
    path: &Path,
    timeout: Duration,
    text: &str,
    fds: &[BorrowedFd<'_>],
) -> Result<(OwnedFd, String), CallError> {
    let unknown = || CallError::new("read", std::io::Error::other("the start time of this process is unknown"));
    let started = start_time().ok_or_else(unknown)?;
    let signals = signal_words();
    let timeout = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    let path = digits_of(path.as_os_str().as_bytes());
    let pid = std::process::id();
    let now = monotonic_nanos();
    let start = format!("{name} {signals} {pid} {started} {timeout} {now} {path}");
    write_message(secret, ProgramId(started, 0), &start, fds.iter().copied().map(Some), text)
}

/// Records the state, before `main`, if there is one for this process. Sets the name of the process, the signal mask
/// and the ignored signals. Starts the timer that ends the process if it does not take the state in time. The signals
/// to a parent stay blocked, so that they wait for the call.
pub(in crate::sys::unix) fn record() {
    // SAFETY: getenv(3) reads a C string, and no other thread exists yet that could change the environment.
    let value = unsafe { libc::getenv(VARIABLE_C.as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv(3) has returned a C string, and no other thread exists yet that could change it.
    let Ok(value) = unsafe { CStr::from_ptr(value) }.to_str() else { return };
    let Ok(variable) = Variable::from_str(value) else { return };
    let pid = value.split(' ').next().and_then(|pid| pid.parse().ok());
    let ProgramId(started, _) = variable.program;
    if pid != Some(std::process::id()) || start_time() != Some(started) {
        return;
    }
    for (word, part) in SECRET.iter().zip(variable.secret) {
        word.store(part, Ordering::Relaxed);
    }
    let own = std::process::id();
    let is_addressed = |offer: &Offer<'_>| {
        Envelope::read(offer.start).is_some_and(|envelope| envelope.pid == own && envelope.started == started)
    };
    let offer = receive(&MESSAGE, &variable, is_addressed);
    let Some(envelope) = offer.and_then(|offer| Envelope::read(offer.start)) else {
        IS_LOST.store(true, Ordering::Relaxed);
        return;
    };
    EXEC_AT.store(envelope.exec_at, Ordering::Relaxed);
    let mut path = [0; libc::PATH_MAX as usize];
    if let Some(len) = decode(envelope.path, &mut path) {
        start::set_path(&path[..len]);
    }
    deadline::arm(Duration::from_nanos(envelope.timeout));
    restore_signals(&mut envelope.signals.split(' '), supervised());
}

/// Takes the state from the program before the upgrade. Returns `None` if this process was not upgraded, or if this was
/// called before. Stops the timer, and removes the traces of the upgrade from the environment.
///
/// # Errors
/// Returns the reason if a state was passed to this process but cannot be used, or if it was passed to the process from
/// which this one was forked. Such a process must not become a parent.
pub(crate) fn take_state() -> Result<Option<TakenState>, String> {
    if IS_TAKEN.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let is_recorded_process = start_record::pid() == Some(std::process::id());
    if IS_LOST.load(Ordering::Relaxed) && is_recorded_process {
        return Err("what the program before the upgrade has passed was closed or replaced before the call".to_owned());
    }
    let Some(offer) = state() else { return Ok(None) };
    if !is_recorded_process {
        return Err("the program has forked between the upgrade and the call, and this is the child".to_owned());
    }
    let passed: Vec<Passed> = parse_list(offer.inherited).collect();
    if let Some(number) = passed.iter().find(|passed| !passed.is_unchanged()).map(Passed::number) {
        return Err(format!(
            "descriptor {number}, which the program before the upgrade has passed, was closed or replaced before the call"
        ));
    }
    if IS_TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    deadline::disarm();
    take_env_var(VARIABLE);
    // SAFETY: the flag makes sure that the descriptors are taken once.
    let fds = passed.iter().filter_map(|passed| unsafe { passed.own() }).collect();
    let since_exec = Duration::from_nanos(monotonic_nanos().saturating_sub(EXEC_AT.load(Ordering::Relaxed)));
    Ok(Some(TakenState { text: offer.text.to_owned(), fds, since_exec }))
}

/// Returns the text of the state until the state is taken.
pub(in crate::sys::unix) fn passed_text() -> Option<PassedText> {
    let offer = untaken()?;
    Some(PassedText { text: offer.text, to_parent: true })
}

/// Returns a copy of the descriptor at this position of the state, until the state is taken.
pub(in crate::sys::unix) fn copy_passed(position: usize) -> Option<OwnedFd> {
    parse_list(untaken()?.inherited).nth(position)?.copy()
}

fn untaken() -> Option<Offer<'static>> {
    state().filter(|_| !IS_TAKEN.load(Ordering::Relaxed) && start_record::pid() == Some(std::process::id()))
}

fn state() -> Option<Offer<'static>> {
    Offer::read(MESSAGE.get()?, SECRET.each_ref().map(|word| word.load(Ordering::Relaxed)))
}

/// Returns the time of the monotonic clock, in nanoseconds. All programs of one system share this clock.
pub(crate) fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    #[allow(clippy::unnecessary_cast, reason = "the types depend on the system")]
    let nanos = (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64);
    nanos
}

/// The words at the beginning of the state. Later versions may add words at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Envelope<'a> {
    /// Two words: the signals that were blocked and ignored when the service was started.
    signals: &'a str,
    pid: u32,
    started: u64,
    /// The time that the program has for its call, in nanoseconds.
    timeout: u64,
    exec_at: u64,
    /// The path of the program in hexadecimal digits.
    path: &'a str,
}

impl Envelope<'_> {
    /// Parses what follows the name of the process.
    fn read(start: &str) -> Option<Envelope<'_>> {
        let (_, words) = start.split_once(' ')?;
        let (end, _) = words.match_indices(' ').nth(1)?;
        let mut others = words[end..].split(' ').skip(1);
        Some(Envelope {
            signals: &words[..end],
            pid: others.next()?.parse().ok()?,
            started: others.next()?.parse().ok()?,
            timeout: others.next()?.parse().ok()?,
            exec_at: others.next()?.parse().ok()?,
            path: others.next()?,
        })
    }
}

/// Decodes hexadecimal digits. Returns the number of bytes, or `None` if the digits are wrong or too many.
fn decode(digits: &str, into: &mut [u8]) -> Option<usize> {
    let len = digits.len() / 2;
    for (at, byte) in into.get_mut(..len)?.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(len)
}

/// Returns when this process was started, in ticks since the start of the system. Allocates no memory.
fn start_time() -> Option<u64> {
    let mut bytes = [0; 1024];
    // SAFETY: open(2) reads a C string.
    let file = unsafe { libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file == -1 {
        return None;
    }
    // SAFETY: read(2) writes at most as many bytes as there is room for. close(2) takes the descriptor of this
    // function.
    let len = unsafe {
        let len = libc::read(file, bytes.as_mut_ptr().cast(), bytes.len());
        libc::close(file);
        len
    };
    start_in(bytes.get(..usize::try_from(len).ok()?)?)
}

/// Returns the field `starttime` (proc_pid_stat(5)). The name of the process is in parentheses and may contain any
/// bytes.
fn start_in(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 2;
    str::from_utf8(stat.get(after_name..)?).ok()?.split(' ').nth(19)?.parse().ok()
}
