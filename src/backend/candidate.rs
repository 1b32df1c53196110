//! Candidates: processes of a new program that an upgrade tries beside the running service.
//!
//! The old parent starts a candidate as it starts a spawned worker: with an offer that only this process inherits. The
//! text of the offer says what the candidate must do when it reaches its call. The candidate answers through a channel,
//! a socket pair.
//!
//! - A *checker* checks the settings of all pools, opens the listeners that the service does not have yet, sends these
//!   sockets with its answer, and exits. It changes nothing on the sockets of the service.
//! - A *trial worker* becomes a worker of the old parent, with the settings of the new program. It is a full worker: it
//!   serves, and the parent supervises it as it supervises a spawned worker.
//!
//! A candidate must never become a parent, because the service would then have two. So the rules are those for a
//! spawned worker: if anything goes wrong before the call, the call fails.
//!
//! The two programs can have different versions of this crate. `offer` and `answer` describe the texts.

mod accept;
mod answer;
mod launch;
mod offer;
mod reason;
mod received;

use std::ops::RangeInclusive;

pub(crate) use accept::{Accepted, Duty, Reply, TrialCall, TrialSettings, accept_candidate};
pub(crate) use answer::CheckedPool;
pub(crate) use launch::{Candidate, StartedCandidate, TrialRequest};
pub(crate) use received::{CheckAnswer, PoolToTry};

/// The versions of the state format that this version of the crate can read and write. The layout of the status slots
/// is a part of the format.
pub(crate) const FORMATS: RangeInclusive<u32> = 1..=1;

/// Returns the newest version that is in both ranges.
fn newest_common(one: &RangeInclusive<u32>, other: &RangeInclusive<u32>) -> Option<u32> {
    let newest = *one.end().min(other.end());
    (newest >= *one.start().max(other.start())).then_some(newest)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Returns copies of a text in which some bytes are changed and some are missing at the end.
    pub(super) fn damaged_copies(text: String) -> impl Iterator<Item = Vec<u8>> {
        let mut rng = SmallRng::seed_from_u64(16);
        (0..20_000).map(move |_| {
            let mut damaged = text.clone().into_bytes();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..damaged.len());
                damaged[at] = rng.random();
            }
            damaged.truncate(rng.random_range(0..=damaged.len()));
            damaged
        })
    }

    #[test]
    fn the_newest_common_format_is_used() {
        for (one, other, newest) in [
            (1..=1, 1..=1, Some(1)),
            (1..=3, 2..=5, Some(3)),
            (2..=5, 1..=3, Some(3)),
            (1..=9, 4..=4, Some(4)),
            (1..=2, 3..=4, None),
            (3..=4, 1..=2, None),
        ] {
            assert_eq!(newest_common(&one, &other), newest, "{one:?} {other:?}");
        }
    }
}
