//! What differs between the systems: how an operator acts on processes, and what the programs wait for.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub use unix::*;
