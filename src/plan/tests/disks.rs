//! Which block devices become disks, and what the guest is told of them.

use std::collections::BTreeMap;

use super::super::*;
use super::*;
use crate::model::{
    DirectVolume, DiskFs, DiskPlan, DiskSource, DisksPlan, FileKind, Found, Identity, Medium, RootPlan,
};
use crate::sandbox::RootfsMount;

/// Plans a container in a virtual machine that has disks like this.
pub(super) fn with(how: DisksPlan, container: &ContainerConfig) -> Result<(ContainerPlan, Value)> {
    let mut sandbox = sandbox_plan();
    sandbox.disks = how;
    let plan = super::super::container(&config(), &sandbox, container, &Volumes::default())?;
    let guest = serde_json::from_slice(&plan.guest.spec).unwrap();
    Ok((plan, guest))
}

fn rootfs(fs_type: &str, source: &str, options: &[&str]) -> ContainerConfig {
    let mut container = container_of(spec(&[]));
    container.number = 7;
    container.rootfs = vec![RootfsMount {
        fs_type: fs_type.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(ToString::to_string).collect(),
    }];
    container
}

#[test]
fn a_hypervisor_that_can_is_given_disks_unless_the_administrator_does_not_want_it() {
    let can = abilities();
    let cannot = Capabilities {
        hotplug: false,
        block_hotplug: false,
        ..abilities()
    };
    let placeholders = Capabilities {
        hotplug: false,
        ..abilities()
    };
    for (abilities, disabled, expected) in [
        (&can, false, DisksPlan::Plugged),
        (&can, true, DisksPlan::Mounted),
        (&placeholders, false, DisksPlan::Plugged),
        (&cannot, false, DisksPlan::Impossible),
        (&cannot, true, DisksPlan::Mounted),
        (&of_process(), false, DisksPlan::Mounted),
    ] {
        let mut config = config();
        config.hypervisor.disable_block_device_use = disabled;
        let spec = oci::load(CALLERS[0].1.as_bytes()).unwrap();
        let plan = super::super::sandbox(&config, &sandbox_of(&spec), abilities, &all).unwrap();
        assert_eq!(plan.disks, expected, "{abilities:?} {disabled}");
    }
}

#[test]
fn a_root_on_a_block_device_is_mounted_by_the_guest() {
    let device = || DiskSource::Device("/dev/mapper/snap-1".into());
    // Type and options; then the disk, and the guest's options.
    type Row<'a> = (&'a str, &'a [&'a str], DiskSource, bool, &'a [&'a str]);
    let table: [Row<'_>; 9] = [
        ("ext4", &[], device(), false, &["errors=remount-ro"]),
        (
            "ext4",
            &["rw", "noatime,data=ordered"],
            device(),
            false,
            &["noatime", "data=ordered", "errors=remount-ro"],
        ),
        (
            "ext4",
            &["errors=continue"],
            device(),
            false,
            &["errors=continue"],
        ),
        (
            "ext4",
            &["ro", "x-systemd.automount", "nofail"],
            device(),
            true,
            &["ro", "errors=remount-ro"],
        ),
        (
            "ext4",
            &["noatime,ro"],
            device(),
            true,
            &["noatime", "ro", "errors=remount-ro"],
        ),
        ("xfs", &["nouuid"], device(), false, &["nouuid"]),
        ("erofs", &[], device(), true, &["ro"]),
        (
            "ext4",
            &["loop"],
            DiskSource::File("/dev/mapper/snap-1".into()),
            false,
            &["errors=remount-ro"],
        ),
        (
            "erofs",
            &["ro", "loop"],
            DiskSource::File("/dev/mapper/snap-1".into()),
            true,
            &["ro"],
        ),
    ];
    for (fs_type, options, source, readonly, told) in table {
        let container = rootfs(fs_type, "/dev/mapper/snap-1", options);
        let (plan, guest) = with(DisksPlan::Plugged, &container).unwrap();
        let what = format!("{fs_type} {options:?}");
        assert_eq!(plan.root, RootPlan::Disk, "{what}");
        let disk = DiskPlan {
            id: "c7d0".to_owned(),
            source,
            readonly,
            fs_type: DiskFs::named(fs_type),
            volumes: Vec::new(),
        };
        assert_eq!(plan.disks, [disk], "{what}");
        let [storage] = plan.guest.storages.as_slice() else {
            panic!("{what}: {:?}", plan.guest.storages);
        };
        assert_eq!(
            (storage.driver.as_str(), storage.source.as_str()),
            ("block", "serial:c7d0")
        );
        assert_eq!(
            (storage.fstype.as_str(), &storage.options[..]),
            (
                fs_type,
                &told.iter().map(ToString::to_string).collect::<Vec<_>>()[..]
            ),
            "{what}"
        );
        assert_eq!(guest["root"]["path"], storage.mount_point.as_str());
        assert_eq!(storage.mount_point, "/run/kata/disks/c7d0");
    }
}

#[test]
fn what_is_no_block_device_by_its_name_is_never_one() {
    // A layerless image's directory, an overlay, a file system that several share: the host's to mount, and to share.
    for (fs_type, source, options) in [
        ("bind", "/var/lib/snapshots/1/fs", &["rbind", "rw"][..]),
        ("bind", "/dev/sda", &["rbind"]),
        ("ext4", "/var/lib/snapshots/1/fs", &["rbind"]),
        ("overlay", "overlay", &["lowerdir=/a"]),
        ("btrfs", "/dev/sda", &["subvol=1"]),
    ] {
        let container = rootfs(fs_type, source, options);
        for how in [DisksPlan::Plugged, DisksPlan::Mounted, DisksPlan::Impossible] {
            let (plan, _) = with(how, &container).unwrap();
            assert_eq!(
                plan.root,
                RootPlan::Mounts(container.rootfs.clone()),
                "{fs_type} {source}"
            );
            assert!(
                plan.disks.is_empty() && plan.guest.storages.is_empty(),
                "{fs_type} {source}"
            );
        }
    }
    let ext4 = rootfs("ext4", "/dev/sda", &[]);
    let (plan, _) = with(DisksPlan::Mounted, &ext4).unwrap();
    assert_eq!(
        plan.root,
        RootPlan::Mounts(ext4.rootfs.clone()),
        "the administrator wants it so"
    );
    let error = with(DisksPlan::Impossible, &ext4).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(
        error.context.contains("q35") && error.context.contains("disable_block_device_use"),
        "{error}"
    );
}

#[test]
fn a_block_device_with_something_over_it_is_refused_whichever_it_is() {
    let mount = |fs_type: &str, options: &[&str]| RootfsMount {
        fs_type: fs_type.to_owned(),
        source: "/layer".to_owned(),
        options: options.iter().map(ToString::to_string).collect(),
    };
    let layer = || mount("erofs", &["ro", "loop"]);
    let overlay = || mount("overlay", &["lowerdir=/a:/b"]);
    let mut container = rootfs("erofs", "/layer", &[]);
    for stack in [
        vec![layer(), overlay()],
        vec![overlay(), mount("ext4", &["rw"])],
        vec![layer(), layer(), overlay()],
    ] {
        container.rootfs = stack;
        for how in [DisksPlan::Plugged, DisksPlan::Impossible] {
            let error = with(how, &container).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
            let text = &error.context;
            assert!(
                text.contains("is made of")
                    && text.contains("such as devmapper")
                    && text.contains("overlayfs"),
                "{text}"
            );
        }
        let (plan, _) = with(DisksPlan::Mounted, &container).unwrap();
        assert_eq!(
            plan.root,
            RootPlan::Mounts(container.rootfs.clone()),
            "the host mounts all of it"
        );
    }
    // Directories over directories are the host's to mount.
    container.rootfs = vec![overlay(), mount("bind", &["rbind"]), mount("ext4", &["bind"])];
    let (plan, _) = with(DisksPlan::Plugged, &container).unwrap();
    assert_eq!(plan.root, RootPlan::Mounts(container.rootfs.clone()));
}

#[test]
fn a_file_system_on_two_devices_is_refused() {
    for (fs_type, option) in [
        ("erofs", "device=/layers/2"),
        ("ext4", "journal_path=/dev/sdb"),
        ("ext4", "journal_dev=2065"),
        ("xfs", "logdev=/dev/sdb"),
        ("xfs", "rtdev=/dev/sdb"),
    ] {
        let container = rootfs(fs_type, "/dev/sda", &["rw", &format!("noatime,{option}")]);
        let error = with(DisksPlan::Plugged, &container).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(
            error.context.contains(option) && error.context.contains("more than one block device"),
            "{error}"
        );
    }
    with(DisksPlan::Plugged, &rootfs("xfs", "/dev/sda", &["logbufs=8"])).unwrap();
}

#[test]
fn a_block_device_of_a_container_becomes_one_of_the_guests() {
    let disk = json!({"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16, "fileMode": 0o640, "uid": 3, "gid": 4});
    let rules = |access: &str| {
        json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 16, "access": access},
        ])
    };
    for (access, told, readonly) in [("rwm", "rwm", false), ("mr", "rm", true), ("w", "w", false)] {
        let container = container_of(spec(&[
            ("/linux/devices", json!([disk])),
            ("/linux/resources/devices", rules(access)),
        ]));
        let (plan, guest) = with(DisksPlan::Plugged, &container).unwrap();
        let expected = DiskPlan {
            id: "c0d0".to_owned(),
            source: DiskSource::Numbers(8, 16),
            readonly,
            fs_type: None,
            volumes: Vec::new(),
        };
        assert_eq!(plan.disks, [expected], "{access}");
        let [device] = plan.guest.devices.as_slice() else {
            panic!("{:?}", plan.guest.devices);
        };
        assert_eq!(
            (
                device.source.as_str(),
                device.path.as_str(),
                device.access.as_str()
            ),
            ("serial:c0d0", "/dev/xvda", told)
        );
        let node = &guest["linux"]["devices"][0];
        assert_eq!(
            (&node["path"], &node["major"], &node["minor"]),
            (&json!("/dev/xvda"), &json!(0), &json!(0))
        );
        assert_eq!(
            (&node["fileMode"], &node["uid"], &node["gid"]),
            (&json!(0o640), &json!(3), &json!(4))
        );
        let kept = guest["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(kept.len(), 1, "no rule names the host's numbers");
    }
    let container = container_of(spec(&[("/linux/devices", json!([disk]))]));
    for how in [DisksPlan::Mounted, DisksPlan::Impossible] {
        let error = with(how, &container).unwrap_err();
        assert!(
            error.context.contains("linux.devices[0]") && error.context.contains("8:16"),
            "{error}"
        );
    }
}

/// In their order, and whether they name the device by its numbers or with many others.
#[test]
fn rules_decide_what_a_container_may_do_with_a_block_device() {
    let disk = json!({"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16});
    let deny_all = json!({"allow": false, "access": "rwm"});
    let exact = |allow: bool, access: &str| json!({"allow": allow, "type": "b", "major": 8, "minor": 16, "access": access});
    for (rules, expected) in [
        (json!([]), Some("rwm")),
        (
            json!([{"allow": true, "type": "b", "major": 8, "access": "r"}]),
            Some("r"),
        ),
        (
            json!([deny_all, {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "r"}]),
            Some("r"),
        ),
        (
            json!([deny_all, {"allow": true, "type": "b", "access": "rm"}]),
            Some("rm"),
        ),
        (
            json!([deny_all, {"allow": true, "type": "a", "major": 8, "minor": 16}]),
            Some("rwm"),
        ),
        (json!([exact(true, "rwm"), exact(false, "w")]), Some("rm")),
        (json!([exact(false, "w"), exact(true, "rwm")]), Some("rwm")),
        (json!([deny_all, exact(true, "r"), exact(true, "w")]), Some("rw")),
        (json!([deny_all]), None),
        (json!([exact(true, "rwm"), deny_all]), None),
        (
            json!([deny_all, {"allow": true, "type": "c", "major": 8, "minor": 16}]),
            None,
        ),
        (
            json!([deny_all, {"allow": true, "type": "b", "major": 8, "minor": 17}]),
            None,
        ),
        (
            json!([deny_all, {"allow": true, "type": "b", "major": 9, "minor": 16}]),
            None,
        ),
        (json!([exact(true, "x")]), None),
    ] {
        let container = container_of(spec(&[
            ("/linux/devices", json!([disk])),
            ("/linux/resources/devices", rules.clone()),
        ]));
        let planned = with(DisksPlan::Plugged, &container);
        match (planned, expected) {
            (Ok((plan, _)), Some(expected)) => {
                assert_eq!(plan.guest.devices[0].access, expected, "{rules}");
                assert_eq!(plan.disks[0].readonly, !expected.contains('w'), "{rules}");
            }
            (Err(error), None) => assert!(
                error.context.contains("linux.devices[0]") && error.context.contains("8:16"),
                "{rules}: {error}"
            ),
            (planned, expected) => panic!("{rules}: {planned:?}, not {expected:?}"),
        }
    }
}

pub(super) fn found(block: Option<(u32, u32)>, direct: Option<DirectVolume>) -> Found {
    Found {
        identity: Identity {
            device: 1,
            inode: 2,
            mounts: vec![3],
        },
        medium: Medium::Disk,
        mode: 0o600,
        uid: 0,
        gid: 6,
        kind: match block {
            Some(_) => FileKind::Other,
            None => FileKind::Directory,
        },
        block,
        direct,
    }
}

pub(super) fn mounting(source: &str, options: &[&str], found: Found) -> ContainerConfig {
    let mount = json!({"destination": "/dev/data", "type": "bind", "source": source, "options": options});
    let mut container = container_of(spec(&[("/mounts", json!([mount]))]));
    container.found = BTreeMap::from([(source.into(), found)]);
    container
}

#[test]
fn a_bind_of_a_block_device_is_a_device() {
    for source in ["/dev/loop3", "/var/lib/kubelet/volumeDevices/pvc"] {
        let container = mounting(source, &["rbind", "ro"], found(Some((7, 3)), None));
        let (plan, guest) = with(DisksPlan::Plugged, &container).unwrap();
        assert!(
            plan.binds.is_empty() && guest["mounts"].as_array().is_none_or(Vec::is_empty),
            "{guest}"
        );
        assert_eq!(
            (&plan.disks[0].source, plan.disks[0].readonly),
            (&DiskSource::Numbers(7, 3), true)
        );
        assert_eq!(plan.guest.devices[0].access, "rm");
        let node = &guest["linux"]["devices"][0];
        assert_eq!((&node["path"], &node["gid"]), (&json!("/dev/data"), &json!(6)));
        let error = with(DisksPlan::Impossible, &container).unwrap_err();
        assert!(
            error.context.contains("mounts[0].source") && error.context.contains(source),
            "{error}"
        );
    }
    let looked_for = super::super::sources(&mounting("/dev/loop3", &["bind"], found(None, None))).unwrap();
    assert_eq!(looked_for, [PathBuf::from("/dev/loop3")]);
    let looked_for = super::super::sources(&mounting("/dev/shm", &["bind"], found(None, None))).unwrap();
    assert_eq!(looked_for, Vec::<PathBuf>::new());
}

fn direct(volume_type: &str, fs_type: &str, options: &[&str]) -> DirectVolume {
    DirectVolume {
        volume_type: volume_type.to_owned(),
        device: "/dev/sdx".into(),
        fs_type: fs_type.to_owned(),
        options: options.iter().map(ToString::to_string).collect(),
        metadata: BTreeMap::new(),
    }
}

#[test]
fn a_direct_volume_is_mounted_by_the_guest_where_the_container_wants_it() {
    // Options of the volume and of the mount; whether nobody writes.
    for (of_volume, of_mount, readonly) in [
        (&[][..], &["rbind"][..], false),
        (&["ro"], &["rbind"], true),
        (&[], &["rbind", "ro"], true),
    ] {
        let volume = direct("block", "xfs", of_volume);
        let container = mounting("/var/lib/kubelet/vol", of_mount, found(None, Some(volume)));
        let (plan, guest) = with(DisksPlan::Plugged, &container).unwrap();
        let disk = DiskPlan {
            id: "c0d0".to_owned(),
            source: DiskSource::DeviceOrFile("/dev/sdx".into()),
            readonly,
            fs_type: Some(DiskFs::Xfs),
            volumes: vec!["/var/lib/kubelet/vol".into()],
        };
        assert_eq!(plan.disks, [disk], "{of_volume:?} {of_mount:?}");
        assert!(plan.binds.is_empty());
        assert_eq!(
            guest["mounts"][0]["source"],
            plan.guest.storages[0].mount_point.as_str()
        );
        assert_eq!(guest["mounts"][0]["destination"], "/dev/data");
    }
}

#[test]
fn a_direct_volume_at_two_places_is_mounted_once_and_for_writing_if_anybody_writes() {
    for (first, second, readonly) in [
        (&["rbind", "ro"][..], &["rbind"][..], false),
        (&["rbind"], &["rbind", "ro"], false),
        (&["rbind", "ro"], &["rbind", "ro"], true),
    ] {
        let volume = direct("block", "xfs", &[]);
        let mut container = mounting("/var/lib/kubelet/vol", first, found(None, Some(volume)));
        let mut mounts = container.spec.mounts().clone().unwrap();
        let mut again = mounts[0].clone();
        again.set_destination("/again".into());
        again.set_options(Some(second.iter().map(|option| (*option).to_owned()).collect()));
        mounts.push(again);
        container.spec.set_mounts(Some(mounts));
        let (plan, guest) = with(DisksPlan::Plugged, &container).unwrap();
        let [storage] = plan.guest.storages.as_slice() else {
            panic!("mounted once: {:?}", plan.guest.storages);
        };
        let is_readonly = storage.options.iter().any(|option| option == "ro");
        assert_eq!(
            (is_readonly, plan.disks[0].readonly),
            (readonly, readonly),
            "{first:?} {second:?}"
        );
        for (mount, asked) in guest["mounts"].as_array().unwrap().iter().zip([first, second]) {
            let options = mount["options"].as_array().unwrap();
            assert_eq!(options.iter().any(|option| option == "ro"), asked.contains(&"ro"));
        }
    }
}

#[test]
fn a_direct_volume_that_cannot_be_had_is_refused_with_what_can() {
    let with_key = DirectVolume {
        metadata: BTreeMap::from([("encryptionKey".to_owned(), "x".to_owned())]),
        ..direct("block", "ext4", &[])
    };
    for (volume, how, reason) in [
        (direct("spdkvol", "ext4", &[]), DisksPlan::Plugged, "spdkvol"),
        (
            direct("block", "btrfs", &[]),
            DisksPlan::Plugged,
            "ext4, xfs, erofs",
        ),
        (with_key, DisksPlan::Plugged, "encryptionKey"),
        (
            direct("block", "xfs", &["logdev=/dev/sdy"]),
            DisksPlan::Plugged,
            "logdev=/dev/sdy",
        ),
        (
            direct("block", "ext4", &[]),
            DisksPlan::Mounted,
            "disable_block_device_use",
        ),
        (direct("block", "ext4", &[]), DisksPlan::Impossible, "q35"),
    ] {
        let container = mounting("/vol", &["bind"], found(None, Some(volume)));
        let error = with(how, &container).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(
            error.context.contains("mounts[0]") && error.context.contains(reason),
            "{error}"
        );
    }
}
