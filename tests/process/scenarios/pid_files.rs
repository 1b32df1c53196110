//! The pid file of a service.

use std::fs;
use std::path::{Path, PathBuf};

use taskfork::{Event, Prefork, Report, Supervisor};

use crate::Scenario;
use crate::daemon::Daemon;
#[cfg(unix)]
use crate::os::Gate;
use crate::os::{BACKENDS, Signal};
#[cfg(target_os = "linux")]
use crate::program::has_threads;
use crate::program::{drain, own_backend, prepare, run_pools, say, scratch, serve, up};

/// The environment variable with the path of the pid file, for a second service that has the pid file of the first.
const PATH: &str = "TASKFORK_TEST_PID_FILE";

pub fn scenarios() -> Vec<Scenario> {
    let everywhere = [
        Scenario::reporting("pid_file_exists_until_the_end", one, |daemon| {
            daemon.worker();
            assert_eq!(content(daemon), format!("{}\n", daemon.pid()));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(leftovers(daemon), [""; 0], "{}", daemon.transcript());
        }),
        Scenario::reporting("workers_leave_the_pid_file", three, |daemon| {
            let workers = daemon.workers(3);
            daemon.send(workers[1], Signal::SIGKILL);
            daemon.worker();
            daemon.wait_for_times("exited normally", 1);
            assert_eq!(content(daemon), format!("{}\n", daemon.pid()), "after an exit and a restart");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::reporting("stale_pid_file_is_replaced", stale, |daemon| {
            daemon.worker();
            assert_eq!(content(daemon), format!("{}\n", daemon.pid()));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::reporting("pid_file_of_two_pools_is_removed_once", pools, |daemon| {
            daemon.workers(2);
            assert_eq!(content(daemon), format!("{}\n", daemon.pid()));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::reporting("relative_pid_file_stays_in_its_directory", relative, |daemon| {
            daemon.worker();
            assert_eq!(content(daemon), format!("{}\n", daemon.pid()));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::new("failed_starts_leave_no_pid_file", fails, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("setting Some(\"listen\")"), "{}", daemon.transcript());
            assert!(daemon.said("setting Some(\"pid_file\")"), "{}", daemon.transcript());
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::reporting("panic_in_on_event_removes_the_pid_file", panics, |daemon| {
            daemon.ends_with(crate::PANICKED);
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::new("second_service_is_refused_with_the_pid", plain, |daemon| {
            daemon.worker();
            is_refused(daemon);
            assert_eq!(content(daemon), format!("{}\n", daemon.pid()), "the refused service leaves it alone");
            is_refused(daemon);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            let mut next = second(daemon);
            next.worker();
            assert_eq!(content(daemon), format!("{}\n", next.pid()));
            next.signal(Signal::SIGTERM);
            next.ends_with(0);
        }),
    ];
    everywhere.into_iter().chain(of_unix()).collect()
}

#[cfg(not(unix))]
fn of_unix() -> Vec<Scenario> {
    Vec::new()
}

#[cfg(unix)]
fn of_unix() -> Vec<Scenario> {
    vec![
        Scenario::new("worker_that_touches_the_pid_file_keeps_it_locked", unix::touched_by_a_worker, |daemon| {
            daemon.wait_for("touched");
            is_refused(daemon);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::reporting("pid_file_can_be_read_by_everybody", unix::masked, |daemon| {
            use std::os::unix::fs::PermissionsExt;
            daemon.worker();
            let mode = fs::metadata(daemon.scratch().join("web.pid")).expect("a pid file").permissions().mode();
            assert_eq!(mode & 0o7777, 0o644);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::new("killed_parent_frees_the_pid_file", unix::orphans, |daemon| {
            daemon.worker();
            daemon.signal(Signal::SIGKILL);
            daemon.wait_for("orphaned");
            let mut next = second(daemon);
            next.worker();
            assert_eq!(content(daemon), format!("{}\n", next.pid()));
            Gate::of(daemon.scratch()).open(1);
            daemon.end();
            is_refused_by(daemon, next.pid());
            next.signal(Signal::SIGTERM);
            next.ends_with(0);
            assert_eq!(leftovers(daemon), [""; 0]);
        }),
        Scenario::new("link_in_the_place_of_a_pid_file_is_refused", unix::linked, |daemon| {
            daemon.ends_with(0);
            assert!(daemon.said("web.pid exists and does not contain a pid"), "{}", daemon.transcript());
            assert_eq!(fs::read_to_string(daemon.scratch().join("target")).expect("a file"), "1\n");
        }),
    ]
}

/// Starts another service with the pid file of this one.
fn second(daemon: &Daemon) -> Daemon {
    let path = daemon.scratch().join("web.pid");
    let program = std::env::current_exe().expect("this binary");
    let path = path.to_str().expect("a path");
    Daemon::start_program(&program, "second_service_is_refused_with_the_pid", BACKENDS[0], Some((PATH, path)))
}

fn is_refused(daemon: &Daemon) {
    is_refused_by(daemon, daemon.pid());
}

/// Checks that another service with the pid file of this one is refused, because this process has the file.
fn is_refused_by(daemon: &Daemon, pid: u32) {
    let mut second = second(daemon);
    second.ends_with(1);
    let problem = format!("belongs to process {pid}, which runs");
    assert!(second.said("error pid_file: ") && second.said(&problem), "{}", second.transcript());
}

fn content(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.scratch().join("web.pid")).expect("a pid file")
}

/// Returns the files of the scratch directory that have to do with the pid file.
fn leftovers(daemon: &Daemon) -> Vec<String> {
    let files = fs::read_dir(daemon.scratch()).expect("a directory");
    let names = files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("pid")).collect()
}

fn path() -> PathBuf {
    std::env::var_os(PATH).map_or_else(|| scratch().join("web.pid"), PathBuf::from)
}

fn service() -> Prefork {
    Prefork::new().workers(1).pid_file(path())
}

fn serve_drained(service: Prefork) -> Report {
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        #[cfg(target_os = "linux")]
        assert!(has_threads() || !has_open("web.pid"));
        up(worker.id());
        drain(&worker);
    })
}

/// Returns whether this process has a file open whose path contains this name.
#[cfg(target_os = "linux")]
fn has_open(name: &str) -> bool {
    let descriptors = fs::read_dir("/proc/self/fd").expect("the descriptors");
    let mut files = descriptors.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    files.any(|file| file.to_string_lossy().contains(name))
}

fn plain() {
    one();
}

fn one() -> Report {
    serve_drained(service())
}

/// Worker 2 exits at once.
fn three() -> Report {
    serve(service().workers(3), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        if worker.id() != 2 {
            drain(&worker);
        }
    })
}

/// The pid 1 is always that of a process.
fn stale() -> Report {
    // A spawned worker runs this code too.
    if !path().exists() {
        fs::write(path(), "1\n").expect("a file");
    }
    one()
}

fn pools() -> Report {
    prepare();
    let pool = || own_backend(Prefork::new().workers(1));
    let service = Supervisor::new().pid_file(path()).pool("web", pool()).pool("jobs", pool());
    run_pools(service, |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
        Ok(())
    })
}

fn relative() -> Report {
    std::env::set_current_dir(scratch()).expect("a directory");
    serve_drained(Prefork::new().workers(1).pid_file("web.pid").on_event(|event, _| {
        if let Event::Starting { .. } = event {
            std::env::set_current_dir("/").expect("a directory");
        }
    }))
}

fn fails() {
    prepare();
    let refused = |service: Prefork| {
        let error = service.workers(1).start().expect_err("a refusal");
        say(&format!("setting {:?}", error.setting()));
    };
    refused(Prefork::new().pid_file(path()).listen("127.0.0.1:0").listen("192.0.2.1:0"));
    refused(Prefork::new().pid_file(Path::new("/")));
    refused(Prefork::new().pid_file(scratch().join("none").join("web.pid")));
}

fn panics() -> Report {
    serve_drained(service().on_event(|event, _| {
        if let Event::Started { .. } = event {
            assert!(path().exists());
            panic!("on purpose");
        }
    }))
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, umask};
    use nix::unistd::{getpid, getppid};

    use super::*;

    /// The worker opens and closes the file, and closes all of its descriptors.
    pub fn touched_by_a_worker() {
        serve(service(), |_| {
            drop(fs::read(path()).expect("the pid file"));
            for fd in 3..100 {
                let _ = nix::unistd::close(fd);
            }
            say("touched");
            crate::os::idle();
        });
    }

    /// A worker that outlives its parent waits at the gate.
    pub fn orphans() {
        let parent = getpid();
        let gate = Gate::new();
        serve(service(), move |worker| {
            worker.enable_graceful_stop();
            up(worker.id());
            assert!(worker.wait_for_stop(None));
            assert_ne!(getppid(), parent);
            say("orphaned");
            gate.pass();
        });
    }

    pub fn masked() -> Report {
        umask(Mode::from_bits_truncate(0o077));
        one()
    }

    pub fn linked() {
        prepare();
        fs::write(scratch().join("target"), "1\n").expect("a file");
        symlink("target", path()).expect("a link");
        let error = service().start().expect_err("a refusal");
        say(&error.to_string());
    }
}
