//! Devices that other processes serve: vsock by vhost-device-vsock, a directory by virtiofsd.

use std::path::Path;
use std::time::{Duration, Instant};

use hypervisor::{Boot, Device, MemoryBacking, VirtioFs, Vsock};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};

use super::PROCESS;
use super::subject::{Place, SOON, Subject, found, greeted_on, here};

/// The agent calls through one daemon's device while the other's is there as well. Where memory can be added, both map it.
pub async fn daemons_serve_vsock_and_a_directory(subject: Subject) {
    let _shared = PROCESS.read().await;
    let virtiofsd = found("KATA_VIRTIOFSD", "tools/bin/virtiofsd");
    let vsock = found("KATA_VHOST_VSOCK", "tools/bin/vhost-device-vsock");
    if !here("virtiofsd", &virtiofsd, "cargo xtask deps")
        || !here("vhost-device-vsock", &vsock, "cargo xtask deps")
    {
        return;
    }
    let place = Place::new(subject);
    let (directory, vhost_socket) = (place.run_dir().join("shared"), place.run_dir().join("vhost.sock"));
    let (fs_socket, host_socket) = (place.run_dir().join("fs.sock"), place.run_dir().join("host.sock"));
    std::fs::create_dir(&directory).expect("a directory");
    let listener = UnixListener::bind(place.run_dir().join("host.sock_1024")).expect("a socket");

    let guest = format!(
        "guest-cid=4,socket={},uds-path={}",
        vhost_socket.display(),
        host_socket.display()
    );
    let _vsock = daemon(Command::new(vsock).args(["--vm", &guest]), &vhost_socket).await;
    let mut served = Command::new(virtiofsd);
    served
        .arg("--socket-path")
        .arg(&fs_socket)
        .arg("--shared-dir")
        .arg(&directory);
    let _virtiofsd = daemon(&mut served, &fs_socket).await;

    let mut spec = place.spec();
    spec.memory.backing = MemoryBacking::Shared;
    if place.driver.capabilities().resize {
        spec.memory.max_mib = 4096;
    }
    spec.kernel_params = vec!["kata.agent=vsock:1024".into()];
    spec.devices = vec![
        Device::Vsock(Vsock::VhostUser { socket: vhost_socket }),
        Device::VirtioFs(VirtioFs {
            tag: "shared".into(),
            socket: fs_socket,
            directory,
        }),
    ];
    let mut vm = place.driver.launch(spec, Boot::Cold).await.expect("a VM");
    let _agent = greeted_on(&listener).await;
    if let Some(resize) = vm.resize() {
        // However often: it is one region of memory that both daemons have mapped.
        for step in 1..=20 {
            let added = resize.grow_memory(256 + step * 128).await;
            added.expect("more memory");
        }
    }
    vm.stop().await.expect("a stop");
}

/// A daemon that listens on its socket.
async fn daemon(command: &mut Command, socket: &Path) -> Child {
    let child = command.kill_on_drop(true).spawn().expect("a daemon");
    // Neither daemon says when it listens.
    let deadline = Instant::now() + SOON;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", socket.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child
}
