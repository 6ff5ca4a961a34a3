//! Block devices of the host that become disks of the guest: root file systems, volumes, and devices of a container. Pure.
//!
//! Only what somebody has named as a block device becomes one, or as a file with the content of one: never what a directory happens to
//! lie on. What is really there is for the host to see, when it opens it.

use std::path::{Path, PathBuf};

use agent_protocol as p;
use configuration::HypervisorConfig;
use hypervisor::Capabilities;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use super::unsupported;
use crate::error::{Error, ErrorKind, Result};
use crate::guest;
use crate::model::{ContainerConfig, DirectVolume, DiskFs, DiskPlan, DiskSource, DisksPlan};
use crate::sandbox::RootfsMount;

/// Kinds of direct volumes that are a file system on a block device, in Kata's words.
const VOLUME_TYPES: [&str; 2] = ["block", "directvol"];

/// How block devices reach the guest.
pub(super) fn choose(config: &HypervisorConfig, abilities: &Capabilities) -> DisksPlan {
    if abilities.guest_is_process || config.disable_block_device_use {
        DisksPlan::Mounted
    } else if abilities.block_hotplug {
        DisksPlan::Plugged
    } else {
        DisksPlan::Impossible
    }
}

/// The disks of one container.
#[derive(Debug)]
pub(super) struct Disks {
    pub(super) how: DisksPlan,
    number: u64,
    pub(super) list: Vec<DiskPlan>,
    /// Those that it has as devices.
    pub(super) devices: Vec<p::DiskDevice>,
}

impl Disks {
    pub(super) fn new(how: DisksPlan, container: &ContainerConfig) -> Self {
        Self {
            how,
            number: container.number,
            list: Vec::new(),
            devices: Vec::new(),
        }
    }

    /// One more disk, or one that it has already; its name.
    fn add(&mut self, source: DiskSource, readonly: bool, fs_type: Option<DiskFs>) -> String {
        if let Some(known) = self.list.iter_mut().find(|disk| disk.source == source) {
            known.readonly &= readonly;
            return known.id.clone();
        }
        let id = format!("c{}d{}", self.number, self.list.len());
        self.list.push(DiskPlan {
            id: id.clone(),
            source,
            readonly,
            fs_type,
            volumes: Vec::new(),
        });
        id
    }

    /// The root file system, where it is on a block device, as the guest is to mount it.
    ///
    /// # Errors
    /// It is on one, and cannot be a disk.
    pub(super) fn root(&mut self, container: &ContainerConfig) -> Result<Option<p::Storage>> {
        if self.how == DisksPlan::Mounted {
            return Ok(None);
        }
        let (mount, fs_type) = match container.rootfs.as_slice() {
            [mount] => match disk_fs(mount) {
                Some(fs_type) => (mount, fs_type),
                None => return Ok(None),
            },
            // The host's kernel would have to read an image to lay something over it.
            several => match several.iter().find_map(disk_fs) {
                Some(fs_type) => return Err(stacked(container, fs_type)),
                None => return Ok(None),
            },
        };
        if self.how == DisksPlan::Impossible {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the root file system of container {} is on a block device, and this virtual machine can be given none \
                     while it runs; use machine_type = \"q35\", or have the host mount it with disable_block_device_use = true",
                    container.id
                ),
            ));
        }
        if let Some(option) = second_device(&mount.options) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the root file system of container {} is on more than one block device (the option {}), and its guest is \
                     given one; use a snapshotter that gives one, such as devmapper or blockfile",
                    container.id,
                    crate::oci::shown(option)
                ),
            ));
        }
        Ok(Some(self.mounted(source(mount), fs_type, &mount.options, false)))
    }

    /// A disk whose file system the guest mounts.
    fn mounted(
        &mut self,
        source: DiskSource,
        fs_type: DiskFs,
        asked: &[String],
        readonly: bool,
    ) -> p::Storage {
        let readonly = readonly || fs_type == DiskFs::Erofs || pieces(asked).any(|option| option == "ro");
        let id = self.add(source, readonly, Some(fs_type));
        p::Storage {
            driver: "block".to_owned(),
            source: guest::serial(&id),
            fstype: fs_type.name().to_owned(),
            options: options(fs_type, asked, readonly),
            mount_point: guest::disk(&id),
            ..Default::default()
        }
    }

    /// A volume that the guest mounts from a block device of its own, for a path of the host. `readonly`: the container does not
    /// write to it.
    pub(super) fn volume(
        &mut self,
        (index, path): (usize, &Path),
        volume: &DirectVolume,
        readonly: bool,
    ) -> Result<p::Storage> {
        let refuse = |what: String| Err(unsupported(format_args!("mounts[{index}]"), what));
        if self.how != DisksPlan::Plugged {
            return refuse(format!(
                "{} is a direct volume, and this virtual machine can be given no block device while it runs; use a \
                 hypervisor and a machine that can (machine_type = \"q35\"), without disable_block_device_use",
                volume.device.display()
            ));
        }
        if !VOLUME_TYPES.contains(&volume.volume_type.as_str()) {
            return refuse(format!(
                "its direct volume is of type {}; {} are supported",
                crate::oci::shown(&volume.volume_type),
                VOLUME_TYPES.join(" and ")
            ));
        }
        let Some(fs_type) = DiskFs::named(&volume.fs_type) else {
            return refuse(format!(
                "its direct volume has a file system of type {}; {} can be mounted in the guest",
                crate::oci::shown(&volume.fs_type),
                DiskFs::ALL.map(DiskFs::name).join(", ")
            ));
        };
        if let Some(key) = volume.metadata.keys().next() {
            return refuse(format!(
                "its direct volume has metadata {}, which is not supported; leave it out",
                crate::oci::shown(key)
            ));
        }
        if let Some(option) = second_device(&volume.options) {
            return refuse(format!(
                "its direct volume is on more than one block device (the option {}), and its guest is given one; use a file \
                 system on one device",
                crate::oci::shown(option)
            ));
        }
        let source = DiskSource::DeviceOrFile(volume.device.clone());
        let storage = self.mounted(source.clone(), fs_type, &volume.options, readonly);
        for disk in self.list.iter_mut().filter(|disk| disk.source == source) {
            if !disk.volumes.iter().any(|known| known == path) {
                disk.volumes.push(path.to_owned());
            }
        }
        Ok(storage)
    }

    /// A block device with these numbers, as a device of the container's at `path`.
    pub(super) fn device(&mut self, (major, minor): (u32, u32), path: PathBuf, access: &str) {
        let id = self.add(DiskSource::Numbers(major, minor), !access.contains('w'), None);
        self.devices.push(p::DiskDevice {
            source: guest::serial(&id),
            path: path.to_string_lossy().into_owned(),
            access: access.to_owned(),
            ..Default::default()
        });
    }
}

/// A node in the container, whose numbers the guest knows.
pub(super) fn node(path: PathBuf, mode: u32, uid: u32, gid: u32) -> Result<LinuxDevice> {
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(LinuxDeviceType::B)
        .major(0)
        .minor(0)
        .file_mode(mode)
        .uid(uid)
        .gid(gid)
        .build()
        .map_err(|cause| Error::caused(ErrorKind::Internal, "a device for the guest", cause))
}

/// The file system of a mount, if it is one of a block device.
fn disk_fs(mount: &RootfsMount) -> Option<DiskFs> {
    let is_bind = pieces(&mount.options).any(|option| matches!(option, "bind" | "rbind"));
    DiskFs::named(&mount.fs_type).filter(|_| !is_bind)
}

/// The error of a root that is a block device with something over it, as containerd's snapshotter erofs may give it.
fn stacked(container: &ContainerConfig, fs_type: DiskFs) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "the root file system of container {} is made of {} mounts, one of which is a block device's ({}), and a guest's is \
             either one block device or a directory; use a snapshotter that gives one of them, such as devmapper, blockfile \
             or overlayfs",
            container.id,
            container.rootfs.len(),
            fs_type.name()
        ),
    )
}

fn source(mount: &RootfsMount) -> DiskSource {
    // What mount(8) needs a loop device for, a virtual machine monitor reads as it is.
    match pieces(&mount.options).any(|option| option == "loop") {
        true => DiskSource::File(PathBuf::from(&mount.source)),
        false => DiskSource::Device(PathBuf::from(&mount.source)),
    }
}

/// Options one by one: callers write several into one text as well.
fn pieces(options: &[String]) -> impl Iterator<Item = &str> {
    options.iter().flat_map(|option| option.split(','))
}

/// An option by which a file system is on another device as well, if there is one: its name would be the host's.
fn second_device(options: &[String]) -> Option<&str> {
    // Of EROFS, of ext4 and of XFS.
    const NAMES: [&str; 5] = ["device", "journal_dev", "journal_path", "logdev", "rtdev"];
    pieces(options).find(|option| {
        option
            .split_once('=')
            .is_some_and(|(name, _)| NAMES.contains(&name))
    })
}

/// What the guest's kernel is told, of what mount(8) would be.
fn options(fs_type: DiskFs, asked: &[String], readonly: bool) -> Vec<String> {
    let is_told = |option: &&str| {
        let is_default = matches!(
            *option,
            "" | "defaults" | "ro" | "rw" | "suid" | "dev" | "exec" | "async" | "atime" | "diratime"
        );
        let is_of_the_host = matches!(*option, "loop" | "auto" | "noauto" | "nofail" | "_netdev")
            || option.starts_with("x-")
            || option.starts_with("X-")
            || option.ends_with("private")
            || option.ends_with("slave")
            || option.ends_with("shared")
            || option.ends_with("unbindable");
        !is_default && !is_of_the_host
    };
    let mut told: Vec<String> = pieces(asked).filter(is_told).map(str::to_owned).collect();
    if readonly {
        told.push("ro".to_owned());
    }
    if fs_type == DiskFs::Ext4 && !told.iter().any(|option| option.starts_with("errors=")) {
        // Whatever the image itself says: it could say that the guest's kernel is to panic.
        told.push("errors=remount-ro".to_owned());
    }
    told
}
