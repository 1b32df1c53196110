//! Replaces `unix/upgrade` on systems on which a parent cannot be upgraded.

/// Whether a parent can be upgraded on this system.
pub(crate) const CAN_UPGRADE: bool = false;
