//! One descriptor by which any of the workers wakes the parent. What for is written elsewhere.

#[cfg_attr(all(target_os = "linux", not(taskfork_portable)), path = "eventfd.rs")]
#[cfg_attr(not(all(target_os = "linux", not(taskfork_portable))), path = "socket.rs")]
mod kind;
pub(crate) use kind::{WakeReceiver, Waker, doorbell};
