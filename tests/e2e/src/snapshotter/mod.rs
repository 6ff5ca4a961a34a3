//! The same tests with root file systems on block devices: `KATA_TEST_SNAPSHOTTER=devmapper`. containerd's devmapper snapshotter is
//! the real one; the kernels of our machines have no device-mapper, so that what stands below it are loop devices (`dmsetup.sh`).
//! And in files with the content of one: `blockfile`, which containerd has from 1.7 on.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, mount};

use crate::deadlines;
use crate::program::Program;

/// The variable that says which snapshotter the tests use: `overlayfs`, as without it, `devmapper` or `blockfile`.
pub const VARIABLE: &str = "KATA_TEST_SNAPSHOTTER";

/// Where the volumes' nodes are. The cell has one of its own.
const NODES: &str = "/dev/mapper";

/// Of a file of the blockfile snapshotter's, bytes: containerd copies all of it for each layer and each container.
const SCRATCH: u64 = 256 << 20;

/// A snapshotter of containerd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// Directories.
    Overlayfs,
    /// Block devices.
    Devmapper,
    /// Files with the content of a block device.
    Blockfile,
}

impl Snapshotter {
    /// The one that the tests are to use.
    ///
    /// # Errors
    /// The variable says something else.
    pub fn wanted() -> Result<Self> {
        match env::var(VARIABLE).as_deref() {
            Err(_) | Ok("" | "overlayfs") => Ok(Self::Overlayfs),
            Ok("devmapper") => Ok(Self::Devmapper),
            Ok("blockfile") => Ok(Self::Blockfile),
            Ok(other) => bail!("{VARIABLE} is {other:?}, and none of overlayfs, devmapper and blockfile"),
        }
    }

    /// containerd's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Devmapper => "devmapper",
            Self::Blockfile => "blockfile",
        }
    }
}

/// Whether there are the loop devices for volumes.
pub fn is_possible() -> bool {
    Path::new("/dev/loop-control").exists()
}

/// Gives a cell a place for the volumes' nodes, which is there as long as the cell.
///
/// # Errors
/// It can't be made.
pub(crate) fn furnish() -> Result<()> {
    // A kernel without device-mapper has no such directory, and it stays; what is in it is the cell's.
    match fs::create_dir(NODES) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("create {NODES}"));
        }
        Ok(()) | Err(_) => {}
    }
    mount("cell", NODES, "tmpfs", MountFlags::NOSUID, Some(c"mode=755"))
        .with_context(|| format!("mount a tmpfs on {NODES}"))
}

/// Makes what the devmapper snapshotter stands on, in this cell's directory. Answers with the directory of its `dmsetup` and with
/// its part of containerd's configuration.
///
/// # Errors
/// It can't be made.
pub fn prepare(directory: &Path) -> Result<(PathBuf, String)> {
    let programs = directory.join("dmsetup");
    fs::create_dir_all(programs.join("volumes"))?;
    let program = programs.join("dmsetup");
    fs::write(&program, include_str!("dmsetup.sh"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let settings = format!(
        "[plugins.\"io.containerd.snapshotter.v1.devmapper\"]\n\
         root_path = {:?}\n\
         pool_name = \"pool\"\n\
         base_image_size = \"512MB\"\n",
        directory.join("devmapper")
    );
    Ok((programs, settings))
}

/// Makes the empty file system of which each snapshot of the blockfile snapshotter is a copy. Answers with its part of containerd's
/// configuration.
///
/// # Errors
/// It can't be made.
pub(crate) fn prepare_files(directory: &Path) -> Result<String> {
    let scratch = directory.join("scratch");
    fs::File::create(&scratch)
        .and_then(|file| file.set_len(SCRATCH))
        .with_context(|| format!("make {}", scratch.display()))?;
    Program::new("mkfs.ext4")
        .args(["-F", "-q"])
        .args([&scratch])
        .within(deadlines::CALL)
        .read()?;
    Ok(format!(
        "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\n\
         root_path = {:?}\n\
         scratch_file = {scratch:?}\n\
         fs_type = \"ext4\"\n\
         mount_options = [\"loop\"]\n",
        directory.join("blockfile")
    ))
}

/// The loop devices whose files are below a directory, also one that is gone.
///
/// # Errors
/// The kernel does not list its block devices.
pub fn loop_devices(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for disk in fs::read_dir("/sys/block").context("list block devices")? {
        let disk = disk?;
        // One that has no file has none to read.
        let Ok(file) = fs::read_to_string(disk.path().join("loop/backing_file")) else {
            continue;
        };
        if Path::new(file.trim_end()).starts_with(directory) {
            found.push(Path::new("/dev").join(disk.file_name()));
        }
    }
    Ok(found)
}

/// Detaches loop devices from files below a directory. One that is still in use goes with its last user.
///
/// # Errors
/// The kernel refuses it.
pub fn detach(directory: &Path) -> Result<()> {
    for device in loop_devices(directory)? {
        Program::new("losetup")
            .args(["--detach".as_ref(), device.as_os_str()])
            .within(deadlines::CALL)
            .read()?;
    }
    Ok(())
}
