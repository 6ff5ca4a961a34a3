//! Where things are: every path below the workspace that more than one subcommand knows.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::program::Program;

/// The workspace on disk.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace that this program was built from.
    pub fn here() -> Self {
        // Two levels above this crate. Cargo gives the variable to `cargo run` at run time as well, but not to others.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
        Self {
            root: root.unwrap_or(Path::new(".")).to_owned(),
        }
    }

    /// The repository's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that is built.
    pub fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// The guest's kernel and initramfs: `vmlinux`, `initrd.img`, `manifest.json`.
    pub fn guest(&self) -> PathBuf {
        self.target().join("guest")
    }

    /// What the guest is made of: module list, kernel configuration.
    pub fn recipes(&self) -> PathBuf {
        self.root.join("tools/guest")
    }

    /// Programs that `cargo xtask deps` installs with cargo.
    pub fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }
    /// Builds the programs that users run.
    ///
    /// # Errors
    /// The compiler's.
    pub fn build_programs(&self) -> Result<()> {
        Program::cargo()
            .args([
                "build",
                "--release",
                "--package",
                "shim",
                "--package",
                "kata-runtime",
            ])
            .dir(self.root())
            .run()
    }
}
