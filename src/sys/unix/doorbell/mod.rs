//! The doorbell: one descriptor through which any worker wakes the parent. The reason is in the worker's status slot.

#[cfg_attr(all(target_os = "linux", not(taskfork_portable)), path = "eventfd.rs")]
#[cfg_attr(not(all(target_os = "linux", not(taskfork_portable))), path = "socket.rs")]
mod kind;
pub(crate) use kind::{WakeReceiver, Waker, doorbell};
