//! Checks whether the losses of a run are within their bound.

use crate::disturbance::{Disturbance, Kill};
use crate::generator::{Loss, Report};

/// Microseconds. For this long after a kill, a client may send a request on a connection of which it has not seen the
/// end yet.
const UNSEEN: u64 = 50_000;

/// Returns the reasons why the bound does not hold.
pub fn broken(disturbance: Option<Disturbance>, report: &Report, kills: &[Kill]) -> Vec<String> {
    match disturbance {
        Some(Disturbance::Kill) => beyond_the_accepted(report, kills),
        Some(Disturbance::Hup | Disturbance::Scale) | None => {
            let lost = report.lost();
            Vec::from_iter((lost > 0).then(|| format!("{lost} lost, but none may be")))
        }
    }
}

/// Returns reasons if more was lost than the killed workers had accepted: in total, or by kill for the losses with a
/// known time. (A connection that was closed between two requests is only in wrk's counters, without a time.)
fn beyond_the_accepted(report: &Report, kills: &[Kill]) -> Vec<String> {
    let lost = report.lost();
    let accepted = kills.iter().map(|kill| kill.accepted).sum::<u64>();
    let too_many = (lost > accepted).then(|| format!("{lost} lost, but the killed workers had accepted {accepted}"));
    let unexplained_losses = unexplained(report.losses().collect(), kills);
    let unexplained_reasons = unexplained_losses.into_iter().map(|loss| format!("no kill explains it: {loss:?}"));
    too_many.into_iter().chain(unexplained_reasons).collect()
}

/// Returns the losses that no kill explains. A kill explains as many losses as its worker had accepted connections, and
/// only requests that were open at that time. A client that gets no CPU time may notice a loss only after the next
/// kill. So the losses noticed first are assigned first: if a loss is left then, one is left however they are assigned.
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
