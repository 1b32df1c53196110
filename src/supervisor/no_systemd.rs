//! Nobody is told anything here.

use std::io;
use std::time::Instant;

use crate::event::Event;

#[derive(Debug)]
pub(crate) enum Systemd {}

impl Systemd {
    pub fn hear(&mut self, _: &Event, _: impl FnOnce() -> Option<usize>) -> Option<io::Error> {
        match *self {}
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        match *self {}
    }

    pub fn speak(&mut self) -> Option<io::Error> {
        match *self {}
    }
}
