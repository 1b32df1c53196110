//! What a spawned worker gets from its parent at the start, and what programs that the worker starts get.

use std::fs;
use std::process::Command;

use taskfork::{Prefork, Report};

use crate::daemon::Daemon;
use crate::os::{Gate, Signal, idle, own_descriptors};
use crate::program::{say, serve, up};
use crate::{BACKEND, Scenario};

const VARIABLE: &str = "TASKFORK_WORKER";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("workers_get_arguments_that_a_title_overwrote", overwrites_its_arguments, |daemon| {
            ends_with_count(daemon, "argument Some(\"precious\"), not \"xxxxxxxx\"", 2);
        }),
        Scenario::new("workers_of_a_program_run_by_ld_so_start", starts_itself_by_the_linker, |daemon| {
            ends_with_count(daemon, "a worker run by the linker", 2);
        }),
        Scenario::spawning("spawned_worker_has_the_name_of_its_program", prints_its_names, |daemon| {
            daemon.ends_with(0);
            let transcript = daemon.transcript();
            let mut names: Vec<&str> = transcript.lines().filter(|line| line.starts_with("name ")).collect();
            assert_eq!(names.len(), 3, "{transcript}");
            names.dedup();
            assert_eq!(names.len(), 1, "{transcript}");
        }),
        Scenario::spawning("helper_started_before_the_call_inherits_no_socket", starts_a_helper, |daemon| {
            daemon.ends_with(0);
            let has = daemon.line("has descriptors").to_owned();
            assert_eq!(daemon.count(&has), 2, "{}", daemon.transcript());
        }),
        Scenario::spawning("program_started_by_a_worker_can_be_a_parent", starts_a_service, |daemon| {
            daemon.ends_with(0);
            assert_eq!(daemon.count("log Starting 1 processes"), 2, "{}", daemon.transcript());
            assert_eq!(daemon.count("inner worker"), 1, "{}", daemon.transcript());
        }),
        Scenario::spawning("overwritten_shared_memory_makes_no_second_parent", overwrites_shared_memory, |daemon| {
            daemon.worker();
            daemon.wait_for("restarted in overwritten memory");
            daemon.signal(Signal::SIGTERM);
            daemon.end();
            assert_eq!(daemon.count("log Starting 2 processes"), 1, "{}", daemon.transcript());
        }),
    ]
}

fn ends_with_count(daemon: &mut Daemon, text: &str, times: usize) {
    daemon.ends_with(0);
    assert_eq!(daemon.count(text), times, "{text}:\n{}", daemon.transcript());
}

/// Returns this program with the same scenario and one more argument.
fn this_program(argument: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(std::env::args().skip(1).take(2)).arg(argument).env(BACKEND, "spawn");
    command
}

fn last_argument() -> Option<String> {
    std::env::args().nth(3)
}

/// Starts itself with one more argument. That process overwrites the argument, as programs do that set a title.
fn overwrites_its_arguments() {
    let argument = last_argument();
    if argument.is_none() {
        assert!(this_program("precious").status().expect("a program").success());
        return;
    }
    overwrite_last_argument();
    let command_line = fs::read_to_string("/proc/self/cmdline").expect("the arguments");
    let last = command_line.trim_end_matches('\0').rsplit('\0').next().expect("an argument").to_owned();
    serve(Prefork::new().workers(2), move |_| say(&format!("argument {argument:?}, not {last:?}")));
}

/// Overwrites the last argument where the system has put it.
fn overwrite_last_argument() {
    let stat = fs::read_to_string("/proc/self/stat").expect("this process");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    // Field 49 of proc_pid_stat(5) is the end of the arguments. Field 3 is the first one after the name.
    let end: usize = fields.split(' ').nth(49 - 3).expect("a field").parse().expect("an address");
    for at in 2..2 + "precious".len() {
        let byte: *mut u8 = std::ptr::with_exposed_provenance_mut(end - at);
        // SAFETY: the arguments are in writable memory of this process (execve(2)), and no other thread reads them.
        unsafe { byte.write(b'x') };
    }
}

/// Starts itself as an argument of the dynamic linker.
fn starts_itself_by_the_linker() {
    if last_argument().is_some() {
        serve(Prefork::new().workers(2), |_| say("a worker run by the linker"));
        return;
    }
    let maps = fs::read_to_string("/proc/self/maps").expect("the mappings");
    let linker = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/ld-"));
    let program = this_program("by the linker");
    let mut command = Command::new(linker.expect("a dynamic linker"));
    let status = command.arg(program.get_program()).args(program.get_args()).env(BACKEND, "spawn").status();
    assert!(status.expect("a program").success());
}

/// Prints the process's name and executable. The worker has the same ones, although it was started by a descriptor.
fn prints_its_names() -> Report {
    let name = fs::read_to_string("/proc/self/comm").expect("a name");
    say(&format!("name {} of {}", name.trim_end(), std::env::current_exe().expect("this binary").display()));
    serve(Prefork::new().workers(2), |_| {})
}

/// The worker starts a helper before its call. The helper has the same descriptors as the parent before its call.
fn starts_a_helper() -> Report {
    if last_argument().is_some() {
        say(&format!("has descriptors {:?}", own_descriptors()));
        std::process::exit(0);
    }
    if std::env::var_os(VARIABLE).is_some() {
        assert!(this_program("helper").status().expect("a program").success());
    } else {
        say(&format!("has descriptors {:?}", own_descriptors()));
    }
    serve(Prefork::new().workers(1).listen("127.0.0.1:0"), |worker| up(worker.id()))
}

/// The worker starts the program again. That process runs a service of its own.
fn starts_a_service() -> Report {
    if last_argument().is_some() {
        return serve(Prefork::new().workers(1), |_| say("inner worker"));
    }
    serve(Prefork::new().workers(1), |_| {
        let status = this_program("inner").status();
        assert!(status.expect("a program").success());
    })
}

/// Worker 0 overwrites the words of all slots that no message uses. Worker 1 then fails, and is started again
/// meanwhile.
fn overwrites_shared_memory() -> Report {
    let gate = Gate::new();
    serve(Prefork::new().workers(2), move |worker| {
        let maps = fs::read_to_string("/proc/self/maps").expect("the mappings");
        let line = maps.lines().find(|line| line.contains("memfd:taskfork")).expect("the shared memory");
        let (start, end) = line.split(' ').next().expect("a range").split_once('-').expect("a range");
        let address = |text: &str| usize::from_str_radix(text, 16).expect("an address");
        let overwrite = || {
            for slot in (address(start)..address(end)).step_by(64) {
                for word in 8..16 {
                    let word: *mut u32 = std::ptr::with_exposed_provenance_mut(slot + 4 * word);
                    // SAFETY: the word is in writable memory of this process, which nothing in this process reads.
                    unsafe { word.write_volatile(0xdead_beef) };
                }
            }
        };
        match (worker.id(), worker.generation()) {
            (0, _) => {
                overwrite();
                gate.open(1);
                up(0);
                loop {
                    overwrite();
                }
            }
            (_, 0) => {
                gate.pass();
                std::process::exit(1)
            }
            _ => {
                say("restarted in overwritten memory");
                idle();
            }
        }
    })
}
