//! What benchmarks have in common that run two programs by turns, this crate's and a bare loop of fork(2) and wait(2).
#![allow(dead_code, reason = "none of them uses all of it")]

pub mod procfs;
pub mod record;
pub mod running;
pub mod table;
