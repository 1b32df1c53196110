//! Compares taskfork with a bare loop of fork(2) and wait(2). One run measures both programs, because the machine's
//! speed differs more between runs than the two programs differ from each other.
//!
//! `cargo bench --bench bare_loop` measures. With `-- --check`, the exit status is 1 if a target is missed.

#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod program;

/// The driver starts each compared program by running this binary again, for example as `bare_loop ours 1000`.
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
            eprintln!("bare_loop: {error}");
            2.into()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("bare_loop: it reads /proc, so it runs on Linux only");
}
