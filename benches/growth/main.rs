//! What start-up, replacement, a rolling restart and the stop take with more and more workers, beside a bare loop of fork(2)
//! and wait(2) that does the same, and what their parents have then.
//!
//! `cargo bench --bench growth` measures; with `-- 4 64` these numbers of workers only, with `-- --check` a missed target is an
//! exit status of 1. `-- --draw` draws what was measured last.

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

/// Run again by itself as `growth ours 512`, it is one of the programs that are compared.
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
