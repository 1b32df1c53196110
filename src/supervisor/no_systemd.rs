//! Nobody is told anything here.

use std::io;
use std::time::Instant;

use crate::event::Event;

#[derive(Debug)]
pub(crate) enum Systemd {}

impl Systemd {
    pub fn handle_event(&mut self, _: &Event, _: impl FnOnce() -> Option<usize>) -> Option<io::Error> {
        match *self {}
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        match *self {}
    }

    pub fn flush(&mut self) -> Option<io::Error> {
        match *self {}
    }
}
