//! A configuration for our runtime that names what was built here.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::parts::Target;

/// What a configuration says; the rest is the runtime's default.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// `hypervisor.qemu`: key, value in TOML.
    pub hypervisor: Vec<(String, String)>,
    /// `agent.kata`.
    pub agent: Vec<(String, String)>,
    /// `runtime`.
    pub runtime: Vec<(String, String)>,
    /// `factory`.
    pub factory: Vec<(String, String)>,
}

impl Configuration {
    /// With the guest image and the daemons of `target`.
    pub fn new(target: &Target) -> Self {
        let path = |path: &Path| format!("{path:?}");
        let hypervisor = [
            ("kernel", path(&target.kernel())),
            ("initrd", path(&target.initrd())),
            ("virtio_fs_daemon", path(&target.tool("virtiofsd"))),
            (
                "vhost_user_vsock_daemon",
                path(&target.tool("vhost-device-vsock")),
            ),
        ];
        Self {
            hypervisor: hypervisor.map(|(key, value)| (key.into(), value)).into(),
            agent: Vec::new(),
            runtime: Vec::new(),
            factory: Vec::new(),
        }
    }

    /// Sets a key of `hypervisor.qemu` to a string.
    pub fn hypervisor(mut self, key: &str, value: &str) -> Self {
        set(&mut self.hypervisor, key, format!("{value:?}"));
        self
    }

    /// Sets a key of `hypervisor.qemu` to a number.
    pub fn hypervisor_number(mut self, key: &str, value: u64) -> Self {
        set(&mut self.hypervisor, key, value.to_string());
        self
    }

    /// Has sandboxes be copies of the templates at this path.
    pub fn template(mut self, path: &str) -> Self {
        set(&mut self.factory, "enable_template", "true".into());
        set(&mut self.factory, "template_path", format!("{path:?}"));
        self
    }

    /// Has so many machines be kept ready, by whom listens there.
    pub fn cache(mut self, endpoint: &str, number: u64) -> Self {
        set(&mut self.factory, "vm_cache_number", number.to_string());
        set(&mut self.factory, "vm_cache_endpoint", format!("{endpoint:?}"));
        self
    }

    /// Sets a key of `agent.kata` to a string.
    pub fn agent(mut self, key: &str, value: &str) -> Self {
        set(&mut self.agent, key, format!("{value:?}"));
        self
    }

    /// Sets a key of `agent.kata` to a number.
    pub fn agent_number(mut self, key: &str, value: u64) -> Self {
        set(&mut self.agent, key, value.to_string());
        self
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (table, keys) in [
            ("hypervisor.qemu", &self.hypervisor),
            ("agent.kata", &self.agent),
            ("runtime", &self.runtime),
            ("factory", &self.factory),
        ] {
            text.push_str(&format!("[{table}]\n"));
            for (key, value) in keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.text()).with_context(|| format!("write {}", path.display()))
    }
}

fn set(table: &mut Vec<(String, String)>, key: &str, value: String) {
    table.retain(|(name, _)| name != key);
    table.push((key.into(), value));
}
