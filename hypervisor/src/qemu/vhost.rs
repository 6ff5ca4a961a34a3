//! vhost-net: the host's kernel moves a network card's frames between its tap and the guest's memory, which otherwise QEMU's
//! main thread does, system call by system call. It is no more than faster: where it is not to be had, QEMU does it.
//!
//! The descriptors are opened here, because QEMU's process may be where no device can be opened.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::Device;

/// The kernel's device.
pub const NODE: &str = "/dev/vhost-net";

/// One descriptor for each queue of each network card, in the order of the cards.
///
/// # Errors
/// The kernel's: ENOENT or ENODEV without the module `vhost_net`.
pub fn open(node: &Path, devices: &[Device]) -> io::Result<Vec<Arc<OwnedFd>>> {
    let queues = devices.iter().map(queues).sum();
    (0..queues)
        .map(|_| {
            let file = File::options().read(true).write(true).open(node)?;
            Ok(Arc::new(file.into()))
        })
        .collect()
}

/// How many a device needs.
pub fn queues(device: &Device) -> usize {
    match device {
        Device::Net { taps, .. } => taps.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_for_each_queue_or_none_at_all() {
        let null = || Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
        let card = |queues: usize| Device::Net {
            id: "eth0".into(),
            taps: (0..queues).map(|_| null()).collect(),
            mac: "02:00:00:00:00:01".into(),
        };
        let disk = Device::Block {
            id: "d".into(),
            file: null(),
            readonly: true,
        };
        let devices = [card(2), disk, card(1)];
        assert_eq!(open(Path::new("/dev/null"), &devices).unwrap().len(), 3);
        assert!(open(Path::new("/dev/null"), &[]).unwrap().is_empty());
        let missing = open(Path::new("/dev/null/none"), &devices).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotADirectory);
    }
}
