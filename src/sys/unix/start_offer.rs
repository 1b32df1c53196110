//! The offer of a parent to a spawned worker, on Unix: a file without a name, which only the new process inherits.
//!
//! The process reads the offer before `main`. From then on the program cannot lose it, whatever it does to its
//! environment and its descriptors before the call.
//!
//! # Safety
//! The function that runs before `main` allocates no memory. fcntl(2), fstat(2) and close(2) take integers and fail for
//! a number that is no open descriptor. A descriptor is closed or owned only if it is the one that the parent has
//! passed.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::{fmt, ptr, slice};

use super::inherited_fds::InheritedFds;
use super::lifeline::Lifeline;
use super::program::{executable_id, is_secure_exec, take_env_var};
use super::recorded::Recorded;
use super::shm::{nameless_file, never_changes, seal, stat_of};
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
use super::upgrade;
use super::{mark, start_record};
use crate::sys::offer::{Offer, ProgramId, Secret, VARIABLE, Variable};
use crate::sys::{CallError, Inherited, Origin, PassedText, Shared};

const VARIABLE_C: &CStr = c"TASKFORK_WORKER";

/// The beginning of the text in an offer to a candidate. Another program than that of the parent may read it.
pub(super) const CANDIDATE: &str = "candidate ";

/// The message, if it was valid before `main`.
static MESSAGE: Recorded = Recorded::new();
static SECRET: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

/// The program that was started as a worker, as the environment variable names it. Zeroes if there is no variable.
static PROGRAM: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Whether this process owns what it inherits. And whether it has become a worker.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);
static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// A descriptor that was passed to this process, identified by the numbers of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// -1 if there is no descriptor.
    number: RawFd,
    device: u64,
    inode: u64,
}

/// Records, before `main`, what the parent has passed, if this process was started as a worker. Then makes the
/// inherited descriptors close-on-exec, so that no other program keeps them open. Sets the name of the process, its
/// lifeline and its mark.
pub(super) fn record() {
    // SAFETY: getenv(3) reads a C string, and no other thread exists yet that could change the environment.
    let value = unsafe { libc::getenv(VARIABLE_C.as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv(3) has returned a C string, and no other thread exists yet that could change it.
    let value = unsafe { CStr::from_ptr(value) }.to_str();
    let Some(variable) = value.ok().and_then(|value| Variable::from_str(value).ok()) else { return };
    PROGRAM[0].store(variable.program.0, Ordering::Relaxed);
    PROGRAM[1].store(variable.program.1, Ordering::Relaxed);
    for (word, part) in SECRET.iter().zip(variable.secret) {
        word.store(part, Ordering::Relaxed);
    }
    let Some(offer) = receive(&MESSAGE, &variable, |_| true) else { return };
    mark::set(variable.program);
    let mut words = offer.start.split(' ');
    words.next();
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    upgrade::restore_signals(&mut words, 0);
    Lifeline::arm_before_main();
}

/// Records a message whose file is inherited, if the message has the secret of the variable and `accepts` returns true.
/// Closes the file, makes the passed descriptors close-on-exec, and sets the name of the process. Runs before `main`.
pub(super) fn receive(
    recorded: &'static Recorded,
    variable: &Variable,
    accepts: impl Fn(&Offer<'_>) -> bool,
) -> Option<Offer<'static>> {
    let is_valid = never_changes(variable.number, variable.len)
        && recorded.record(variable.len, |bytes| {
            copy_file(variable.number, bytes)
                && Offer::read(bytes, variable.secret).is_some_and(|offer| accepts(&offer))
        });
    let offer = Offer::read(recorded.get().filter(|_| is_valid)?, variable.secret)?;
    // SAFETY: the file has the secret of this start, so the parent has passed it, and only this function uses it.
    unsafe { libc::close(variable.number) };
    for passed in parse_list(offer.inherited).filter(|passed| passed.number != -1) {
        // SAFETY: fcntl(2) takes integers here.
        unsafe { libc::fcntl(passed.number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    if let Some(name) = offer.start.split(' ').next().and_then(name_of) {
        start_record::set_name(&name);
    }
    Some(offer)
}

/// Returns where this process comes from.
pub(crate) fn origin() -> Origin {
    let Some(recorded_pid) = start_record::pid() else { return Origin::Library };
    if IS_WORKER.load(Ordering::Relaxed) {
        return Origin::Independent;
    }
    match offer() {
        Some(offer) if std::process::id() == recorded_pid => match offer.text.starts_with(CANDIDATE) {
            true => Origin::Candidate(offer.text),
            false => Origin::Worker(offer.text),
        },
        Some(offer) => Origin::Fork(offer.text),
        None => match executable_id() {
            Ok(program) if mark::is_set(program) || !mark::is_reliable() && is_in_variable(program) => {
                Origin::Descendant
            }
            // If the executable is unknown, no worker can be started either.
            _ => Origin::Independent,
        },
    }
}

/// Returns whether a parent has started this process as a worker, or a process from which it was forked, and that
/// process has not become the worker. Costs no system call.
pub(crate) fn was_spawned() -> bool {
    !IS_WORKER.load(Ordering::Relaxed) && offer().is_some()
}

/// Returns whether this process has the environment variable of a spawned worker or of a candidate, whatever its value
/// is.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) fn is_in_environment() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Returns the text that another process has passed to this one, until this process has reached its call. Returns
/// `None` if the executable gives this process rights, because then its environment cannot be trusted.
pub(crate) fn passed_text() -> Option<PassedText> {
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    if let Some(state) = upgrade::passed_text() {
        return Some(state);
    }
    let offer = offer().filter(|_| was_spawned() && !is_secure_exec())?;
    Some(PassedText { text: offer.text, to_parent: false })
}

/// Returns a copy of the passed descriptor at this position of the list. Returns `None` if it was closed or replaced,
/// or if this process has taken what it inherits.
pub(crate) fn copy_passed(position: usize) -> Option<OwnedFd> {
    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    if upgrade::passed_text().is_some() {
        return upgrade::copy_passed(position);
    }
    let passed = parse_list(offer()?.inherited).nth(position)?;
    if IS_TAKEN.load(Ordering::Relaxed) { None } else { passed.copy() }
}

/// Takes ownership, in a spawned worker, of what it inherits. Returns `None` if a descriptor was closed or replaced, or
/// if this was called before.
pub(crate) fn take_inherited(slots: usize, slot: usize) -> Option<Inherited> {
    let passed: Vec<Passed> = parse_list(offer()?.inherited).collect();
    let [memory, waker, lifeline, sockets @ ..] = &passed[..] else { return None };
    let is_complete = passed.iter().all(Passed::is_unchanged) && start_record::pid() == Some(std::process::id());
    if !is_complete || slot >= slots || IS_TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the flag makes sure that each descriptor is taken once.
    let own = |passed: &Passed| unsafe { passed.own() };
    // A mapping does not need its descriptor (mmap(2)), so this one is closed here.
    let memory = own(memory)?;
    let memory = Shared::map_inherited(memory.as_raw_fd(), slots)?;
    Some(Inherited {
        memory,
        waker: own(waker)?,
        lifeline: own(lifeline),
        sockets: sockets.iter().filter_map(own).collect(),
    })
}

/// Takes ownership, in a candidate, of all descriptors that were passed to it, in their order. Returns `None` if one of
/// them was closed or replaced, or if this was called before.
#[cfg(all(target_os = "linux", not(taskfork_portable)))]
pub(crate) fn take_candidate_fds() -> Option<Vec<OwnedFd>> {
    let passed: Vec<Passed> = parse_list(offer()?.inherited).collect();
    let is_complete = passed.iter().all(Passed::is_unchanged) && start_record::pid() == Some(std::process::id());
    if !is_complete || IS_TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: the flag makes sure that the descriptors are taken once.
    Some(passed.iter().filter_map(|passed| unsafe { passed.own() }).collect())
}

/// Removes the traces of the start, when this process has become a worker. Programs that it starts from now on are
/// independent of its parent.
pub(crate) fn become_independent() {
    IS_WORKER.store(true, Ordering::Relaxed);
    mark::remove();
    take_env_var(VARIABLE);
}

/// Writes the offer to a spawned worker. Returns its file and the value of the environment variable.
pub(super) fn write_offer(
    secret: Secret,
    program: ProgramId,
    inherited: &InheritedFds<'_>,
    text: &str,
) -> Result<(OwnedFd, String), CallError> {
    write_message(secret, program, &digits_of(&start_record::name()), inherited.numbered(), text)
}

/// Writes a message into a file without a name. `start` is what is set before `main`. Returns the file and the value of
/// the environment variable.
pub(super) fn write_message<'a>(
    secret: Secret,
    program: ProgramId,
    start: &str,
    fds: impl Iterator<Item = Option<BorrowedFd<'a>>>,
    text: &str,
) -> Result<(OwnedFd, String), CallError> {
    let passed: Result<Vec<String>, _> = fds.map(|fd| Ok(Passed::of(fd)?.to_string())).collect();
    let message = Offer { secret, start, inherited: &passed?.join(" "), text }.to_string();
    let file = nameless_file(message.len())?;
    write_file(file.as_fd(), message.as_bytes())?;
    seal(file.as_fd())?;
    let variable = Variable { number: file.as_raw_fd(), len: message.len(), secret, program };
    Ok((file, variable.to_string()))
}

/// Returns bytes as hexadecimal digits.
pub(super) fn digits_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn offer() -> Option<Offer<'static>> {
    Offer::read(MESSAGE.get()?, SECRET.each_ref().map(|word| word.load(Ordering::Relaxed)))
}

/// Returns whether the environment variable of this process was made for a process of this program.
fn is_in_variable(program: ProgramId) -> bool {
    let [volume, file] = PROGRAM.each_ref().map(|number| number.load(Ordering::Relaxed));
    program == ProgramId(volume, file)
}

pub(super) fn parse_list(list: &str) -> impl Iterator<Item = Passed> {
    list.split(' ').filter_map(|passed| passed.parse().ok())
}

/// Returns the name of the process, with zeroes after it, from its hexadecimal digits.
fn name_of(digits: &str) -> Option<[u8; 16]> {
    let mut name = [0; 16];
    for (at, byte) in name.iter_mut().enumerate().take(digits.len() / 2) {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    (name[0] != 0).then_some(name)
}

/// Copies the beginning of a file that can be mapped. Returns whether this has succeeded.
fn copy_file(file: RawFd, into: &mut [u8]) -> bool {
    // macOS can map shared memory only with MAP_SHARED. Older versions of Linux refuse that for a sealed file.
    let flags = if cfg!(target_os = "macos") { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    // SAFETY: without MAP_FIXED, mmap(2) does not touch an existing mapping.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), into.len(), libc::PROT_READ, flags, file, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: mmap(2) has mapped these bytes of a file that is long enough and never changes. They are unmapped after
    // the last use.
    unsafe {
        into.copy_from_slice(slice::from_raw_parts(mapped.cast(), into.len()));
        libc::munmap(mapped, into.len());
    }
    true
}

/// Writes to the beginning of a file. Maps nothing, because a thread that forks meanwhile would keep the mapping, and a
/// file with a writable mapping cannot be sealed against writes (fcntl(2)).
#[cfg(not(target_os = "macos"))]
fn write_file(file: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), CallError> {
    // SAFETY: pwrite(2) reads as many bytes as the slice has.
    match unsafe { libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) } {
        -1 => Err(CallError::last("pwrite")),
        written if written as usize == bytes.len() => Ok(()),
        _ => Err(CallError::new("pwrite", std::io::ErrorKind::WriteZero)),
    }
}

/// Writes to the beginning of a file that can be mapped. macOS cannot write to shared memory in another way.
#[cfg(target_os = "macos")]
fn write_file(file: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), CallError> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: without MAP_FIXED, mmap(2) does not touch an existing mapping.
    let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes.len(), access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED {
        return Err(CallError::last("mmap"));
    }
    // SAFETY: mmap(2) has mapped these bytes of a file that is long enough, and no other process has the file. They are
    // unmapped after the last use.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), mapped.cast(), bytes.len());
        libc::munmap(mapped, bytes.len());
    }
    Ok(())
}

impl Passed {
    fn of(fd: Option<BorrowedFd<'_>>) -> Result<Passed, CallError> {
        let Some(fd) = fd else { return Ok(Passed { number: -1, device: 0, inode: 0 }) };
        Passed::at(fd.as_raw_fd()).ok_or_else(|| CallError::last("fstat"))
    }

    #[allow(clippy::unnecessary_cast, reason = "the types depend on the system")]
    fn at(number: RawFd) -> Option<Passed> {
        let stat = stat_of(number)?;
        Some(Passed { number, device: stat.st_dev as u64, inode: stat.st_ino as u64 })
    }

    #[cfg(all(target_os = "linux", not(taskfork_portable)))]
    pub fn number(&self) -> RawFd {
        self.number
    }

    /// Returns whether the descriptor is still the one that the parent has passed.
    pub fn is_unchanged(&self) -> bool {
        self.number == -1 || self.has_file(self.number)
    }

    /// Returns a copy of the descriptor. Returns `None` if it was closed or replaced.
    pub fn copy(&self) -> Option<OwnedFd> {
        if self.number == -1 || !self.is_unchanged() {
            return None;
        }
        // SAFETY: the descriptor is open, because it was found unchanged. fcntl(2) fails if it was closed meanwhile.
        let copy = unsafe { BorrowedFd::borrow_raw(self.number) }.try_clone_to_owned().ok()?;
        // Another thread may have closed the number before it was copied.
        self.has_file(copy.as_raw_fd()).then_some(copy)
    }

    /// Takes ownership of the descriptor, or returns `None` if there is none.
    ///
    /// # Safety
    /// The descriptor must be unchanged, so that it is the one that was passed. It must have no other owner.
    pub unsafe fn own(&self) -> Option<OwnedFd> {
        // SAFETY: the caller guarantees that the descriptor is open and has no other owner.
        (self.number != -1).then(|| unsafe { OwnedFd::from_raw_fd(self.number) })
    }

    /// Returns whether the file of the passed descriptor is behind this number.
    fn has_file(&self, number: RawFd) -> bool {
        Passed::at(number).is_some_and(|found| (found.device, found.inode) == (self.device, self.inode))
    }
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Passed { number, device, inode } = self;
        write!(f, "{number}:{device}:{inode}")
    }
}

impl FromStr for Passed {
    type Err = ();

    fn from_str(text: &str) -> Result<Passed, ()> {
        let mut fields = text.splitn(3, ':');
        let mut field = || fields.next().ok_or(());
        let number = field()?.parse().map_err(|_| ())?;
        let device = field()?.parse().map_err(|_| ())?;
        Ok(Passed { number, device, inode: field()?.parse().map_err(|_| ())? })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::IntoRawFd;
    use std::sync::Arc;

    use super::*;
    use crate::sys::doorbell;

    #[test]
    fn a_closed_or_replaced_descriptor_is_noticed() {
        let shared = Shared::for_programs(1).expect("memory");
        let number = shared.file().expect("a file").try_clone().expect("a descriptor").into_raw_fd();
        let passed = Passed::at(number).expect("an open descriptor");
        assert_eq!(passed.to_string().parse(), Ok(passed));
        assert!(passed.is_unchanged());
        let other = File::open("/dev/null").expect("a file");
        // SAFETY: dup2(2) takes integers. Only this test uses the number.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        assert!(!passed.is_unchanged(), "it was replaced");
        let closed = Passed { number: 1 << 20, ..passed };
        assert!(!closed.is_unchanged());
        // SAFETY: close(2) takes an integer. Only this test uses the number.
        unsafe { libc::close(number) };
        let none = Passed::of(None).expect("no descriptor");
        assert_eq!(none.to_string().parse(), Ok(none));
        assert!(none.is_unchanged());
        for wrong in ["", "3", "3:4", "3:4:x", "3:4:5:6", "x:4:5", "3:-4:5"] {
            assert_eq!(wrong.parse::<Passed>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn a_written_offer_is_sealed_and_complete() {
        let memory = Arc::new(Shared::for_programs(1).expect("memory"));
        let (_receiver, waker) = doorbell().expect("a doorbell");
        let lifeline = Lifeline::new(std::time::Duration::ZERO).expect("a lifeline");
        let fds = InheritedFds::new(&memory, 0, &waker, &lifeline, vec![memory.file().expect("a file").as_fd()]);
        let program = ProgramId(5, 6);
        let (file, variable) =
            write_offer([1, 2, 3, 4], program, &fds.expect("descriptors"), "a text").expect("a file");
        let variable: Variable = variable.parse().expect("a variable");
        assert_eq!((variable.number, variable.program), (file.as_raw_fd(), program));
        assert!(never_changes(variable.number, variable.len));
        let recorded = Recorded::new();
        assert!(recorded.record(variable.len, |bytes| copy_file(variable.number, bytes)));
        let offer = Offer::read(recorded.get().expect("the message"), variable.secret).expect("the offer");
        assert_eq!(offer.text, "a text");
        let passed: Vec<Passed> = parse_list(offer.inherited).collect();
        assert_eq!(passed.len(), 4, "memory, waker, lifeline and a socket");
        assert_eq!((passed[0], passed[1].is_unchanged()), (passed[3], true));
    }

    #[test]
    fn a_name_is_read_from_its_digits() {
        let padded = |name: &[u8]| {
            let mut padded = [0; 16];
            padded[..name.len()].copy_from_slice(name);
            Some(padded)
        };
        assert_eq!(name_of("6120629f"), padded(b"a b\x9f"));
        assert_eq!(name_of(&"61".repeat(15)), padded(&[b'a'; 15]));
        assert_eq!(name_of(""), None);
        assert_eq!(name_of("6x"), None);
    }
}
