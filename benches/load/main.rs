//! Counts the requests that clients of the HTTP examples lose while workers are replaced, added, removed and killed,
//! and while the service is upgraded. wrk sends the requests.
//!
//! `cargo bench --bench load` makes the runs. The exit status is 1 if a run loses more requests than its target allows.

#[cfg(target_os = "linux")]
mod broken;
#[cfg(target_os = "linux")]
mod connection;
#[cfg(target_os = "linux")]
mod deployment;
#[cfg(target_os = "linux")]
mod disturbance;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod generator;
#[cfg(target_os = "linux")]
mod hostile;
#[cfg(target_os = "linux")]
mod procfs;
#[cfg(target_os = "linux")]
mod server;
#[cfg(target_os = "linux")]
mod verdict;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    if let Some(broken) = broken::of_this_program() {
        return broken::run(broken);
    }
    match driver::run(&clap::Parser::parse()) {
        Ok(all_hold) => u8::from(!all_hold).into(),
        Err(error) => {
            eprintln!("load: {error}");
            2.into()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("load: it reads /proc, so it runs on Linux only");
}
