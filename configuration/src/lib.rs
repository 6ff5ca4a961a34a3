//! `configuration.toml`: read, merged with its drop-ins, validated into [`Config`], once, before anything is started.
//!
//! Keys keep Kata's names and tables where the meaning is the same. This crate is a leaf: it must not know about
//! containers, virtual machine monitors' command lines, or any other crate of ours.

mod config;

pub use config::{
    Accelerator, AgentChannel, AgentConfig, Config, HypervisorConfig, HypervisorKind, MachineType,
    NetworkModel, RuntimeConfig, SharedFs, VirtioFsCache,
};

use std::path::Path;

impl Config {
    /// Finds, reads, merges and validates the configuration. `options` is the file that the caller's runtime options name
    /// (containerd's ConfigPath), `environment` the value of `KATA_CONF_FILE`.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn load(_options: Option<&Path>, _environment: Option<&Path>) -> Result<Self, Error> {
        Err(Error("the loader is not built".to_owned()))
    }
}

/// Why a configuration cannot be used: file, line, key and remedy, on one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);
