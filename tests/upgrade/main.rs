//! Tests of upgrades: each scenario runs a service in real processes, replaces its program on disk, and checks what an
//! operator and a client see. Linux only.
//!
//! A program under test is a copy of this binary with a [`Build`](build::Build) appended to it, so that two copies are
//! two builds of a program, which differ in what the scenario needs.

#[cfg(target_os = "linux")]
mod build;
#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod daemon;
#[cfg(target_os = "linux")]
mod facts;
#[cfg(target_os = "linux")]
mod gate;
#[cfg(target_os = "linux")]
mod procfs;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod scenarios;
#[cfg(target_os = "linux")]
mod serving;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match build::Build::of_this_program() {
        Some(build) => program::main(build),
        None => scenarios::run(),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("ignored: upgrades need Linux");
}
