//! The launcher of a pool that the program does not have any more.

use super::{Launcher, StartRequest, Started};
use crate::error::{Error, Result};

/// Starts nothing. After an upgrade, the parent stops the processes of each pool that the new program does not have.
#[derive(Debug)]
pub(crate) struct Removed;

impl Launcher for Removed {
    fn start(&mut self, request: StartRequest<'_>) -> Result<Started> {
        Err(Error::unfit("upgrade", "the program does not have this pool any more").starting(request.id))
    }
}
