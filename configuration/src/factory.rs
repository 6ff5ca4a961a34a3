//! `[factory]`: virtual machines that are not booted but copied.

use std::path::PathBuf;

use crate::kinds::{Flag, HostPath, Number};
use crate::settings::settings;

/// The dotted name of the table.
pub(crate) const TABLE: &str = "factory";

settings! {
    /// `[factory]`, validated.
    pub struct FactoryConfig() {
        /// Start sandboxes as copies of a VM that was booted once and saved by `kata-runtime factory init`. A sandbox for which
        /// none that fits was saved boots as usual. What copies have in common is not secret to them.
        enable_template: Flag = false => enable_template: bool;

        /// Where saved VMs are: a directory of root's, best on a disk: copies have in common what they have not changed of their memory.
        /// In memory (a tmpfs), which may be too small for what they touch, each has its own.
        template_path: HostPath = "/var/cache/kata/template" => template_path: PathBuf;

        /// VMs that `kata-runtime factory init` keeps ready, copies where there is a template and booted where there is none. A
        /// sandbox takes one, and another one is made. 0: none.
        vm_cache_number: Number<0, 1000, u32> = 0 => vm_cache_number: u32;

        /// Socket of who keeps them. Its directory is root's alone.
        vm_cache_endpoint: HostPath = "/run/kata-cache/cache.sock" => vm_cache_endpoint: PathBuf;
    }
}

impl FactoryConfig {
    /// Whether virtual machines come from somewhere else than their kernel.
    pub fn is_on(&self) -> bool {
        self.enable_template || self.vm_cache_number > 0
    }
}
