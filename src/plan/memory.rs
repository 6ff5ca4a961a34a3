//! A pod's volumes of memory, which the guest makes of its own: `emptyDir` with a medium. Pure.
//!
//! Shared with the guest they would be slow, not count as the containers' memory, and cost the host's.

use std::path::{Component, Path};

use agent_protocol as p;
use oci_spec::runtime::LinuxHugepageLimit;

use crate::guest;
use crate::model::{Found, Medium};

/// The directory in which the kubelet keeps a pod's `emptyDir` volumes.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Whether the kubelet has made this directory for one pod, or something below it.
pub(super) fn is_of_a_pod(path: &Path) -> bool {
    path.components().any(is_empty_dir)
}

fn is_empty_dir(component: Component<'_>) -> bool {
    component == Component::Normal(EMPTY_DIR.as_ref())
}

/// The guest's own volume for what is found at a path, if it is a whole volume of memory. (A part of one, a `subPath`, is
/// shared as it is: the kubelet has made it on the host.) Where nothing `is_shared`, one of the host's disk is memory as well.
pub(super) fn volume(
    path: &Path,
    found: &Found,
    limits: &[LinuxHugepageLimit],
    is_shared: bool,
) -> Option<p::Storage> {
    if path
        .components()
        .rev()
        .nth(1)
        .is_none_or(|parent| !is_empty_dir(parent))
    {
        return None;
    }
    let (driver, mut options) = match found.medium {
        Medium::Disk if is_shared => return None,
        Medium::Disk => ("tmpfs", Vec::new()),
        Medium::Memory { limit: 0 } => ("tmpfs", Vec::new()),
        Medium::Memory { limit } => ("tmpfs", vec![format!("size={limit}")]),
        Medium::HugePages { size } => {
            let mut options = vec![format!("pagesize={size}")];
            options.extend(limit(limits, size).map(|limit| format!("size={limit}")));
            ("hugetlbfs", options)
        }
    };
    options.extend([
        format!("mode={:o}", found.mode),
        format!("uid={}", found.uid),
        format!("gid={}", found.gid),
    ]);
    Some(p::Storage {
        driver: driver.to_owned(),
        options,
        mount_point: guest::volume(found.identity.device, found.identity.inode),
        pod: true,
        ..Default::default()
    })
}

/// What a container may use of pages of this size, where it is limited at all.
fn limit(limits: &[LinuxHugepageLimit], size: u64) -> Option<u64> {
    let name = match size.trailing_zeros() {
        30.. => format!("{}GB", size >> 30),
        20.. => format!("{}MB", size >> 20),
        _ => format!("{}KB", size >> 10),
    };
    let limit = limits.iter().find(|limit| *limit.page_size() == name)?.limit();
    let limit = u64::try_from(limit).ok()?;
    // What the kernel has for "none" is rounded to pages.
    (limit > 0 && limit < 1 << 62).then_some(limit)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxHugepageLimitBuilder;

    use super::*;
    use crate::model::{FileKind, Identity};

    const VOLUME: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache";

    fn found(medium: Medium) -> Found {
        Found {
            identity: Identity {
                device: 0x2a,
                inode: 1,
                mounts: vec![7],
            },
            medium,
            mode: 0o2777,
            uid: 0,
            gid: 1234,
            kind: FileKind::Directory,
            block: None,
            direct: None,
        }
    }

    #[test]
    fn a_volume_of_memory_is_the_guests_own_and_any_other_is_the_hosts() {
        let memory = Medium::Memory { limit: 16 << 20 };
        let huge = Medium::HugePages { size: 2 << 20 };
        let table: [(&str, Medium, Option<&str>); 8] = [
            (
                VOLUME,
                memory,
                Some("tmpfs size=16777216 mode=2777 uid=0 gid=1234"),
            ),
            (
                VOLUME,
                Medium::Memory { limit: 0 },
                Some("tmpfs mode=2777 uid=0 gid=1234"),
            ),
            (
                VOLUME,
                huge,
                Some("hugetlbfs pagesize=2097152 size=4194304 mode=2777 uid=0 gid=1234"),
            ),
            (
                VOLUME,
                Medium::HugePages { size: 1 << 30 },
                Some("hugetlbfs pagesize=1073741824 mode=2777 uid=0 gid=1234"),
            ),
            (VOLUME, Medium::Disk, None),
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/cache/below",
                memory,
                None,
            ),
            (
                "/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/token",
                memory,
                None,
            ),
            ("/dev/shm", memory, None),
        ];
        let limit = LinuxHugepageLimitBuilder::default()
            .page_size("2MB")
            .limit(4 << 20)
            .build()
            .unwrap();
        for (path, medium, expected) in table {
            let volume = volume(
                Path::new(path),
                &found(medium),
                std::slice::from_ref(&limit),
                true,
            );
            let shown = volume
                .as_ref()
                .map(|volume| format!("{} {}", volume.driver, volume.options.join(" ")));
            assert_eq!(shown.as_deref(), expected, "{path} {medium:?}");
            assert!(volume.is_none_or(|volume| volume.pod && volume.mount_point == "/run/kata/volumes/2a-1"));
        }
        let own = volume(Path::new(VOLUME), &found(Medium::Disk), &[], false).unwrap();
        assert_eq!(
            own.options,
            ["mode=2777", "uid=0", "gid=1234"],
            "there is no other way"
        );
        assert!(own.pod);
    }
}
