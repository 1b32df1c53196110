//! What a start costs with `Backend::Fork` and with `Backend::Spawn`, in time and in memory: with more and more memory in the
//! parent, and with an expensive start-up before the call.
//!
//! `cargo bench --bench fork_vs_spawn` measures; the same with `-- --draw` draws what was measured last.

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

/// Run again by itself as `fork_vs_spawn program fork plain 64 0`, it is what is measured.
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
