//! Simulations of whole lives of a service, on a simulated clock.

mod adopt;
mod heartbeat;
mod memory;
mod nested;
mod observed;
mod random;
mod replacement;
mod request;
mod requests;
mod restart;
mod retire;
mod roll;
mod scale;
mod service;
mod service_random;
mod service_roll;
mod service_sim;
mod sim;
mod startup;
mod status;
mod stop;
mod upgrade;
mod upgrade_random;

pub(super) use sim::{config, some_time};

use super::*;
use crate::exit::{Exit, OutOfMemory};
use crate::report::PoolReport;
use sim::*;
