//! A guest with which nothing is shared: roots on block devices, copies of what is only read, and every refusal.

use std::collections::BTreeMap;

use super::super::*;
use super::*;
use crate::model::{DisksPlan, FileKind, Found, Identity, Medium, RootPlan};
use crate::sandbox::RootfsMount;

/// A Firecracker's.
fn firecracker() -> Capabilities {
    Capabilities {
        vsock_kernel: false,
        vhost_user: false,
        vsock_hybrid: true,
        serial_port: false,
        fs_sharing: false,
        hotplug: false,
        multiqueue: false,
        ..abilities()
    }
}

fn alone() -> SandboxPlan {
    let mut config = config();
    config.hypervisor.shared_fs = SharedFs::None;
    let spec = oci::load(CALLERS[0].1.as_bytes()).unwrap();
    sandbox(&config, &sandbox_of(&spec), &firecracker(), &|_| false).unwrap()
}

/// A container whose root is a block device, with one bind mount.
fn mounting(destination: &str, source: &str, option: &str, kind: FileKind) -> ContainerConfig {
    let mount =
        json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", option]});
    let mut container = container_of(spec(&[("/mounts", json!([mount]))]));
    container.number = 4;
    container.rootfs = vec![RootfsMount {
        fs_type: "ext4".into(),
        source: "/dev/dm-7".into(),
        options: Vec::new(),
    }];
    let found = Found {
        identity: Identity {
            device: 1,
            inode: 2,
            mounts: vec![3],
        },
        medium: Medium::Disk,
        mode: 0o777,
        uid: 0,
        gid: 0,
        kind,
        block: None,
        direct: None,
    };
    container.found = BTreeMap::from([(source.into(), found)]);
    container
}

fn plan(container: &ContainerConfig) -> Result<ContainerPlan> {
    super::super::container(&config(), &alone(), container, &Volumes::default())
}

#[test]
fn a_sandbox_without_a_share_needs_no_daemon_and_mounts_nothing() {
    let plan = alone();
    assert_eq!(
        (&plan.share, plan.disks),
        (&SharePlan::Nothing, DisksPlan::Plugged)
    );
    assert_eq!(plan.memory.backing, MemoryBacking::Private);
    assert_eq!(plan.channel, ChannelPlan::HybridVsock);
    assert!(plan.guest.storages.is_empty());
}

#[test]
fn what_is_only_read_is_copied() {
    const SECRET: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/token";
    for (destination, source, option, kind) in [
        ("/secret", SECRET, "ro", FileKind::Directory),
        ("/etc/app.conf", "/srv/app.conf", "ro", FileKind::File),
        (
            "/etc/hosts",
            "/var/lib/kubelet/pods/u/etc-hosts",
            "rw",
            FileKind::File,
        ),
        (
            "/etc/resolv.conf",
            "/run/engine/resolv.conf",
            "rw",
            FileKind::File,
        ),
        (
            "/dev/termination-log",
            "/var/lib/kubelet/pods/u/c/1",
            "rw",
            FileKind::File,
        ),
    ] {
        let container = mounting(destination, source, option, kind);
        let plan = plan(&container).unwrap();
        assert_eq!(plan.root, RootPlan::Disk);
        assert!(plan.binds.is_empty(), "{destination}");
        let [copy] = plan.copies.as_slice() else {
            panic!("{destination}: {:?}", plan.copies);
        };
        assert_eq!(
            (&*copy.source, copy.is_directory, copy.recursive),
            (Path::new(source), kind == FileKind::Directory, true)
        );
        let storage = plan.guest.storages.last().unwrap();
        assert_eq!(
            (storage.driver.as_str(), storage.mount_point.as_str()),
            ("copy", "/run/kata/copies/c4m0")
        );
        assert_eq!(copy.mount_point, storage.mount_point);
        let guest: Value = serde_json::from_slice(&plan.guest.spec).unwrap();
        assert_eq!(guest["mounts"][0]["source"], "/run/kata/copies/c4m0/data");
        assert_eq!(guest["mounts"][0]["destination"], destination);
    }
}

#[test]
fn a_pods_own_directory_is_the_guests_memory() {
    const EMPTY: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/scratch";
    let plan = plan(&mounting("/scratch", EMPTY, "rw", FileKind::Directory)).unwrap();
    assert!(plan.copies.is_empty());
    let storage = plan.guest.storages.last().unwrap();
    assert_eq!((storage.driver.as_str(), storage.pod), ("tmpfs", true));
}

/// Each in one sentence that names the mount and what else there is to do.
#[test]
fn what_would_be_written_to_is_refused_with_the_alternative() {
    let no_root = container_of(spec(&[]));
    let mut overlay = no_root.clone();
    overlay.rootfs = vec![RootfsMount {
        fs_type: "overlay".into(),
        source: "overlay".into(),
        options: vec!["lowerdir=/a".into()],
    }];
    let mut layerless = no_root.clone();
    layerless.rootfs = vec![RootfsMount {
        fs_type: "bind".into(),
        source: "/var/lib/snapshots/1/fs".into(),
        options: vec!["rbind".into()],
    }];
    for (container, words) in [
        (layerless, "is no block device"),
        (
            no_root,
            "root: the root file system of container c1 is no block device",
        ),
        (overlay, "use a snapshotter that gives block devices"),
        (
            mounting("/d", "/srv/d", "rw", FileKind::Directory),
            "mounts[0].source: /srv/d is a directory that the container may write to",
        ),
        (
            mounting("/log", "/srv/log", "rw", FileKind::File),
            "/srv/log is a file that the container may write to",
        ),
        (
            mounting("/run/engine.sock", "/run/engine.sock", "ro", FileKind::Other),
            "/run/engine.sock is no file or directory",
        ),
        (
            mounting("/etc/hosts", "/srv/hosts", "rw", FileKind::Directory),
            "a directory that the container may write to",
        ),
    ] {
        let error = plan(&container).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(
            error.context.contains(words) && error.context.contains("hypervisor_name = \"qemu\" or \"clh\""),
            "{}",
            error.context
        );
    }
}
