//! Makes the runs: each server with each kind of listener, once without a disturbance and once with each disturbance.

use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::disturbance::{Disturbance, Kill, PERIOD};
use crate::generator::{Errors, Generator, Report};
use crate::hostile;
use crate::server::{Example, Mode, Program, Server};
use crate::verdict;

/// Puts the HTTP examples under load by wrk while their workers are replaced, added, removed and killed.
#[derive(Parser)]
pub struct Args {
    /// Seconds of each run
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(3..))]
    seconds: u64,
    /// Example; may be repeated; default: both
    #[arg(long, value_enum)]
    example: Vec<Example>,
    /// Kind of listener; may be repeated; default: both
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// Disturbance every 250 ms, or consecutive upgrades; may be repeated; default: each, in a run of its own
    #[arg(long, value_enum)]
    disturb: Vec<Disturbance>,
    /// Number of wrk's connections, and of its threads
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..))]
    connections: u8,
    /// The wrk program
    #[arg(long, default_value = "wrk")]
    wrk: PathBuf,
    /// An nginx program to measure too, without bounds
    #[arg(long)]
    nginx: Option<PathBuf>,
    /// Passed by cargo bench to every benchmark; ignored
    #[arg(long, hide = true)]
    bench: bool,
}

/// The results of a run, and the disturbances during it.
struct Run {
    report: Report,
    times: usize,
    replaced: usize,
    kills: Vec<Kill>,
    /// How long the parent was away from its loop in each upgrade.
    away: Vec<Duration>,
}

/// Makes all runs, prints the table, and returns whether the losses of all runs with a target are within their bounds.
pub fn run(args: &Args) -> io::Result<bool> {
    let generator = Generator { program: args.wrk.clone(), connections: args.connections.into() };
    hostile::check(&generator)?;
    let ours = chosen(&args.example).into_iter().map(Program::taskfork);
    let theirs = args.nginx.as_deref().map(Program::nginx);
    let programs = ours.chain(theirs).collect::<io::Result<Vec<Program>>>()?;
    print_header()?;
    let mut all_hold = true;
    for mode in chosen(&args.mode) {
        for program in programs.iter().filter(|program| program.has(mode)) {
            all_hold &= compare(args, &generator, program, mode)?;
        }
    }
    Ok(all_hold)
}

fn chosen<T: clap::ValueEnum>(named: &[T]) -> Vec<T> {
    if named.is_empty() { T::value_variants().to_vec() } else { named.to_vec() }
}

/// Makes one run without a disturbance, and one run with each disturbance. Returns whether the losses of all runs with
/// a target are within their bounds.
fn compare(args: &Args, generator: &Generator, program: &Program, mode: Mode) -> io::Result<bool> {
    let calm = run_once(args, generator, program, mode, None)?;
    let mut all_hold = print(program, mode, None, &calm, &calm)? || !program.has_target(None);
    for disturbance in chosen(&args.disturb) {
        if !program.takes(disturbance) {
            let name = program.name();
            println!("| {name} | {} | {} | cannot | | | | | | | | |", mode.name(), disturbance.name());
            continue;
        }
        let run = run_once(args, generator, program, mode, Some(disturbance))?;
        let disturbance = Some(disturbance);
        all_hold &= print(program, mode, disturbance, &run, &calm)? || !program.has_target(disturbance);
    }
    Ok(all_hold)
}

fn run_once(
    args: &Args,
    generator: &Generator,
    program: &Program,
    mode: Mode,
    disturbance: Option<Disturbance>,
) -> io::Result<Run> {
    let mut server = Server::start(program, mode)?;
    let duration = Duration::from_secs(args.seconds);
    let load = generator.start(server.address, duration)?;
    let mut times = 0;
    let mut kills = Vec::new();
    let started = Instant::now();
    if let Some(disturbance) = disturbance {
        let mut due = PERIOD;
        while due < duration {
            thread::sleep(due.saturating_sub(started.elapsed()));
            let disturbed = disturbance.disturb(&mut server, times, &mut kills);
            times += usize::from(disturbed.map_err(|error| server.failure(&error.to_string()))?);
            due = if disturbance.is_consecutive() { started.elapsed() } else { due + PERIOD };
        }
    }
    let report = load.finish()?;
    let replaced = server.replaced();
    let away = std::mem::take(&mut server.away);
    server.stop()?;
    if disturbance.is_some_and(|disturbance| disturbance != Disturbance::Broken) && replaced == 0 {
        return Err(io::Error::other("no worker was replaced: nothing was disturbed"));
    }
    Ok(Run { report, times, replaced, kills, away })
}

fn print_header() -> io::Result<()> {
    println!(
        "| server | listener | every 250 ms | times | workers started | requests | lost: connect, read, write, late, \
         status, silent | without answer: kept, new | accepted by the killed | requests/s | of undisturbed | holds |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    io::stdout().flush()
}

/// Prints the row of a run, and returns whether the losses of this run are within their bound.
fn print(program: &Program, mode: Mode, disturbance: Option<Disturbance>, run: &Run, calm: &Run) -> io::Result<bool> {
    let Run { report, times, replaced, kills, away } = run;
    let Errors { connect, read, write, timeout, status } = report.errors;
    let reasons = verdict::broken(disturbance, report, kills);
    let accepted = match disturbance {
        Some(Disturbance::Kill) => kills.iter().map(|kill| kill.accepted).sum::<u64>().to_string(),
        Some(_) | None => "-".into(),
    };
    println!(
        "| {} | {} | {} | {times} | {replaced} | {} | {}: {connect}, {read}, {write}, {timeout}, {status}, {} | \
         {}, {} | {accepted} | {:.0} | {:.2} | {} |",
        program.name(),
        mode.name(),
        disturbance.map_or("-", Disturbance::name),
        report.requests,
        report.lost(),
        report.silent(),
        report.unanswered(true),
        report.unanswered(false),
        report.per_second(),
        report.per_second() / calm.report.per_second(),
        if reasons.is_empty() { "yes" } else { "NO" },
    );
    io::stdout().flush()?;
    if let Some(longest) = away.iter().max() {
        let mut sorted = away.clone();
        sorted.sort_unstable();
        let median = sorted[sorted.len() / 2];
        eprintln!("load: the parent was away for {median:?} (median of {}), at most for {longest:?}", away.len());
    }
    for reason in &reasons {
        eprintln!("load: {}, {}: {reason}", program.name(), disturbance.map_or("-", Disturbance::name));
    }
    Ok(reasons.is_empty())
}
