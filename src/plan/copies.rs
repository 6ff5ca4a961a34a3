//! Files of the host that a container has a copy of, where nothing is shared with its guest. Pure.
//!
//! A copy is of the moment: what is written on one side the other does not see. So a copy stands for what is only read; for
//! anything else there is no substitute, and the container is refused.

use std::path::Path;

use super::unsupported;
use crate::error::{Error, Result};
use crate::guest;
use crate::model::{ContainerConfig, CopyPlan, FileKind};

/// What engines mount for every container, writable because the root is: the container's own view is all that matters. (What a
/// container leaves in its termination log, Kubernetes does not find.)
const OF_THE_ENGINE: [&str; 6] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/run/.containerenv",
    "/var/run/.containerenv",
    "/dev/termination-log",
];

/// What there is to do instead.
const INSTEAD: &str =
    "use a hypervisor with shared_fs = \"virtio-fs\" (hypervisor_name = \"qemu\" or \"clh\")";

/// A mount.
pub(super) struct Wanted<'a> {
    /// Its number in the specification.
    pub(super) index: usize,
    /// Absolute path on the host.
    pub(super) source: &'a Path,
    /// Absolute path in the container.
    pub(super) destination: &'a Path,
    pub(super) readonly: bool,
    pub(super) recursive: bool,
}

/// The copy for a mount, of a container that has `others` so far.
///
/// # Errors
/// It would be written to, or is nothing that can be copied.
pub(super) fn plan(wanted: &Wanted<'_>, container: &ContainerConfig, others: usize) -> Result<CopyPlan> {
    let Wanted { index, source, .. } = *wanted;
    // Of what could not be looked at, the reason is told by whoever reads it.
    let kind = container
        .found
        .get(source)
        .map_or(FileKind::File, |found| found.kind);
    let is_of_the_engine = || {
        OF_THE_ENGINE
            .iter()
            .any(|path| wanted.destination == Path::new(path))
    };
    let refused = |what: &str| -> Error {
        unsupported(
            format_args!("mounts[{index}].source"),
            format_args!(
                "{} is {what}, and nothing of the host is shared with this guest (shared_fs = \"none\"), which has copies only; \
                 mount a file or directory read-only, or {INSTEAD}",
                source.display()
            ),
        )
    };
    match kind {
        FileKind::Other => return Err(refused("no file or directory")),
        FileKind::Directory if !wanted.readonly => {
            return Err(refused("a directory that the container may write to"));
        }
        FileKind::File if !wanted.readonly && !is_of_the_engine() => {
            return Err(refused("a file that the container may write to"));
        }
        FileKind::File | FileKind::Directory => {}
    }
    Ok(CopyPlan {
        index,
        source: source.to_owned(),
        is_directory: kind == FileKind::Directory,
        recursive: wanted.recursive,
        mount_point: guest::copies(&format!("c{}m{others}", container.number)),
    })
}

/// A root file system of the host's cannot be copied.
pub(super) fn no_root(container: &ContainerConfig) -> Error {
    unsupported(
        "root",
        format_args!(
            "the root file system of container {} is no block device, and nothing of the host is shared with this guest \
             (shared_fs = \"none\"); use a snapshotter that gives block devices (devmapper, blockfile), or {INSTEAD}",
            container.id
        ),
    )
}
