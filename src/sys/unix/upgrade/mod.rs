//! An upgrade: this process executes another program and stays the parent of its workers (execve(2)).

use super::signal::number;
use crate::sys::Signal;

mod channel;
mod deadline;
mod foreign;
mod new_program;
mod start;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use channel::{Channel, Message};
pub(crate) use foreign::foreign_listeners;
pub(crate) use new_program::NewProgram;
pub(super) use start::{bit, record as record_start, was_ignored_at_start};
pub(crate) use state::{TakenState, monotonic_nanos, take_state};
pub(super) use state::{copy_passed, passed_text, record as record_state};

/// Whether a parent can be upgraded on this system.
pub(crate) const CAN_UPGRADE: bool = true;

/// Sets the state of the signals that the words give, before `main`. Does nothing without these words. The signals in
/// `kept` stay blocked.
pub(super) fn restore_signals<'a>(words: &mut impl Iterator<Item = &'a str>, kept: u64) {
    let mut word = || u64::from_str_radix(words.next()?, 16).ok();
    if let (Some(blocked), Some(ignored)) = (word(), word()) {
        start::SignalState { blocked, ignored }.restore(kept);
    }
}

/// Returns the words for [`restore_signals`]: the signals that were blocked and ignored when this program was started.
fn signal_words() -> String {
    let start::SignalState { blocked, ignored } = start::SignalState::at_start();
    format!("{blocked:x} {ignored:x}")
}

/// The signals that stay blocked between execve(2) and the call, one bit for each.
fn supervised() -> u64 {
    Signal::SUPERVISED.iter().map(|&signal| start::bit(number(signal))).sum()
}
