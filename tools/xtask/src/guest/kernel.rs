//! Where a guest's kernel comes from.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{debian, source};
use crate::Workspace;

/// The choice of a kernel, as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Debian's cloud kernel, with its modules.
    Debian,
    /// Debian's kernel source with our configuration.
    Source,
    /// A file of the user's.
    File(PathBuf),
}

/// A kernel that is there.
#[derive(Debug)]
pub struct Kernel {
    /// A vmlinux or a bzImage.
    pub image: PathBuf,
    /// Its directory of modules, with `modules.dep`; none: everything is built in.
    pub modules: Option<PathBuf>,
}

impl Choice {
    /// Reads `debian`, `source` or a path.
    ///
    /// # Errors
    /// The path leads nowhere.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "debian" => Ok(Self::Debian),
            "source" => Ok(Self::Source),
            path => Path::new(path)
                .canonicalize()
                .map(Self::File)
                .with_context(|| format!("{path:?} is neither `debian`, `source` nor the path of a kernel")),
        }
    }

    /// What [`Choice::parse`] reads.
    pub fn text(&self) -> String {
        match self {
            Self::Debian => "debian".into(),
            Self::Source => "source".into(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// Name of the directory of its image.
    pub fn directory(&self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Source => "source",
            Self::File(_) => "file",
        }
    }

    /// Downloads or compiles the kernel, if it is not there yet.
    ///
    /// # Errors
    /// It can't be had.
    pub fn provide(&self, workspace: &Workspace) -> Result<Kernel> {
        match self {
            Self::Debian => debian::cloud_kernel(workspace),
            Self::Source => source::build(workspace),
            Self::File(path) => Ok(Kernel {
                image: path.clone(),
                modules: None,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_reads_what_it_writes() {
        let file = Choice::File(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        for choice in [Choice::Debian, Choice::Source, file] {
            assert_eq!(Choice::parse(&choice.text()).unwrap(), choice);
        }
    }

    #[test]
    fn what_is_no_choice_is_named() {
        let error = Choice::parse("fedora").unwrap_err().to_string();
        assert!(error.contains("\"fedora\""), "{error}");
    }
}
