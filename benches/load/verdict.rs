//! Checks whether the losses of a run are within their bound.

use crate::disturbance::{Disturbance, Kill};
use crate::generator::{Loss, Report};

/// The time in microseconds for which a client may continue to send requests to a killed worker, because the client has
/// not noticed the closed connection yet.
const UNSEEN: u64 = 50_000;

/// Returns the reasons why the losses of a run exceed their bound. Returns no reasons if the losses are within it.
pub fn broken(disturbance: Option<Disturbance>, report: &Report, kills: &[Kill]) -> Vec<String> {
    match disturbance {
        Some(Disturbance::Kill) => beyond_the_accepted(report, kills),
        Some(_) | None => {
            let lost = report.lost();
            Vec::from_iter((lost > 0).then(|| format!("{lost} lost, but none may be")))
        }
    }
}

/// Returns the reasons if the run lost more requests than the killed workers had accepted connections. Compares the
/// totals of the run, and then the losses of each kill. Only losses with a known time can be compared with a kill. (If
/// a connection was closed between two requests, wrk counts a loss, but its time is unknown.)
fn beyond_the_accepted(report: &Report, kills: &[Kill]) -> Vec<String> {
    let lost = report.lost();
    let accepted = kills.iter().map(|kill| kill.accepted).sum::<u64>();
    let too_many = (lost > accepted).then(|| format!("{lost} lost, but the killed workers had accepted {accepted}"));
    let unexplained_losses = unexplained(report.losses().collect(), kills);
    let unexplained_reasons = unexplained_losses.into_iter().map(|loss| format!("no kill explains it: {loss:?}"));
    too_many.into_iter().chain(unexplained_reasons).collect()
}

/// Returns the losses that no kill can have caused. A kill can have caused at most as many losses as its worker had
/// accepted connections. It can only have caused the loss of a request that was under way at the time of the kill. A
/// loss may match several kills, because a client that gets no CPU time may notice the loss only after the next kill.
/// So each kill gets the losses first that were noticed first. If a loss is left over then, every other assignment
/// leaves one over too.
fn unexplained(mut losses: Vec<Loss>, kills: &[Kill]) -> Vec<Loss> {
    losses.sort_by_key(|loss| loss.noticed);
    for kill in kills {
        let mut budget = kill.accepted;
        losses.retain(|loss| {
            let is_explained = budget > 0 && loss.asked <= kill.at + UNSEEN && kill.at <= loss.noticed;
            budget -= u64::from(is_explained);
            !is_explained
        });
    }
    losses
}
