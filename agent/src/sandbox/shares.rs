//! What containers use of the host's shares, and when the guest forgets it. Pure.
//!
//! Each directory right below a share is a mount of its own, of a container or of what several of them use. As long as the
//! kernel remembers anything in it, the host holds that open, and can neither unmount nor free it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

/// The shares, and what in them nobody uses any more.
#[derive(Debug, Default)]
pub struct Shares {
    roots: Vec<PathBuf>,
    unused: BTreeSet<PathBuf>,
}

impl Shares {
    /// The shares that are mounted at these paths.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            unused: BTreeSet::new(),
        }
    }

    /// Where they are mounted.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Notes that a container which used these directories is gone.
    pub fn left(&mut self, directories: BTreeSet<PathBuf>) {
        self.unused.extend(directories);
    }

    /// What was left by all, once. `used`: what containers use that are there.
    pub fn take_unused<'a>(&mut self, used: impl Iterator<Item = &'a BTreeSet<PathBuf>>) -> Vec<PathBuf> {
        let mut unused = std::mem::take(&mut self.unused);
        for used in used {
            unused.retain(|directory| !used.contains(directory));
        }
        unused.into_iter().collect()
    }
}

/// The directories right below these shares that a container uses.
pub fn used(roots: &[PathBuf], spec: &Spec) -> BTreeSet<PathBuf> {
    let sources = spec
        .mounts()
        .iter()
        .flatten()
        .filter_map(|mount| mount.source().as_deref());
    let root = spec.root().iter().map(|root| root.path().as_path());
    let directory = |path: &Path| {
        roots.iter().find_map(|root| {
            let below = path.strip_prefix(root).ok()?;
            Some(root.join(below.components().next()?))
        })
    };
    sources.chain(root).filter_map(directory).collect()
}

/// What a container mounts of these shares.
pub fn mounted(roots: &[PathBuf], spec: &Spec) -> Vec<PathBuf> {
    let sources = spec.mounts().iter().flatten();
    sources
        .filter_map(|mount| mount.source().clone())
        .filter(|source| roots.iter().any(|root| source.starts_with(root)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(paths: &[&str]) -> BTreeSet<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_container_uses_what_its_root_and_its_mounts_are_in() {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.1.0",
            "root": {"path": "/run/kata/shared/c.0/rootfs"},
            "mounts": [
                {"destination": "/a", "source": "/run/kata/shared/v3/data"},
                {"destination": "/b", "source": "/run/kata/shared/v3/data/below"},
                {"destination": "/c", "source": "/run/kata/shm"},
                {"destination": "/d", "source": "/run/kata/shared"},
                {"destination": "/proc", "source": "proc"},
            ],
        }))
        .unwrap();
        let roots = ["/run/kata/shared".into()];
        let expected = paths(&["/run/kata/shared/c.0", "/run/kata/shared/v3"]);
        assert_eq!(used(&roots, &spec), expected);
        assert_eq!(used(&[], &spec), paths(&[]));
        let mounted = mounted(&roots, &spec);
        assert_eq!(mounted.len(), 3, "{mounted:?}");
        assert!(
            mounted.iter().all(|path| path.starts_with("/run/kata/shared")),
            "{mounted:?}"
        );
    }

    #[test]
    fn what_is_left_is_forgotten_once_and_only_when_nobody_uses_it() {
        let mut shares = Shares::new(vec!["/s".into()]);
        shares.left(paths(&["/s/a", "/s/v"]));
        let other = paths(&["/s/b", "/s/v"]);
        assert_eq!(shares.take_unused([&other].into_iter()), [PathBuf::from("/s/a")]);
        assert!(shares.take_unused(std::iter::empty()).is_empty());
        shares.left(other);
        let unused: Vec<_> = ["/s/b", "/s/v"].map(PathBuf::from).into();
        assert_eq!(shares.take_unused(std::iter::empty()), unused);
    }
}
