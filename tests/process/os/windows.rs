//! Named events, the console and exits on Windows.
//!
//! # Safety
//! The calls marked `see above` take integers, open handles, and strings that end with zero and live until the call
//! returns.

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

use crate::program::{scratch, serve_drained, serve_unresponsive, up};

/// The kinds of workers on this system.
pub const BACKENDS: &[&str] = &["spawn", "thread"];

/// Returns the backend of this name, or `None` for threads.
pub fn backend(name: &str) -> Option<Backend> {
    (name != "thread").then_some(Backend::Spawn)
}

/// The log's text for a process that was killed.
pub const KILLED: &str = "exited with status 1";
/// The `Debug` text of the exit of a process that was killed.
pub const KILLED_EXIT: &str = "Code(1)";
/// The log's text for a process that has not enabled graceful stop and gets a stop request.
pub const TERMINATED: &str = KILLED;
/// The log's text for a process that is aborted because its heartbeats stopped.
pub const ABORTED: &str = KILLED;
/// The log lines, in this order, about a process that the test has stopped by SIGSTOP, so that it sends no heartbeats.
pub const IS_ABORTED: &[&str] = &["has sent no heartbeat in time"];
/// The system's text for a path that does not exist. It is empty here, because that text depends on the user's
/// language.
pub const NOT_FOUND: &str = "";

/// A timeout that a process misses only if it waits on purpose. A normal start takes less time.
pub const SOON: Duration = Duration::from_secs(3);

/// The Windows counterparts of Unix signals: an operator's requests, and the ways in which tests act on a process.
#[allow(clippy::upper_case_acronyms, reason = "the names of the signals")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    SIGTERM,
    SIGQUIT,
    SIGHUP,
    SIGTTIN,
    SIGTTOU,
    /// The signal to a worker for which `up_until_signal` waits.
    SIGUSR2,
    SIGKILL,
    SIGSTOP,
    SIGCONT,
}

/// Returns `a console` if this process has no console, because a process group can be interrupted only through a
/// console.
pub fn no_terminal() -> Option<&'static str> {
    // SAFETY: see above.
    (unsafe { GetConsoleCP() } == 0).then_some("a console")
}

/// A process and the processes that it starts: a process group for the console, and a job. When the job's handle is
/// closed, Windows kills all of these processes.
pub struct Group {
    leader: u32,
    job: OwnedHandle,
}

impl Group {
    pub fn start(command: &mut Command) -> (Child, Group) {
        let job = job();
        // The process starts suspended, so that it is in the job before it can start other processes.
        let child = command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_SUSPENDED).spawn().expect("the program");
        // SAFETY: see above.
        let assigned = unsafe { AssignProcessToJobObject(job.as_raw_handle(), child.as_raw_handle()) };
        assert!(assigned != 0, "{}", io::Error::last_os_error());
        change_process(c"NtResumeProcess", child.as_raw_handle());
        let leader = child.id();
        (child, Group { leader, job })
    }

    /// Interrupts the parent and its workers, as a console does for ^C. To a single process group, Windows can send
    /// only Ctrl-Break, and Wine can send only Ctrl-C.
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

/// Returns a job that kills its processes when its handle is closed.
fn job() -> OwnedHandle {
    // SAFETY: null means default attributes and no name.
    let job = owned(unsafe { CreateJobObjectW(ptr::null(), ptr::null()) });
    // SAFETY: zeroes mean no limits.
    let mut limits: JOBOBJECT_EXTENDED_LIMIT_INFORMATION = unsafe { mem::zeroed() };
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    // SAFETY: the limits have the type and the size that the call gets.
    let limited = unsafe {
        let size = size_of_val(&limits) as u32;
        let limits = ptr::from_ref(&limits).cast();
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

/// Returns the name of the event on which the process waits for this signal.
fn event_name(pid: u32, signal: Signal) -> String {
    let program = if signal == Signal::SIGUSR2 { "taskfork-test" } else { "taskfork" };
    let signal = format!("{signal:?}");
    format!("{program}-{pid}-{}", signal.trim_start_matches("SIG"))
}

/// Opens the event on which the process waits for this signal. The event exists as long as the handle is open.
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

/// Calls `NtSuspendProcess` or `NtResumeProcess`. Looks the function up at run time, because no import library contains
/// it.
fn change_process(call: &std::ffi::CStr, process: HANDLE) {
    let function = ntdll(call).expect("a function of ntdll.dll");
    // SAFETY: both functions take a handle and return a status.
    let function = unsafe { mem::transmute::<unsafe extern "system" fn() -> isize, ChangeProcess>(function) };
    // SAFETY: see above.
    let status = unsafe { function(process) };
    assert!(status >= 0, "{call:?}: {status:#X}");
}

type ChangeProcess = unsafe extern "system" fn(HANDLE) -> i32;

fn ntdll(name: &std::ffi::CStr) -> FARPROC {
    // SAFETY: ntdll.dll is loaded in every process, and both strings end with zero.
    unsafe { GetProcAddress(GetModuleHandleW(wide("ntdll.dll").as_ptr()), name.as_ptr().cast()) }
}

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// Takes ownership of the handle that a call has just returned. Panics with the system's error if it is null.
fn owned(handle: HANDLE) -> OwnedHandle {
    assert!(!handle.is_null(), "{}", io::Error::last_os_error());
    // SAFETY: the handle is open and has no other owner.
    unsafe { OwnedHandle::from_raw_handle(handle) }
}

pub type Reader = File;

/// Returns a pipe. The reader gets the end of the file once every process that has the writer open is gone.
pub fn pipe() -> (Reader, OwnedHandle) {
    /// The size in bytes: large enough that no process blocks while the test does something else.
    const ROOM: u32 = 1 << 20;
    let mut reader = ptr::null_mut();
    let mut writer = ptr::null_mut();
    // SAFETY: there is room for both handles, and without attributes they are not inheritable.
    let made = unsafe { CreatePipe(&raw mut reader, &raw mut writer, ptr::null(), ROOM) };
    assert!(made != 0, "{}", io::Error::last_os_error());
    (owned(reader).into(), owned(writer))
}

/// Enables ^C for this process and the processes that it starts, because processes in a new process group ignore ^C.
/// Also disables the dialogs that Windows shows after a crash.
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

/// Ends the process with the status that Windows uses for a console event without a handler. Wine would use status 0
/// instead.
unsafe extern "system" fn end_as_by_default(_: u32) -> i32 {
    // SAFETY: see above.
    unsafe { TerminateProcess(GetCurrentProcess(), STATUS_CONTROL_C_EXIT as u32) }
}

/// Ends this process after this many seconds, and prints a line that makes the test fail. A further call replaces the
/// time.
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
        let _ = io::stderr().write(b"watchdog: the process still runs\n");
        // SAFETY: see above. (Unlike ExitProcess, this call runs no code that could wait for a hanging thread.)
        unsafe { TerminateProcess(GetCurrentProcess(), 99) };
    });
}

/// A gate at which a process waits until another process of the program, or the test, opens it. Each opening lets one
/// process pass. The program must create the gate before it starts the workers.
pub struct Gate(OwnedHandle);

impl Gate {
    pub fn new() -> Gate {
        Gate::of(&scratch())
    }

    /// Returns the gate of the program with this scratch directory.
    pub fn of(scratch: &Path) -> Gate {
        let name = format!("{}-gate", scratch.file_name().expect("a name").to_string_lossy());
        // SAFETY: see above. If the semaphore exists, the call opens it.
        Gate(owned(unsafe { CreateSemaphoreW(ptr::null(), 0, i32::MAX, wide(&name).as_ptr()) }))
    }

    pub fn open(&self, times: usize) {
        // SAFETY: see above. With null, the call does not write the previous count.
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

/// Prints that the worker is up, and waits for this signal. A signal that arrives right after the line is not missed.
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

/// Waits until another process ends this one.
pub fn idle() -> ! {
    loop {
        thread::park();
    }
}

/// Prints that the worker is up, and polls `done` until it returns true.
pub fn up_until(id: usize, done: impl Fn() -> bool) {
    up(id);
    while !done() {
        thread::yield_now();
    }
}

/// Runs `n` workers. Each calls `first`, and then waits for a stop request. Does not call `fork_processes`, because on
/// Windows only a `Worker` gets stop requests.
pub fn fork_drained(n: usize, first: impl Fn() + Send + Sync + 'static) {
    serve_drained(n, first);
}

/// Runs `n` workers that enable graceful stop and then ignore every request.
pub fn fork_unresponsive(n: usize, _: Signal) {
    serve_unresponsive(n);
}

/// Sends a signal to this process, if the process has created the event for this signal.
pub fn raise(signal: Signal) {
    let _ = set(&event_name(std::process::id(), signal));
}

/// Waits until this child has exited.
pub fn wait_for_end(child: u32) {
    match open(child, PROCESS_SYNCHRONIZE) {
        Ok(process) => wait_for(&process),
        // The process no longer exists.
        Err(error) => assert_eq!(error.raw_os_error(), Some(ERROR_INVALID_PARAMETER as i32), "{error}"),
    }
}

/// Returns the number of open handles of this process.
pub fn handles() -> u32 {
    let mut count = 0;
    // SAFETY: see above. The call writes one integer to `count`.
    let counted = unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut count) };
    assert!(counted != 0, "{}", io::Error::last_os_error());
    count
}
