//! Starting this program once more.
//!
//! # Safety
//! The function that runs before `main` asks for the directory only, into memory that nobody reads before it is done.

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
use crate::sys::CallError;

/// No path is longer.
const LONGEST: usize = 1 << 15;

/// Where the program was started; empty if that cannot be told.
static START_DIRECTORY: [AtomicU16; LONGEST] = [const { AtomicU16::new(0) }; LONGEST];

/// What runs before `main`, where the program has had no time yet to go anywhere else.
#[used]
#[unsafe(link_section = ".CRT$XCU")]
static AT_START: extern "C" fn() = {
    extern "C" fn note_directory() {
        // SAFETY: atomics have the memory of what is in them, so there is room for so much, and it is not constant.
        unsafe { GetCurrentDirectoryW(LONGEST as u32, START_DIRECTORY.as_ptr().cast_mut().cast()) };
    }
    note_directory
};

/// The directory in which this program was started, for a call.
fn start_directory() -> Option<Vec<u16>> {
    let path: Vec<u16> =
        START_DIRECTORY.iter().map(|unit| unit.load(Ordering::Relaxed)).take_while(|&unit| unit != 0).collect();
    (!path.is_empty()).then(|| path.into_iter().chain([0]).collect())
}

/// This program, as it was started.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    id: FileId,
    /// Open, so that the number is nobody else's.
    _file: File,
    exit_notifier: ExitNotifier,
}

/// Its volume, and its number there.
#[derive(Debug, PartialEq, Eq)]
struct FileId(u32, u32, u32);

impl Program {
    /// What starts it.
    pub const CALL: &str = "CreateProcessW";

    pub fn this(exit_notifier: ExitNotifier) -> Result<Program, CallError> {
        let path = env::current_exe().map_err(|source| CallError { call: "GetModuleFileNameW", source })?;
        let file = look_at(&path).map_err(|source| CallError { call: "CreateFileW", source })?;
        let id = FileId::of(&file).map_err(|source| CallError { call: "GetFileInformationByHandle", source })?;
        Ok(Program { path, id, _file: file, exit_notifier })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts it once more: with the same arguments, in the directory where this process was started, with this variable
    /// more, and in the job from the beginning. It inherits what it is handed and the standard streams, and nothing else.
    pub fn start(&self, variable: (&str, &str), inherited_handles: InheritedFds<'_>) -> Result<ChildHandle, CallError> {
        let found = look_at(&self.path).and_then(|file| FileId::of(&file));
        if found.map_err(|error| CallError::new(Program::CALL, error))? != self.id {
            let replaced = io::Error::other("it was replaced since this process was started");
            return Err(CallError::new(Program::CALL, replaced));
        }
        let streams = [io::stdin().as_raw_handle(), io::stdout().as_raw_handle(), io::stderr().as_raw_handle()];
        // One that there is not, or that is closed, the program does not have either. (Its number may be another object's by
        // now: the job's, say, which no worker must have.)
        let streams = streams.map(|stream| inheritable(stream).ok().filter(|_| is_file(stream)));
        let raw = |handle: &Option<OwnedHandle>| handle.as_ref().map_or(ptr::null_mut(), AsRawHandle::as_raw_handle);
        let [input, output, error] = streams.each_ref().map(raw);
        let inherited: Vec<RawHandle> =
            inherited_handles.handles().chain(streams.iter().flatten().map(AsRawHandle::as_raw_handle)).collect();
        let job = inherited_handles.job.as_raw_handle();
        let mut attributes = Attributes::new(&inherited, &job)?;
        // SAFETY: it consists of integers and pointers, for which zeroes are fine.
        let mut startup: STARTUPINFOEXW = unsafe { mem::zeroed() };
        startup.StartupInfo.cb = size_of_val(&startup) as u32;
        startup.StartupInfo.dwFlags = STARTF_USESTDHANDLES;
        (startup.StartupInfo.hStdInput, startup.StartupInfo.hStdOutput, startup.StartupInfo.hStdError) =
            (input, output, error);
        startup.lpAttributeList = attributes.list();
        let path: Vec<u16> = self.path.as_os_str().encode_wide().chain([0]).collect();
        let mut arguments = own_command_line();
        let environment = environment_with(variable);
        let directory = start_directory();
        // Without a console it would get one of its own, and a window.
        let detached = if has_console() { 0 } else { DETACHED_PROCESS };
        // SAFETY: as above.
        let mut started: PROCESS_INFORMATION = unsafe { mem::zeroed() };
        // SAFETY: all strings end with zero, the arguments may be written to, the environment ends with two zeroes, and the
        // startup information is of the kind and the size that it says.
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
            return Err(told_of_directory(CallError::last(Program::CALL)));
        }
        // SAFETY: both were just opened, for this.
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
}

/// It is told as if the program itself were no directory.
fn told_of_directory(error: CallError) -> CallError {
    if error.source.raw_os_error() != Some(ERROR_DIRECTORY as i32) {
        return error;
    }
    let directory = String::from_utf16_lossy(&start_directory().unwrap_or_default());
    let directory = directory.trim_end_matches('\0');
    CallError::new(error.call, io::Error::other(format!("it was started in {directory}: {}", error.source)))
}

/// Or a device, or a pipe.
fn is_file(stream: RawHandle) -> bool {
    // SAFETY: a handle that is not open, or of something else, is refused.
    unsafe { GetFileType(stream) != FILE_TYPE_UNKNOWN }
}

fn has_console() -> bool {
    let mut process = 0;
    // SAFETY: there is room for one process, of which there are none without a console.
    unsafe { GetConsoleProcessList(&raw mut process, 1) != 0 }
}

/// No right to it is needed for this, and nobody else's are in the way.
fn look_at(path: &Path) -> io::Result<File> {
    OpenOptions::new().access_mode(0).open(path)
}

impl FileId {
    fn of(file: &File) -> io::Result<FileId> {
        // SAFETY: it consists of integers, for which zeroes are fine.
        let mut found: BY_HANDLE_FILE_INFORMATION = unsafe { mem::zeroed() };
        // SAFETY: the file is open, and there is room for what is found.
        match unsafe { GetFileInformationByHandle(file.as_raw_handle(), &raw mut found) } {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(FileId(found.dwVolumeSerialNumber, found.nFileIndexHigh, found.nFileIndexLow)),
        }
    }
}

/// What a process is to have from the beginning: it refers to these handles, and is of no use without them.
struct Attributes<'a> {
    /// In units that are aligned as the list has to be.
    list: Vec<usize>,
    _handles: (&'a [RawHandle], &'a RawHandle),
}

impl<'a> Attributes<'a> {
    fn new(inherited: &'a [RawHandle], job: &'a RawHandle) -> Result<Attributes<'a>, CallError> {
        let mut size = 0;
        // SAFETY: without a list, it tells its size.
        unsafe { InitializeProcThreadAttributeList(ptr::null_mut(), 2, 0, &raw mut size) };
        let mut list = vec![0usize; size.div_ceil(size_of::<usize>())];
        // SAFETY: there is room of this size.
        if unsafe { InitializeProcThreadAttributeList(list.as_mut_ptr().cast(), 2, 0, &raw mut size) } == 0 {
            return Err(CallError::last("InitializeProcThreadAttributeList"));
        }
        let mut attributes = Attributes { list, _handles: (inherited, job) };
        attributes.add(PROC_THREAD_ATTRIBUTE_HANDLE_LIST, inherited)?;
        attributes.add(PROC_THREAD_ATTRIBUTE_JOB_LIST, slice::from_ref(job))?;
        Ok(attributes)
    }

    fn add(&mut self, attribute: u32, handles: &'a [RawHandle]) -> Result<(), CallError> {
        let (value, size) = (handles.as_ptr().cast::<c_void>(), size_of_val(handles));
        // SAFETY: the list was made for so many, and what it refers to stays as long as it.
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
        // SAFETY: it was initialized.
        unsafe { DeleteProcThreadAttributeList(self.list()) };
    }
}

/// As this process was given it, ending with zero.
fn own_command_line() -> Vec<u16> {
    // SAFETY: it ends with zero, and is there until the process ends.
    unsafe { string_at(GetCommandLineW()) }.iter().copied().chain([0]).collect()
}

/// This process's own environment with one variable more: strings that each end with zero, in the order of their names, and
/// one more zero.
fn environment_with((name, value): (&str, &str)) -> Vec<u16> {
    let key_of = |entry: &[u16]| {
        // A name may begin with the sign that ends it.
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
    // SAFETY: it gives strings that each end with zero, an empty one being the last, which are there until they are freed.
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

/// # Safety
/// It ends with zero, and stays as it is meanwhile.
unsafe fn string_at<'a>(start: *const u16) -> &'a [u16] {
    let mut len = 0;
    // SAFETY: up to the zero, it is there, as the caller says.
    unsafe {
        while *start.add(len) != 0 {
            len += 1;
        }
        slice::from_raw_parts(start, len)
    }
}

/// Takes a variable out of the environment, so that it is not passed on to programs that this one starts.
pub(crate) fn take_env_var(name: &str) -> Option<String> {
    let value = env::var(name).ok()?;
    // SAFETY: on Windows, the environment may be changed at any time.
    unsafe { env::remove_var(name) };
    Some(value)
}

/// A program has the rights of who starts it.
pub(crate) fn is_secure_exec() -> bool {
    false
}

/// Who has started this process; 0, which nobody is, if that cannot be told. (It may have ended since.)
pub(crate) fn parent_id() -> u32 {
    // SAFETY: it consists of integers and pointers, for which zeroes are fine.
    let mut found: PROCESS_BASIC_INFORMATION = unsafe { mem::zeroed() };
    // SAFETY: there is room for what is found, of the size that is told.
    unsafe {
        let (place, size) = (ptr::from_mut(&mut found).cast(), size_of_val(&found) as u32);
        NtQueryInformationProcess(GetCurrentProcess(), ProcessBasicInformation, place, size, ptr::null_mut());
    }
    found.InheritedFromUniqueProcessId as u32
}
