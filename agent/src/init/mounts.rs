//! The kernel's file systems, and a root from which containers can pivot.

use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use crate::error::{Error, Result};

/// Where the cgroup hierarchy (version 2) is.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Moves from the initramfs's root mount to a bind mount of it: the kernel refuses `pivot_root` on the former, and with
/// it would every container.
///
/// # Errors
/// The kernel's.
pub fn leave_rootfs() -> Result<()> {
    const NEW: &str = "/newroot";
    std::fs::create_dir_all(NEW).map_err(Error::file("create", NEW))?;
    mount_bind("/", NEW).map_err(Error::file("bind", NEW))?;
    std::env::set_current_dir(NEW).map_err(Error::file("enter", NEW))?;
    mount_move(".", "/").map_err(Error::file("move", NEW))?;
    nix::unistd::chroot(".").map_err(Error::file("chroot to", NEW))?;
    std::env::set_current_dir("/").map_err(Error::file("enter", "/"))
}

/// Mounts proc, sysfs, devtmpfs, devpts, two tmpfs and the cgroups.
///
/// # Errors
/// The kernel's, with the mount point.
pub fn mount_kernel_file_systems() -> Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (fstype, target, flags, data) in [
        ("proc", "/proc", safe, c""),
        ("sysfs", "/sys", safe, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
        ("devpts", "/dev/pts", terminals, c"gid=5,mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", safe, c"mode=1777"),
        (
            "tmpfs",
            "/run",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755",
        ),
        ("cgroup2", CGROUP_ROOT, safe, c"nsdelegate"),
    ] {
        std::fs::create_dir_all(target).map_err(Error::file("create", target))?;
        match mount(fstype, target, fstype, flags, data) {
            // Some kernels mount devtmpfs themselves.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(Error::file("mount", target)(error)),
        }
    }
    Ok(())
}

/// Lets containers use every controller the kernel has.
///
/// # Errors
/// The kernel's.
pub fn enable_controllers() -> Result<()> {
    let root = Path::new(CGROUP_ROOT);
    let list = root.join("cgroup.controllers");
    let controllers = std::fs::read_to_string(&list).map_err(Error::file("read", list))?;
    let enable: Vec<String> = controllers
        .split_ascii_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    let control = root.join("cgroup.subtree_control");
    std::fs::write(&control, enable.join(" ")).map_err(Error::file("write", control))
}
