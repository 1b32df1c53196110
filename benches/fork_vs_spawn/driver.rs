//! Measures the start of a worker with fork and with spawn, and prints the figures.

use std::io;
use std::time::Duration;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, measurement::WallTime};
use taskfork::Backend;

use crate::figures::{self, Figure};
use crate::memory::{self, Pages};
use crate::program::Series;
use crate::running::Running;

/// The measured sizes of the parent's memory in MiB.
pub const MEMORIES: [usize; 4] = [0, 64, 256, 1024];
/// Milliseconds of work before the call of `start()`.
pub const STARTUP: u64 = 20;

pub const FORK: &str = "fork, 4 KiB pages";
pub const FORK_HUGE: &str = "fork, huge pages";
pub const SPAWN: &str = "spawn";

/// The MiB of memory that stay free for all other processes.
const RESERVE: usize = 512;
const USAGES: usize = 9;

pub fn run() -> io::Result<()> {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(2_000))
        .configure_from_args();
    let mut figures = Vec::new();
    measure_memory(&mut criterion, &mut figures)?;
    measure_startup(&mut criterion, &mut figures)?;
    criterion.final_summary();
    if figures.is_empty() {
        return Ok(());
    }
    figures::print(&figures);
    figures::save(&figures)
}

fn measure_memory(criterion: &mut Criterion, figures: &mut Vec<Figure>) -> io::Result<()> {
    let mut group = group(criterion, "start, by the parent's memory");
    let curves = curves();
    for mebibytes in MEMORIES {
        let available = memory::available()?;
        if mebibytes > 0 && available < mebibytes + RESERVE {
            eprintln!("fork_vs_spawn: {mebibytes} MiB are left out: only {available} MiB are available");
            continue;
        }
        for &(curve, backend, pages) in &curves {
            let series = Series { backend, pages, mebibytes, startup: 0 };
            figures.extend(measure(&mut group, curve, format!("{mebibytes} MiB"), series)?);
        }
    }
    group.finish();
    Ok(())
}

fn measure_startup(criterion: &mut Criterion, figures: &mut Vec<Figure>) -> io::Result<()> {
    let mut group = group(criterion, "start, with a start-up before the call");
    for (curve, backend) in [(FORK, Backend::Fork), (SPAWN, Backend::Spawn)] {
        let series = Series { backend, pages: Pages::Plain, mebibytes: 0, startup: STARTUP };
        figures.extend(measure(&mut group, curve, format!("{STARTUP} ms"), series)?);
    }
    group.finish();
    Ok(())
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group
}

/// Returns the curves to measure. A spawned worker shares none of the parent's memory, so spawn is measured with one
/// kind of pages only.
fn curves() -> Vec<(&'static str, Backend, Pages)> {
    let mut curves = vec![(FORK, Backend::Fork, Pages::Plain), (SPAWN, Backend::Spawn, Pages::Plain)];
    match memory::why_no_huge_pages() {
        None => curves.insert(1, (FORK_HUGE, Backend::Fork, Pages::Huge)),
        Some(reason) => eprintln!("fork_vs_spawn: huge pages are left out: {reason}"),
    }
    curves
}

/// Measures a series. If the command line selects other series only, does not start the program and returns `None`.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    curve: &str,
    parameter: String,
    series: Series,
) -> io::Result<Option<Figure>> {
    let mut running = None;
    let mut starts = Vec::new();
    group.bench_function(BenchmarkId::new(curve, parameter), |bencher| {
        let running = running.get_or_insert_with(|| Running::start(series).expect("it starts"));
        bencher.iter_custom(|count| {
            let times = running.time_starts(count).expect("it starts workers");
            starts.extend(&times);
            times.iter().sum()
        });
    });
    let Some(mut running) = running else { return Ok(None) };
    check_pages(&running, series)?;
    let usages = running.measure(USAGES)?;
    Ok(Some(Figure::new((curve, series.mebibytes, series.startup), &starts, &usages)))
}

/// Warns if the parent's memory is not in the wanted kind of pages. The kernel reports no error if it has no huge pages
/// left.
fn check_pages(running: &Running, series: Series) -> io::Result<()> {
    let huge = memory::huge(running.pid())? / 1024;
    let wanted = series.mebibytes as u64;
    match series.pages {
        Pages::Huge if huge < wanted * 9 / 10 => {
            eprintln!("fork_vs_spawn: only {huge} of {wanted} MiB are in huge pages");
        }
        Pages::Plain if huge > 0 => eprintln!("fork_vs_spawn: {huge} MiB are in huge pages, but none should be"),
        Pages::Plain | Pages::Huge => {}
    }
    Ok(())
}
