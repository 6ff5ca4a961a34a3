//! The wire between host and guest: messages, service, version and limits.
//!
//! Everything here is generated from `proto/agent.proto` or is a constant both ends must agree on; `PROTOCOL.md`
//! explains the conversation. This crate must not know who speaks (agent or client) nor over what (vsock, serial, unix).

#[allow(
    missing_docs,
    unused,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

pub use generated::agent::*;
pub use generated::agent_ttrpc as service;

/// Version of the protocol. Raised when an old peer could misunderstand a new one; the host refuses a guest
/// whose version differs.
pub const VERSION: u32 = 4;

/// The port the guest dials on the host (CID 2): the host listens, the guest connects and then serves ttrpc there.
pub const PORT: u32 = 1024;

/// Name of the virtio-serial port that carries the same connection where there is no vsock
/// (`/sys/class/virtio-ports/*/name` in the guest).
pub const SERIAL_PORT_NAME: &str = "kata.agent.0";

/// What the guest writes first on every new connection, before any ttrpc frame: it tells the host that an agent, and
/// not only the channel, is there. Fixed length, so that the host never reads more than this from a hostile guest.
pub const GREETING: &[u8; 16] = b"KATA-AGENT/0001\n";

/// Largest chunk of stdin or output that one call carries, in bytes. Well under ttrpc's limit of 4 MiB a message.
pub const MAX_CHUNK: usize = 256 * 1024;

/// Most descriptors that a process has beyond the standard ones.
pub const MAX_DESCRIPTORS: usize = 64;

/// The first of them.
pub const FIRST_DESCRIPTOR: u32 = 3;

/// Largest OCI specification that is sent to the guest, in bytes of JSON. ttrpc refuses messages over 4 MiB.
pub const MAX_SPEC: usize = 3 * 1024 * 1024;

/// Most bytes of a container's specification and of its copied files together. ttrpc refuses messages over 4 MiB.
pub const MAX_COPIED: usize = MAX_SPEC;

/// Longest path of a copied file, in bytes.
pub const MAX_COPIED_PATH: usize = 1024;

/// Most copied files of one storage.
pub const MAX_COPIED_FILES: usize = 4096;

/// What a copied file counts for beside its path and its content, in bytes.
pub const COPIED_ENTRY: usize = 64;

/// Largest program of a console, in bytes. ttrpc refuses messages over 4 MiB.
pub const MAX_CONSOLE: usize = 3 * 1024 * 1024;

/// Largest kit for iptables, in bytes. ttrpc refuses messages over 4 MiB.
pub const MAX_KIT: usize = 3 * 1024 * 1024;

/// Most rules of a packet filter, in bytes: those that are set, and those that are answered.
pub const MAX_RULES: usize = 512 * 1024;

/// Kernel parameter with which the host names the channel: `kata.agent=vsock:<port>`, `kata.agent=serial`
/// (and, for a process on the host, the argument `--connect unix:<path>`).
pub const CHANNEL_PARAM: &str = "kata.agent";

/// The agent's own directory in the guest. Every storage is mounted below it, and every guest path the host names in a
/// specification (root file system, sources of bind mounts) lies below it or is a file system of the kernel's.
pub const GUEST_DIR: &str = "/run/kata";

/// The pod's shared memory (tmpfs, size from `CreateSandbox`): what a container's `/dev/shm` is bound from.
pub const GUEST_SHM: &str = "/run/kata/shm";

/// The pod's `resolv.conf`, written by `CreateSandbox` when the request has DNS settings.
pub const GUEST_RESOLV_CONF: &str = "/run/kata/resolv.conf";

/// The pod's `/etc/hostname`, written by `CreateSandbox` when the request has a host name.
pub const GUEST_HOSTNAME: &str = "/run/kata/hostname";
