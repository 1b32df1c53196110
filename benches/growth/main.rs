//! Measures start-up, replacement, rolling restart and stop with increasing numbers of workers, and the memory and the
//! descriptors of the parent. Compares taskfork with a bare loop of fork(2) and wait(2) that does the same.
//!
//! `cargo bench --bench growth` measures. With `-- 4 64`, it measures only with 4 and with 64 workers. With `--
//! --check`, the exit status is 1 if a target is missed. With `-- --draw`, it draws the figures of the last run.

#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod figures;
#[cfg(target_os = "linux")]
mod picture;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
#[path = "../../tests/process/room.rs"]
mod room;

/// The driver starts each compared program by running this binary again, for example as `growth ours 512`.
#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |wanted| arguments.iter().any(|argument| argument == wanted);
    let result = match common::record::Role::from_arguments(&arguments) {
        Some((role, workers)) => program::run(role, workers).map(|()| true),
        None if has("--draw") => picture::draw().map(|()| true),
        None => driver::run(&arguments.iter().filter_map(|argument| argument.parse().ok()).collect::<Vec<_>>()),
    };
    match result {
        Ok(all_met) => u8::from(!all_met && has("--check")).into(),
        Err(error) => {
            eprintln!("growth: {error}");
            2.into()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("growth: it reads /proc, so it runs on Linux only");
}
