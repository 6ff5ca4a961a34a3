//! Files and what is none, as disks. Block devices are in the end-to-end tests, which have loop devices.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::super::disk::{Content, open_all, recognise};
use super::files::ready;
use super::stand::Stand;
use crate::ContainerId;
use crate::aside::Site;
use crate::error::ErrorKind;
use crate::model::{DiskFs, DiskPlan, DiskSource, DisksPlan};
use crate::sandbox::{Ground, RootfsMount, ToAdd};

/// The beginning of a file system, as it is recognised.
fn ext4() -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
    bytes
}

#[test]
fn the_beginning_of_a_disk_tells_what_is_on_it() {
    let at = |at: usize, magic: &[u8]| {
        let mut bytes = vec![0; 2048];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    };
    for (bytes, expected) in [
        (Vec::new(), Content::Unknown),
        (vec![0; 2048], Content::Unknown),
        (vec![0xff; 1025], Content::Unknown),
        (ext4(), Content::FileSystem(DiskFs::Ext4)),
        (at(0, b"XFSB"), Content::FileSystem(DiskFs::Xfs)),
        (
            at(1024, &0xe0f5_e1e2_u32.to_le_bytes()),
            Content::FileSystem(DiskFs::Erofs),
        ),
        (at(0, b"QFI\xfb\0\0\0\x02"), Content::Image("qcow2")),
        (at(0, b"KDMV"), Content::Image("VMDK")),
        (at(0, b"LUKS\xba\xbe"), Content::Image("LUKS")),
    ] {
        assert_eq!(recognise(&bytes), expected);
    }
    let mut both = ext4();
    both[..4].copy_from_slice(b"QFI\xfb");
    assert_eq!(
        recognise(&both),
        Content::Image("qcow2"),
        "whoever sees one may not see the other"
    );
}

fn plan(source: DiskSource, readonly: bool) -> DiskPlan {
    DiskPlan {
        id: "c0d0".into(),
        source,
        readonly,
        fs_type: Some(DiskFs::Ext4),
        volumes: Vec::new(),
    }
}

#[test]
fn a_file_has_one_writer_or_several_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, ext4()).unwrap();
    let open = |readonly| {
        open_all(
            &[plan(DiskSource::File(path.clone()), readonly)],
            &Site::default(),
        )
        .map(|disks| disks[0].clone())
    };
    let readers = [open(true).unwrap(), open(true).unwrap()];
    assert!(readers.iter().all(|disk| disk.readonly));
    let flags = rustix::fs::fcntl_getfl(&readers[0].file).unwrap();
    assert_eq!(flags & rustix::fs::OFlags::RWMODE, rustix::fs::OFlags::RDONLY);
    assert_eq!(open(false).unwrap_err().kind, ErrorKind::FailedPrecondition);
    drop(readers);
    let writer = open(false).unwrap();
    // A duplicate, as a virtual machine monitor has one.
    let held = writer.file.try_clone().unwrap();
    drop(writer);
    assert!(open(true).unwrap_err().context.contains("in use"));
    assert!(open(false).is_err());
    drop(held);
    open(false).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), ext4()).unwrap();
    fs::write(path("blank"), [0; 8192]).unwrap();
    File::create(path("empty")).unwrap();
    symlink("file", path("link")).unwrap();
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    fifo.unwrap();
    type Kind = fn(PathBuf) -> DiskSource;
    let table: [(Kind, PathBuf, &str); 11] = [
        (
            DiskSource::Device,
            path("file"),
            "it is a file, and a block device is needed",
        ),
        (DiskSource::Device, path("link"), "it is a link"),
        (DiskSource::File, path("link"), "it is a link"),
        (DiskSource::Device, dir.path().to_owned(), "it is a directory"),
        (DiskSource::File, dir.path().to_owned(), "it is a directory"),
        (
            DiskSource::DeviceOrFile,
            path("fifo"),
            "neither a block device nor a file",
        ),
        (
            DiskSource::DeviceOrFile,
            "/dev/null".into(),
            "neither a block device nor a file",
        ),
        (DiskSource::File, path("empty"), "0 bytes"),
        (DiskSource::File, path("blank"), "no ext4 file system"),
        (DiskSource::File, path("missing"), "No such file"),
        (DiskSource::Device, "/dev/../etc/passwd".into(), "cross-device"),
    ];
    for (kind, path, reason) in table {
        let source = kind(path);
        let error = open_all(&[plan(source.clone(), true)], &Site::default()).unwrap_err();
        assert!(error.context.contains(reason), "{source:?}: {error}");
        assert!(error.context.contains(&source.to_string()), "{source:?}: {error}");
    }
    let nobody = DiskSource::Numbers(4000, 7);
    let error = open_all(&[plan(nobody, true)], &Site::default()).unwrap_err();
    assert!(
        error.context.contains("4000:7") && error.context.contains("no such device"),
        "{error}"
    );
}

#[tokio::test]
async fn a_container_whose_root_is_a_disk_has_it_open_and_leaves_nothing_at_any_step() {
    let stand = Stand::new();
    let bundle = stand.path("bundle");
    fs::create_dir(&bundle).unwrap();
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
        "linux": {},
    });
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let file = stand.path("disk");
    fs::write(&file, ext4()).unwrap();
    let wanted = || ToAdd {
        id: ContainerId::new("c").unwrap(),
        bundle: bundle.clone(),
        rootfs: vec![RootfsMount {
            fs_type: "ext4".into(),
            source: file.display().to_string(),
            options: vec!["loop".into()],
        }],
    };
    let (mut host, _shared) = ready(&stand).await;
    let mut planned = (*host.plan).clone();
    planned.disks = DisksPlan::Plugged;
    host.plan = std::sync::Arc::new(planned);
    let mut steps = 0;
    let added = loop {
        host.steps.limit(Some(steps));
        match host.add(wanted()).await {
            Ok(added) => break added,
            Err(error) => assert!(
                error.chain().contains("a test wants this step to fail"),
                "{}",
                error.chain()
            ),
        }
        steps += 1;
        assert!(steps < 50);
    };
    assert!(steps > 2);
    host.steps.limit(None);
    assert_eq!(added.disks.len(), 1);
    let name = &added.disks[0].id;
    assert_eq!(added.guest.storages[0].source, format!("serial:{name}"));
    let error = host.add(wanted()).await.expect_err("it is in use");
    assert!(error.chain().contains("in use"), "{}", error.chain());
    drop(added);
    host.remove(&ContainerId::new("c").unwrap()).await.unwrap();
    host.release().await.unwrap();
    stand.assert_clean();
}
