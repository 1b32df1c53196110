//! The state of an upgrade makes only the parent itself a parent.

use std::process::Command;

use super::Scenario;
use crate::build::{Before, Build, Workers};
use crate::daemon::Daemon;
use crate::procfs;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("descendants_in_the_window_do_not_take_the_state", descendants),
        Scenario::new("descendants_of_a_candidate_do_not_take_its_offer", candidates_descendants),
        Scenario::new("invented_state_makes_no_process_a_parent", invented),
        Scenario::new("state_leaves_the_environment", environment),
    ]
}

/// A fork of the new parent and a program that it executes make the call before it does. The program inherits the
/// environment, but not the state. So it runs a service of its own.
fn descendants(workers: Workers) {
    let mut daemon = upgrade_to_leaking(workers, |new| new.window(Before::LeaksItsState));
    assert_eq!(daemon.count("new fork was refused"), 1, "{}", daemon.transcript());
    assert_eq!(daemon.count("new copy was a parent of its own"), 1, "{}", daemon.transcript());
    assert_eq!(daemon.count("new copy was a worker"), 1, "{}", daemon.transcript());
    daemon.stop();
}

/// The same before the call of the checker, of the trial's worker and of spawned workers. Both are refused, because a
/// worker must not become a supervisor.
fn candidates_descendants(workers: Workers) {
    let mut daemon = upgrade_to_leaking(workers, |new| new.before(Before::LeaksItsState));
    let processes = if workers == Workers::Spawned { 3 } else { 2 };
    assert_eq!(daemon.count("new fork was refused"), processes, "{}", daemon.transcript());
    assert_eq!(daemon.count("new copy was refused"), processes, "{}", daemon.transcript());
    daemon.stop();
}

fn upgrade_to_leaking(workers: Workers, leaking: fn(Build) -> Build) -> Daemon {
    let mut daemon = Daemon::start(&Build::new("old", workers));
    daemon.ready_workers("old", 2);
    daemon.upgrade(&leaking(Build::new("new", workers)));
    daemon.wait_until_runs(&["new - 0", "new - 1"]);
    assert_eq!(daemon.count("The new program supervises "), 1, "{}", daemon.transcript());
    daemon
}

/// Values of the variable that another process could set. Descriptor 0 is a pipe with a text.
const INVENTED: &[&str] = &["", "x", "0 4 0", "0 100 0123456789abcdef0123456789abcdef", "99 10 00", "-1 -1 -1"];

fn invented(workers: Workers) {
    for variable in ["TASKFORK_UPGRADE", "TASKFORK_WORKER"] {
        for value in INVENTED {
            let mut daemon = Daemon::start_by(|scratch| {
                Build::new("old", workers).install(&scratch.join("program"));
                let mut command = Command::new("sh");
                let script = format!("printf '1 pid 1\\n' | {variable}='{value}' exec \"$1\"");
                command.args(["-c", &script, "sh"]).arg(scratch.join("program"));
                command
            });
            // The program either starts an ordinary service, or refuses to start.
            let line = daemon.wait_for("old ");
            if !line.contains("error") {
                daemon.wait_for_times("old up", 2);
                let shell = daemon.pid();
                let parents: Vec<u32> = procfs::children(shell).into_iter().collect();
                daemon.set_parent(*parents.last().expect("a service"));
                daemon.signal(nix::sys::signal::Signal::SIGTERM);
            }
            daemon.end();
            assert!(!daemon.said("The new program supervises"), "{}", daemon.transcript());
        }
    }
}

/// The call removes the variables, so that programs that the parent and the workers start do not see them.
fn environment(workers: Workers) {
    let build = |name: &str| Build { takes_commands: true, prints_facts: true, ..Build::new(name, workers) };
    let mut daemon = Daemon::start(&build("old"));
    daemon.ready_workers("old", 2);
    daemon.upgrade(&build("new"));
    daemon.command("facts");
    daemon.wait_for("parent facts ");
    assert!(!daemon.said("TASKFORK_UPGRADE"), "{}", daemon.transcript());
    assert!(!daemon.said("TASKFORK_WORKER"), "{}", daemon.transcript());
    daemon.stop();
}
