//! Records before `main` what an upgrade needs to start another program in the same way: the path that led to this
//! program, the environment, the directory, the signal mask and the ignored signals.
//!
//! # Safety
//! [`record`] runs before `main`, when no other thread exists. It allocates no memory, because the program's allocator
//! may not work yet. It writes to atomics and to memory that nothing else uses. The system calls here read C strings
//! and write values of the right size.

use std::ffi::{CStr, OsStr, OsString};
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::super::recorded::Recorded;
use super::super::start_record;

const LONGEST: usize = libc::PATH_MAX as usize;

/// The path that led to this program, as a C string. Empty if no path is known. A relative path begins at the directory
/// in which the program was started. Symbolic links are not resolved, so that a link can lead to another program later.
static PATH: [AtomicU8; LONGEST] = [const { AtomicU8::new(0) }; LONGEST];

/// The environment, each variable with a zero byte at its end.
static ENVIRONMENT: Recorded = Recorded::new();

/// Set if the variable `PWD` named the directory in which the program was started. That name can contain symbolic
/// links.
static IS_NAMED_BY_PWD: AtomicBool = AtomicBool::new(false);

/// One bit for each signal: the signals that were blocked, and those that were ignored. Signal 1 has the lowest bit.
static BLOCKED: AtomicU64 = AtomicU64::new(0);
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// The signals whose dispositions are recorded. The later ones are real-time signals.
const SIGNALS: libc::c_int = 31;

pub(in crate::sys::unix) fn record() {
    record_path();
    record_environment();
    let (blocked, ignored) = (blocked_signals(), ignored_signals());
    BLOCKED.store(blocked, Ordering::Relaxed);
    IGNORED.store(ignored, Ordering::Relaxed);
}

/// Records the path that the kernel has followed, or the first argument, whichever leads to the running file. The
/// kernel's path is another file's if the program is an argument of the dynamic linker.
fn record_path() {
    let Some(running) = file_at(c"/proc/self/exe") else { return };
    // SAFETY: getauxval(3) takes an integer. For AT_EXECFN it returns the address of a C string that stays valid, or 0.
    let followed = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    // SAFETY: see above.
    let followed = (!followed.is_null()).then(|| unsafe { CStr::from_ptr(followed) });
    let argument = start_record::first_argument();
    if let Some(path) = followed.into_iter().chain(argument).find(|path| file_at(path) == Some(running)) {
        store_path(path.to_bytes());
    }
}

fn store_path(path: &[u8]) {
    let end = path.len().min(LONGEST - 1);
    for (to, from) in PATH.iter().zip(&path[..end]) {
        to.store(*from, Ordering::Relaxed);
    }
    PATH[end].store(0, Ordering::Relaxed);
}

/// Returns the numbers of the file system and of the file.
fn file_at(path: &CStr) -> Option<(u64, u64)> {
    // SAFETY: zero bytes are a valid stat, which consists of integers.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: stat(2) reads a C string and writes one stat.
    let result = unsafe { libc::stat(path.as_ptr(), &raw mut stat) };
    #[allow(clippy::unnecessary_cast, reason = "the types depend on the system")]
    (result == 0).then_some((stat.st_dev as u64, stat.st_ino as u64))
}

fn record_environment() {
    // SAFETY: open(2) reads a C string.
    let file = unsafe { libc::open(c"/proc/self/environ".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file == -1 {
        return;
    }
    ENVIRONMENT.record_file(file);
    // SAFETY: close(2) takes an integer. This function has opened the file, and nothing else owns it.
    unsafe { libc::close(file) };
    let directory = ENVIRONMENT.get().and_then(|variables| {
        let mut variables = variables.split_inclusive(|&byte| byte == 0);
        CStr::from_bytes_with_nul(variables.find_map(|variable| variable.strip_prefix(b"PWD="))?).ok()
    });
    let is_named = directory.is_some_and(|directory| {
        directory.to_bytes().starts_with(b"/") && file_at(directory).is_some_and(|found| file_at(c".") == Some(found))
    });
    IS_NAMED_BY_PWD.store(is_named, Ordering::Relaxed);
}

fn blocked_signals() -> u64 {
    let mut set = mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: pthread_sigmask(3) without a new mask only writes the present one.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr()) };
    // SAFETY: zero bytes are a valid set, and pthread_sigmask(3) writes a valid one.
    let set = unsafe { set.assume_init() };
    // SAFETY: sigismember(3) reads the set. It fails for the signals that the C library uses itself.
    (1..=64).filter(|&signal| unsafe { libc::sigismember(&raw const set, signal) } == 1).map(bit).sum()
}

fn ignored_signals() -> u64 {
    (1..=SIGNALS).filter(|&signal| is_ignored(signal)).map(bit).sum()
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: zero bytes are a valid sigaction, which consists of integers, a set and a pointer that may be null.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: sigaction(2) without a new disposition only writes the present one.
    unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) == 0 && action.sa_sigaction == libc::SIG_IGN }
}

/// Returns the bit of a signal, or no bit for a number that is no signal.
pub(in crate::sys::unix) fn bit(signal: libc::c_int) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)).unwrap_or_default()
}

/// Returns whether the signal was ignored when the service was started.
pub(in crate::sys::unix) fn was_ignored_at_start(signal: libc::c_int) -> bool {
    IGNORED.load(Ordering::Relaxed) & bit(signal) != 0
}

/// What the old program passes on, because the new program cannot find it out: the facts about the first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sys::unix) struct SignalState {
    pub blocked: u64,
    pub ignored: u64,
}

impl SignalState {
    /// Returns the state in which this program was started.
    pub fn at_start() -> SignalState {
        SignalState { blocked: BLOCKED.load(Ordering::Relaxed), ignored: IGNORED.load(Ordering::Relaxed) }
    }

    /// Sets this state, before `main`. The signals in `kept` stay blocked as well. Makes the signals that are ignored
    /// only now take effect again. All signals must be blocked, or nothing may have sent one of them.
    pub fn restore(self, kept: u64) {
        BLOCKED.store(self.blocked, Ordering::Relaxed);
        IGNORED.store(self.ignored, Ordering::Relaxed);
        for signal in (1..=SIGNALS).filter(|&signal| self.ignored & bit(signal) == 0 && is_ignored(signal)) {
            // SAFETY: signal(2) sets the default disposition, in a process without handlers for the signal.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        for signal in (1..=SIGNALS).filter(|&signal| self.ignored & bit(signal) != 0 && !is_ignored(signal)) {
            // SIGCHLD stays, because the kernel would reap the children that exit from now on.
            if kept == 0 || signal != libc::SIGCHLD {
                // SAFETY: as above.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
        }
        let mut set = mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigemptyset(3) and sigaddset(3) write the set. pthread_sigmask(3) reads it.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in (1..=64).filter(|&signal| (self.blocked | kept) & bit(signal) != 0) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
        }
    }
}

/// Replaces the recorded path. The kernel's path of a program that was started by a descriptor is useless.
pub(super) fn set_path(path: &[u8]) {
    store_path(path);
}

/// Returns the path that led to this program, or `None` if it is unknown.
pub(super) fn path() -> Option<PathBuf> {
    let bytes: Vec<u8> = PATH.iter().map(|byte| byte.load(Ordering::Relaxed)).take_while(|&byte| byte != 0).collect();
    (!bytes.is_empty()).then(|| directory().unwrap_or_default().join(OsStr::from_bytes(&bytes)))
}

/// Returns the directory in which this program was started, by its name in `PWD` if that was its name.
pub(super) fn directory() -> Option<PathBuf> {
    let named = IS_NAMED_BY_PWD.load(Ordering::Relaxed).then(|| variable("PWD")).flatten();
    named.map(PathBuf::from).or_else(start_record::directory)
}

fn variable(name: &str) -> Option<OsString> {
    environment().into_iter().find(|(found, _)| found == name).map(|(_, value)| value)
}

/// Returns the environment in which this program was started: names and values. Leaves out what is no variable.
pub(super) fn environment() -> Vec<(OsString, OsString)> {
    let Some(bytes) = ENVIRONMENT.get() else { return std::env::vars_os().collect() };
    let variables = bytes.split(|&byte| byte == 0).filter_map(|variable| {
        let end = variable.iter().skip(1).position(|&byte| byte == b'=')? + 1;
        let value = OsStr::from_bytes(&variable[end + 1..]);
        Some((OsStr::from_bytes(&variable[..end]).to_owned(), value.to_owned()))
    });
    variables.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_this_program_is_recorded() {
        let own = std::env::current_exe().expect("a path").canonicalize().expect("a file");
        assert_eq!(path().expect("a path").canonicalize().expect("a file"), own);
        assert_eq!(directory().expect("a name").canonicalize().ok(), std::env::current_dir().ok());
        let recorded = environment();
        for name in ["PATH", "CARGO_MANIFEST_DIR"] {
            let found = recorded.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone());
            assert_eq!(found, std::env::var_os(name), "{name}");
        }
        assert_eq!((bit(1), bit(64), bit(65), bit(0)), (1, 1 << 63, 0, 0));
    }
}
