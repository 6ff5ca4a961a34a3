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
        let ([mount], false) = (container.rootfs.as_slice(), self.how == DisksPlan::Mounted) else {
            return Ok(None);
        };
        let is_bind = pieces(&mount.options).any(|option| matches!(option, "bind" | "rbind"));
        let Some(fs_type) = DiskFs::named(&mount.fs_type).filter(|_| !is_bind) else {
            return Ok(None);
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
