//! Tests of the `contexts` example, as its operator sees it.

use std::env::consts::EXE_EXTENSION;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Stdio};

struct Service {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Service {
    fn start() -> Service {
        let test = std::env::current_exe().unwrap();
        // target/debug/deps/contexts-1234 to target/debug/examples/contexts
        let example = test.ancestors().nth(2).unwrap().join("examples/contexts").with_extension(EXE_EXTENSION);
        assert!(example.exists(), "`cargo test` without a test target builds it, and so does `cargo build --examples`");
        let mut command = Command::new(example);
        let mut child = command.env_remove("RUST_LOG").stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Service { child, lines }
    }

    #[cfg(unix)]
    fn request(&self, name: &str) {
        use nix::sys::signal::{Signal, kill};

        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, format!("SIG{name}").parse::<Signal>().unwrap()).unwrap();
    }

    #[cfg(windows)]
    fn request(&self, name: &str) {
        use windows_sys::Win32::Foundation::CloseHandle;
        use windows_sys::Win32::System::Threading::{EVENT_MODIFY_STATE, OpenEventW, SetEvent};

        let event: Vec<u16> = format!("taskfork-{}-{name}\0", self.child.id()).encode_utf16().collect();
        // SAFETY: the name ends with zero, and the handle stays open until CloseHandle.
        let is_set = unsafe {
            let event = OpenEventW(EVENT_MODIFY_STATE, 0, event.as_ptr());
            let is_set = SetEvent(event);
            CloseHandle(event);
            is_set
        };
        assert!(is_set != 0);
    }

    fn wait_for(&mut self, text: &str) -> String {
        let found = self.lines.by_ref().map(Result::unwrap).find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("no line contains '{text}'"))
    }
}

/// Kills the parent. The workers exit when their parent exits, so a failed test leaves no process behind.
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn workers_have_their_contexts_and_never_outnumber_them() {
    let mut service = Service::start();
    let mut served: Vec<String> = (0..2).map(|_| service.wait_for(" serves ")).collect();
    served.sort_by_key(|line| line.contains("worker 1"));
    assert!(served[0].ends_with("worker 0 serves north (A to I)"), "{served:?}");
    assert!(served[1].ends_with("worker 1 serves middle (J to R)"), "{served:?}");
    for _ in 0..3 {
        service.request("TTIN");
    }
    assert!(service.wait_for(" serves ").ends_with("worker 2 serves south (S to Z)"));
    service.request("TERM");
    service.wait_for("Stopping 3 processes");
    // The lines end when the last process has closed the log.
    assert!(service.lines.by_ref().map(Result::unwrap).all(|line| !line.contains(" serves ")));
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

#[test]
fn rolling_restart_never_has_two_processes_for_one_shard() {
    let mut service = Service::start();
    service.wait_for(" serves ");
    service.wait_for(" serves ");
    let mut processes = [1; 2];
    let mut replaced = [false; 2];
    service.request("HUP");
    while replaced != [true; 2] {
        let line = service.wait_for("worker ");
        for id in 0..2 {
            if line.contains(&format!("worker {id} leaves ")) {
                processes[id] -= 1;
            } else if line.contains(&format!("worker {id} serves ")) {
                assert_eq!(processes[id], 0, "two processes serve the shard of worker {id}");
                processes[id] += 1;
                replaced[id] = true;
            }
        }
    }
    service.request("TERM");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}
