//! Bad input is one clear error, soon, and nothing is started for it.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use configuration::{AgentChannel, Config};
use runtime::{ErrorKind, Sandbox};
use serde_json::{Value, json};

use crate::stand::{Guest, Stand};

/// A complaint about the host takes no longer than this.
const WELL_UNDER_A_SECOND: Duration = Duration::from_millis(700);

async fn refused(stand: &Stand, config: Config, bundle: &std::path::Path, kind: ErrorKind, said: &str) {
    let (request, _events) = stand.request(config, bundle);
    let begun = Instant::now();
    let error = Sandbox::create(request).await.unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind, kind, "{said}: {}", error.chain());
    assert!(error.chain().contains(said), "{said}: {}", error.chain());
    assert!(took < WELL_UNDER_A_SECOND, "{said}: {took:?}");
    stand.assert_clean();
}

#[tokio::test]
async fn bundles() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let config = || stand.config();
    let invalid = ErrorKind::InvalidArgument;
    refused(&stand, config(), &stand.path("none"), invalid, "no such file").await;
    let broken = stand.bundle("broken", "true", |_| {});
    fs::write(broken.join("config.json"), "{\"ociVersion\":").unwrap();
    refused(&stand, config(), &broken, invalid, "config.json").await;
    let large = stand.bundle("large", "true", |spec| {
        let mount = |n| json!({"destination": format!("/{n}"), "type": "bind", "source": "/tmp", "options": ["rbind"]});
        spec["mounts"] = Value::Array((0..100_000).map(mount).collect());
    });
    refused(&stand, config(), &large, invalid, "too large").await;
    let resolver = stand.bundle("resolver", "true", |spec| {
        let mount =
            json!({"destination": "/etc/resolv.conf", "type": "bind", "source": "/nonexistent/resolv.conf"});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    refused(&stand, config(), &resolver, invalid, "/nonexistent/resolv.conf").await;
}

#[tokio::test]
async fn hosts() {
    let Some(stand) = Stand::new(Guest::Vm(AgentChannel::Auto)) else {
        return;
    };
    let bundle = stand.bundle("c", "true", |_| {});
    let missing = ErrorKind::FailedPrecondition;
    let mut no_kernel = stand.config();
    no_kernel.hypervisor.kernel = "/nonexistent/vmlinux".into();
    refused(&stand, no_kernel, &bundle, missing, "/nonexistent/vmlinux").await;
    let mut no_vmm = stand.config();
    no_vmm.hypervisor.path = "/nonexistent/qemu".into();
    refused(&stand, no_vmm, &bundle, missing, "/nonexistent/qemu").await;
    let mut no_daemon = stand.config();
    no_daemon.hypervisor.virtio_fs_daemon = "/nonexistent/virtiofsd".into();
    refused(&stand, no_daemon, &bundle, missing, "/nonexistent/virtiofsd").await;
    // A program that is not what it should be: its words are in the error.
    let mut wrong_daemon = stand.config();
    wrong_daemon.hypervisor.virtio_fs_daemon = "/bin/false".into();
    let (request, _events) = stand.request(wrong_daemon, &bundle);
    let error = Sandbox::create(request).await.unwrap_err();
    assert!(
        error.chain().contains("virtiofsd exited with code 1"),
        "{}",
        error.chain()
    );
    stand.assert_clean();
    let mut wrong_daemon = stand.config();
    wrong_daemon.hypervisor.vhost_user_vsock_daemon = "/bin/false".into();
    refused(
        &stand,
        wrong_daemon,
        &bundle,
        ErrorKind::Unavailable,
        "vhost-device-vsock exited with code 1",
    )
    .await;
    let mut too_long = stand.config();
    too_long.runtime.run_dir = stand.path(&"r".repeat(100));
    refused(&stand, too_long, &bundle, ErrorKind::InvalidArgument, "run_dir").await;
}

#[tokio::test]
async fn containers() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let bundle = stand.bundle("c", "true", |_| {});
    let (sandbox, _events) = stand.sandbox(&bundle).await;
    let circle = stand.bundle("circle", "true", |_| {});
    fs::remove_dir(circle.join("rootfs")).unwrap();
    symlink("rootfs", circle.join("rootfs")).unwrap();
    let missing = stand.bundle("missing", "true", |spec| {
        let mount =
            json!({"destination": "/x", "type": "bind", "source": "/nonexistent/x", "options": ["rbind"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    for (bundle, rootfs, said) in [
        (&circle, vec![], "leads in a circle"),
        (&missing, stand.snapshot("missing"), "/nonexistent/x"),
    ] {
        let request = stand.container("c", bundle, rootfs);
        let error = sandbox.create_container(request).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
        assert!(error.context.contains(said), "{error}");
        // Nothing of it is left: the id is free.
        assert_eq!(
            stand
                .run(&sandbox, "c", &stand.bundle("c", "true", |_| {}))
                .await
                .0,
            0
        );
    }
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}
