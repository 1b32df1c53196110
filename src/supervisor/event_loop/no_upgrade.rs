//! Replaces `upgrade` on systems on which a parent cannot execute another program. The policy refuses each upgrade
//! there, so it never returns an action of an upgrade.

use super::EventLoop;
use crate::error::Result;
use crate::exit::{Exit, Process};
use crate::listener::Retired;
use crate::prefork::UpgradeSettings;
use crate::supervisor::handover::Adoption;

#[derive(Debug)]
pub(in crate::supervisor) struct Upgrader;

impl Upgrader {
    pub fn new(_: UpgradeSettings, _: Option<Retired>) -> Upgrader {
        Upgrader
    }

    #[cfg(unix)]
    pub fn close_inherited(&self) {}
}

impl EventLoop<'_> {
    pub(super) fn close_retired(&mut self) {}

    pub(super) fn start_check(&mut self) {}

    pub(super) fn read_check(&mut self) {}

    pub(super) fn handle_checker_exit(&mut self, _: Process, _: Exit) -> bool {
        false
    }

    pub(super) fn start_trial(&mut self, _: usize, _: usize, _: u32) {}

    pub(super) fn explain_trial_exit(&mut self, _: Process, _: Exit) {}

    pub(super) fn trial_has_reached(&mut self, _: Process) -> Option<bool> {
        None
    }

    pub(super) fn end_check(&mut self) {}

    pub(super) fn forget_upgrade(&mut self, _: bool) {}

    pub(super) fn request_exec(&mut self) {}

    pub(super) fn is_exec_due(&self) -> bool {
        false
    }

    pub(super) fn exec(&mut self) -> Result<()> {
        Ok(())
    }

    pub(in crate::supervisor) fn adopt(&mut self, adoption: Adoption) -> Result<()> {
        match adoption {}
    }
}
