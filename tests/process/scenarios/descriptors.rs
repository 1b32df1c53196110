//! Descriptors that the program closes, clears or shuts down, and the numbers 0, 1 and 2.

use std::fs::File;
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use taskfork::{Event, Prefork, Report};

use crate::Scenario;
use crate::daemon::Daemon;
use crate::os::{Signal, idle};
use crate::procfs;
use crate::program::{EVER, drain, say, scratch, serve};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("a_worker_without_its_descriptors_is_still_noticed", closes_all, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("report: stopped, as child 0 "), "{}", daemon.transcript());
            assert!(daemon.said("files empty: true"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("closing_a_handle_leaves_the_programs_file_open", drops_handle, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("still open: true"), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("workers_cannot_make_the_parent_block_or_deaf", attacks, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("log a worker has shut down the descriptor that wakes"), "{}", daemon.transcript());
            assert!(daemon.said("report: stopped, as child 1 "), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("an_orphans_heartbeats_do_not_hide_a_hang", leaves_an_orphan, |daemon| {
            daemon.wait_for("orphan sends heartbeats");
            daemon.wait_for("has sent no heartbeat in time");
            daemon.wait_for("restarting");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("programs_started_by_workers_inherit_no_descriptors", starts_a_program, |daemon| {
            daemon.ends_with(0);
            let inherited = |process: &str| daemon.line(process).replacen(process, "", 1);
            assert_eq!(inherited("worker starts with "), inherited("parent starts with "), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("standard_numbers_are_never_taken", without_standard_fds, standard_numbers).for_processes(),
    ]
}

/// Closes every descriptor except the standard ones.
fn close_from_three() {
    for number in 3..256 {
        // SAFETY: close(2) takes an integer. This program uses none of these descriptors any more.
        unsafe { libc::close(number) };
    }
}

fn files() -> Vec<File> {
    (0..12).map(|n| File::create(scratch().join(format!("{}-{n}", process::id()))).expect("a file")).collect()
}

fn are_empty(files: &[File]) -> bool {
    files.iter().all(|file| file.metadata().expect("a file").len() == 0)
}

fn closes_all() -> Report {
    serve(Prefork::new().workers(2).ready_timeout(EVER), |worker| {
        worker.ready();
        if worker.id() == 1 {
            drain(&worker);
            return;
        }
        close_from_three();
        let files = files();
        worker.enable_graceful_stop();
        worker.stop_all();
        assert!(worker.wait_for_stop(None));
        say(&format!("files empty: {}", are_empty(&files)));
    })
}

fn drops_handle() -> Report {
    serve(Prefork::new().workers(1), |worker| {
        close_from_three();
        let files = files();
        drop(worker);
        say(&format!("still open: {}", files.iter().all(|file| file.metadata().is_ok())));
    })
}

/// Worker 0 uses its descriptors as a hostile process would. Worker 1 then stops the service.
fn attacks() -> Report {
    serve(Prefork::new().workers(2), |worker| {
        let mark = scratch().join("attacked");
        if worker.id() == 0 {
            for number in 3..256 {
                // SAFETY: fcntl(2) and shutdown(2) take integers.
                unsafe {
                    libc::fcntl(number, libc::F_SETFL, 0);
                    libc::shutdown(number, libc::SHUT_RDWR);
                }
            }
            File::create(mark).expect("a file");
            idle();
        }
        while !mark.exists() {
            std::thread::yield_now();
        }
        worker.stop_all();
        // An exit of this worker would make the parent read the message as well.
        idle();
    })
}

/// The first process of the worker leaves a process behind that sends heartbeats. The second one hangs.
fn leaves_an_orphan() -> Report {
    let service = Prefork::new().workers(1).ready_timeout(EVER).heartbeat_timeout(Duration::from_millis(500));
    serve(service, |worker| {
        worker.ready();
        if worker.generation() == 0 {
            let parent = std::os::unix::process::parent_id();
            // SAFETY: this process has one thread, so the child may run any code.
            if unsafe { libc::fork() } == 0 {
                say("orphan sends heartbeats");
                while procfs::runs(parent) {
                    worker.heartbeat();
                    thread::yield_now();
                }
                process::exit(0);
            }
            process::exit(1);
        }
        idle();
    })
}

/// Prints the descriptors that a program gets from this process.
fn print_inherited(process: &str) {
    let output = Command::new("ls").arg("/proc/self/fd").output().expect("ls(1)");
    let numbers = String::from_utf8(output.stdout).expect("numbers");
    say(&format!("{process} starts with {}", numbers.split_whitespace().collect::<Vec<_>>().join(" ")));
}

/// The worker starts a program while all descriptors of taskfork are open. The parent does the same after the service,
/// when all of them are closed.
fn starts_a_program() -> Report {
    let report = serve(Prefork::new().workers(1).listen("127.0.0.1:0").ready_timeout(EVER), |worker| {
        worker.stop_fd().expect("a descriptor");
        worker.ready();
        print_inherited("worker");
    });
    print_inherited("parent");
    report
}

/// A copy of standard error, which spawned workers inherit.
const OUTPUT: i32 = 100;

/// Prints a line although standard error is closed.
fn print(line: &str) {
    let line = format!("{line}\n");
    // SAFETY: write(2) reads the line's bytes.
    let written = unsafe { libc::write(OUTPUT, line.as_ptr().cast(), line.len()) };
    assert_eq!(written, line.len() as isize);
}

/// Prints which of the standard numbers are open in this process.
fn print_standard_numbers(process: &str) {
    // SAFETY: fcntl(2) takes integers, and fails for a number that is no open descriptor.
    let open: Vec<i32> = (0..3).filter(|&number| unsafe { libc::fcntl(number, libc::F_GETFD) } != -1).collect();
    print(&format!("{process}: {open:?}"));
}

/// Runs a worker in a program without standard input, output and error.
fn without_standard_fds() -> Report {
    // SAFETY: these calls take integers. A spawned worker has the copy already.
    unsafe {
        if libc::fcntl(OUTPUT, libc::F_GETFD) == -1 {
            assert_eq!(libc::dup2(2, OUTPUT), OUTPUT);
        }
        (0..3).for_each(|number| assert_eq!(libc::close(number), 0));
    }
    let service = Prefork::new().workers(1).listen("127.0.0.1:0").on_event(|event, _| {
        if let Event::Started { .. } = event {
            let mut file = [0];
            // SAFETY: read(2) and write(2) access one byte.
            let results =
                unsafe { [libc::read(0, file.as_mut_ptr().cast(), 1), libc::write(1, file.as_ptr().cast(), 1)] };
            print(&format!("parent reads and writes: {results:?}"));
        }
    });
    let report = serve(service, |worker| {
        worker.ready();
        worker.stop_fd().expect("a descriptor");
        print_standard_numbers("worker");
        worker.stop_all();
        assert!(worker.wait_for_stop(None));
    });
    print_standard_numbers("parent");
    // SAFETY: dup2(2) takes integers.
    assert_eq!(unsafe { libc::dup2(OUTPUT, 2) }, 2);
    report
}

fn standard_numbers(daemon: &mut Daemon) {
    daemon.ends_with(0);
    for line in ["parent reads and writes: [-1, -1]", "worker: []", "parent: []"] {
        assert!(daemon.said(line), "{line}: {}", daemon.transcript());
    }
}
