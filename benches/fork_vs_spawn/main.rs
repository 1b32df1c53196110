//! Measures the time and the memory that the start of one worker takes, with `Backend::Fork` and with `Backend::Spawn`.
//! The parent has more and more memory, or does some work before the call of `start()`.
//!
//! `cargo bench --bench fork_vs_spawn` measures. With `-- --draw`, it draws the figures of the last run.

#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod figures;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod picture;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod running;

/// The driver starts the measured program by running this binary again, for example as `fork_vs_spawn program fork
/// plain 64 0`.
#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match program::Series::from_arguments(&arguments) {
        Some(series) => program::run(series),
        None if arguments.iter().any(|argument| argument == "--draw") => picture::draw(),
        None => driver::run(),
    };
    match result {
        Ok(()) => 0.into(),
        Err(error) => {
            eprintln!("fork_vs_spawn: {error}");
            2.into()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("fork_vs_spawn: it reads /proc, so it runs on Linux only");
}
