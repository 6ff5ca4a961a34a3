//! What a stand-in's caller finds through `/proc/<pid>/root` and `/proc/<pid>/ns`: the root file system of the container, and no
//! processes but the stand-in. Podman enters both, to copy files and to list processes; without them it would read and write
//! those of the host.

use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

/// Variable that names the directory of the root file system.
pub const ROOT: &str = "KATA_STANDIN_ROOT";

/// Variable that is there when the standard output is the terminal of the process.
pub const TERMINAL: &str = "KATA_STANDIN_TERMINAL";

/// Makes a directory the root of a mount namespace of our own, in which there is nothing else. The process is the first of its pid
/// namespace.
///
/// # Errors
/// The system's. The namespace is of no use then.
pub fn enter(root: &Path) -> io::Result<()> {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What the host unmounts later must not be kept by us.
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        NOTHING,
    )?;
    mount(
        Some(root),
        root,
        NOTHING,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NOTHING,
    )?;
    chdir(root)?;
    // The old root comes to lie upon the new one, and is taken away there (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    // From here on no link of the image leads out of it. An image without the directory has no list of processes.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), "/proc", Some("proc"), flags, NOTHING) {
        Ok(()) | Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
