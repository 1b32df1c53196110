//! Shared code of the benchmarks that compare two programs: one with this crate, and a bare loop of fork(2) and
//! wait(2).
#![allow(dead_code, reason = "no benchmark uses all of it")]

pub mod procfs;
pub mod record;
pub mod running;
pub mod table;
