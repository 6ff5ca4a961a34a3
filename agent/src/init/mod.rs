//! What PID 1 of a guest does before it serves: file systems, modules, loopback. All of it is on the path of every start,
//! so there is nothing here that a container does not need.

mod cmdline;
pub mod modules;
mod mounts;
pub mod power;

use std::os::fd::AsFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};
use crate::sys;
pub use cmdline::Parameters;
pub use mounts::CGROUP_ROOT;

/// Makes an initramfs a guest, and reads what the host has to say.
///
/// # Errors
/// The first step that fails; none is optional.
pub fn prepare() -> Result<Parameters> {
    mounts::leave_rootfs()?;
    mounts::mount_kernel_file_systems()?;
    mounts::enable_controllers()?;
    modules::load(modules::LIST)?;
    loopback_up()?;
    const CMDLINE: &str = "/proc/cmdline";
    let cmdline = std::fs::read_to_string(CMDLINE).map_err(Error::file("read", CMDLINE))?;
    Parameters::parse(&cmdline)
}

/// Brings up the loopback interface of this process's network namespace.
///
/// # Errors
/// The kernel's.
pub fn loopback_up() -> Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(Error::system("open a socket"))?;
    sys::interface_up(socket.as_fd(), "lo").map_err(Error::system("bring up the loopback interface"))
}
