//! Real mounts, in a mount namespace of the test thread's own.

use super::*;

const POINT: &str = "/run/kata/point";

fn storage(driver: &str, source: &str, options: &[&str], mount_point: &str) -> Storage {
    let options: Vec<String> = options.iter().map(ToString::to_string).collect();
    Storage::parse(driver, source, "", &options, mount_point).unwrap()
}

/// Runs the test in a thread with a mount namespace of its own, so that nothing can be left behind.
fn isolated(test: impl AsyncFnOnce(&Mounter, &Path) + Send + 'static) {
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root");
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        std::fs::create_dir(&share).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let mounter = Mounter::new(root, HashMap::from([("tag".to_owned(), share.clone())]));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(&mounter, &share));
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn requests_are_checked_before_anything_is_touched() {
    let parse = |driver: &str, source: &str, fstype: &str, options: &[&str], point: &str| {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        Storage::parse(driver, source, fstype, &options, point)
    };
    parse("block", "/dev/vda", "ext4", &["ro"], POINT).unwrap();
    parse("block", "serial:disk-1", "erofs", &[], POINT).unwrap();
    parse("overlay", "", "", &["lowerdir=/run/kata/a:/run/kata/b"], POINT).unwrap();
    for (driver, source, fstype, options, point) in [
        ("nfs", "x", "", &[][..], POINT),
        ("tmpfs", "", "", &[], "/etc"),
        ("tmpfs", "", "", &[], "/run/kata/../../etc"),
        ("bind", "/etc", "", &[], POINT),
        ("virtio-fs", "", "", &[], POINT),
        ("virtio-fs", "../x", "", &[], POINT),
        ("block", "/dev/../etc/passwd", "ext4", &[], POINT),
        ("block", "/etc/passwd", "ext4", &[], POINT),
        ("block", "/dev/vda", "", &[], POINT),
        ("overlay", "", "", &[], POINT),
        ("overlay", "", "", &["lowerdir=/etc"], POINT),
        (
            "overlay",
            "",
            "",
            &["lowerdir=/run/kata/a", "upperdir=/run/kata/.."],
            POINT,
        ),
    ] {
        assert!(
            parse(driver, source, fstype, options, point).is_err(),
            "{driver} {source} {options:?} {point}"
        );
    }
}

#[test]
fn a_pod_is_built_from_share_tmpfs_overlay_and_binds() {
    isolated(async |mounter, share| {
        std::fs::write(share.join("greeting"), "hello").unwrap();
        let storages = [
            storage("virtio-fs", "tag", &[], "/run/kata/shared"),
            storage(
                "tmpfs",
                "",
                &["size=1m", "mode=0711", "nosuid"],
                "/run/kata/scratch",
            ),
            storage("bind", "/run/kata/shared/greeting", &["ro"], "/run/kata/file"),
        ];
        let mounted = mounter.mount_all(&storages).await.unwrap();
        let root = mounter.root().dir().to_owned();
        assert_eq!(std::fs::read_to_string(root.join("file")).unwrap(), "hello");
        let refused = std::fs::write(root.join("file"), "no").unwrap_err();
        assert_eq!(
            refused.raw_os_error(),
            Some(libc::EROFS),
            "the bind mount is read-only"
        );

        for dir in ["upper", "work"] {
            std::fs::create_dir(root.join("scratch").join(dir)).unwrap();
        }
        let overlay = [storage(
            "overlay",
            "",
            &[
                "lowerdir=/run/kata/shared",
                "upperdir=/run/kata/scratch/upper",
                "workdir=/run/kata/scratch/work",
            ],
            "/run/kata/merged",
        )];
        let merged = mounter.mount_all(&overlay).await.unwrap();
        std::fs::write(root.join("merged/greeting"), "changed").unwrap();
        assert_eq!(std::fs::read_to_string(share.join("greeting")).unwrap(), "hello");
        mounter.unmount_all(merged).unwrap();
        mounter.unmount_all(mounted).unwrap();
        assert_eq!(
            std::fs::read_dir(&root).unwrap().count(),
            0,
            "mount points are gone"
        );
    });
}

#[test]
fn a_failure_undoes_what_was_mounted_before_it() {
    isolated(async |mounter, _| {
        let storages = [
            storage("tmpfs", "", &[], "/run/kata/one"),
            storage("tmpfs", "", &["nonsense=1"], "/run/kata/two"),
        ];
        let error = mounter.mount_all(&storages).await.unwrap_err();
        assert!(error.to_string().contains("/run/kata/two"), "{error}");
        assert_eq!(std::fs::read_dir(mounter.root().dir()).unwrap().count(), 0);
    });
}
