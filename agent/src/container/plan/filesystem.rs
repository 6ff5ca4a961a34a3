//! What the container sees of files: its root, mounts in order, devices, hidden and read-only paths.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType, Spec};
use rustix::fs::{FileType, makedev};

use crate::container::error::{Error, Result};
use crate::container::mount_options::{self, MountOptions, NotSupported};

use super::clean;

/// Files below /proc that may be mounted over, for those who present a container's own figures there. `runc`'s list.
const PROC_ALLOWED: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

#[derive(Debug)]
pub(in crate::container) struct Filesystem {
    /// The directory that becomes the root.
    pub(in crate::container) root: PathBuf,
    pub(in crate::container) readonly: bool,
    /// `MS_SHARED` and its like, and whether it includes submounts.
    pub(in crate::container) propagation: Option<(u64, bool)>,
    pub(in crate::container) mounts: Vec<Mount>,
    pub(in crate::container) devices: Vec<Device>,
    /// /dev is the container's own, not somebody's bind mount.
    pub(in crate::container) own_dev: bool,
    pub(in crate::container) masked: Vec<PathBuf>,
    pub(in crate::container) readonly_paths: Vec<PathBuf>,
}

/// One mount.
#[derive(Debug)]
pub(in crate::container) struct Mount {
    /// Absolute and clean, but with links still unresolved.
    pub(in crate::container) destination: PathBuf,
    pub(in crate::container) kind: MountKind,
    pub(in crate::container) options: MountOptions,
}

#[derive(Debug)]
pub(in crate::container) enum MountKind {
    /// A path of the agent's.
    Bind { source: PathBuf },
    /// The container's part of the cgroup tree.
    Cgroup,
    /// A new instance of a file system.
    New { fstype: String, source: String },
    /// Other attributes for what is mounted there.
    Remount,
}

/// A device node or FIFO.
#[derive(Debug, Clone)]
pub(in crate::container) struct Device {
    pub(in crate::container) path: PathBuf,
    pub(in crate::container) kind: FileType,
    pub(in crate::container) number: u64,
    /// Permission bits.
    pub(in crate::container) mode: u32,
    pub(in crate::container) uid: u32,
    pub(in crate::container) gid: u32,
}

impl Filesystem {
    pub(super) fn new(spec: &Spec, linux: &Linux) -> Result<Self> {
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| Error::spec("root", "is missing"))?;
        if !root.path().is_absolute() || clean(root.path()) == Path::new("/") {
            return Err(Error::spec(
                "root.path",
                format!(
                    "{} is no absolute path of a directory other than the root",
                    root.path().display()
                ),
            ));
        }
        let mut mounts = Vec::new();
        for (index, mount) in spec.mounts().iter().flatten().enumerate() {
            mounts.push(Mount::new(index, mount)?);
        }
        let own_dev = !mounts.iter().any(|mount| {
            mount.destination == Path::new("/dev") && matches!(mount.kind, MountKind::Bind { .. })
        });
        Ok(Self {
            root: root.path().clone(),
            readonly: root.readonly().unwrap_or(false),
            propagation: propagation(linux.rootfs_propagation().as_deref())?,
            devices: devices(linux, own_dev)?,
            own_dev,
            mounts,
            masked: paths("linux.maskedPaths", linux.masked_paths().as_deref())?,
            readonly_paths: paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
        })
    }
}

impl Mount {
    fn new(index: usize, mount: &oci_spec::runtime::Mount) -> Result<Self> {
        let field = |name: &str| format!("mounts[{index}].{name}");
        // A relative destination is one from the root, as `runc` takes it.
        let destination = clean(mount.destination());
        if destination == Path::new("/") {
            return Err(Error::spec(field("destination"), "is the root"));
        }
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(Error::unsupported(field("uidMappings"), "an id-mapped mount"));
        }
        let mut options = mount_options::parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|NotSupported(option)| Error::unsupported(field("options"), option))?;
        if options.copy_up && mount.typ().as_deref() != Some("tmpfs") {
            return Err(Error::spec(field("options"), "tmpcopyup needs a tmpfs"));
        }
        let source = || {
            mount
                .source()
                .clone()
                .ok_or_else(|| Error::spec(field("source"), "is missing"))
        };
        let kind = match (mount.typ().as_deref(), options.bind) {
            _ if options.remount => MountKind::Remount,
            (_, Some(_)) => MountKind::Bind { source: source()? },
            (Some("bind"), None) => {
                options.bind = Some(false);
                MountKind::Bind { source: source()? }
            }
            (Some("cgroup" | "cgroup2"), None) => MountKind::Cgroup,
            (Some(fstype), None) if !fstype.is_empty() && !fstype.contains('\0') => MountKind::New {
                fstype: fstype.to_owned(),
                source: mount
                    .source()
                    .as_ref()
                    .and_then(|source| source.to_str())
                    .filter(|source| !source.is_empty())
                    .unwrap_or(fstype)
                    .to_owned(),
            },
            _ => return Err(Error::spec(field("type"), "is missing")),
        };
        if let MountKind::Bind { source } = &kind
            && !source.is_absolute()
        {
            return Err(Error::spec(
                field("source"),
                format!("{} is not absolute", source.display()),
            ));
        }
        check_proc(&destination, &kind).map_err(|reason| Error::spec(field("destination"), reason))?;
        Ok(Self {
            destination,
            kind,
            options,
        })
    }
}

/// Nothing is mounted below /proc but what is known to be harmless: else a container could have the agent's own reads
/// of /proc, and later runtimes', answered by itself.
fn check_proc(destination: &Path, kind: &MountKind) -> Result<(), String> {
    let Ok(below) = destination.strip_prefix("/proc") else {
        return Ok(());
    };
    let allowed = if below.as_os_str().is_empty() {
        match kind {
            MountKind::New { fstype, .. } => fstype == "proc",
            // Whether the source is a procfs is checked when it is mounted.
            MountKind::Bind { .. } | MountKind::Remount => true,
            MountKind::Cgroup => false,
        }
    } else {
        PROC_ALLOWED.iter().any(|path| destination == Path::new(path))
    };
    if allowed {
        Ok(())
    } else {
        Err(format!(
            "{} can't be mounted over: it is inside /proc",
            destination.display()
        ))
    }
}

fn propagation(name: Option<&str>) -> Result<Option<(u64, bool)>> {
    Ok(match name {
        None | Some("") => None,
        Some("private") => Some((libc::MS_PRIVATE, false)),
        Some("rprivate") => Some((libc::MS_PRIVATE, true)),
        Some("slave") => Some((libc::MS_SLAVE, false)),
        Some("rslave") => Some((libc::MS_SLAVE, true)),
        Some("shared") => Some((libc::MS_SHARED, false)),
        Some("rshared") => Some((libc::MS_SHARED, true)),
        Some("unbindable") => Some((libc::MS_UNBINDABLE, false)),
        Some("runbindable") => Some((libc::MS_UNBINDABLE, true)),
        Some(other) => {
            return Err(Error::spec(
                "linux.rootfsPropagation",
                format!("{other:?} is unknown"),
            ));
        }
    })
}

/// The devices that every container has (OCI runtime specification, "Default Devices"), and the asked-for ones, which
/// win over a default of the same path.
fn devices(linux: &Linux, own_dev: bool) -> Result<Vec<Device>> {
    const DEFAULTS: [(&str, u32, u32); 6] = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    ];
    let mut devices: Vec<Device> = Vec::new();
    if own_dev {
        devices.extend(DEFAULTS.map(|(path, major, minor)| Device {
            path: path.into(),
            kind: FileType::CharacterDevice,
            number: makedev(major, minor),
            mode: 0o666,
            uid: 0,
            gid: 0,
        }));
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        let path = clean(device.path());
        if path == Path::new("/") {
            return Err(Error::spec(field("path"), "is the root"));
        }
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => return Err(Error::spec(field("type"), "\"a\" is no device")),
        };
        let number = |name, value: i64| {
            // Linux: 12 bits of major, 20 of minor.
            u32::try_from(value).map_err(|_| Error::spec(field(name), format!("{value} is out of range")))
        };
        let number = match kind {
            FileType::Fifo => 0,
            _ => makedev(number("major", device.major())?, number("minor", device.minor())?),
        };
        devices.retain(|default| default.path != path);
        devices.push(Device {
            path,
            kind,
            number,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    Ok(devices)
}

fn paths(field: &str, paths: Option<&[String]>) -> Result<Vec<PathBuf>> {
    paths
        .unwrap_or_default()
        .iter()
        .map(|path| match Path::new(path) {
            path if path.is_absolute() => Ok(clean(path)),
            path => Err(Error::spec(field, format!("{} is not absolute", path.display()))),
        })
        .collect()
}
