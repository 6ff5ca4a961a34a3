//! Names and paths in the guest that host and plan agree on, and the requests that a plan makes of the agent. Pure.

use agent_protocol as p;

use crate::ContainerId;
use crate::model::SandboxConfig;

/// Tag of the one virtio-fs device.
pub const SHARE_TAG: &str = "shared";

/// Where the agent mounts it: `<GUEST_SHARE>/<directory>/<name>` is `<share>/<directory>/<name>` of the host, with a
/// directory for each container.
pub const GUEST_SHARE: &str = "/run/kata/shared";

/// Name of a container's root file system in the share.
pub const ROOTFS: &str = "rootfs";

/// Kernel parameter that has the agent log everything.
pub(crate) const AGENT_DEBUG: &str = "kata.log=debug";

/// Guest path of what is `<share>/<directory>/<name>` on the host.
pub(crate) fn shared(directory: &str, name: &str) -> String {
    format!("{GUEST_SHARE}/{directory}/{name}")
}

/// The sandbox's part of the conversation, but for clock and entropy.
pub(crate) fn create_sandbox(sandbox: &SandboxConfig, grows: bool) -> p::CreateSandboxRequest {
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
        storages: vec![share],
        shm_size: sandbox.shm_size,
        sysctls: sandbox.sysctls.clone().into_iter().collect(),
        grows,
        ..Default::default()
    }
}

/// A container's part, but for the streams.
pub(crate) fn create_container(id: &ContainerId, spec: Vec<u8>) -> p::CreateContainerRequest {
    p::CreateContainerRequest {
        container_id: id.to_string(),
        spec,
        ..Default::default()
    }
}
