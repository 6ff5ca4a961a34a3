//! What a container sees of files, and what it can't reach.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};

use agent::container::{Error, ProcessStdio};
use serde_json::json;

use crate::fixture::Fixture;

pub async fn the_root_is_the_containers() {
    let fixture = Fixture::script(
        "cd /..; pwd; ls -a / | grep -v '^\\.'; echo made > /tmp/file; readlink /proc/self/root",
    );
    let output = fixture.run().await;
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "/", "bin", "dev", "etc", "proc", "root", "secret", "sys", "tmp", "/"
        ],
        "{output:?}"
    );
    assert_eq!(
        fs::read_to_string(fixture.root().join("tmp/file")).unwrap(),
        "made\n"
    );
}

pub async fn masked_paths_are_hidden() {
    let mut fixture = Fixture::script("cat /proc/kcore /proc/keys; ls -a /secret | grep x; touch /secret/y");
    fixture.spec["process"]["capabilities"]["effective"] = json!([]);
    fs::write(fixture.root().join("secret/x"), "x").unwrap();
    let output = fixture.run().await;
    assert_eq!(output.stdout, "", "{output:?}");
    assert!(
        output.stderr.contains("/secret/y: Read-only file system"),
        "{output:?}"
    );
    assert_eq!(fs::read_dir(fixture.root().join("secret")).unwrap().count(), 1);
}

pub async fn readonly_paths_and_root() {
    let script = "echo 1 > /proc/sys/kernel/hostname; touch /tmp/x; touch /dev/shm/ok && echo shm";
    let mut fixture = Fixture::script(script);
    fixture.spec["root"]["readonly"] = json!(true);
    let output = fixture.run().await;
    assert_eq!(output.stdout, "shm\n", "other mounts stay writable");
    assert!(
        output
            .stderr
            .contains("/proc/sys/kernel/hostname: Read-only file system"),
        "{output:?}"
    );
    assert!(
        output.stderr.contains("/tmp/x: Read-only file system"),
        "{output:?}"
    );
}

pub async fn mount_options_are_in_force() {
    let mut fixture = Fixture::script("cat /proc/self/mounts");
    fixture.spec["mounts"][1]["options"] = json!(["nosuid", "ro", "mode=755"]);
    fixture.add_mount(
        json!({"destination": "/new/place", "type": "bind", "source": fixture.top.path(),
                             "options": ["rbind", "ro", "nodev", "noexec", "noatime", "rprivate"]}),
    );
    let output = fixture.run().await.stdout;
    let options = |place: &str| -> Vec<&str> {
        let line = output
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[1] == place)
            .unwrap_or_else(|| panic!("{place} in {output}"));
        line[3].split(',').collect()
    };
    for (place, expected) in [
        ("/proc", vec!["rw", "nosuid", "nodev", "noexec"]),
        ("/dev", vec!["ro", "nosuid", "mode=755"]),
        (
            "/dev/pts",
            vec!["nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"],
        ),
        ("/sys", vec!["ro", "nosuid"]),
        ("/sys/fs/cgroup", vec!["ro"]),
        ("/new/place", vec!["ro", "nodev", "noexec", "noatime"]),
    ] {
        for option in expected {
            assert!(options(place).contains(&option), "{place} {option}: {output}");
        }
    }
}

pub async fn read_only_reaches_submounts_when_asked() {
    for (option, writable) in [("ro", true), ("rro", false)] {
        let mut fixture = Fixture::script("touch /data/shm/x && echo wrote");
        let source = fixture.top.path().join("data");
        fs::create_dir_all(source.join("shm")).unwrap();
        // A mount below the source, made by a container of its own kind: the test has none of its own.
        fixture.add_mount(
            json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]}),
        );
        fixture.add_mount(json!({"destination": "/data/shm", "type": "tmpfs", "source": "tmpfs"}));
        fixture.add_mount(json!({"destination": "/data", "type": "bind", "source": source,
                                 "options": ["remount", "bind", option]}));
        let output = fixture.run().await;
        assert_eq!(output.stdout == "wrote\n", writable, "{option}: {output:?}");
    }
}

pub async fn devices_are_there() {
    let script =
        "for d in null zero full random urandom tty ptmx extra; do stat -L -c '%n %t:%T %a %u' /dev/$d; done
        for l in fd stdin ptmx; do readlink /dev/$l; done; echo full > /dev/full";
    let mut fixture = Fixture::script(script);
    fixture.spec["linux"]["devices"] = json!([
        {"path": "/dev/extra", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}
    ]);
    let output = fixture.run().await;
    for line in [
        "/dev/null 1:3 666 0",
        "/dev/full 1:7 666 0",
        "/dev/tty 5:0 666 0",
        "/dev/ptmx 5:2 666 0",
        "/dev/extra 1:5 640 7",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "pts/ptmx",
    ] {
        assert!(output.stdout.lines().any(|l| l == line), "{line}: {output:?}");
    }
    assert!(output.stderr.contains("No space left"), "{output:?}");
    let null = fs::metadata("/dev/null").unwrap();
    assert!(null.file_type().is_char_device(), "the machine's own");
}

pub async fn links_do_not_divert_mounts() {
    let mut fixture = Fixture::script("cat /config/made; cat /config/resolv; readlink /etc");
    let outside = fixture.top.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(fixture.top.path().join("content"), "content\n").unwrap();
    let root = fixture.root();
    fs::remove_dir_all(root.join("etc")).unwrap();
    symlink("/", root.join("etc")).unwrap();
    symlink("../../../../../../../../..", root.join("up")).unwrap();
    symlink(&outside, root.join("out")).unwrap();
    symlink("../run/resolved/file", root.join("tmp/dangling")).unwrap();
    let content = fixture.top.path().join("content");
    for destination in [
        "/etc/config/made",
        "/up/config/resolv",
        "/out/file",
        "/tmp/dangling",
    ] {
        fixture.add_mount(json!({"destination": destination, "type": "bind", "source": content, "options": ["rbind", "ro"]}));
    }
    let output = fixture.run().await;
    assert_eq!(output.stdout, "content\ncontent\n/\n", "{output:?}");
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "nothing is made outside"
    );
    assert!(!std::path::Path::new("/config").exists());
    assert!(
        root.join("run/resolved/file").exists(),
        "a dangling link is followed inside the root"
    );
}

pub async fn proc_is_not_diverted() {
    let fixture = Fixture::new();
    fs::remove_dir(fixture.root().join("proc")).unwrap();
    symlink("tmp", fixture.root().join("proc")).unwrap();
    let error = fixture.create(ProcessStdio::default()).await.unwrap_err();
    assert!(error.to_string().contains("/proc"), "{error}");

    let mut fixture = Fixture::new();
    fixture.spec["mounts"][0] =
        json!({"destination": "/proc", "type": "bind", "source": fixture.top.path(), "options": ["bind"]});
    let error = fixture.create(ProcessStdio::default()).await.unwrap_err();
    assert!(error.to_string().contains("no procfs"), "{error}");

    let mut fixture = Fixture::new();
    fixture.add_mount(
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=nonsense"]}),
    );
    let error = fixture.create(ProcessStdio::default()).await.unwrap_err();
    assert!(matches!(error, Error::Step { .. }));
    assert!(error.to_string().contains("mount at /tmp"), "{error}");
}

pub async fn tmpfs_starts_as_a_copy() {
    let mut fixture =
        Fixture::script("cat /root/a/file; readlink /root/link; stat -c '%a %u' /root/a; touch /root/new");
    let root = fixture.root().join("root");
    fs::create_dir(root.join("a")).unwrap();
    fs::set_permissions(
        root.join("a"),
        std::os::unix::fs::PermissionsExt::from_mode(0o751),
    )
    .unwrap();
    std::os::unix::fs::chown(root.join("a"), Some(12), None).unwrap();
    fs::write(root.join("a/file"), "text\n").unwrap();
    symlink("a/file", root.join("link")).unwrap();
    fixture.add_mount(
        json!({"destination": "/root", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    let output = fixture.run().await;
    assert_eq!(output.stdout, "text\na/file\n751 12\n", "{output:?}");
    assert!(!root.join("new").exists());
}

pub async fn the_cgroup_is_the_containers() {
    let fixture = Fixture::script(
        "grep 0:: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs; mkdir /sys/fs/cgroup/x",
    );
    let output = fixture.run().await;
    let mut lines = output.stdout.lines();
    assert_eq!(lines.next(), Some("0::/"), "{output:?}");
    assert_eq!(lines.next(), Some("1"), "{output:?}");
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
}

pub async fn devices_are_limited() {
    let script = "echo x > /dev/null && echo null; head -c 1 /dev/extra; head -c 1 /dev/given > /dev/null && echo given";
    let mut fixture = Fixture::script(script);
    let device = |path: &str, minor: u32| json!({"path": path, "type": "c", "major": 1, "minor": minor, "fileMode": 0o666});
    // The kernel's log and /dev/zero's device: the second is every container's.
    fixture.spec["linux"]["devices"] = json!([device("/dev/extra", 11), device("/dev/given", 5)]);
    fixture.spec["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
    let output = fixture.run().await;
    assert_eq!(output.stdout, "null\ngiven\n", "{output:?}");
    assert!(
        output.stderr.contains("/dev/extra: Operation not permitted"),
        "{output:?}"
    );
}
