//! Events with names, the console, and what ends a process.
//!
//! # Safety
//! Of the calls for which nothing else is said: they take integers, handles that are open, and strings that end with zero
//! and are there for the time of the call.

use std::fs::File;
use std::io::{self, Write};
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::os::windows::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{mem, ptr, thread};

use taskfork::Backend;
use windows_sys::Win32::Foundation::{ERROR_INVALID_PARAMETER, FARPROC, HANDLE, STATUS_CONTROL_C_EXIT};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, GenerateConsoleCtrlEvent, GetConsoleCP, SetConsoleCtrlHandler,
};
use windows_sys::Win32::System::Diagnostics::Debug::{SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX, SetErrorMode};
use windows_sys::Win32::System::JobObjects::{
    AssignProcessToJobObject, CreateJobObjectW, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, SetInformationJobObject,
    TerminateJobObject,
};
use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
use windows_sys::Win32::System::Pipes::CreatePipe;
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, CREATE_SUSPENDED, CreateEventW, CreateSemaphoreW, EVENT_MODIFY_STATE, GetCurrentProcess,
    GetProcessHandleCount, INFINITE, OpenEventW, OpenProcess, PROCESS_ACCESS_RIGHTS, PROCESS_SUSPEND_RESUME,
    PROCESS_SYNCHRONIZE, PROCESS_TERMINATE, ReleaseSemaphore, SetEvent, TerminateProcess, WaitForSingleObject,
};

use crate::program::{scratch, serve_deaf, serve_drained, up};

/// What a worker may be here.
pub const BACKENDS: &[&str] = &["spawn", "thread"];

/// The one of this name.
pub fn backend(name: &str) -> Option<Backend> {
    (name != "thread").then_some(Backend::Spawn)
}

/// How who was killed has ended, in the words of the log.
pub const KILLED: &str = "exited with status 1";
/// The same as a value.
pub const KILLED_EXIT: &str = "Code(1)";
/// How who was asked to stop and does not listen has ended.
pub const TERMINATED: &str = KILLED;
/// How who gave no sign of life has ended.
pub const ABORTED: &str = KILLED;
/// In the log, after a pid and before its end, of who gives no sign of life and is stopped.
pub const IS_ABORTED: &[&str] = &["gives no sign of life"];
/// What the system says of a path where nothing is, which it does in the user's language.
pub const NOT_FOUND: &str = "";

/// For who is to be late, and nobody else: a start takes less.
pub const SOON: Duration = Duration::from_secs(3);

/// What stands for the signals of Unix: the operator's requests, and what the tests do to a process.
#[allow(clippy::upper_case_acronyms, reason = "they are called so")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    SIGTERM,
    SIGQUIT,
    SIGHUP,
    SIGTTIN,
    SIGTTOU,
    /// To a worker: what `up_until_signal` waits for.
    SIGUSR2,
    SIGKILL,
    SIGSTOP,
    SIGCONT,
}

/// The operator's console can interrupt the group: there has to be one.
pub fn no_terminal() -> Option<&'static str> {
    // SAFETY: see above.
    (unsafe { GetConsoleCP() } == 0).then_some("a console")
}

/// A process and those that it starts: a group for the console, and a job, of which nobody is left when this is dropped.
pub struct Group {
    leader: u32,
    job: OwnedHandle,
}

impl Group {
    pub fn start(command: &mut Command) -> (Child, Group) {
        let job = job();
        // Before it can start others.
        let child = command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_SUSPENDED).spawn().expect("the program");
        // SAFETY: see above.
        let assigned = unsafe { AssignProcessToJobObject(job.as_raw_handle(), child.as_raw_handle()) };
        assert!(assigned != 0, "{}", io::Error::last_os_error());
        change_process(c"NtResumeProcess", child.as_raw_handle());
        let leader = child.id();
        (child, Group { leader, job })
    }

    /// As the console does it for ^C: the parent and its workers alike. Windows has only the other key for one group of
    /// many, and Wine has only this one.
    pub fn interrupt(&self) {
        let event = if is_wine() { CTRL_C_EVENT } else { CTRL_BREAK_EVENT };
        // SAFETY: see above.
        let generated = unsafe { GenerateConsoleCtrlEvent(event, self.leader) };
        assert!(generated != 0, "{}", io::Error::last_os_error());
    }

    pub fn kill(&self) {
        // SAFETY: see above.
        unsafe { TerminateJobObject(self.job.as_raw_handle(), 1) };
    }
}

/// One that ends with its handle.
fn job() -> OwnedHandle {
    // SAFETY: it has neither attributes nor a name.
    let job = owned(unsafe { CreateJobObjectW(ptr::null(), ptr::null()) });
    // SAFETY: zeroes are no limits.
    let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { mem::zeroed() };
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    // SAFETY: the limits are of this kind and size.
    let limited = unsafe {
        let (limits, size) = (ptr::from_ref(&limits).cast(), size_of_val(&limits) as u32);
        SetInformationJobObject(job.as_raw_handle(), JobObjectExtendedLimitInformation, limits, size)
    };
    assert!(limited != 0, "{}", io::Error::last_os_error());
    job
}

pub fn kill(pid: u32, signal: Signal) {
    match signal {
        Signal::SIGKILL => {
            let process = open(pid, PROCESS_TERMINATE).expect("a process to kill");
            // SAFETY: see above.
            let killed = unsafe { TerminateProcess(process.as_raw_handle(), 1) };
            assert!(killed != 0, "{}", io::Error::last_os_error());
        }
        Signal::SIGSTOP | Signal::SIGCONT => {
            let process = open(pid, PROCESS_SUSPEND_RESUME).expect("a process to stop or continue");
            let call = if signal == Signal::SIGSTOP { c"NtSuspendProcess" } else { c"NtResumeProcess" };
            change_process(call, process.as_raw_handle());
        }
        _ => set(&event_name(pid, signal)).expect("a process to signal"),
    }
}

/// Where it listens for it.
fn event_name(pid: u32, signal: Signal) -> String {
    let program = if signal == Signal::SIGUSR2 { "taskfork-test" } else { "taskfork" };
    let signal = format!("{signal:?}");
    format!("{program}-{pid}-{}", signal.trim_start_matches("SIG"))
}

/// The event that stands for the signal, for as long as this is kept.
pub fn event(pid: u32, signal: Signal) -> OwnedHandle {
    open_event(&event_name(pid, signal)).expect("a process to signal")
}

fn set(name: &str) -> io::Result<()> {
    // SAFETY: see above.
    let is_set = unsafe { SetEvent(open_event(name)?.as_raw_handle()) };
    if is_set == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open_event(name: &str) -> io::Result<OwnedHandle> {
    // SAFETY: see above.
    let event = unsafe { OpenEventW(EVENT_MODIFY_STATE, 0, wide(name).as_ptr()) };
    if event.is_null() { Err(io::Error::last_os_error()) } else { Ok(owned(event)) }
}

fn open(pid: u32, rights: PROCESS_ACCESS_RIGHTS) -> io::Result<OwnedHandle> {
    // SAFETY: see above.
    let process = unsafe { OpenProcess(rights, 0, pid) };
    if process.is_null() { Err(io::Error::last_os_error()) } else { Ok(owned(process)) }
}

/// One of the two that are not in the libraries to link with.
fn change_process(call: &std::ffi::CStr, process: HANDLE) {
    let function = ntdll(call).expect("a function of the system's");
    // SAFETY: both functions that are meant take a handle and return a status.
    let function = unsafe { mem::transmute::<unsafe extern "system" fn() -> isize, ChangeProcess>(function) };
    // SAFETY: see above.
    let status = unsafe { function(process) };
    assert!(status >= 0, "{call:?}: {status:#X}");
}

type ChangeProcess = unsafe extern "system" fn(HANDLE) -> i32;

fn ntdll(name: &std::ffi::CStr) -> FARPROC {
    // SAFETY: the library is in every process, and both strings end with zero.
    unsafe { GetProcAddress(GetModuleHandleW(wide("ntdll.dll").as_ptr()), name.as_ptr().cast()) }
}

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// What a call has just made, or why it has not.
fn owned(handle: HANDLE) -> OwnedHandle {
    assert!(!handle.is_null(), "{}", io::Error::last_os_error());
    // SAFETY: it is open, and nobody else's.
    unsafe { OwnedHandle::from_raw_handle(handle) }
}

pub type Reader = File;

/// Its reader comes to the end of the file when every process that holds the writer is gone.
pub fn pipe() -> (Reader, OwnedHandle) {
    /// Nobody is to wait for a test that does something else.
    const ROOM: u32 = 1 << 20;
    let mut reader = ptr::null_mut();
    let mut writer = ptr::null_mut();
    // SAFETY: there is room for both, and without attributes none is inherited.
    let made = unsafe { CreatePipe(&raw mut reader, &raw mut writer, ptr::null(), ROOM) };
    assert!(made != 0, "{}", io::Error::last_os_error());
    (owned(reader).into(), owned(writer))
}

/// As a program that is started from a quiet console: a group of its own does not hear ^C, nor do the processes that it
/// starts, unless they say so. A fault is not to ask anybody what to do.
pub fn begin() {
    // SAFETY: see above.
    unsafe {
        SetConsoleCtrlHandler(None, 0);
        if is_wine() {
            SetConsoleCtrlHandler(Some(end_as_by_default), 1);
        }
        SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOGPFAULTERRORBOX);
    }
}

fn is_wine() -> bool {
    ntdll(c"wine_get_version").is_some()
}

/// What Windows does when nobody has handled it. Wine exits with 0.
unsafe extern "system" fn end_as_by_default(_: u32) -> i32 {
    // SAFETY: see above.
    unsafe { TerminateProcess(GetCurrentProcess(), STATUS_CONTROL_C_EXIT as u32) }
}

/// Ends this process after so many seconds, whatever it waits for. It says so, and so fails its test.
pub fn watch(seconds: u32) {
    static DEADLINE: Mutex<Option<Instant>> = Mutex::new(None);
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    if DEADLINE.lock().expect("a deadline").replace(deadline).is_some() {
        return;
    }
    let left = || {
        let deadline = *DEADLINE.lock().expect("a deadline");
        deadline.and_then(|deadline| deadline.checked_duration_since(Instant::now()))
    };
    thread::spawn(move || {
        while let Some(left) = left() {
            thread::sleep(left);
        }
        let _ = io::stderr().write(b"watchdog: somebody was still there\n");
        // SAFETY: see above. Nothing is run that might wait for somebody who hangs.
        unsafe { TerminateProcess(GetCurrentProcess(), 99) };
    });
}

/// Who passes it waits until another process of the program opens it, once for each. Made before the call.
pub struct Gate(OwnedHandle);

impl Gate {
    pub fn new() -> Gate {
        let scratch = scratch();
        let name = format!("{}-gate", scratch.file_name().expect("a name").to_string_lossy());
        // SAFETY: see above. One that is there already is opened.
        Gate(owned(unsafe { CreateSemaphoreW(ptr::null(), 0, i32::MAX, wide(&name).as_ptr()) }))
    }

    pub fn open(&self, times: usize) {
        // SAFETY: see above. Nobody asks how often it was open before.
        let opened = unsafe { ReleaseSemaphore(self.0.as_raw_handle(), times as i32, ptr::null_mut()) };
        assert!(opened != 0, "{}", io::Error::last_os_error());
    }

    pub fn pass(&self) {
        wait_for(&self.0);
    }
}

fn wait_for(handle: &OwnedHandle) {
    // SAFETY: see above.
    assert_eq!(unsafe { WaitForSingleObject(handle.as_raw_handle(), INFINITE) }, 0);
}

/// Says that it is up, and waits for this signal, which may come as soon as it has said so.
pub fn up_until_signal(id: usize, awaited: Signal) {
    let name = event_name(std::process::id(), awaited);
    // SAFETY: see above.
    let event = owned(unsafe { CreateEventW(ptr::null(), 0, 0, wide(&name).as_ptr()) });
    up(id);
    wait_for(&event);
}

pub fn copy_program(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("a copy");
}

/// Until it is ended from outside.
pub fn idle() -> ! {
    loop {
        thread::park();
    }
}

/// Says that it is up, and looks until this is true.
pub fn up_until(id: usize, done: impl Fn() -> bool) {
    up(id);
    while !done() {
        thread::yield_now();
    }
}

/// So many that drain, each after it has done this. Only who has a handle hears that it is to stop.
pub fn fork_drained(n: usize, first: impl Fn() + Send + Sync + 'static) {
    serve_drained(n, first);
}

/// So many that hear that they are to stop, and do not.
pub fn fork_deaf(n: usize, _: Signal) {
    serve_deaf(n);
}

/// To this process, if it listens.
pub fn raise(signal: Signal) {
    let _ = set(&event_name(std::process::id(), signal));
}

/// Waits until this child has ended.
pub fn wait_for_end(child: u32) {
    match open(child, PROCESS_SYNCHRONIZE) {
        Ok(process) => wait_for(&process),
        // There is no such process any more.
        Err(error) => assert_eq!(error.raw_os_error(), Some(ERROR_INVALID_PARAMETER as i32), "{error}"),
    }
}

/// How many handles this process has.
pub fn handles() -> u32 {
    let mut count = 0;
    // SAFETY: see above; there is room for the count.
    let counted = unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut count) };
    assert!(counted != 0, "{}", io::Error::last_os_error());
    count
}
