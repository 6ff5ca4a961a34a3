//! What a sandbox tells its owner without being asked. Exits of processes are answers to `wait`, not events.

use crate::ContainerId;

/// Something happened in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest's kernel killed a process of this container for memory.
    Oom(ContainerId),
    /// The virtual machine is gone; every process has ended with status 255 or 137. The text says why.
    VmExited(String),
}
