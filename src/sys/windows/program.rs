//! Starts the program of this process again, in a new process.
//!
//! # Safety
//! `AT_START` contains a function that runs before `main`. That function calls
//! `start_offer::record` and GetCurrentDirectoryW, which writes to `START_DIRECTORY`. No other code reads that memory
//! before the function has returned. All other system calls in
//! this module read strings that end with zero, and write to values of the right size.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::{AsRawHandle, OwnedHandle, RawHandle};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::{env, io, mem, ptr, slice};

use windows_sys::Wdk::System::Threading::{NtQueryInformationProcess, ProcessBasicInformation};
use windows_sys::Win32::Foundation::ERROR_DIRECTORY;
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_TYPE_UNKNOWN, GetFileInformationByHandle, GetFileType,
};
use windows_sys::Win32::System::Console::GetConsoleProcessList;
use windows_sys::Win32::System::Environment::{
    FreeEnvironmentStringsW, GetCommandLineW, GetCurrentDirectoryW, GetEnvironmentStringsW,
};
use windows_sys::Win32::System::Threading::{
    CREATE_UNICODE_ENVIRONMENT, CreateProcessW, DETACHED_PROCESS, DeleteProcThreadAttributeList,
    EXTENDED_STARTUPINFO_PRESENT, GetCurrentProcess, InitializeProcThreadAttributeList,
    PROC_THREAD_ATTRIBUTE_HANDLE_LIST, PROC_THREAD_ATTRIBUTE_JOB_LIST, PROCESS_BASIC_INFORMATION, PROCESS_INFORMATION,
    STARTF_USESTDHANDLES, STARTUPINFOEXW, UpdateProcThreadAttribute,
};

use super::child::ChildHandle;
use super::handle::{inheritable, owned};
use super::inherited_handles::InheritedFds;
use super::signal::ExitNotifier;
use super::start_offer::{self, write_offer};
use crate::sys::CallError;
use crate::sys::offer::{ProgramId, Secret, VARIABLE};

/// The length of the longest path that Windows allows, in UTF-16 code units.
const LONGEST: usize = 1 << 15;

/// The path of the directory in which this program was started. Contains only zeroes if the path is unknown.
static START_DIRECTORY: [AtomicU16; LONGEST] = [const { AtomicU16::new(0) }; LONGEST];

/// Records how this program was started: the directory, and the offer of a parent. The C runtime calls this function
/// before `main`, because the program may change its current directory and its environment later.
#[used]
#[unsafe(link_section = ".CRT$XCU")]
static AT_START: extern "C" fn() = {
    extern "C" fn record_start() {
        // SAFETY: GetCurrentDirectoryW writes at most LONGEST code units. An array of AtomicU16 has the same layout as
        // an array of u16, and code may write to it through a shared reference.
        unsafe { GetCurrentDirectoryW(LONGEST as u32, START_DIRECTORY.as_ptr().cast_mut().cast()) };
        start_offer::record();
    }
    record_start
};

/// Returns the path of the directory in which this program was started, as a string that ends with zero. Returns `None`
/// if the path is unknown.
fn start_directory() -> Option<Vec<u16>> {
    let path: Vec<u16> =
        START_DIRECTORY.iter().map(|unit| unit.load(Ordering::Relaxed)).take_while(|&unit| unit != 0).collect();
    (!path.is_empty()).then(|| path.into_iter().chain([0]).collect())
}

/// The program that this process runs.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    id: ProgramId,
    /// The open executable file. While the file is open, the system gives its id to no other file.
    _file: File,
    exit_notifier: ExitNotifier,
}

impl Program {
    /// The name of the call that starts a program, for error messages.
    pub const CALL: &str = "CreateProcessW";

    pub fn this(exit_notifier: ExitNotifier) -> Result<Program, CallError> {
        let path = env::current_exe().map_err(|source| CallError { call: "GetModuleFileNameW", source })?;
        let file = open_without_access(&path).map_err(|source| CallError { call: "CreateFileW", source })?;
        let id = id_of(&file).map_err(|source| CallError { call: "GetFileInformationByHandle", source })?;
        Ok(Program { path, id, _file: file, exit_notifier })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the program again, with the same arguments, in the directory in which this process was started. The new
    /// process gets the environment of this process and an offer with this secret and text. The new process inherits
    /// only the given handles and the standard streams. From its start, the new process belongs to the job object that
    /// contains all workers.
    pub fn start(
        &self,
        secret: Secret,
        text: &str,
        inherited_handles: InheritedFds<'_>,
    ) -> Result<ChildHandle, CallError> {
        self.check_not_replaced()?;
        let (offer, variable) = write_offer(secret, self.id, &inherited_handles, text)?;
        let streams = inheritable_streams();
        let inherited: Vec<RawHandle> = inherited_handles
            .handles()
            .chain([offer.as_raw_handle()])
            .chain(streams.iter().flatten().map(AsRawHandle::as_raw_handle))
            .collect();
        let job = inherited_handles.job.as_raw_handle();
        let mut attributes = Attributes::new(&inherited, &job)?;
        let mut startup = startup_info(&streams);
        startup.lpAttributeList = attributes.list();
        let path: Vec<u16> = self.path.as_os_str().encode_wide().chain([0]).collect();
        let mut arguments = own_command_line();
        let environment = environment_with((VARIABLE, &variable));
        let directory = start_directory();
        // If this process has no console, Windows would create a console with a window for the new process. This flag
        // prevents that.
        let detached = if has_console() { 0 } else { DETACHED_PROCESS };
        // SAFETY: PROCESS_INFORMATION consists of integers and pointers, for which zeroes are valid.
        let mut started: PROCESS_INFORMATION = unsafe { mem::zeroed() };
        // SAFETY: CreateProcessW reads strings that end with zero, an environment that ends with two zeroes, and
        // startup information whose size is in `cb`. CreateProcessW may write to `arguments`, which is a buffer of this
        // function, and writes one PROCESS_INFORMATION.
        let is_started = unsafe {
            CreateProcessW(
                path.as_ptr(),
                arguments.as_mut_ptr(),
                ptr::null(),
                ptr::null(),
                1,
                EXTENDED_STARTUPINFO_PRESENT | CREATE_UNICODE_ENVIRONMENT | detached,
                environment.as_ptr().cast(),
                directory.as_ref().map_or(ptr::null(), Vec::as_ptr),
                &raw const startup.StartupInfo,
                &raw mut started,
            )
        };
        if is_started == 0 {
            return Err(name_start_directory(CallError::last(Program::CALL)));
        }
        // SAFETY: CreateProcessW has opened both handles, so they are open and have no other owner.
        let process = unsafe { [started.hThread, started.hProcess].map(|handle| owned(handle, Program::CALL)) };
        let [_, process] = process;
        process.and_then(|process| {
            ChildHandle::watch(
                process,
                started.dwProcessId,
                inherited_handles.stop.clone(),
                inherited_handles.status_slot.clone(),
                self.exit_notifier.clone(),
            )
        })
    }

    /// Fails if the path of the executable now leads to another file, for example after an update of the program.
    fn check_not_replaced(&self) -> Result<(), CallError> {
        let found = open_without_access(&self.path).and_then(|file| id_of(&file));
        if found.map_err(|error| CallError::new(Program::CALL, error))? != self.id {
            let replaced = io::Error::other("it was replaced since this process was started");
            return Err(CallError::new(Program::CALL, replaced));
        }
        Ok(())
    }
}

/// Returns the startup information of a process that gets these standard streams.
fn startup_info(streams: &[Option<OwnedHandle>; 3]) -> STARTUPINFOEXW {
    let raw = |handle: &Option<OwnedHandle>| handle.as_ref().map_or(ptr::null_mut(), AsRawHandle::as_raw_handle);
    let [input, output, error] = streams.each_ref().map(raw);
    // SAFETY: STARTUPINFOEXW consists of integers and pointers, for which zeroes are valid.
    let mut startup: STARTUPINFOEXW = unsafe { mem::zeroed() };
    startup.StartupInfo.cb = size_of_val(&startup) as u32;
    startup.StartupInfo.dwFlags = STARTF_USESTDHANDLES;
    startup.StartupInfo.hStdInput = input;
    startup.StartupInfo.hStdOutput = output;
    startup.StartupInfo.hStdError = error;
    startup
}

/// Returns inheritable copies of the standard streams. Returns `None` for a stream that is missing or closed. The
/// number of a closed stream may by now belong to another object, for example to the job. Then the worker would get a
/// handle to the job, but only the parent may have one.
fn inheritable_streams() -> [Option<OwnedHandle>; 3] {
    let streams = [io::stdin().as_raw_handle(), io::stdout().as_raw_handle(), io::stderr().as_raw_handle()];
    streams.map(|stream| inheritable(stream).ok().filter(|_| is_file(stream)))
}

/// Adds the start directory to the error if CreateProcessW has failed because that directory is invalid. Without this
/// addition, the error would seem to be about the executable.
fn name_start_directory(error: CallError) -> CallError {
    if error.source.raw_os_error() != Some(ERROR_DIRECTORY as i32) {
        return error;
    }
    let directory = String::from_utf16_lossy(&start_directory().unwrap_or_default());
    let directory = directory.trim_end_matches('\0');
    CallError::new(error.call, io::Error::other(format!("it was started in {directory}: {}", error.source)))
}

/// Returns whether the handle belongs to a file, a device or a pipe.
fn is_file(stream: RawHandle) -> bool {
    // SAFETY: GetFileType takes a handle. It returns FILE_TYPE_UNKNOWN if the handle is not open or does not belong to
    // a file.
    unsafe { GetFileType(stream) != FILE_TYPE_UNKNOWN }
}

fn has_console() -> bool {
    let mut process = 0;
    // SAFETY: GetConsoleProcessList writes at most one process id, and `process` has room for one. It returns 0 if this
    // process has no console.
    unsafe { GetConsoleProcessList(&raw mut process, 1) != 0 }
}

/// Opens the file without requesting any access to its data. So opening succeeds even if the file's permissions forbid
/// access, or if another program has opened the file without sharing it (CreateFileW).
fn open_without_access(path: &Path) -> io::Result<File> {
    OpenOptions::new().access_mode(0).open(path)
}

/// Returns the identity of a file: the serial number of its volume, and its index on that volume
/// (BY_HANDLE_FILE_INFORMATION).
fn id_of(file: &File) -> io::Result<ProgramId> {
    // SAFETY: all-zero bytes are a valid BY_HANDLE_FILE_INFORMATION, because it consists of integers.
    let mut found: BY_HANDLE_FILE_INFORMATION = unsafe { mem::zeroed() };
    // SAFETY: GetFileInformationByHandle takes an open handle, and writes one struct of this type.
    match unsafe { GetFileInformationByHandle(file.as_raw_handle(), &raw mut found) } {
        0 => Err(io::Error::last_os_error()),
        _ => {
            let index = u64::from(found.nFileIndexHigh) << 32 | u64::from(found.nFileIndexLow);
            Ok(ProgramId(found.dwVolumeSerialNumber.into(), index))
        }
    }
}

/// Returns the identity of the executable of this process.
pub(super) fn executable_id() -> io::Result<ProgramId> {
    open_without_access(&env::current_exe()?).and_then(|file| id_of(&file))
}

/// The attribute list for a new process. The list contains pointers to the inherited handles and to the job handle.
/// These handles must exist until the list is deleted (UpdateProcThreadAttribute).
struct Attributes<'a> {
    /// The memory of the list. Its elements are `usize`, so that the list has the alignment of a pointer.
    list: Vec<usize>,
    _handles: (&'a [RawHandle], &'a RawHandle),
}

impl<'a> Attributes<'a> {
    fn new(inherited: &'a [RawHandle], job: &'a RawHandle) -> Result<Attributes<'a>, CallError> {
        let mut size = 0;
        // SAFETY: if the list is null, InitializeProcThreadAttributeList only writes the size that a list needs.
        unsafe { InitializeProcThreadAttributeList(ptr::null_mut(), 2, 0, &raw mut size) };
        let mut list = vec![0usize; size.div_ceil(size_of::<usize>())];
        // SAFETY: InitializeProcThreadAttributeList writes at most `size` bytes, and `list` has at least that size.
        if unsafe { InitializeProcThreadAttributeList(list.as_mut_ptr().cast(), 2, 0, &raw mut size) } == 0 {
            return Err(CallError::last("InitializeProcThreadAttributeList"));
        }
        let mut attributes = Attributes { list, _handles: (inherited, job) };
        attributes.add(PROC_THREAD_ATTRIBUTE_HANDLE_LIST, inherited)?;
        attributes.add(PROC_THREAD_ATTRIBUTE_JOB_LIST, slice::from_ref(job))?;
        Ok(attributes)
    }

    fn add(&mut self, attribute: u32, handles: &'a [RawHandle]) -> Result<(), CallError> {
        let value = handles.as_ptr().cast::<c_void>();
        let size = size_of_val(handles);
        // SAFETY: the list has room for two attributes, and `new` adds only two. The lifetime `'a` guarantees that the
        // handles outlive the list.
        let is_added = unsafe {
            let attribute = attribute as usize;
            UpdateProcThreadAttribute(self.list(), 0, attribute, value, size, ptr::null_mut(), ptr::null())
        };
        if is_added == 0 { Err(CallError::last("UpdateProcThreadAttribute")) } else { Ok(()) }
    }

    fn list(&mut self) -> *mut c_void {
        self.list.as_mut_ptr().cast()
    }
}

impl Drop for Attributes<'_> {
    fn drop(&mut self) {
        // SAFETY: InitializeProcThreadAttributeList has initialized the list, and only this call deletes the list.
        unsafe { DeleteProcThreadAttributeList(self.list()) };
    }
}

/// Returns the unparsed command line of this process, as a string that ends with zero.
fn own_command_line() -> Vec<u16> {
    // SAFETY: GetCommandLineW returns a string that ends with zero and exists until the process ends. No code may
    // change that string.
    unsafe { string_at(GetCommandLineW()) }.iter().copied().chain([0]).collect()
}

/// Returns the environment of this process with one more variable, in the format that CreateProcessW requires. In this
/// format, each variable is a string that ends with zero. The strings are sorted by name. After the last string comes
/// one more zero.
fn environment_with((name, value): (&str, &str)) -> Vec<u16> {
    let key_of = |entry: &[u16]| {
        // The search skips the first character, because the name of a variable may begin with an equals sign.
        let end = entry.iter().skip(1).position(|&unit| unit == u16::from(b'=')).map_or(entry.len(), |at| at + 1);
        String::from_utf16_lossy(&entry[..end]).to_uppercase()
    };
    let mut entries = environment();
    entries.retain(|entry| key_of(entry) != name);
    let at = entries.iter().position(|entry| key_of(entry).as_str() > name).unwrap_or(entries.len());
    entries.insert(at, format!("{name}={value}").encode_utf16().collect());
    entries.into_iter().flat_map(|entry| entry.into_iter().chain([0])).chain([0]).collect()
}

fn environment() -> Vec<Vec<u16>> {
    let mut entries = Vec::new();
    // SAFETY: GetEnvironmentStringsW returns null or a block of strings. Each string ends with zero, and the last
    // string is empty. The block is a copy, which exists until FreeEnvironmentStringsW is called.
    unsafe {
        let all = GetEnvironmentStringsW();
        let mut next = all;
        while !next.is_null() && *next != 0 {
            let entry = string_at(next);
            entries.push(entry.to_owned());
            next = next.add(entry.len() + 1);
        }
        if !all.is_null() {
            FreeEnvironmentStringsW(all);
        }
    }
    entries
}

/// Returns the string that begins at this address, without the zero at its end.
///
/// # Safety
/// The string must end with zero, and no code may change the string while the slice exists.
unsafe fn string_at<'a>(start: *const u16) -> &'a [u16] {
    let mut len = 0;
    // SAFETY: the caller guarantees that all units up to the zero may be read.
    unsafe {
        while *start.add(len) != 0 {
            len += 1;
        }
        slice::from_raw_parts(start, len)
    }
}

/// Returns the value of an environment variable, and removes the variable from this process. So programs that this
/// process starts do not inherit the variable.
pub(crate) fn take_env_var(name: &str) -> Option<String> {
    let value = env::var(name).ok()?;
    // SAFETY: std documents that on Windows `remove_var` is safe even if there are other threads.
    unsafe { env::remove_var(name) };
    Some(value)
}

/// Returns false. On Windows, an executable file cannot give a program any rights that the starting process does not
/// have.
pub(crate) fn is_secure_exec() -> bool {
    false
}

/// Returns the pid of the process that started this process, or 0 if that pid is unknown. (The process with that pid
/// may have ended already.)
pub(crate) fn parent_id() -> u32 {
    // SAFETY: PROCESS_BASIC_INFORMATION consists of integers and pointers, for which zeroes are valid.
    let mut found: PROCESS_BASIC_INFORMATION = unsafe { mem::zeroed() };
    // SAFETY: NtQueryInformationProcess writes at most `size` bytes, which is the size of `found`.
    unsafe {
        let found_ptr = ptr::from_mut(&mut found).cast();
        let size = size_of_val(&found) as u32;
        NtQueryInformationProcess(GetCurrentProcess(), ProcessBasicInformation, found_ptr, size, ptr::null_mut());
    }
    found.InheritedFromUniqueProcessId as u32
}
