//! `configuration.toml`: read, merged with its drop-ins, validated into [`Config`], once, before anything is started.
//!
//! Keys keep Kata's names and tables where the meaning is the same. This crate is a leaf: it must not know about
//! containers, virtual machine monitors' command lines, or any other crate of ours.

mod agent;
mod annotations;
mod config;
mod effective;
mod error;
mod factory;
mod host;
mod hypervisor;
mod kata;
mod keys;
mod kinds;
mod load;
mod runtime;
mod search;
mod settings;
mod template;
#[cfg(test)]
mod tests;
mod tree;
mod validate;

pub use agent::{AgentChannel, AgentConfig};
pub use config::Config;
pub use effective::Effective;
pub use error::{Error, ErrorKind};
pub use factory::FactoryConfig;
pub use hypervisor::{Accelerator, HypervisorConfig, HypervisorKind, MachineType, SharedFs, VirtioFsCache};
pub use keys::{Key, Status};
pub use runtime::{Experiment, NetworkModel, RuntimeConfig};
