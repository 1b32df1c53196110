//! Listeners: abstract names, sockets on which a worker calls shutdown(2), and sockets that the workers of a killed
//! parent still have. Linux only.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Arc, OnceLock};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use taskfork::{ListenConfig, Prefork, Report};

use crate::Scenario;
use crate::os::{Gate, Signal};
use crate::program::{answer_clients, drain, fail, on_log, own_host, prepare, say, scratch, serve, up};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("an_abstract_name_accepts_connections_without_a_file", at_abstract_name, |daemon| {
            daemon.worker();
            let name = abstract_name(daemon.pid());
            assert!(daemon.said(&format!("log Listening on unix:@{name}")), "{}", daemon.transcript());
            let address = SocketAddr::from_abstract_name(name).expect("an address");
            let client = UnixStream::connect_addr(&address).expect("a listening socket");
            assert_eq!(answer(client), "worker 0\n");
            assert_eq!(std::fs::read_dir(daemon.scratch()).expect("a directory").count(), 0);
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::new("an_abstract_name_has_no_mode_and_no_owner", prints_abstract_refusals, |daemon| {
            daemon.ends_with(0);
            for setting in ["mode", "user", "group"] {
                let line = format!("refused Some(\"{setting}\"): {setting}: unix:@name has no file");
                assert_eq!(daemon.count(&line), 1, "{line}: {}", daemon.transcript());
            }
            assert!(daemon.said("refused Some(\"listen\"): cannot listen on unix:@: "), "{}", daemon.transcript());
        }),
        Scenario::reporting("a_shut_down_listener_is_reported_and_restored", shuts_listeners_down, |daemon| {
            let worker = daemon.worker();
            let restored = daemon.line("it listens again").to_owned();
            let address = restored.split(' ').nth(3).expect("an address").to_owned();
            assert_eq!(answer(TcpStream::connect(&address).expect("a listening socket")), "worker 0\n");
            daemon.send(worker, Signal::SIGKILL);
            daemon.worker();
            assert_eq!(answer(TcpStream::connect(&address).expect("a listening socket")), "worker 0\n");
            assert_eq!(daemon.count("log The listener "), 2, "{}", daemon.transcript());
            assert!(daemon.said(&format!("log The listener unix:{}", daemon.scratch().join("socket").display())));
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        }),
        Scenario::reporting("a_port_is_bound_after_workers_of_a_killed_parent", after_a_killed_parent, |daemon| {
            daemon.worker();
            let wait = "is in use, trying again for up to 3.0 s";
            assert_eq!(daemon.count(wait), 1, "{}", daemon.transcript());
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
        })
        .forking(),
        Scenario::reporting("a_path_is_taken_over_from_workers_that_drain", beside_draining_workers, |daemon| {
            daemon.worker();
            let client = UnixStream::connect(daemon.scratch().join("socket")).expect("a listening socket");
            assert_eq!(answer(client), "worker 0\n");
            assert!(!daemon.said("the orphan has ended"), "{}", daemon.transcript());
            std::fs::write(daemon.scratch().join("gate"), [0]).expect("a gate");
            daemon.wait_for("the orphan has ended");
            daemon.signal(Signal::SIGTERM);
            daemon.ends_with(0);
            assert!(!daemon.scratch().join("socket").exists());
        })
        .forking(),
    ]
}

fn answer(client: impl Read) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).expect("an answer");
    line
}

fn answers(service: Prefork) -> Report {
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        let worker = Arc::new(worker);
        answer_clients(&worker, format!("worker {}", worker.id()));
        up(worker.id());
        drain(&worker);
    })
}

/// The name contains the pid of the parent, because all programs share the names.
fn abstract_name(parent: u32) -> String {
    format!("taskfork-test-listener-{parent}")
}

fn at_abstract_name() -> Report {
    answers(Prefork::new().workers(1).listen(format!("unix:@{}", abstract_name(std::process::id()))))
}

fn prints_abstract_refusals() {
    prepare();
    let named = || ListenConfig::from("unix:@name");
    for listen in [named().mode(0o600), named().user("root"), named().group("root"), ListenConfig::from("unix:@")] {
        let error = Prefork::new().workers(1).listen(listen).start().expect_err("a refusal");
        say(&format!("refused {:?}: {error:?}", error.setting()));
    }
}

/// The first process shuts down both listeners and fails.
fn shuts_listeners_down() -> Report {
    let service = Prefork::new().workers(1).listen("127.0.0.1:0").listen(ListenConfig::unix(scratch().join("socket")));
    serve(service, |worker| {
        assert!(!worker.stop_requested());
        if worker.generation() == 0 {
            for listener in worker.listeners() {
                shut_down(listener.as_fd());
            }
            fail(1);
        }
        let worker = Arc::new(worker);
        answer_clients(&worker, format!("worker {}", worker.id()));
        up(worker.id());
        drain(&worker);
    })
}

fn shut_down(socket: BorrowedFd<'_>) {
    // SAFETY: shutdown(2) takes integers.
    assert_eq!(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) }, 0);
}

/// Starts a service, and kills its parent. Its worker stays until the gate opens, and accepts no connection.
fn kill_first_parent(listen: ListenConfig) -> File {
    prepare();
    let gate = Gate::new();
    let (reader, mut writer) = UnixStream::pair().expect("a pipe");
    // SAFETY: the child may do anything, because this process has a single thread.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => {
            let worker = taskfork::Prefork::new().workers(1).listen(listen).run(|worker| {
                assert!(!worker.stop_requested());
                writer.write_all(b".").expect("a reader");
                gate.pass();
                say("the orphan has ended");
                Ok(())
            });
            panic!("{worker:?}");
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut reader = File::from(std::os::fd::OwnedFd::from(reader));
            reader.read_exact(&mut [0]).expect("a worker");
            nix::sys::signal::kill(child, Signal::SIGKILL).expect("a signal");
            waitpid(child, None).expect("an exit");
            reader
        }
    }
}

/// The pipe that the orphaned worker has open until it ends.
static ORPHAN: OnceLock<File> = OnceLock::new();

fn after_a_killed_parent() -> Report {
    let host = own_host(std::process::id());
    let port = std::net::TcpListener::bind((host, 0)).expect("a port").local_addr().expect("an address");
    ORPHAN.set(kill_first_parent(port.into())).expect("one service");
    on_log("is in use", || {
        Gate::new().open(1);
        let mut orphan = ORPHAN.get().expect("an orphan");
        assert_eq!(orphan.read(&mut [0]).expect("the end of the orphan"), 0);
    });
    answers(Prefork::new().workers(1).listen(port))
}

fn beside_draining_workers() -> Report {
    let listen = || ListenConfig::unix(scratch().join("socket"));
    let _orphan = kill_first_parent(listen());
    answers(Prefork::new().workers(1).listen(listen()))
}
