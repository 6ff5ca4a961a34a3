//! Containers from their bundles to their end.

use std::fs;
use std::path::PathBuf;

use configuration::AgentChannel;
use runtime::ErrorKind;
use serde_json::{Value, json};

use crate::stand::{Guest, Stand, code, processes};

/// Runs one container after the other in one sandbox, under one id.
async fn containers_come_and_go(guest: Guest) {
    let Some(stand) = Stand::new(guest) else { return };
    fs::create_dir(stand.path("volume")).unwrap();
    fs::write(stand.path("volume/kept"), "from the host").unwrap();
    fs::write(
        stand.path("resolv.conf"),
        "nameserver 192.0.2.1\nsearch example.org\n",
    )
    .unwrap();
    let bind = |to: &str, from: &str, options: &[&str]| json!({"destination": to, "type": "bind", "source": stand.path(from), "options": options});
    let with_mounts = |spec: &mut Value| {
        spec["mounts"].as_array_mut().unwrap().extend([
            bind("/mnt/rw", "volume", &["rbind", "rw"]),
            bind("/mnt/ro", "volume", &["rbind", "ro"]),
            bind("/etc/resolv.conf", "resolv.conf", &["rbind", "ro"]),
        ]);
    };
    let script = "cat /mnt/rw/kept; echo; cat /etc/resolv.conf; echo guest > /mnt/rw/new; echo mine > /written;\
                  touch /mnt/ro/x 2>/dev/null && echo 'not read-only'; exit 7";
    let bundle = stand.bundle("c", script, with_mounts);
    let (sandbox, _events) = stand.sandbox(&bundle).await;
    for _ in 0..3 {
        let (code, out) = stand.run(&sandbox, "c", &bundle).await;
        assert_eq!(out, "from the host\nnameserver 192.0.2.1\nsearch example.org\n");
        assert_eq!(code, 7);
        assert_eq!(stand.written("c", "written"), "mine\n");
        assert_eq!(fs::read_to_string(stand.path("volume/new")).unwrap(), "guest\n");
        fs::remove_dir_all(stand.path("snapshots")).unwrap();
        fs::remove_file(stand.path("volume/new")).unwrap();
    }
    let mut phases: Vec<_> = sandbox.phases().iter().map(|phase| phase.name).collect();
    // A short process may have written before its start is answered.
    if let Some(last) = phases.get_mut(6..) {
        last.sort_unstable_by(|one, other| other.cmp(one));
    }
    assert_eq!(
        phases,
        [
            "spec",
            "host",
            "vmm",
            "boot",
            "agent",
            "create",
            "start",
            "first output"
        ]
    );
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn in_a_process() {
    containers_come_and_go(Guest::Process).await;
}

#[tokio::test]
async fn in_a_virtual_machine_over_vsock() {
    containers_come_and_go(Guest::Vm(AgentChannel::VhostUserVsock)).await;
}

#[tokio::test]
async fn in_a_virtual_machine_over_a_serial_port() {
    containers_come_and_go(Guest::Vm(AgentChannel::VirtioSerial)).await;
}

#[tokio::test]
async fn a_sandbox_exists_once_and_its_id_is_free_at_once() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let bundle = stand.bundle("c", "true", |_| {});
    for _ in 0..3 {
        let (sandbox, _events) = stand.sandbox(&bundle).await;
        let (request, _) = stand.request(stand.config(), &bundle);
        let error = runtime::Sandbox::create(request).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}");
        assert_eq!(stand.run(&sandbox, "c", &bundle).await.0, 0);
        sandbox.stop().await.unwrap();
    }
    stand.assert_clean();
}

#[tokio::test]
async fn ten_containers_at_once() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let bundles: Vec<_> = (0..10)
        .map(|n| stand.bundle(&format!("c{n}"), &format!("echo {n} > /n; exit {n}"), |_| {}))
        .collect();
    let (sandbox, _events) = stand.sandbox(&bundles[0]).await;
    let mut containers = Vec::new();
    for (n, bundle) in bundles.iter().enumerate() {
        containers.push(stand.started(&sandbox, &format!("c{n}"), bundle).await);
    }
    for (n, container) in containers.iter().enumerate() {
        assert_eq!(code(container).await, n as u32);
        container.delete().await.unwrap();
        assert_eq!(stand.written(&format!("c{n}"), "n"), format!("{n}\n"));
    }
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

/// Directories of mounts that are gone, which the process that serves the share has open.
fn held(stand: &Stand) -> usize {
    let serving = processes(stand.dir.path())
        .into_iter()
        .filter(|(_, line)| line.contains("virtiofsd"))
        .max();
    let proc = PathBuf::from(format!("/proc/{}", serving.unwrap().0));
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    let mounts: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').next()).collect();
    let descriptors = fs::read_dir(proc.join("fd")).unwrap().flatten();
    descriptors
        .filter(|fd| fs::metadata(fd.path()).is_ok_and(|status| status.is_dir()))
        .filter_map(|fd| fs::read_to_string(proc.join("fdinfo").join(fd.file_name())).ok())
        .filter_map(|info| {
            Some(
                info.lines()
                    .find_map(|line| line.strip_prefix("mnt_id:"))?
                    .trim()
                    .to_owned(),
            )
        })
        .filter(|mount| !mounts.contains(&mount.as_str()))
        .count()
}

#[tokio::test]
async fn the_files_of_a_deleted_container_are_let_go() {
    let Some(stand) = Stand::new(Guest::Vm(AgentChannel::VirtioSerial)) else {
        return;
    };
    let bundle = stand.bundle("c", "ls -lR /bin /etc", |_| {});
    let (sandbox, _events) = stand.sandbox(&bundle).await;
    let mut before = None;
    for _ in 0..3 {
        assert_eq!(stand.run(&sandbox, "c", &bundle).await.0, 0);
        let now = held(&stand);
        // The guest remembers the root directory until its memory is short, and nothing below it.
        assert!(now <= before.unwrap_or(now) + 1, "{before:?} -> {now}");
        before = Some(now);
    }
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}
