//! All scenarios, one module for each subject.

mod accepts;
mod binds;
#[cfg(target_os = "linux")]
mod blocked;
#[cfg(target_os = "linux")]
mod deadlines;
#[cfg(target_os = "linux")]
mod descriptors;
mod ends;
#[cfg(target_os = "linux")]
mod epolls;
#[cfg(target_os = "linux")]
mod floods;
#[cfg(unix)]
mod forks;
mod handles;
mod heartbeats;
#[cfg(target_os = "linux")]
mod identities;
#[cfg(unix)]
mod kills;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod linux_sockets;
mod listeners;
#[cfg(target_os = "linux")]
mod messages;
#[cfg(target_os = "linux")]
mod mixed_pools;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod namespaces;
mod nested;
mod operations;
mod orphans;
#[cfg(unix)]
mod orphans_unix;
#[cfg(target_os = "linux")]
mod per_worker;
mod pid_files;
mod pools;
mod pools_ends;
#[cfg(target_os = "linux")]
mod pools_linux;
mod pools_refusals;
#[cfg(unix)]
mod pools_systemd;
mod prefork;
#[cfg(target_os = "linux")]
mod privileges;
#[cfg(target_os = "linux")]
mod races;
mod readiness;
mod recycles;

#[cfg(unix)]
mod refusals;
mod refused_clients;
mod reports;
mod restarts;
mod retires;
mod rolls;
mod services;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod sockets;
mod spawn;
#[cfg(unix)]
mod spawn_deviations;
mod spawn_exits;
#[cfg(unix)]
mod spawn_refusals;
#[cfg(target_os = "linux")]
mod spawn_starts;
mod statuses;
mod stop_requests;
#[cfg(unix)]
mod stop_signals;
mod stopped;
#[cfg(target_os = "linux")]
mod stopped_threads;
mod stops;
#[cfg(target_os = "linux")]
mod storm;
#[cfg(unix)]
mod strangers;
#[cfg(unix)]
mod systemd;
#[cfg(target_os = "linux")]
mod terminal;
mod threads;
#[cfg(unix)]
mod threads_unix;
#[cfg(windows)]
mod windows;
mod work;
mod worker;

use super::Scenario;

pub fn all() -> Vec<Scenario> {
    let everywhere = [
        accepts::scenarios(),
        binds::scenarios(),
        ends::scenarios(),
        handles::scenarios(),
        heartbeats::scenarios(),
        listeners::scenarios(),
        nested::scenarios(),
        operations::scenarios(),
        orphans::scenarios(),
        pid_files::scenarios(),
        pools::scenarios(),
        pools_ends::scenarios(),
        pools_refusals::scenarios(),
        prefork::scenarios(),
        readiness::scenarios(),
        recycles::scenarios(),
        refused_clients::scenarios(),
        reports::scenarios(),
        services::scenarios(),
        retires::scenarios(),
        restarts::scenarios(),
        rolls::scenarios(),
        spawn::scenarios(),
        spawn_exits::scenarios(),
        statuses::scenarios(),
        stop_requests::scenarios(),
        stopped::scenarios(),
        stops::scenarios(),
        threads::scenarios(),
        work::scenarios(),
        worker::scenarios(),
    ];
    let here = [
        #[cfg(unix)]
        forks::scenarios(),
        #[cfg(unix)]
        kills::scenarios(),
        #[cfg(unix)]
        orphans_unix::scenarios(),
        #[cfg(unix)]
        pools_systemd::scenarios(),
        #[cfg(unix)]
        refusals::scenarios(),
        #[cfg(unix)]
        signals::scenarios(),
        #[cfg(unix)]
        sockets::scenarios(),
        #[cfg(unix)]
        spawn_deviations::scenarios(),
        #[cfg(unix)]
        spawn_refusals::scenarios(),
        #[cfg(unix)]
        systemd::scenarios(),
        #[cfg(unix)]
        stop_signals::scenarios(),
        #[cfg(unix)]
        strangers::scenarios(),
        #[cfg(unix)]
        threads_unix::scenarios(),
        #[cfg(target_os = "linux")]
        blocked::scenarios(),
        #[cfg(target_os = "linux")]
        deadlines::scenarios(),
        #[cfg(target_os = "linux")]
        epolls::scenarios(),
        #[cfg(target_os = "linux")]
        floods::scenarios(),
        #[cfg(target_os = "linux")]
        descriptors::scenarios(),
        #[cfg(target_os = "linux")]
        limits::scenarios(),
        #[cfg(target_os = "linux")]
        linux_sockets::scenarios(),
        #[cfg(target_os = "linux")]
        messages::scenarios(),
        #[cfg(target_os = "linux")]
        mixed_pools::scenarios(),
        #[cfg(target_os = "linux")]
        names::scenarios(),
        #[cfg(target_os = "linux")]
        namespaces::scenarios(),
        #[cfg(target_os = "linux")]
        per_worker::scenarios(),
        #[cfg(target_os = "linux")]
        pools_linux::scenarios(),
        #[cfg(target_os = "linux")]
        identities::scenarios(),
        #[cfg(target_os = "linux")]
        privileges::scenarios(),
        #[cfg(target_os = "linux")]
        spawn_starts::scenarios(),
        #[cfg(target_os = "linux")]
        races::scenarios(),
        #[cfg(target_os = "linux")]
        stopped_threads::scenarios(),
        #[cfg(target_os = "linux")]
        storm::scenarios(),
        #[cfg(target_os = "linux")]
        terminal::scenarios(),
        #[cfg(windows)]
        windows::scenarios(),
    ];
    everywhere.into_iter().chain(here).flatten().collect()
}

#[cfg(target_os = "linux")]
fn not_root() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("root")
}
