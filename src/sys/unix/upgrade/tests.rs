//! Tests in processes of their own: this test program starts itself, as a helper, which executes itself.
//!
//! A helper is a test that does nothing in an ordinary run.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use std::{env, fs};

use nix::sys::signal::{SigSet, Signal as Native};

use super::super::shm::nameless_file;
use super::super::{SignalHandover, Signals};
use super::super::{Threads, copy_passed, origin, passed_text, take_candidate_fds, thread_count};
use super::*;
use crate::sys::{Origin, SupervisorLock, WorkerKind};

/// What a helper does.
const STEP: &str = "TASKFORK_TEST_UPGRADE";
const SECRET: [u32; 4] = [1, 2, 3, 4];

fn helper(name: &str) -> String {
    format!("sys::unix::upgrade::tests::{name}")
}

/// The arguments for a helper. With one test thread, the helper runs in the main thread.
fn arguments(name: &str) -> Vec<std::ffi::OsString> {
    let own = env::args_os().next().unwrap_or_default();
    let rest = [&helper(name), "--exact", "--nocapture", "--test-threads=1"];
    std::iter::once(own).chain(rest.iter().map(Into::into)).collect()
}

fn command(name: &str, step: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args(&arguments(name)[1..]).env(STEP, step);
    command
}

fn run(step: &str) -> Output {
    command("helper_before_exec", step).output().expect("a helper")
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Returns the rest of the line that begins with this word.
fn line<'a>(printed: &'a str, word: &str) -> &'a str {
    let line = printed.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {word} in {printed}"))
}

fn own_program(after: &str) -> NewProgram {
    NewProgram::open(None).expect("this program").with_arguments(arguments(after))
}

fn file_with(text: &str) -> File {
    let mut file = File::from(nameless_file(0).expect("a file"));
    file.write_all(text.as_bytes()).expect("a file");
    file.rewind().expect("a file");
    file
}

fn content(fd: impl Into<File>) -> String {
    let mut text = String::new();
    fd.into().read_to_string(&mut text).expect("a text");
    text
}

fn mask() -> Vec<Native> {
    SigSet::thread_get_mask().expect("a mask").iter().collect()
}

/// Prints what must be the same before and after execve(2), and after an execve(2) that fails.
fn print_facts(when: &str) {
    println!("{when}-pid {}", std::process::id());
    println!("{when}-name {}", fs::read_to_string("/proc/self/comm").expect("a name").trim_end());
    println!("{when}-directory {}", env::current_dir().expect("a directory").display());
    println!("{when}-mask {:?}", mask());
}

/// Runs in a child with one thread, because a test has a thread of its own.
#[test]
fn helper_before_exec() {
    let Ok(step) = env::var(STEP) else { return };
    println!();
    // SAFETY: the other thread of this process waits for this test, and holds no lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        execute(&step);
        std::process::exit(0);
    }
    let mut status = 0;
    // SAFETY: waitpid(2) writes one int.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    // The child can end in the middle of a line.
    println!("\nended-by {}", libc::WTERMSIG(status));
}

fn execute(step: &str) {
    env::set_current_dir("/").expect("a directory");
    let file = file_with("passed");
    let fds = [file.as_fd()];
    print_facts("before");
    let program = match step {
        "refused" => NewProgram::open(Some(&env::temp_dir().join("taskfork-no-program")))
            .map(|program| program.with_arguments(arguments("helper_after_exec")))
            .expect("a file"),
        _ => own_program("helper_after_exec"),
    };
    if let Some(kind) = kind_of_workers(step) {
        let lock = SupervisorLock::begin().expect("no supervisor yet");
        let signals = Signals::take(lock, &[kind]).expect("the signals");
        // SAFETY: kill(2) takes integers.
        let send = |signal: Native| unsafe { libc::kill(libc::getpid(), signal as libc::c_int) };
        send(Native::SIGHUP);
        let SignalHandover { text, fds } = signals.handover();
        send(Native::SIGUSR1);
        println!("refused {}", program.exec(SECRET, &text, &fds, Duration::from_secs(60)));
        return;
    }
    if step == "pending" {
        SigSet::from(Native::SIGHUP).thread_block().expect("a mask");
        nix::sys::signal::raise(Native::SIGHUP).expect("a signal");
    }
    let timeout = if step == "late" { Duration::from_millis(1) } else { Duration::from_secs(60) };
    let reason = program.exec(SECRET, "the text", &fds, timeout);
    println!("refused {reason}");
    print_facts("refused");
    let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
    println!("refused-flags {flags}");
    println!("refused-variable {:?}", env::var(state::VARIABLE));
}

#[test]
fn helper_after_exec() {
    let Ok(step) = env::var(STEP) else { return };
    println!();
    match &*step {
        "fork-to-spawn" | "spawn-to-fork" | "spawn-to-spawn" => return read_handed_over(&step),
        "late" => loop {
            std::thread::park();
        },
        "closed" => nix::unistd::close(passed_number()).expect("a descriptor"),
        // SAFETY: the child runs code that needs no lock of another thread.
        "forked" if unsafe { libc::fork() } != 0 => {
            let _ = nix::sys::wait::wait();
            std::process::exit(0);
        }
        _ => {}
    }
    print_facts("after");
    let passed = passed_text().map(|passed| (passed.text, passed.to_parent));
    println!("after-peeked {passed:?} {}", copy_passed(0).is_some());
    match take_state() {
        Ok(Some(state)) => {
            println!("state {}", state.text);
            let flags: Vec<i32> = state
                .fds
                .iter()
                .map(|fd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).expect("flags"))
                .collect();
            println!("flags {flags:?}");
            println!("content {}", state.fds.into_iter().map(content).collect::<String>());
            assert!(state.since_exec > Duration::ZERO && state.since_exec < Duration::from_secs(50));
        }
        Ok(None) => println!("no state"),
        Err(reason) => println!("problem {reason}"),
    }
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    println!("pending {}", status.lines().find_map(|line| line.strip_prefix("SigPnd:")).expect("signals").trim());
    println!("again {:?}", take_state().map(|state| state.is_some()));
    let is_left = env::var(state::VARIABLE).is_ok() && matches!(thread_count(), Ok(Threads::One));
    println!("variable {is_left}");
    println!("path {}", NewProgram::open(None).expect("this program").path().display());
    println!("timers {}", fs::read_to_string("/proc/self/timers").expect("timers").len());
}

/// Returns the kind of workers before and after the upgrade.
fn kind_of_workers(step: &str) -> Option<WorkerKind> {
    match step.split("-to-").next()? {
        "fork" => Some(WorkerKind::Fork),
        "spawn" => Some(WorkerKind::Spawn),
        _ => None,
    }
}

fn read_handed_over(step: &str) {
    let kind = if step.ends_with("fork") { WorkerKind::Fork } else { WorkerKind::Spawn };
    let state = take_state().expect("a state").expect("a state");
    let lock = SupervisorLock::begin().expect("no supervisor yet");
    let taken = Signals::take_handed_over(lock, &[kind], &state.text, state.fds);
    let mut signals = taken.expect("the signals");
    let mut read = Vec::new();
    while let Some(info) = signals.next().expect("a signal") {
        read.push(format!("{:?}", info.signal));
    }
    read.sort_unstable();
    println!("read {}", read.join(" "));
    drop(signals);
    println!("mask {:?}", mask());
}

/// Returns the name of a process that was started by the path of this program.
fn own_name() -> String {
    let path = env::current_exe().expect("a path");
    path.file_name().expect("a name").to_string_lossy().chars().take(15).collect()
}

fn passed_number() -> std::os::fd::RawFd {
    let links = fs::read_dir("/proc/self/fd").expect("descriptors").filter_map(Result::ok);
    let memory = links.filter(|link| {
        fs::read_link(link.path()).is_ok_and(|target| target.to_string_lossy().contains("memfd:taskfork"))
    });
    let numbers = memory.filter_map(|link| link.file_name().to_str()?.parse().ok());
    numbers.max().expect("a passed file")
}

#[test]
fn a_program_takes_its_state_after_exec() {
    let printed = printed(&run("exec"));
    assert_eq!(line(&printed, "before-pid"), line(&printed, "after-pid"));
    assert_eq!(line(&printed, "after-name"), own_name());
    assert_eq!(line(&printed, "state"), "the text");
    assert_eq!(line(&printed, "content"), "passed");
    assert_eq!(line(&printed, "flags"), "[1]", "close-on-exec");
    assert_eq!(line(&printed, "after-peeked"), "Some((\"the text\", true)) true");
    assert_eq!(line(&printed, "again"), "Ok(false)");
    assert_eq!(line(&printed, "variable"), "false");
    assert_eq!(line(&printed, "timers"), "0");
    let own = env::current_dir().expect("a directory");
    assert_eq!(Path::new(line(&printed, "after-directory")), own.canonicalize().expect("a directory"));
    assert_eq!(line(&printed, "path"), env::current_exe().expect("a path").display().to_string());
}

#[test]
fn signals_that_arrive_before_exec_stay_pending() {
    let printed = printed(&run("pending"));
    let supervised = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGCHLD", "SIGTTIN", "SIGTTOU"];
    let mask = line(&printed, "after-mask");
    assert!(supervised.iter().all(|signal| mask.contains(signal)) && !mask.contains("SIGALRM"), "{printed}");
    assert_eq!(u64::from_str_radix(line(&printed, "pending"), 16), Ok(1), "SIGHUP");
}

#[test]
fn unread_signals_are_handed_over_to_any_backend() {
    for step in ["fork-to-spawn", "spawn-to-fork", "spawn-to-spawn"] {
        let printed = printed(&run(step));
        assert_eq!(line(&printed, "read"), "Hangup User1", "{step}");
        assert_eq!(line(&printed, "mask"), "[]", "{step}");
    }
}

#[test]
fn a_program_without_its_descriptors_gets_no_state() {
    let printed = printed(&run("closed"));
    assert!(line(&printed, "problem").contains("closed or replaced before the call"), "{printed}");
}

#[test]
fn a_fork_of_the_new_program_gets_no_state() {
    let printed = printed(&run("forked"));
    assert!(line(&printed, "problem").contains("has forked between the upgrade and the call"), "{printed}");
}

#[test]
fn a_program_that_takes_no_state_is_killed() {
    assert_eq!(line(&printed(&run("late")), "ended-by"), libc::SIGKILL.to_string());
}

#[test]
fn a_refused_exec_changes_nothing() {
    let path = env::temp_dir().join("taskfork-no-program");
    fs::write(&path, "no program").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    let printed = printed(&run("refused"));
    fs::remove_file(&path).expect("a file");
    let reason = line(&printed, "refused");
    assert_eq!(reason, format!("{} cannot be executed: Exec format error (os error 8)", path.display()));
    for fact in ["pid", "name", "directory", "mask"] {
        assert_eq!(line(&printed, &format!("before-{fact}")), line(&printed, &format!("refused-{fact}")), "{printed}");
    }
    assert_eq!(line(&printed, "refused-flags"), "1", "close-on-exec");
    assert_eq!(line(&printed, "refused-variable"), "Err(NotPresent)");
}

#[test]
fn helper_candidate() {
    let Origin::Candidate(text) = origin() else { return };
    println!();
    assert_eq!(text, "candidate a text");
    assert_eq!(fs::read_to_string("/proc/self/comm").expect("a name").trim_end(), own_name());
    assert!(copy_passed(0).is_some() && copy_passed(2).is_none());
    let mut fds = take_candidate_fds().expect("descriptors").into_iter();
    let mut answer = File::from(fds.next().expect("a descriptor"));
    answer.write_all(b"answer from ").expect("a file");
    answer.write_all(content(fds.next().expect("a descriptor")).as_bytes()).expect("a file");
    assert!(take_candidate_fds().is_none());
}

#[test]
fn a_candidate_gets_its_offer_and_descriptors() {
    let mut answer = file_with("");
    let question = file_with("the question");
    let program = own_program("helper_candidate");
    let refused = program.start_candidate(SECRET, "candidate a text", &[answer.as_fd(), question.as_fd()]);
    let child = refused.expect("a candidate");
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid() as i32), None).expect("an exit");
    answer.rewind().expect("a file");
    assert_eq!(content(answer), "answer from the question");
}

#[test]
fn only_an_executable_program_without_rights_is_opened() {
    let directory = env::temp_dir().join(format!("taskfork-programs-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let refused = |name: &str, text: &str, mode: u32| {
        let path = directory.join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        let reason = NewProgram::open(Some(&path)).expect_err("a refusal");
        reason.replace(&path.display().to_string(), name)
    };
    assert_eq!(refused("data", "", 0o644), "data is not executable: Permission denied (os error 13)");
    assert_eq!(
        refused("script", "#!/bin/sh", 0o755),
        "script is a script; the program that it starts can be set with `program`"
    );
    let rights = "rights has rights of its own (set-user-ID, set-group-ID or capabilities)";
    assert_eq!(refused("rights", "", 0o4755), rights);
    assert_eq!(refused("rights", "", 0o2755), rights);
    let missing = NewProgram::open(Some(&directory.join("missing"))).expect_err("a refusal");
    assert!(missing.ends_with("missing cannot be opened: No such file or directory (os error 2)"), "{missing}");
    let no_file = NewProgram::open(Some(&directory)).expect_err("a refusal");
    assert_eq!(no_file, format!("{} is not a file", directory.display()));
    fs::remove_dir_all(&directory).expect("a directory");
}
