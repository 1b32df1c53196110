//! Child processes of the program that are not workers. Unix only.

use std::process::Command;

use taskfork::{Prefork, Report};

use crate::Scenario;
use crate::os::wait_for_end;
use crate::program::{fail, say, serve};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::reporting("an_unreaped_child_of_the_program_hides_no_exit", starts_a_child_before, |daemon| {
            daemon.ends_with(1);
            assert!(daemon.said("report: gave up after 2 restarts"), "{}", daemon.transcript());
            assert!(daemon.said("its own child: exit status: 0"), "{}", daemon.transcript());
        })
        .for_processes(),
    ]
}

/// The program starts a child before the call, and reaps it only after the call. Meanwhile the system may report this
/// child whenever the parent asks for any exited child.
fn starts_a_child_before() -> Report {
    let mut child = Command::new("true").spawn().expect("true(1)");
    wait_for_end(child.id());
    let report = serve(Prefork::new().workers(1).max_restarts(2), |_| fail(1));
    say(&format!("its own child: {}", child.wait().expect("its status")));
    report
}
