//! The state that the parent passes to the program that it executes in an upgrade, as text and as descriptors.
//!
//! The text has one fact per line: a keyword, and then fields without blanks. Its first line names the version of the
//! format. A reader ignores lines with unknown keywords and further fields at the end of a line, so a later release can
//! add both without a new version. A new version is needed if the meaning of a field changes, or the layout of the
//! status slots, in which the workers of both programs leave their messages.

mod adoption;
mod fields;
mod outgoing;
mod state;

pub(crate) use adoption::{Adoption, HandedOverSignals};
pub(super) use outgoing::{Outgoing, Text};
