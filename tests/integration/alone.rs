//! A guest with which nothing of the host is shared, as Firecracker's are: root file systems on block devices, and copies of what is
//! only read. With QEMU here, whose guests have no share either when they are to have none.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use configuration::{AgentChannel, SharedFs};
use runtime::{ErrorKind, RootfsMount, Sandbox};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::stand::{Guest, SOON, Stand, code};

/// A root file system on a file, as a snapshotter of such names it.
pub fn rootfs(stand: &Stand, name: &str) -> Vec<RootfsMount> {
    vec![RootfsMount {
        fs_type: "ext4".into(),
        source: stand.disk(name).to_str().unwrap().into(),
        options: vec!["loop".into()],
    }]
}

/// Adds what a caller mounts: a secret as the kubelet lays it out, and the names of hosts.
pub fn mount_copies(stand: &Stand, spec: &mut Value) {
    let secret = stand.path("secret");
    if !secret.exists() {
        fs::create_dir_all(secret.join("..1")).unwrap();
        fs::write(secret.join("..1/token"), "secret\n").unwrap();
        symlink("..1", secret.join("..data")).unwrap();
        symlink("..data/token", secret.join("token")).unwrap();
        fs::write(stand.path("hosts"), "10.1.2.3 pod\n").unwrap();
    }
    let mounts = [
        ("/mnt/secret", &secret, "ro"),
        ("/etc/hosts", &stand.path("hosts"), "rw"),
    ];
    for (destination, source, option) in mounts {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": destination,
            "type": "bind",
            "source": source,
            "options": ["rbind", option],
        }));
    }
}

#[tokio::test]
async fn containers_run_on_block_devices_with_copies_of_files_and_others_are_refused() {
    let Some(stand) = Stand::new(Guest::Vm(AgentChannel::Auto)) else {
        return;
    };
    let mut config = stand.config();
    config.hypervisor.shared_fs = SharedFs::None;
    // Nobody is to look for it.
    config.hypervisor.virtio_fs_daemon = "/nonexistent".into();
    let script =
        "cat /mnt/secret/token /etc/hosts; echo own >> /etc/hosts; cat /etc/hosts > /kept; ls /mnt/secret";
    let bundle = stand.bundle("c", script, |spec| mount_copies(&stand, spec));
    let (mut request, _events) = stand.request(config, &bundle);
    request.rootfs = rootfs(&stand, "c");
    let sandbox = timeout(SOON, Sandbox::create(request)).await.unwrap().unwrap();

    let asked = stand.container("c", &bundle, rootfs(&stand, "c"));
    let container = sandbox.create_container(asked).await.unwrap();
    container.start().await.unwrap();
    assert_eq!(code(&container).await, 0);
    container.delete().await.unwrap();
    let written = fs::read_to_string(stand.path("c.out")).unwrap();
    assert_eq!(written, "secret\n10.1.2.3 pod\ntoken\n");
    assert_eq!(
        fs::read_to_string(stand.path("hosts")).unwrap(),
        "10.1.2.3 pod\n",
        "a copy is the container's own"
    );
    assert_eq!(stand.on_disk("c", "/kept"), "10.1.2.3 pod\nown\n");

    // What can only be read, and whose module few guests load.
    let image = stand.path("layer.erofs");
    let mut made = Command::new("mkfs.erofs");
    let made = made.arg(&image).arg(stand.layer()).output();
    assert!(
        made.unwrap().status.success(),
        "this test needs mkfs.erofs (erofs-utils)"
    );
    let root = RootfsMount {
        fs_type: "erofs".into(),
        source: image.to_str().unwrap().into(),
        options: vec!["loop".into()],
    };
    let bundle = stand.bundle("e", "touch /new || cat /proc/mounts", |spec| {
        spec["root"]["readonly"] = true.into();
    });
    let asked = stand.container("e", &bundle, vec![root]);
    let container = sandbox.create_container(asked).await.unwrap();
    container.start().await.unwrap();
    assert_eq!(code(&container).await, 0);
    container.delete().await.unwrap();
    let mounts = fs::read_to_string(stand.path("e.out")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/"));
    assert!(root.unwrap().contains(" / erofs ro,"), "{mounts}");

    let shared = stand.path("shared");
    fs::create_dir(&shared).unwrap();
    let bundle = stand.bundle("d", "true", |spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/mnt", "type": "bind", "source": shared, "options": ["rbind"],
        }));
    });
    for (root, words) in [
        (rootfs(&stand, "d"), "a directory that the container may write to"),
        (stand.snapshot("d"), "use a snapshotter that gives block devices"),
    ] {
        let asked = stand.container("d", &bundle, root);
        let error = sandbox.create_container(asked).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.context.contains(words), "{}", error.context);
    }
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}
