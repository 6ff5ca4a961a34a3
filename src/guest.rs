//! Names and paths in the guest that host and plan agree on, and the requests that a plan makes of the agent. Pure.

use agent_protocol as p;

use crate::ContainerId;
use crate::model::SandboxConfig;

/// Tag of the one virtio-fs device.
pub const SHARE_TAG: &str = "shared";

/// Where the agent mounts it: `<GUEST_SHARE>/<directory>/<name>` is `<share>/<directory>/<name>` of the host, with a
/// directory for each container and one for each volume. Each directory is a mount of its own, with which the agent drops what
/// the guest remembers of it.
pub const GUEST_SHARE: &str = "/run/kata/shared";

/// Name of a container's root file system in the share.
pub const ROOTFS: &str = "rootfs";

/// Name of what is shared in the directory of a volume.
pub const DATA: &str = "data";

/// Guest path of the pid namespace that the agent is in itself, where the agent looks.
pub(crate) const AGENT_PIDS: &str = "/proc/self/ns/pid";

/// Kernel parameter that has the agent log everything.
pub(crate) const AGENT_DEBUG: &str = "kata.log=debug";

/// Kernel parameter that has the agent wait three times as long for what happens in the guest, which is emulated, as its deadlines say:
/// sixteen that start at once on two processors, which others want as well, need more than the 30 s for the set-up of a process.
/// It has told what was late all the same before a kubelet gives up (2 min).
pub(crate) const AGENT_PATIENCE: &str = "kata.patience=3";

/// Guest CID where only the VMM or its daemon knows it.
pub(crate) const LOCAL_CID: u32 = 3;

/// Kernel parameter that has the agent dial the usual port over vsock.
pub(crate) fn vsock_channel() -> String {
    format!("{}=vsock:{}", p::CHANNEL_PARAM, p::PORT)
}

/// Kernel parameter that has the agent dial over a serial port.
pub(crate) fn serial_channel() -> String {
    format!("{}=serial", p::CHANNEL_PARAM)
}

/// Guest path of what is `<share>/<directory>/<name>` on the host.
pub(crate) fn shared(directory: &str, name: &str) -> String {
    format!("{GUEST_SHARE}/{directory}/{name}")
}

/// Guest path at which the file system of a disk is mounted.
pub(crate) fn disk(id: &str) -> String {
    format!("{}/disks/{id}", p::GUEST_DIR)
}

/// Guest path of the file system in which a copy is, under the name [`DATA`].
pub(crate) fn copies(id: &str) -> String {
    format!("{}/copies/{id}", p::GUEST_DIR)
}

/// The storage for it, which has yet to be filled.
pub(crate) fn copied(mount_point: &str) -> p::Storage {
    p::Storage {
        driver: "copy".to_owned(),
        options: ["mode=0755", "nosuid", "nodev"].map(str::to_owned).to_vec(),
        mount_point: mount_point.to_owned(),
        ..Default::default()
    }
}

/// How the guest finds a disk with this serial number.
pub(crate) fn serial(id: &str) -> String {
    format!("serial:{id}")
}

/// Guest path of a volume of memory, which stands for a directory of the host with these numbers.
pub(crate) fn volume(device: u64, inode: u64) -> String {
    format!("{}/volumes/{device:x}-{inode:x}", p::GUEST_DIR)
}

/// The sandbox's part of the conversation, but for clock and entropy. `shares`: something of the host is shared with the guest.
pub(crate) fn create_sandbox(sandbox: &SandboxConfig, shares: bool, grows: bool) -> p::CreateSandboxRequest {
    let share = p::Storage {
        driver: "virtio-fs".to_owned(),
        source: SHARE_TAG.to_owned(),
        fstype: "virtiofs".to_owned(),
        mount_point: GUEST_SHARE.to_owned(),
        ..Default::default()
    };
    let dns = p::Dns {
        servers: sandbox.dns.servers.clone(),
        searches: sandbox.dns.searches.clone(),
        options: sandbox.dns.options.clone(),
        ..Default::default()
    };
    p::CreateSandboxRequest {
        sandbox_id: sandbox.id.to_string(),
        hostname: sandbox.hostname.clone(),
        dns: Some(dns).into(),
        storages: if shares { vec![share] } else { Vec::new() },
        shm_size: sandbox.shm_size,
        sysctls: sandbox.sysctls.clone().into_iter().collect(),
        grows,
        ..Default::default()
    }
}

/// A container's part, but for the streams.
pub(crate) fn create_container(
    id: &ContainerId,
    spec: Vec<u8>,
    storages: Vec<p::Storage>,
    devices: Vec<p::DiskDevice>,
) -> p::CreateContainerRequest {
    p::CreateContainerRequest {
        container_id: id.to_string(),
        spec,
        storages,
        devices,
        ..Default::default()
    }
}
