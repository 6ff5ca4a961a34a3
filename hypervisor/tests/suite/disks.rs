//! Disks that come and go.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use hypervisor::{Device, Disk, ErrorKind};
use rustix::fs::OFlags;

use super::PROCESS;
use super::subject::{Place, Subject};

pub async fn a_disk_is_plugged_and_unplugged(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let disk = place.run_dir().join("disk");
    File::create(&disk)
        .and_then(|file| file.set_len(1 << 20))
        .expect("a disk");
    let file: Arc<OwnedFd> = Arc::new(File::open(&disk).expect("a disk").into());
    // Which takes descriptors has no use for a path any more; the others' programs want a path, which a driver makes of it.
    if subject == Subject::Q35 {
        std::fs::remove_file(&disk).expect("a disk without a name");
    }
    let mut vm = place.launch().await;
    let _agent = place.greeted().await;

    let device = Device::Block(Disk {
        id: "data".into(),
        file: Arc::clone(&file),
        readonly: true,
    });
    let pid = vm.pid();
    let hotplug = vm.hotplug().expect("hotplug");
    // Twice, because what the first time leaves behind would be in the way.
    for _ in 0..2 {
        hotplug.plug(device.clone()).await.expect("a plugged disk");
        assert_eq!(opened(pid, &file), [OFlags::RDONLY], "it cannot be written");
        let again = hotplug.plug(device.clone()).await.expect_err("the name is taken");
        assert_eq!(again.kind, ErrorKind::FailedPrecondition);
        hotplug.unplug("data").await.expect("an unplugged disk");
        assert_eq!(opened(pid, &file), [], "nobody holds it any more");
    }
    let absent = hotplug.unplug("data").await.expect_err("nothing to unplug");
    assert_eq!(absent.kind, ErrorKind::NotFound);
    vm.stop().await.expect("a stop");
}

/// The ways in which a process has opened this very file, by whatever path.
fn opened(pid: u32, file: &OwnedFd) -> Vec<OFlags> {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let wanted = identity(rustix::fs::fstat(file).expect("the disk's file"));
    let held = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("descriptors")
        .flatten();
    // A descriptor set and the block node that was opened from it share one description.
    let mut flags: Vec<u32> = held
        .filter(|fd| rustix::fs::stat(fd.path()).is_ok_and(|stat| identity(stat) == wanted))
        .filter_map(|fd| {
            let info = PathBuf::from(format!("/proc/{pid}/fdinfo")).join(fd.file_name());
            let text = std::fs::read_to_string(info).ok()?;
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
            u32::from_str_radix(flags.trim(), 8).ok()
        })
        .map(|flags| flags & OFlags::RWMODE.bits())
        .collect();
    flags.dedup();
    flags.into_iter().map(OFlags::from_bits_retain).collect()
}
