mod ends;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod namespaces;
mod operations;
mod orphans;
mod refusals;
mod signals;
mod stops;
#[cfg(target_os = "linux")]
mod terminal;
mod worker;

use super::Scenario;

pub fn all() -> Vec<Scenario> {
    let everywhere = [
        ends::scenarios(),
        operations::scenarios(),
        orphans::scenarios(),
        refusals::scenarios(),
        signals::scenarios(),
        stops::scenarios(),
        worker::scenarios(),
    ];
    let here = [
        #[cfg(target_os = "linux")]
        limits::scenarios(),
        #[cfg(target_os = "linux")]
        namespaces::scenarios(),
        #[cfg(target_os = "linux")]
        terminal::scenarios(),
    ];
    everywhere.into_iter().chain(here).flatten().collect()
}

#[cfg(target_os = "linux")]
fn not_root() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("root")
}
