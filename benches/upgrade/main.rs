//! Measures how long the parent is away from its loop in an upgrade: from the last line of the old program, that the
//! trial's worker is ready, to the first line of the new one, that it supervises the workers.
//!
//! `cargo bench --bench upgrade` measures the example `http`, and a service whose parent has up to 1 GiB of memory.

#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod program;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match program::Settings::from_arguments(&arguments) {
        Some(settings) => program::run(settings).map(|()| true),
        None => driver::run(arguments.iter().any(|argument| argument == "--check")),
    };
    match result {
        Ok(all_met) => u8::from(!all_met).into(),
        Err(error) => {
            eprintln!("upgrade: {error}");
            2.into()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("upgrade: only Linux has upgrades");
}
