//! Disks that the host has plugged in: how it names them, and where they are.

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::name;
use crate::container;
use crate::error::{Error, Result};
use crate::uevent;

/// How long a disk may take to appear after the host plugged it in.
pub(super) const DEVICE_DEADLINE: Duration = Duration::from_secs(10);

/// In what the kernel counts disks, whatever they are made of, bytes.
const SECTOR: u64 = 512;

/// How the kernel's names of virtio's disks begin.
const VIRTIO: &[u8] = b"vd";

/// A disk, as the host names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Disk {
    /// Name below /dev.
    Node(String),
    /// Serial number that the VMM gave it.
    Serial(String),
}

impl Disk {
    pub(super) fn parse(field: &'static str, source: &str) -> Result<Self> {
        if let Some(serial) = source.strip_prefix("serial:") {
            return name(field, serial).map(Self::Serial);
        }
        match source.strip_prefix("/dev/") {
            Some(node) => name(field, node).map(Self::Node),
            None => Err(Error::invalid(
                field,
                format!("{source:?} is neither /dev/<name> nor serial:<id>"),
            )),
        }
    }

    /// Its node, when it can be used.
    fn find(&self) -> Option<PathBuf> {
        let node = match self {
            Self::Node(node) => node.clone(),
            Self::Serial(serial) => std::fs::read_dir("/sys/block").ok()?.flatten().find_map(|disk| {
                let text = std::fs::read_to_string(disk.path().join("serial")).ok()?;
                (text.trim() == serial).then(|| disk.file_name().into_string().ok())?
            })?,
        };
        // Its name is there before it can be used; the announcement that makes us look again comes when it can. A monitor that
        // exchanges the file of a disk says which one it is before the kernel knows how large that is.
        let size = std::fs::read_to_string(Path::new("/sys/class/block").join(&node).join("size")).ok()?;
        Some(Path::new("/dev").join(node))
            .filter(|path| size.trim() != "0" && std::fs::File::open(path).is_ok())
    }

    /// Waits until it has at least so many bytes; answers with what it has.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub(super) async fn grown(&self, size: u64) -> Result<u64> {
        let look = || {
            let node = self.find()?;
            let sectors = Path::new("/sys/class/block").join(node.file_name()?).join("size");
            let sectors: u64 = std::fs::read_to_string(sectors).ok()?.trim().parse().ok()?;
            Some(sectors.saturating_mul(SECTOR)).filter(|has| *has >= size)
        };
        uevent::wait_for(&format!("{self} of {size} bytes"), DEVICE_DEADLINE, look).await
    }

    /// Its node, which may have to appear yet.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub(super) async fn appeared(&self) -> Result<PathBuf> {
        uevent::wait_for(&format!("the disk {self}"), DEVICE_DEADLINE, || self.find()).await
    }
}

impl std::fmt::Display for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "/dev/{node}"),
            Self::Serial(serial) => write!(f, "serial:{serial}"),
        }
    }
}

/// Has the kernel hand what is asked of a virtual disk to the host as it comes, without a scheduler of its own, which it takes for a
/// device of one queue: how a disk is best read the host knows, and the scheduler hands over one request after the other where
/// without it a whole batch is one. The kernel waits for what is under way, some 30 ms without KVM: nobody else should. A failure
/// costs nothing but speed.
pub(super) fn pass_on(node: &Path) {
    let Some(name) = node
        .file_name()
        .filter(|name| name.as_bytes().starts_with(VIRTIO))
    else {
        return;
    };
    let path = Path::new("/sys/class/block").join(name).join("queue/scheduler");
    if std::fs::read_to_string(&path).is_ok_and(|choice| is_scheduled(&choice)) {
        let _ = std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"none"));
    }
}

/// Whether the kernel says that one of its schedulers is at work: `[mq-deadline] none`.
fn is_scheduled(choice: &str) -> bool {
    choice.contains('[') && !choice.contains("[none]")
}

/// A disk that a container has as a device, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskDevice {
    disk: Disk,
    /// Of its entry in the specification.
    pub path: PathBuf,
    /// As in a rule of the specification: some of `r`, `w` and `m`.
    pub access: String,
}

impl DiskDevice {
    /// Checks a request from the wire; the fields are those of the protocol's `DiskDevice`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with field and reason.
    pub fn parse(source: &str, path: &str, access: &str) -> Result<Self> {
        let disk = Disk::parse("device.source", source)?;
        if !Path::new(path).is_absolute() {
            return Err(Error::invalid("device.path", format!("{path:?} is not absolute")));
        }
        if access.is_empty() || !access.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) {
            return Err(Error::invalid(
                "device.access",
                format!("{access:?} is not made of r, w and m"),
            ));
        }
        Ok(Self {
            disk,
            path: path.into(),
            access: access.to_owned(),
        })
    }

    /// Its major and minor number, once it is there.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::File`] when it is gone again.
    pub async fn numbers(&self) -> Result<(u32, u32)> {
        let node = self.disk.appeared().await?;
        let metadata = std::fs::metadata(&node).map_err(Error::file("examine", &node))?;
        // Nobody waits for it: the first reads may still be scheduled, and all of them where no process can be made.
        let _ = container::apart(|| pass_on(&node));
        let number = metadata.rdev();
        Ok((rustix::fs::major(number), rustix::fs::minor(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_which_scheduler_is_at_work() {
        for (choice, scheduled) in [
            ("[mq-deadline] none\n", true),
            ("mq-deadline [bfq] none\n", true),
            ("mq-deadline [none]\n", false),
            ("[none]\n", false),
            ("none\n", false),
            ("", false),
        ] {
            assert_eq!(is_scheduled(choice), scheduled, "{choice:?}");
        }
        // Nothing of the kind.
        pass_on(Path::new("/dev/vd-none"));
        pass_on(Path::new("/"));
    }

    #[test]
    fn a_disk_for_a_container_has_a_source_a_path_and_some_access() {
        let disk = DiskDevice::parse("serial:c0d1", "/dev/xvda", "rwm").unwrap();
        assert_eq!(disk.disk, Disk::Serial("c0d1".into()));
        for (source, path, access) in [
            ("c0d1", "/dev/xvda", "r"),
            ("serial:", "/dev/xvda", "r"),
            ("serial:a/b", "/dev/xvda", "r"),
            ("/dev/../vda", "/dev/xvda", "r"),
            ("serial:a", "dev/xvda", "r"),
            ("serial:a", "/dev/xvda", ""),
            ("serial:a", "/dev/xvda", "rx"),
        ] {
            assert!(
                DiskDevice::parse(source, path, access).is_err(),
                "{source} {path} {access}"
            );
        }
    }
}
