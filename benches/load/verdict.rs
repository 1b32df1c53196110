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
    let accepted: u64 = kills.iter().map(|kill| kill.accepted).sum();
    let mut reasons =
        Vec::from_iter((report.lost() > accepted).then(|| format!("{} lost, {accepted} were accepted", report.lost())));
    let mut taken_along = vec![0; kills.len()];
    for loss in report.losses() {
        match culprit(loss, kills) {
            Some(nth) => taken_along[nth] += 1,
            None => reasons.push(format!("nobody was killed when a request was lost: {loss:?}")),
        }
    }
    for (kill, lost) in kills.iter().zip(taken_along).filter(|(kill, lost)| *lost > kill.accepted) {
        reasons.push(format!("{lost} lost by one kill: {kill:?}"));
    }
    reasons
}

/// The last kill before it was noticed, if the request was under way.
fn culprit(loss: Loss, kills: &[Kill]) -> Option<usize> {
    let nth = kills.iter().rposition(|kill| kill.at <= loss.noticed)?;
    (loss.asked <= kills[nth].at + UNSEEN).then_some(nth)
}
