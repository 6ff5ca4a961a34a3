//! Configurations of a case's own, whose machines come from where those of the other cases do.
//!
//! Must not know what a case wants of them.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::Result;
use e2e::configuration::Configuration;
use e2e::factory;
use e2e::parts::Target;

use super::Case;

impl Case<'_> {
    /// Writes a configuration of this case's own. Machines of it come from where those of other cases do.
    pub fn configure(&self, name: &str, settings: Configuration) -> Result<Own> {
        let path = self.path(&format!("{name}.toml"));
        let kind = factory::wanted(None)?;
        let settings = match kind {
            Some(kind) => {
                let below = format!("{}-{name}", self.name);
                factory::configured_below(&self.bed.cell, settings, kind, &below)
            }
            None => settings,
        };
        settings.write(&path)?;
        if kind.is_some() {
            factory::prepare(self.target(), &path)?;
        }
        Ok(Own {
            target: self.target().clone(),
            path,
            kind,
        })
    }
}

/// The file of a configuration of a case's own. What was made for its machines is taken away with it.
pub struct Own {
    target: Target,
    path: PathBuf,
    kind: Option<factory::Kind>,
}

impl Own {
    /// Fails if no machine came from where it should, or one did not.
    pub fn finish(mut self) -> Result<()> {
        match self.kind.take() {
            Some(kind) => factory::finish(&self.target, &self.path, kind, 0),
            None => Ok(()),
        }
    }
}

impl Deref for Own {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // After a failure, whose reason is told already.
        if let Some(kind) = self.kind {
            let _ = factory::finish(&self.target, &self.path, kind, 0);
        }
    }
}
