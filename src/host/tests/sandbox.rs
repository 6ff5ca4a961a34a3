//! Sandboxes on a real host's side: with the agent as a process, and in a virtual machine with its daemons.

use std::fs;
use std::path::{Path, PathBuf};

use agent_protocol as p;
use async_trait::async_trait;
use hypervisor::VmRecord;
use tokio::time::timeout;

use super::super::Host;
use super::stand::*;
use crate::container::ContainerRequest;
use crate::error::Result;
use crate::io::{Output, Stdio};
use crate::model::{BindPlan, ChannelPlan, ContainerPlan, RootPlan, SandboxPlan, SharePlan};
use crate::sandbox::tests::config;
use crate::sandbox::{Acquired, Ground, Sandbox, SandboxRequest};
use crate::{Container, ContainerId};

/// A host that is told what to plan for a container: the script comes as the bundle's path.
struct Handmade {
    host: Host,
    root: PathBuf,
    volume: PathBuf,
    cgroup: PathBuf,
}

#[async_trait]
impl Ground for Handmade {
    async fn acquire(&mut self) -> Result<Acquired> {
        self.host.acquire().await
    }
    fn keep(&mut self, vm: &VmRecord) -> Result<()> {
        self.host.keep(vm)
    }
    fn add(&mut self, request: &ContainerRequest) -> Result<p::CreateContainerRequest> {
        let bind = |name: &str, readonly| BindPlan {
            name: name.into(),
            source: self.volume.clone(),
            readonly,
            recursive: true,
        };
        let binds = vec![bind("rw", false), bind("ro", true)];
        let id = request.id.as_str();
        let script = request.bundle.to_str().unwrap();
        let guest = guest_part(id, &binds, script, &self.cgroup.join(id));
        let plan = ContainerPlan {
            guest: guest.clone(),
            ..container(id, RootPlan::Directory(self.root.clone()), binds)
        };
        self.host.carry_out(&plan)?;
        Ok(guest)
    }
    fn remove(&mut self, id: &ContainerId) -> Result<()> {
        self.host.remove(id)
    }
    async fn release(&mut self) -> Result<()> {
        self.host.release().await
    }
}

async fn start(stand: &Stand, request: SandboxRequest, plan: SandboxPlan) -> Sandbox {
    busybox(&stand.path("root"));
    fs::create_dir(stand.path("volume")).unwrap();
    fs::write(stand.path("volume/kept"), "from the host").unwrap();
    let name = stand.dir.path().file_name().unwrap();
    let ground = Handmade {
        host: Host::new(&request, plan).unwrap(),
        root: stand.path("root"),
        volume: stand.path("volume"),
        cgroup: Path::new("kata-host-test").with_extension(name),
    };
    let started = timeout(SOON, Sandbox::start(request, Box::new(ground), Vec::new()));
    started.await.unwrap().unwrap()
}

async fn run(stand: &Stand, sandbox: &Sandbox, id: &str, script: &str) -> (Container, u32, String) {
    let out = stand.path(&format!("out-{id}"));
    let _ = fs::remove_file(&out);
    let request = ContainerRequest {
        id: ContainerId::new(id).unwrap(),
        bundle: script.into(),
        rootfs: Vec::new(),
        stdio: Stdio {
            stdout: Output::File(out.clone()),
            stderr: Output::File(out.clone()),
            ..Stdio::default()
        },
    };
    let container = sandbox.create_container(request).await.unwrap();
    container.start().await.unwrap();
    let code = timeout(SOON, container.wait(None)).await.unwrap().unwrap().code;
    // Its output has been read when it is deleted.
    container.delete().await.unwrap();
    (container, code, fs::read_to_string(out).unwrap())
}

/// What a guest may do with what it is shown.
const SCRIPT: &str =
    "cat /mnt/rw/kept && echo; echo guest > /mnt/rw/new && ! touch /mnt/ro/x 2>/dev/null && echo done";

async fn containers_come_and_go(stand: &Stand, sandbox: &Sandbox) {
    for n in 0..3 {
        let (_, code, out) = run(stand, sandbox, "c", SCRIPT).await;
        assert_eq!((code, out.as_str()), (0, "from the host\ndone\n"), "{n}");
        assert_eq!(fs::read(stand.path("volume/new")).unwrap(), b"guest\n");
        fs::remove_file(stand.path("volume/new")).unwrap();
        let left: Vec<_> = stand
            .mounts()
            .into_iter()
            .filter(|path| path.ends_with("rootfs"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn containers_in_a_guest_that_is_a_process() {
    let stand = Stand::new();
    let (request, _events) = stand.request("s");
    let sandbox = start(
        &stand,
        request,
        plan("s", ChannelPlan::Serial, SharePlan::Process),
    )
    .await;
    containers_come_and_go(&stand, &sandbox).await;
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

fn qemu(
    stand: &Stand,
    channel: ChannelPlan,
) -> (
    SandboxRequest,
    tokio::sync::mpsc::Receiver<crate::Event>,
    SandboxPlan,
) {
    let guest = found("KATA_GUEST_DIR", "guest", "cargo xtask guest");
    let mut config = config();
    config.hypervisor.kind = configuration::HypervisorKind::Qemu;
    config.hypervisor.path = "/usr/bin/qemu-system-x86_64".into();
    config.hypervisor.kernel = guest.join("vmlinux");
    config.hypervisor.initrd = guest.join("initrd.img");
    let share = SharePlan::VirtioFs {
        daemon: virtiofsd(),
        cache: "auto",
    };
    let plan = SandboxPlan {
        kernel: guest.join("vmlinux"),
        initrd: guest.join("initrd.img"),
        ..plan("s", channel, share)
    };
    let (request, events) = stand.request_of(config, "s");
    (request, events, plan)
}

#[tokio::test]
async fn containers_in_a_virtual_machine_over_virtio_fs_and_vsock() {
    let stand = Stand::new();
    let (request, _events, plan) = qemu(&stand, ChannelPlan::DaemonVsock(vsock_daemon()));
    let sandbox = start(&stand, request, plan).await;
    containers_come_and_go(&stand, &sandbox).await;
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn containers_in_a_virtual_machine_over_virtio_fs_and_a_serial_port() {
    let stand = Stand::new();
    let (request, _events, plan) = qemu(&stand, ChannelPlan::Serial);
    let sandbox = start(&stand, request, plan).await;
    containers_come_and_go(&stand, &sandbox).await;
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}
