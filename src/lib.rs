//! The sandbox and container model and its orchestration.
//!
//! Both programs (the containerd shim and `kata-runtime`) stand on this crate; it has no command line and no containerd
//! types. Typed edges surround pure functions: *configuration + OCI bundle + driver capabilities* become a plan, one
//! task owns each sandbox and carries the plan out step by step, each step pushing its undo.
//!
//! It must not know containerd's protocol, nor the name of any hypervisor driver.

pub mod admin;
mod aside;
pub mod container;
mod deadlines;
pub mod direct;
pub mod engine;
pub mod error;
pub mod events;
pub mod factory;
mod guest;
mod host;
pub mod id;
pub mod io;
pub mod line;
pub mod model;
pub mod oci;
mod plan;
pub mod sandbox;
mod store;
mod trace;

pub use container::{Container, ContainerRequest, ExecRequest, ExitStatus, ProcessState, Stats, Status};
pub use error::{Error, ErrorKind};
pub use events::Event;
pub use id::{ContainerId, ExecId, SandboxId};
pub use io::{Input, Output, Stdio, check_descriptor};
pub use sandbox::{Phase, RootfsMount, Sandbox, SandboxRequest};
