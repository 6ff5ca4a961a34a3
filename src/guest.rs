//! Names and paths in the guest that host and plan agree on, and the requests that a plan makes of the agent. Pure.

/// Tag of the one virtio-fs device.
pub const SHARE_TAG: &str = "shared";

/// Where the agent mounts it: `<GUEST_SHARE>/<container>/<name>` is `<share>/<container>/<name>` of the host.
pub const GUEST_SHARE: &str = "/run/kata/shared";

/// Name of a container's root file system in the share.
pub const ROOTFS: &str = "rootfs";
