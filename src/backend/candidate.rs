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
//! A candidate must never become a parent, because the service would then have two. So the rules are those for a spawned
//! worker: if anything goes wrong before the call, the call fails.
//!
//! The two programs can have different versions of this crate. `offer` and `answer` describe the texts.

mod answer;
mod offer;
mod reason;
