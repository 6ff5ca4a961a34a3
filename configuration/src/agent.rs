//! `[agent.kata]`: how the host talks to the agent in the guest.

use std::path::PathBuf;
use std::time::Duration;

use crate::kinds::{Flag, HostPath, OneOf, Seconds, SecondsOrSuitable, Word};
use crate::settings::settings;

/// The dotted name of the table.
pub(crate) const TABLE: &str = "agent.kata";

/// The byte stream between host and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentChannel {
    /// The best one that there is: the VMM's own hybrid vsock, else kernel vsock, else vhost-user vsock, else virtio-serial.
    Auto,
    /// The VMM's own vsock, which is unix sockets on the host.
    HybridVsock,
    /// Kernel vhost-vsock (`/dev/vhost-vsock`).
    Vsock,
    /// vsock by the `vhost-device-vsock` daemon; needs shared guest memory.
    VhostUserVsock,
    /// A virtio-serial port; needs nothing of the host.
    VirtioSerial,
}

impl Word for AgentChannel {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("hybrid-vsock", Self::HybridVsock),
        ("vsock", Self::Vsock),
        ("vhost-user-vsock", Self::VhostUserVsock),
        ("virtio-serial", Self::VirtioSerial),
    ];
}

settings! {
    /// `[agent.kata]`, validated.
    pub struct AgentConfig() {
        /// The byte stream between host and agent. `hybrid-vsock`: that of `clh` and `firecracker`. `vsock`: the kernel's
        /// (`/dev/vhost-vsock`). `vhost-user-vsock`: by the program `vhost_user_vsock_daemon`. `virtio-serial`: a port, needs
        /// nothing of the host. `auto`: the first of these that there is.
        channel: OneOf<AgentChannel> = "auto" => channel: AgentChannel;

        /// How long the guest may take from the VMM's start to the agent's greeting, in seconds. 0: 45 with KVM, and 180
        /// without, where guests are emulated and those that start at once slow each other down.
        dial_timeout: SecondsOrSuitable = 0 => dial_timeout: Option<Duration>;

        /// How long the agent may take for an ordinary request, in seconds.
        request_timeout: Seconds = 60 => request_timeout: Duration;

        /// How long the agent may take to create a container, in seconds.
        create_container_timeout: Seconds = 60 => create_container_timeout: Duration,
            pod "runtime.create_container_timeout";

        /// Allow `kata-runtime exec SANDBOX`: a program of the host's, `debug_console_program`, run by root in the guest itself and
        /// not in a container. Only for finding out what is wrong with a guest.
        debug_console_enabled: Flag = false => debug_console_enabled: bool;

        /// What the debug console runs in the guest: a static program of up to 3 MiB, which is called as `sh`.
        debug_console_program: HostPath = "/bin/busybox" => debug_console_program: PathBuf;

        /// Let the agent log at debug level.
        enable_debug: Flag = false => enable_debug: bool, pod "agent.enable_debug";
    }
}
