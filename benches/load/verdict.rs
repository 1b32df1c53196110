//! Whether the losses are within their bound.

use crate::disturbance::{Disturbance, Kill};
use crate::generator::{Loss, Report};

/// In microseconds. A request may be asked after the kill, on a connection whose end the client has not seen yet.
const UNSEEN: u64 = 50_000;

/// Why the bound does not hold.
pub fn broken(disturbance: Option<Disturbance>, report: &Report, kills: &[Kill]) -> Vec<String> {
    match disturbance {
        Some(Disturbance::Kill) => beyond_the_accepted(report, kills),
        Some(Disturbance::Hup | Disturbance::Scale) | None => {
            let lost = report.lost();
            Vec::from_iter((lost > 0).then(|| format!("{lost} lost, none may be")))
        }
    }
}

/// No more than the killed workers had accepted: all together, and each, as far as it is known when a request was lost. A
/// connection that was closed between two requests is in wrk's counters only.
fn beyond_the_accepted(report: &Report, kills: &[Kill]) -> Vec<String> {
    let (lost, accepted) = (report.lost(), kills.iter().map(|kill| kill.accepted).sum::<u64>());
    let too_many = (lost > accepted).then(|| format!("{lost} lost, {accepted} were accepted"));
    let inexplicable = unexplained(report.losses().collect(), kills);
    let by_nobody = inexplicable.into_iter().map(|loss| format!("no kill explains it: {loss:?}"));
    too_many.into_iter().chain(by_nobody).collect()
}

/// What is left when each kill has taken along no more than its worker had accepted, of what was under way at that time.
/// A client that is starved notices a loss only after the next kill, so whoever notices first is given to a kill first:
/// if anything is left then, it is left whichever way they are shared out.
fn unexplained(mut losses: Vec<Loss>, kills: &[Kill]) -> Vec<Loss> {
    losses.sort_by_key(|loss| loss.noticed);
    for kill in kills {
        let mut room = kill.accepted;
        losses.retain(|loss| {
            let is_taken_along = room > 0 && loss.asked <= kill.at + UNSEEN && kill.at <= loss.noticed;
            room -= u64::from(is_taken_along);
            !is_taken_along
        });
    }
    losses
}
