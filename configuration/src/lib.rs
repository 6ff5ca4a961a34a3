//! `configuration.toml`: read, merged with its drop-ins, validated into [`Config`], once, before anything is started.
//!
//! Keys keep Kata's names and tables where the meaning is the same. This crate is a leaf: it must not know about
//! containers, virtual machine monitors' command lines, or any other crate of ours.

mod config;

pub use config::{
    Accelerator, AgentChannel, AgentConfig, Config, HypervisorConfig, HypervisorKind, MachineType,
    NetworkModel, RuntimeConfig, SharedFs, VirtioFsCache,
};
