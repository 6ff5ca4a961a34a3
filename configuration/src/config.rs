//! The validated configuration: what the rest of the program sees. No strings that still need parsing, no invalid
//! combination.

use std::path::PathBuf;

use crate::{AgentConfig, FactoryConfig, HypervisorConfig, RuntimeConfig};

/// Everything an administrator can set, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The files it was read from, in the order they were merged.
    pub sources: Vec<PathBuf>,
    /// `[hypervisor.<name>]` of the hypervisor in use.
    pub hypervisor: HypervisorConfig,
    /// `[agent.kata]`.
    pub agent: AgentConfig,
    /// `[runtime]`.
    pub runtime: RuntimeConfig,
    /// `[factory]`.
    pub factory: FactoryConfig,
}

impl Config {
    /// The documented `configuration.toml`, which says what is built in.
    pub fn template() -> String {
        crate::template::template()
    }
}
