//! The byte stream to the agent. Pure.

use std::path::Path;

use configuration::{AgentChannel, Config};
use hypervisor::Capabilities;

use crate::error::{Error, ErrorKind, Result};
use crate::model::ChannelPlan;

/// The best channel that there is, or the one that the administrator wants.
pub(super) fn choose(
    config: &Config,
    abilities: &Capabilities,
    exists: &dyn Fn(&Path) -> bool,
) -> Result<ChannelPlan> {
    let daemon = &config.hypervisor.vhost_user_vsock_daemon;
    let daemon_works = abilities.vhost_user && exists(daemon);
    let missing = |key: &str, what: &str| {
        Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("[agent.kata] channel = \"{key}\": {what}; or use channel = \"auto\""),
        ))
    };
    match config.agent.channel {
        AgentChannel::Auto | AgentChannel::HybridVsock if abilities.vsock_hybrid => {
            Ok(ChannelPlan::HybridVsock)
        }
        AgentChannel::HybridVsock => missing(
            "hybrid-vsock",
            "this hypervisor has no vsock of its own, as \"clh\" and \"firecracker\" have",
        ),
        // Of all devices for it only a port can be saved.
        AgentChannel::Auto if config.factory.is_on() && abilities.serial_port => Ok(ChannelPlan::Serial),
        AgentChannel::Auto if abilities.vsock_kernel => Ok(ChannelPlan::KernelVsock),
        AgentChannel::Auto if daemon_works => Ok(ChannelPlan::DaemonVsock(daemon.clone())),
        AgentChannel::Auto if abilities.serial_port => Ok(ChannelPlan::Serial),
        AgentChannel::Auto => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "[agent.kata] channel = \"auto\": this hypervisor has no virtio-serial, vsock of the kernel does not work \
                 (load the module vhost_vsock), and neither does its daemon {} (vhost_user_vsock_daemon)",
                daemon.display()
            ),
        )),
        AgentChannel::Vsock if abilities.vsock_kernel => Ok(ChannelPlan::KernelVsock),
        AgentChannel::Vsock if abilities.vsock_hybrid => missing(
            "vsock",
            "this hypervisor has its own vsock, and not the kernel's; use channel = \"hybrid-vsock\"",
        ),
        AgentChannel::Vsock => missing(
            "vsock",
            "/dev/vhost-vsock cannot be used by this hypervisor on this host; load the module vhost_vsock",
        ),
        AgentChannel::VhostUserVsock if daemon_works => Ok(ChannelPlan::DaemonVsock(daemon.clone())),
        AgentChannel::VhostUserVsock if !abilities.vhost_user => {
            missing("vhost-user-vsock", "this hypervisor has no vhost-user devices")
        }
        AgentChannel::VhostUserVsock => missing(
            "vhost-user-vsock",
            &format!(
                "there is no program {}; install vhost-device-vsock, or correct vhost_user_vsock_daemon",
                daemon.display()
            ),
        ),
        AgentChannel::VirtioSerial if abilities.serial_port => Ok(ChannelPlan::Serial),
        AgentChannel::VirtioSerial => missing("virtio-serial", "this hypervisor has no virtio-serial"),
    }
}
