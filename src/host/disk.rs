//! Block devices of the host, and files with the content of one, opened to be a virtual machine's disks. What is opened is what was
//! looked at, and nobody else has it: the virtual machine gets the descriptor, and no path is ever used again.
//!
//! It must not know what is on them, but for the first bytes: an image may be hostile, and only the guest mounts it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::Disk;
use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, flock, fstat, openat, openat2,
};
use rustix::io::Errno;

use super::sys;
use crate::aside::Site;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{DiskFs, DiskPlan, DiskSource};
use crate::sandbox::Volume;

/// So much of the beginning tells what is on it, bytes.
const BEGINNING: usize = 2048;

/// Where the host's devices are.
const DEV: &str = "/dev";

/// Opens all of a container's disks.
///
/// # Errors
/// The first that cannot be one, and why.
pub(super) fn open_all(plans: &[DiskPlan], site: &Site) -> Result<Vec<Disk>> {
    let open = |plan: &DiskPlan| {
        site.at(Path::new(&plan.source.to_string()))?;
        open_one(plan)
    };
    plans.iter().map(open).collect()
}

/// Those that stand for volumes, each with a descriptor that leaves it free for others once the virtual machine has let go of it.
///
/// # Errors
/// The system's.
pub(super) fn volumes(plans: &[DiskPlan], disks: &[Disk]) -> Result<Vec<Volume>> {
    let of = |(plan, disk): (&DiskPlan, &Disk)| {
        let path = format!("/proc/self/fd/{}", disk.file.as_raw_fd());
        let place = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| refused(plan, &errno.to_string(), ErrorKind::Internal))?;
        Ok(Volume {
            paths: plan.volumes.clone(),
            disk: plan.id.clone(),
            place: Arc::new(place),
            readonly: plan.readonly,
        })
    };
    let pairs = plans.iter().zip(disks);
    pairs
        .filter(|(plan, _)| !plan.volumes.is_empty())
        .map(of)
        .collect()
}

fn open_one(plan: &DiskPlan) -> Result<Disk> {
    let place =
        find(&plan.source)?.map_err(|cause| refused(plan, &cause.to_string(), ErrorKind::InvalidArgument))?;
    let status = fstat(&place).map_err(|errno| refused(plan, &errno.to_string(), ErrorKind::Internal))?;
    check_kind(plan, &status)?;
    let is_device = FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice;
    let file = reopen(plan, &place, is_device)?;
    if !is_device {
        lock(plan, &file, &status)?;
    }
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|errno| {
        refused(
            plan,
            &format!("its size cannot be told: {errno}"),
            ErrorKind::Internal,
        )
    })?;
    if size == 0 {
        return Err(refused(plan, "it is empty (0 bytes)", ErrorKind::InvalidArgument));
    }
    if let Some(wanted) = plan.fs_type {
        check_content(plan, &file, wanted)?;
    }
    Ok(Disk {
        id: plan.id.clone(),
        file: Arc::new(file.into()),
        readonly: plan.readonly,
    })
}

/// What there is, without using it yet.
fn find(source: &DiskSource) -> Result<io::Result<OwnedFd>> {
    match source {
        DiskSource::Device(path) | DiskSource::File(path) | DiskSource::DeviceOrFile(path) => Ok(look(path)),
        DiskSource::Numbers(major, minor) => {
            let uevent = format!("/sys/dev/block/{major}:{minor}/uevent");
            let name = fs::read_to_string(&uevent).ok().and_then(|text| {
                let line = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
                Some(line.to_owned())
            });
            let Some(name) = name else {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("{source} cannot be a disk of the guest: the host has no such device"),
                ));
            };
            let path = Path::new(DEV).join(name);
            Ok(look(&path).and_then(|place| {
                let number = rustix::fs::makedev(*major, *minor);
                match fstat(&place)?.st_rdev == number {
                    true => Ok(place),
                    false => Err(io::Error::other(format!("{} is another device", path.display()))),
                }
            }))
        }
    }
}

/// Opens a path to be looked at. Links in `/dev` are the host's own and lead to its devices by name; of any other path, the last
/// part must not be one: whoever could change it would choose the disk.
fn look(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if !path.is_absolute() {
        return Err(io::Error::other("its path is not absolute"));
    }
    match path.strip_prefix(DEV) {
        Ok(below) => {
            let dev = openat(CWD, DEV, flags | OFlags::DIRECTORY, Mode::empty())?;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            Ok(openat2(dev, below, flags, Mode::empty(), resolve)?)
        }
        Err(_) => Ok(openat(CWD, path, flags | OFlags::NOFOLLOW, Mode::empty())?),
    }
}

/// Whether it is of the kind that was named.
fn check_kind(plan: &DiskPlan, status: &Stat) -> Result<()> {
    let wants = |device: bool| match plan.source {
        DiskSource::Device(_) | DiskSource::Numbers(..) => device,
        DiskSource::File(_) => !device,
        DiskSource::DeviceOrFile(_) => true,
    };
    let problem = match FileType::from_raw_mode(status.st_mode) {
        FileType::BlockDevice if wants(true) => return Ok(()),
        FileType::RegularFile if wants(false) => return Ok(()),
        FileType::BlockDevice => "it is a block device, and a file was named (the option \"loop\")",
        FileType::RegularFile => {
            "it is a file, and a block device is needed (a snapshotter of files names the option \"loop\")"
        }
        FileType::Symlink => "it is a link; name what it leads to",
        FileType::Directory => "it is a directory, and a block device is needed",
        _ => "it is neither a block device nor a file",
    };
    Err(refused(plan, problem, ErrorKind::InvalidArgument))
}

/// Opens what was looked at for use; of a block device, as the only one.
fn reopen(plan: &DiskPlan, place: &OwnedFd, is_device: bool) -> Result<File> {
    let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
    flags |= if plan.readonly {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    if is_device {
        // The kernel lets one have it so, and whoever has mounted it, or made it a part of another device, counts.
        flags |= OFlags::EXCL;
    }
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let opened = openat(CWD, path, flags, Mode::empty());
    opened.map(File::from).map_err(|errno| match errno {
        Errno::BUSY => refused(
            plan,
            "it is in use: mounted, part of another device, or another container's",
            ErrorKind::FailedPrecondition,
        ),
        Errno::ROFS | Errno::ACCESS | Errno::PERM if !plan.readonly => refused(
            plan,
            &format!("it cannot be written ({errno}); mount it with \"ro\""),
            ErrorKind::FailedPrecondition,
        ),
        errno => refused(plan, &errno.to_string(), ErrorKind::InvalidArgument),
    })
}

/// Sees to it that nobody else has a file as a disk: no other virtual machine of ours, and, where it is to be written, no loop device.
fn lock(plan: &DiskPlan, file: &File, status: &Stat) -> Result<()> {
    let operation = match plan.readonly {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    // It holds as long as the virtual machine has the descriptor.
    flock(file, operation).map_err(|errno| match errno {
        Errno::WOULDBLOCK => refused(
            plan,
            "it is in use: another container's, or locked by another program",
            ErrorKind::FailedPrecondition,
        ),
        errno => refused(plan, &errno.to_string(), ErrorKind::Internal),
    })?;
    match loop_device(status, plan.readonly) {
        Some(device) => Err(refused(
            plan,
            &format!("it is in use by the loop device {}", device.display()),
            ErrorKind::FailedPrecondition,
        )),
        None => Ok(()),
    }
}

/// The loop device that has this file, if one has; where we `only_read` it, one that may write to it.
fn loop_device(status: &Stat, only_read: bool) -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    disks.into_iter().find_map(|disk| {
        let shown = fs::read(disk.path().join("loop/backing_file")).ok()?;
        let node = Path::new(DEV).join(disk.file_name());
        // The path that is shown may be one of another mount namespace, or of a file that has another name by now.
        let file = match File::open(&node).and_then(|device| sys::loop_file(&device)) {
            Ok(file) => file,
            Err(_) => {
                let path = Path::new(OsStr::from_bytes(shown.trim_ascii_end()));
                let there = fs::metadata(path).ok()?;
                (there.dev(), there.ino())
            }
        };
        let is_it = file == (status.st_dev, status.st_ino);
        let reads = || fs::read(disk.path().join("ro")).is_ok_and(|ro| ro.starts_with(b"1"));
        (is_it && !(only_read && reads())).then_some(node)
    })
}

fn check_content(plan: &DiskPlan, file: &File, wanted: DiskFs) -> Result<()> {
    let mut beginning = vec![0; BEGINNING];
    let mut length = 0;
    while let Some(rest) = beginning.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => {
                return Err(refused(
                    plan,
                    &format!("it cannot be read: {cause}"),
                    ErrorKind::FailedPrecondition,
                ));
            }
        }
    }
    let found = recognise(beginning.get(..length).unwrap_or_default());
    if found == Content::FileSystem(wanted) {
        return Ok(());
    }
    let wanted = wanted.name();
    let problem = match found {
        Content::FileSystem(other) => format!("it has a file system of type {}, not {wanted}", other.name()),
        Content::Image(format) => format!("it is an image of the format {format}; only raw ones can be used"),
        Content::Unknown => format!("there is no {wanted} file system on it"),
    };
    Err(refused(plan, &problem, ErrorKind::InvalidArgument))
}

/// What the beginning of a disk shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    FileSystem(DiskFs),
    /// Of a format that hypervisors know, and that names other files.
    Image(&'static str),
    Unknown,
}

/// Pure.
pub(super) fn recognise(beginning: &[u8]) -> Content {
    const IMAGES: [(&[u8], &str); 9] = [
        (b"QFI\xfb", "qcow2"),
        (b"QED\0", "QED"),
        (b"KDMV", "VMDK"),
        (b"COWD", "VMDK"),
        (b"# Disk DescriptorFile", "VMDK"),
        (b"conectix", "VHD"),
        (b"vhdxfile", "VHDX"),
        (b"<<< ", "VDI"),
        (b"LUKS\xba\xbe", "LUKS"),
    ];
    // Where, and which bytes there.
    const FILE_SYSTEMS: [(usize, &[u8], DiskFs); 3] = [
        (0, b"XFSB", DiskFs::Xfs),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], DiskFs::Erofs),
        (1024 + 56, &[0x53, 0xef], DiskFs::Ext4),
    ];
    if let Some((_, format)) = IMAGES.iter().find(|(magic, _)| beginning.starts_with(magic)) {
        return Content::Image(format);
    }
    let is_there = |at: usize, magic: &[u8]| beginning.get(at..).is_some_and(|rest| rest.starts_with(magic));
    FILE_SYSTEMS
        .iter()
        .find(|(at, magic, _)| is_there(*at, magic))
        .map_or(Content::Unknown, |(_, _, fs)| Content::FileSystem(*fs))
}

fn refused(plan: &DiskPlan, why: &str, kind: ErrorKind) -> Error {
    Error::new(
        kind,
        format!("{} cannot be a disk of the guest: {why}", plan.source),
    )
}
