//! Containers' files in the share, seen from where they are served.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::stand::{Stand, busybox, container};
use crate::ContainerId;
use crate::error::ErrorKind;
use crate::model::{BindPlan, RootPlan};
use crate::sandbox::{Ground, RootfsMount};

fn overlay(options: Vec<String>) -> RootfsMount {
    RootfsMount {
        fs_type: "overlay".into(),
        source: "overlay".into(),
        options,
    }
}

fn bind(name: &str, source: PathBuf, readonly: bool) -> BindPlan {
    BindPlan {
        name: name.into(),
        source,
        readonly,
        recursive: true,
        identity: None,
    }
}

fn read_only(path: &Path) -> bool {
    match fs::write(path, "x") {
        Ok(()) => false,
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => true,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// A host that has acquired its share, and the directory that is served.
pub(super) async fn ready(stand: &Stand) -> (super::super::Host, PathBuf) {
    let mut host = stand.host("s");
    let acquired = host.acquire().await.unwrap();
    drop(acquired);
    let shared = host
        .held
        .as_ref()
        .unwrap()
        .share
        .as_ref()
        .unwrap()
        .directory()
        .to_owned();
    (host, shared)
}

#[tokio::test]
async fn a_container_has_its_root_and_its_binds_and_leaves_nothing() {
    let stand = Stand::new();
    let lower = stand.path("lower");
    busybox(&lower);
    for name in ["upper", "work", "volume/below"] {
        fs::create_dir_all(stand.path(name)).unwrap();
    }
    fs::write(stand.path("volume/kept"), "user's").unwrap();
    fs::write(stand.path("hosts"), "127.0.0.1 localhost").unwrap();
    let (mut host, shared) = ready(&stand).await;
    assert!(
        read_only(&shared.join("new")),
        "the guest may make names beside containers"
    );

    let root = overlay(vec![
        format!("lowerdir={}", lower.display()),
        format!("upperdir={}", stand.path("upper").display()),
        format!("workdir={}", stand.path("work").display()),
    ]);
    let plan = container(
        "c",
        RootPlan::Mounts(vec![root]),
        vec![
            bind("volume", stand.path("volume"), false),
            bind("volume-ro", stand.path("volume"), true),
            bind("hosts", stand.path("hosts"), true),
        ],
    );
    for _ in 0..2 {
        host.carry_out(&plan).unwrap();
        let seen = shared.join("c");
        assert!(
            read_only(&seen.join("new")),
            "the guest may make names beside mounts"
        );
        assert!(seen.join("rootfs/bin/busybox").exists());
        assert!(!read_only(&seen.join("rootfs/tmp/new")));
        assert_eq!(fs::read(stand.path("upper/tmp/new")).unwrap(), b"x");
        assert!(read_only(&shared.join("volume/new")), "nor beside volumes");
        assert!(!read_only(&shared.join("volume/data/new")));
        assert_eq!(fs::read(stand.path("volume/new")).unwrap(), b"x");
        assert!(read_only(&shared.join("volume-ro/data/kept")));
        assert!(read_only(&shared.join("hosts/data")));
        assert_eq!(
            fs::read(shared.join("hosts/data")).unwrap(),
            b"127.0.0.1 localhost"
        );

        let id = ContainerId::new("c").unwrap();
        host.remove(&id).await.unwrap();
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
        host.remove(&id).await.expect("nothing there is success");
    }
    host.carry_out(&plan).unwrap();
    host.release().await.unwrap();
    assert_eq!(fs::read(stand.path("volume/kept")).unwrap(), b"user's");
    assert!(lower.join("bin/busybox").exists());
    stand.assert_clean();
}

#[tokio::test]
async fn what_two_containers_mount_is_there_once_until_the_last_one_goes() {
    let stand = Stand::new();
    for name in ["root", "volume"] {
        fs::create_dir(stand.path(name)).unwrap();
    }
    let (mut host, shared) = ready(&stand).await;
    let with = |id: &str| {
        container(
            id,
            RootPlan::Directory(stand.path("root")),
            vec![bind("v0", stand.path("volume"), false)],
        )
    };
    let mounts = || {
        stand
            .mounts()
            .iter()
            .filter(|path| path.ends_with("shared/v0/data"))
            .count()
    };
    let id = |id: &str| ContainerId::new(id).unwrap();
    host.carry_out(&with("one")).unwrap();
    host.carry_out(&with("two")).unwrap();
    assert_eq!(mounts(), 1);
    // A creation that fails takes away what it has made, and nothing else.
    let mut third = with("three");
    third.binds.push(bind("v1", stand.path("volume"), false));
    third.binds.push(bind("v2", stand.path("missing"), false));
    host.carry_out(&third).unwrap_err();
    assert!(!shared.join("v1").exists() && !shared.join("v2").exists());
    host.remove(&id("one")).await.unwrap();
    assert!(!read_only(&shared.join("v0/data/new")));
    host.remove(&id("two")).await.unwrap();
    assert_eq!(mounts(), 0);
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn a_volume_that_two_begin_with_at_once_is_made_once() {
    let stand = Stand::new();
    for name in ["root", "volume"] {
        fs::create_dir(stand.path(name)).unwrap();
    }
    let (mut host, shared) = ready(&stand).await;
    let (share, steps) = host.shared().unwrap();
    for round in 0..20 {
        let volume = format!("v{round}");
        std::thread::scope(|scope| {
            for id in ["one", "two"] {
                let (share, steps, volume) = (&share, &steps, &volume);
                let binds = vec![bind(volume, stand.path("volume"), false)];
                let plan = container(id, RootPlan::Directory(stand.path("root")), binds);
                scope.spawn(move || share.add(|_| Ok(plan), steps).unwrap());
            }
        });
        let here = |path: &std::path::PathBuf| path.ends_with(format!("shared/{volume}/data"));
        assert_eq!(stand.mounts().into_iter().filter(here).count(), 1);
        for id in ["one", "two"] {
            share.remove(&ContainerId::new(id).unwrap()).unwrap();
        }
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
    }
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn volumes_of_two_that_go_at_once_are_taken_away_once() {
    let stand = Stand::new();
    for name in ["root", "volume"] {
        fs::create_dir(stand.path(name)).unwrap();
    }
    let (mut host, shared) = ready(&stand).await;
    let (share, steps) = host.shared().unwrap();
    for round in 0..10 {
        let add = |id: &str, names: std::ops::Range<u32>| {
            let volume = |n| bind(&format!("v{round}-{n}"), stand.path("volume"), false);
            let plan = container(
                id,
                RootPlan::Directory(stand.path("root")),
                names.map(volume).collect(),
            );
            share.add(|_| Ok(plan), &steps).unwrap();
        };
        add("one", 0..8);
        add("two", 8..16);
        let begin = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for id in ["one", "two"] {
                let (share, begin) = (&share, &begin);
                scope.spawn(move || {
                    begin.wait();
                    share.remove(&ContainerId::new(id).unwrap()).unwrap();
                });
            }
        });
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
    }
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn a_run_directory_that_is_shared_with_others_makes_no_difference() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
    let stand = Stand::new();
    fs::create_dir(stand.path("volume")).unwrap();
    mount("tmpfs", stand.run_dir(), "tmpfs", MountFlags::empty(), c"").unwrap();
    // As systemd makes them.
    mount_change(stand.run_dir(), MountPropagationFlags::SHARED).unwrap();
    let before = stand.mounts();
    let (mut host, shared) = ready(&stand).await;
    let volume = || bind("volume", stand.path("volume"), false);
    let plan = container("c", RootPlan::Directory(stand.path("volume")), vec![volume()]);
    host.carry_out(&plan).unwrap();
    // Ours, its mirror, and in each of them two directories with a mount in each; none twice.
    assert_eq!(stand.mounts().len() - before.len(), 10, "{:?}", stand.mounts());
    assert!(!read_only(&shared.join("volume/data/new")));
    host.release().await.unwrap();
    assert_eq!(stand.mounts(), before);
    unmount(stand.run_dir(), UnmountFlags::empty()).expect("nothing keeps it busy");
    stand.assert_clean();
}

#[tokio::test]
async fn mounts_below_a_source_come_along_or_not_and_are_read_only_too() {
    let stand = Stand::new();
    let volume = stand.path("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    rustix::mount::mount(
        "tmpfs",
        volume.join("below"),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"",
    )
    .unwrap();
    fs::write(volume.join("below/deep"), "").unwrap();
    let (mut host, shared) = ready(&stand).await;
    let mut single = bind("single", volume.clone(), false);
    single.recursive = false;
    let plan = container(
        "c",
        RootPlan::Directory(volume.clone()),
        vec![single, bind("ro", volume.clone(), true)],
    );
    host.carry_out(&plan).unwrap();
    assert!(shared.join("c/rootfs/below/deep").exists());
    assert!(!shared.join("single/data/below/deep").exists());
    assert!(read_only(&shared.join("ro/data/below/deep")));
    assert!(!read_only(&shared.join("c/rootfs/below/deep")));
    host.release().await.unwrap();
    assert!(
        volume.join("below/deep").exists(),
        "the source lost its own mount"
    );
    rustix::mount::unmount(volume.join("below"), rustix::mount::UnmountFlags::empty()).unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn an_overlay_of_many_layers_is_mounted() {
    let stand = Stand::new();
    let layers: Vec<String> = (0..100)
        .map(|n| {
            let dir = stand.path(&format!("{}/{n}/fs", "snapshots".repeat(6)));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(n.to_string()), "").unwrap();
            dir.to_str().unwrap().to_owned()
        })
        .collect();
    let (mut host, shared) = ready(&stand).await;
    let here = std::env::current_dir().unwrap();
    let root = overlay(vec![format!("lowerdir={}", layers.join(":"))]);
    assert!(root.options[0].len() > 4096);
    host.carry_out(&container("c", RootPlan::Mounts(vec![root]), vec![]))
        .unwrap();
    for n in [0, 50, 99] {
        assert!(shared.join("c/rootfs").join(n.to_string()).exists(), "{n}");
    }
    assert_eq!(std::env::current_dir().unwrap(), here);
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn what_cannot_be_mounted_is_one_clear_error_and_leaves_nothing() {
    let stand = Stand::new();
    let dir = stand.path("dir");
    fs::create_dir(&dir).unwrap();
    fs::create_dir(stand.path("dir2")).unwrap();
    fs::write(stand.path("file"), "").unwrap();
    symlink(stand.path("loop"), stand.path("loop")).unwrap();
    let (mut host, shared) = ready(&stand).await;
    let root = || RootPlan::Directory(dir.clone());
    let mounts = |fs_type: &str, source: &str, options: &[&str]| {
        RootPlan::Mounts(vec![
            overlay(vec![format!("lowerdir={0}:{0}2", dir.display())]),
            RootfsMount {
                fs_type: fs_type.into(),
                source: source.into(),
                options: options.iter().map(|&option| option.into()).collect(),
            },
        ])
    };
    use ErrorKind::{InvalidArgument, Unsupported};
    let table = [
        (
            RootPlan::Directory(stand.path("loop")),
            vec![],
            InvalidArgument,
            "leads in a circle",
        ),
        (
            RootPlan::Directory(stand.path("missing")),
            vec![],
            InvalidArgument,
            "no such file",
        ),
        (
            RootPlan::Directory(stand.path("file")),
            vec![],
            InvalidArgument,
            "not a directory",
        ),
        (
            root(),
            vec![
                bind("a", dir.clone(), false),
                bind("b", stand.path("missing"), false),
            ],
            InvalidArgument,
            "missing",
        ),
        (
            root(),
            vec![bind("b", stand.path("loop"), false)],
            InvalidArgument,
            "leads in a circle",
        ),
        (
            root(),
            vec![bind("../b", dir.clone(), false)],
            ErrorKind::Internal,
            "not a name",
        ),
        (
            mounts("nosuchfs", "none", &[]),
            vec![],
            Unsupported,
            "does not know this file system",
        ),
        (
            mounts("overlay", "overlay", &["lowerdir=/nonexistent:/nonexistent2"]),
            vec![],
            InvalidArgument,
            "overlay",
        ),
        (
            mounts("bind", "/nonexistent", &["rbind"]),
            vec![],
            InvalidArgument,
            "/nonexistent",
        ),
        (
            mounts("ext4", "/nonexistent", &["loop"]),
            vec![],
            InvalidArgument,
            "\"loop\" is not supported",
        ),
    ];
    let before = stand.mounts();
    for (root, binds, kind, said) in table {
        let plan = container("c", root, binds);
        let error = host.carry_out(&plan).unwrap_err();
        assert_eq!(error.kind, kind, "{plan:?}: {}", error.chain());
        assert!(error.context.contains(said), "{plan:?}: {error}");
        assert!(error.context.contains("container c"), "{error}");
        assert_eq!(stand.mounts(), before, "{plan:?}");
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 0, "{plan:?}");
    }
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn what_is_still_mounted_is_never_deleted() {
    let stand = Stand::new();
    fs::create_dir(stand.path("precious")).unwrap();
    fs::write(stand.path("precious/data"), "user's").unwrap();
    let (mut host, _) = ready(&stand).await;
    let dir = host.held.as_ref().unwrap().home.dir().to_owned();
    // Somebody has mounted in our directory, and put a link there.
    fs::create_dir(dir.join("foreign")).unwrap();
    symlink(stand.path("precious"), dir.join("link")).unwrap();
    rustix::mount::mount_bind(stand.path("precious"), dir.join("foreign")).unwrap();
    let fd = std::fs::File::open(&dir).unwrap().into();
    let error = super::super::tree::empty(&fd, &[]).unwrap_err();
    assert!(
        error.to_string().contains("mounted there") || error.to_string().contains("busy"),
        "{error}"
    );
    assert_eq!(fs::read(stand.path("precious/data")).unwrap(), b"user's");
    host.release().await.unwrap();
    assert_eq!(fs::read(stand.path("precious/data")).unwrap(), b"user's");
    stand.assert_clean();
}
