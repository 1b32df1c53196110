//! The doorbell: a descriptor through which any worker can wake the parent. It carries no message. A worker first
//! writes its message to its status slot in shared memory.

#[cfg_attr(all(target_os = "linux", not(taskfork_portable)), path = "eventfd.rs")]
#[cfg_attr(not(all(target_os = "linux", not(taskfork_portable))), path = "socket.rs")]
mod kind;
pub(crate) use kind::{WakeReceiver, Waker, doorbell};
