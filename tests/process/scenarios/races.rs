//! Events at exactly the moment that a race needs. The hooks of [`interposed`](crate::interposed) cause them.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use taskfork::{Event, ListenConfig, Prefork, Report};

use super::heartbeats;
use crate::Scenario;
use crate::daemon::kill;
use crate::interposed::{AFTER_WAIT, BEFORE_EPOLL_WAIT, BEFORE_LISTEN, BEFORE_RECV, BEFORE_STEERING, BEFORE_WAIT};
use crate::os::{Signal, idle, raise, wait_for_end};
use crate::program::{EVER, drain, on_log, say, scratch, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("no_client_connects_before_the_mode_is_set", prints_mode_at_listen, |daemon| {
            daemon.worker();
            assert_eq!(daemon.line("permissions beyond"), format!("permissions beyond {MODE:o} at listen: 0"));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("a_signal_right_before_an_empty_read_is_handled", term_before_read, |daemon| {
            daemon.worker();
            daemon.wait_for_times("log Stopping 1 processes", 1);
            daemon.ends_with(0);
            assert!(!daemon.said("sleeps"), "{}", daemon.transcript());
        })
        .for_parents_with_threads(),
        Scenario::reporting("a_stop_request_during_a_scan_precedes_its_exits", term_during_scan, |daemon| {
            let workers = daemon.workers(2);
            kill(workers[0].pid, Signal::SIGKILL);
            daemon.wait_for("stop request during the scan");
            daemon.ends_with(0);
            assert!(!daemon.said(&format!("{} killed by signal 9, restarting", workers[1])), "{}", daemon.transcript());
        })
        .for_processes(),
        Scenario::reporting("exits_during_the_pause_after_a_scan_are_found", exits_after_scan, |daemon| {
            let workers = daemon.workers(3);
            kill(workers[0].pid, Signal::SIGKILL);
            daemon.wait_for("exits without a signal of their own");
            for id in 0..3 {
                daemon.wait_for_times(&format!("up {id} "), 2);
            }
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .for_processes(),
        Scenario::reporting("refused_steering_is_tried_again", steering_is_refused_once, |daemon| {
            daemon.workers(2);
            daemon.signal(Signal::SIGTTOU);
            daemon.wait_for("steering is refused");
            daemon.wait_for("steering is accepted");
            daemon.wait_for("drained 1");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
    ]
}

const MODE: u32 = 0o600;

fn prints_mode_at_listen() -> Report {
    BEFORE_LISTEN.set(|socket| {
        // SAFETY: the caller of listen(2) has the socket open.
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        let address = SockRef::from(&socket).local_addr().expect("an address");
        let path = address.as_pathname().expect("a path");
        let mode = fs::symlink_metadata(path).expect("a socket file").permissions().mode() & 0o777;
        say(&format!("permissions beyond {MODE:o} at listen: {:o}", mode & !MODE));
    });
    serve(Prefork::new().workers(1).listen(ListenConfig::unix(scratch().join("socket")).mode(MODE)), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}

/// Sends SIGTERM to the parent once, right before the parent finds that there is nothing to read. This happens after a
/// wait that has only timed out. Prints a line if the parent then begins another wait before it handles the signal.
fn term_before_read() -> Report {
    /// Whether a worker has become ready.
    static IS_READY: AtomicBool = AtomicBool::new(false);
    /// Whether the parent has not begun to read since its last wait.
    static HAS_WAITED: AtomicBool = AtomicBool::new(false);
    static WAS_SENT: AtomicBool = AtomicBool::new(false);
    static IS_STOPPING: AtomicBool = AtomicBool::new(false);
    BEFORE_EPOLL_WAIT.set(|| {
        if WAS_SENT.load(Ordering::SeqCst) && !IS_STOPPING.load(Ordering::SeqCst) {
            say("the parent sleeps although SIGTERM has arrived");
        }
        HAS_WAITED.store(IS_READY.load(Ordering::SeqCst), Ordering::SeqCst);
    });
    BEFORE_RECV.set(|socket| {
        // SAFETY: the caller of recv(2) has the socket open.
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        let is_empty = poll(&mut [PollFd::new(socket, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0);
        if HAS_WAITED.swap(false, Ordering::SeqCst) && is_empty && !WAS_SENT.swap(true, Ordering::SeqCst) {
            raise(Signal::SIGTERM);
        }
    });
    on_log("is ready", || IS_READY.store(true, Ordering::SeqCst));
    on_log("Stopping", || IS_STOPPING.store(true, Ordering::SeqCst));
    // The parent checks heartbeats once per timeout, and these waits only time out.
    serve(heartbeats::service(1), |worker| {
        assert!(!worker.stop_requested());
        worker.ready();
        up(worker.id());
        heartbeats::send_heartbeats(&worker, false);
    })
}

/// The pids of the first processes of the workers.
static PIDS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn service_with_pids(workers: usize) -> Prefork {
    Prefork::new().workers(workers).on_event(|event, _| match event {
        Event::Started { process } if process.generation == 0 => PIDS.lock().expect("pids").extend(process.pid),
        _ => {}
    })
}

/// Kills these workers, and waits until all of them have exited. They stay unreaped.
fn kill_workers(ids: std::ops::Range<usize>) {
    let pids = PIDS.lock().expect("pids")[ids].to_vec();
    pids.iter().for_each(|&pid| kill(pid, Signal::SIGKILL));
    pids.into_iter().for_each(wait_for_end);
}

fn serve_idle(service: Prefork) -> Report {
    serve(service, |worker| {
        up(worker.id());
        idle()
    })
}

/// At the first scan, sends SIGTERM to the parent, and then makes worker 1 exit. The scan finds this exit.
fn term_during_scan() -> Report {
    static SCANS: AtomicUsize = AtomicUsize::new(0);
    BEFORE_WAIT.set(|| {
        if SCANS.fetch_add(1, Ordering::SeqCst) == 0 {
            kill(std::process::id(), Signal::SIGTERM);
            kill_workers(1..2);
            say("stop request during the scan");
        }
    });
    serve_idle(service_with_pids(2))
}

/// Makes two workers exit when the first scan has just ended. Their signals coalesce, so the parent gets the pid of at
/// most one of them, and must find the other by a scan. But the first scan was slow, so the next scan may run only
/// after a pause.
fn exits_after_scan() -> Report {
    static HAS_ENDED: AtomicBool = AtomicBool::new(false);
    AFTER_WAIT.set(|found| {
        if found == 0 && !HAS_ENDED.swap(true, Ordering::SeqCst) {
            // This is the duration of the scan, and not a wait for an event.
            thread::sleep(Duration::from_millis(5));
            kill_workers(1..3);
            say("exits without a signal of their own");
        }
    });
    serve_idle(service_with_pids(3))
}

/// After the number of workers was reduced, the kernel refuses the first BPF program.
fn steering_is_refused_once() -> Report {
    static IS_SCALED: AtomicBool = AtomicBool::new(false);
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    BEFORE_STEERING.set(|| {
        if !IS_SCALED.load(Ordering::SeqCst) {
            return None;
        }
        let is_first = CALLS.fetch_add(1, Ordering::SeqCst) == 0;
        say(if is_first { "steering is refused" } else { "steering is accepted" });
        is_first.then_some(libc::ENOMEM)
    });
    on_log("Scaled to 1 workers", || IS_SCALED.store(true, Ordering::SeqCst));
    let service = Prefork::new().workers(2).graceful_timeout(EVER);
    serve(service.listen(ListenConfig::from("127.0.0.1:0").per_worker()), |worker| {
        assert!(!worker.stop_requested());
        up(worker.id());
        drain(&worker);
    })
}
