//! Virtual machine monitors behind one trait.
//!
//! A [`Hypervisor`] turns a [`VmSpec`] into a running [`Vm`]; a `Vm` is supervised and its end is an event
//! ([`Vm::exited`]). An ability that a driver lacks is absent ([`Vm::hotplug`] answers `None`), never an `Ok(())` that
//! does nothing. This crate knows nothing of containers, of the agent's protocol or of the runtime above it.

mod between;
mod cloud_hypervisor;
pub mod console;
mod created;
mod deadlines;
mod driver;
mod error;
mod fake;
mod files;
mod firecracker;
#[cfg(test)]
mod fuzzed;
mod pages;
mod probe;
pub mod process;
mod qemu;
mod qmp;
pub mod registry;
mod rest;
mod saved;
mod spec;
mod supervisor;
mod version;

pub use created::Created;
pub use driver::{
    Boot, Deed, Exit, ExitReason, Hotplug, Hypervisor, Offer, Origin, Resize, SaveTo, Saved, Transfer, Vm,
    VmRecord, VmReport,
};
pub use error::{Error, ErrorKind};
pub use probe::{Choice, choose as choose_accelerator};
pub use spec::{
    Capabilities, Device, Disk, Memory, MemoryBacking, SerialPort, Size, VirtioFs, VmSpec, Vsock,
};
