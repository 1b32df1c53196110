//! Broken builds: copies of this benchmark that are executed instead of the example.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use taskfork::{Prefork, Role};

use crate::deployment::Broken;

/// The bytes at the end of each copy. The name of the fault follows, filled up with blanks.
const MARK: &str = "LOAD-BROKEN-BUILD:";
const NAME: usize = 16;

/// Returns the bytes that make a copy of this benchmark a broken build.
pub fn end(broken: Broken) -> Vec<u8> {
    format!("{MARK}{:NAME$}", broken.name()).into_bytes()
}

/// Returns the fault of the program that runs, or `None` if it is the benchmark itself.
pub fn of_this_program() -> Option<Broken> {
    let mut program = File::open("/proc/self/exe").ok()?;
    program.seek(SeekFrom::End(-((MARK.len() + NAME) as i64))).ok()?;
    let mut end = String::new();
    program.read_to_string(&mut end).ok()?;
    Broken::from_str(end.strip_prefix(MARK)?.trim(), false).ok()
}

/// Runs the broken build.
pub fn run(broken: Broken) -> ExitCode {
    match broken {
        Broken::Exits => ExitCode::from(7),
        Broken::Hangs => loop {
            thread::park();
        },
        Broken::Crashes => serve(Prefork::new(), Duration::ZERO),
        Broken::NeverReady => serve(Prefork::new(), Duration::from_secs(60)),
        Broken::Refuses => serve(Prefork::new().max_surge(0).max_unavailable(0), Duration::ZERO),
        Broken::Prints | Broken::NotExecutable | Broken::Text | Broken::Architecture => {
            println!("hello, world");
            ExitCode::SUCCESS
        }
    }
}

/// Runs a service like the example, whose workers exit after this time without being ready.
fn serve(service: Prefork, life: Duration) -> ExitCode {
    let service = service.workers(4).listen("127.0.0.1:0").ready_timeout(Duration::from_secs(1));
    match service.start() {
        Ok(Role::Worker(_)) => {
            thread::sleep(life);
            ExitCode::from(7)
        }
        _ => ExitCode::FAILURE,
    }
}
