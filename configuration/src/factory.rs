//! `[factory]`: virtual machines that are not booted but copied.

use std::path::PathBuf;

use crate::kinds::{Flag, HostPath};
use crate::settings::settings;

/// The dotted name of the table.
pub(crate) const TABLE: &str = "factory";

settings! {
    /// `[factory]`, validated.
    pub struct FactoryConfig() {
        /// Start sandboxes as copies of a VM that was booted once and saved by `kata-runtime factory init`. A sandbox for which
        /// none that fits was saved boots as usual. What copies have in common is not secret to them.
        enable_template: Flag = false => enable_template: bool;

        /// Where saved VMs are: a directory of root's, best in memory (a tmpfs).
        template_path: HostPath = "/run/kata-template" => template_path: PathBuf;
    }
}
