//! Compares a service with eight pools of 250 workers with a service that has one pool of 2,000 workers. One run
//! measures both services, because the machine's speed differs more between runs than the two services differ from each
//! other.
//!
//! `cargo bench --bench pools` measures. With `-- --check`, the exit status is 1 if a target is missed.

#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
#[path = "../../tests/process/room.rs"]
mod room;

/// The driver starts each service by running this binary again, for example as `pools ours 2000`. `ours` is the service
/// with several pools, and `bare` is the one with a single pool.
#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match common::record::Role::from_arguments(&arguments) {
        Some((role, workers)) => program::run(role, workers).map(|never| match never {}),
        None => driver::run(),
    };
    match result {
        Ok(all_met) => u8::from(!all_met && arguments.iter().any(|argument| argument == "--check")).into(),
        Err(error) => {
            eprintln!("pools: {error}");
            2.into()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("pools: it reads /proc, so it runs on Linux only");
}
