mod ends;
mod operations;
mod orphans;
mod refusals;
mod signals;
mod stops;
mod worker;

use super::Scenario;

pub fn all() -> Vec<Scenario> {
    [
        ends::scenarios(),
        operations::scenarios(),
        orphans::scenarios(),
        refusals::scenarios(),
        signals::scenarios(),
        stops::scenarios(),
        worker::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn not_root() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("root")
}
