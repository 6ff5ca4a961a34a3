//! Block devices of the host in containers: root file systems of a snapshotter that has them, devices, and volumes that the guest
//! mounts.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::configuration::Configuration;
use e2e::parts::Part;
use e2e::program::Program;
use e2e::{deadlines, wait};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Listed;
use crate::bed::{Case, Runtime};

const LOOPS: &[Part] = &[Part::LoopDevices];

pub const CASES: &[Listed] = &[
    Listed::both("a_root_on_a_block_device", a_root_on_a_block_device).needing(LOOPS),
    Listed::both("a_read_only_root_on_a_block_device", a_read_only_root).needing(LOOPS),
    Listed::both("devices", devices).needing(LOOPS),
    Listed::ours("a_bound_device_is_a_device", a_bound_device_is_a_device).needing(LOOPS),
    Listed::ours("direct_volumes_ext4", |case| {
        direct_volume(case, "ext4", &["-F", "-q"])
    })
    .needing(LOOPS),
    Listed::ours("direct_volumes_xfs", |case| {
        direct_volume(case, "xfs", &["-f", "-q"])
    })
    .needing(&[Part::LoopDevices, Part::Xfsprogs]),
    Listed::ours("direct_volumes_erofs", direct_volume_erofs).needing(&[Part::LoopDevices, Part::ErofsUtils]),
    Listed::ours(
        "what_cannot_be_a_disk_is_refused",
        what_cannot_be_a_disk_is_refused,
    )
    .needing(LOOPS),
    Listed::ours(
        "a_root_that_has_no_way_into_its_guest_is_refused",
        a_root_that_has_no_way_into_its_guest_is_refused,
    )
    .needing(LOOPS),
];

const FOREVER: &[&str] = &["sleep", "1000"];

/// A loop device, which ends with its value.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Result<Self> {
        let shown = Program::new("losetup")
            .args([
                "--find".as_ref(),
                "--show".as_ref(),
                "--partscan".as_ref(),
                file.as_os_str(),
            ])
            .read()?;
        Ok(Self(shown.trim().into()))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Program::new("losetup").args(["--detach", self.path()]).read();
        if let Err(error) = detached {
            eprintln!("{}: {error:#}", self.path());
        }
    }
}

/// A file of so many MiB, with a file system.
fn made(path: &Path, mib: u64, program: &str, flags: &[&str]) -> Result<()> {
    File::create(path)?.set_len(mib << 20)?;
    Program::new(program).args(flags).args([path]).read().map(drop)
}

/// The snapshot of a container, mounted on the host.
fn of_snapshot<T>(case: &Case<'_>, key: &str, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let place = case.path("snapshot");
    fs::create_dir_all(&place)?;
    let target = place.to_str().context("a path in UTF-8")?;
    let snapshots = ["snapshots", "--snapshotter", "devmapper", "mounts", target, key];
    // `mount -t ext4 DEVICE TARGET -o OPTIONS`
    let command = case.ctr(&snapshots).read()?;
    let device = command.split(' ').nth(3).with_context(|| command.clone())?;
    mounted(Path::new(device), &place, || look(&place))
}

/// Does something while a device is mounted on the host.
fn mounted<T>(device: &Path, place: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    mount(device, place, "ext4", MountFlags::empty(), None::<&CStr>)
        .with_context(|| format!("mount {}", device.display()))?;
    let done = work();
    unmount(place, UnmountFlags::empty()).with_context(|| format!("unmount {}", place.display()))?;
    done
}

/// Mounts on the host of what the device mapper has: perhaps the machine's own.
fn of_the_mapper() -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let of_it = mounts.lines().filter(|line| line.starts_with("/dev/mapper/"));
    Ok(of_it.map(str::to_owned).collect())
}

/// The guest mounts it, and nobody on the host; what is written there is in the snapshot afterwards.
fn a_root_on_a_block_device(case: &mut Case<'_>) -> Result<()> {
    let flags = case.on("devmapper")?;
    let before = of_the_mapper()?;
    let container = case.start(&flags, FOREVER)?;
    let mounts = container.shell("cat /proc/mounts")?;
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == Some("/"))
        .context("a root")?;
    ensure!(root.contains(" ext4 "), "the root is {root}");
    if case.runtime() == Runtime::Kata {
        ensure!(
            root.starts_with("/dev/vd"),
            "the root is no disk of the guest: {root}"
        );
        let now = of_the_mapper()?;
        ensure!(now == before, "mounted on the host: {now:?}");
        // The agent does not wait for that.
        wait::until(
            "the host alone schedules what is read",
            deadlines::PROGRESS,
            || {
                let schedulers = container.shell("cat /sys/block/vd*/queue/scheduler")?;
                Ok(schedulers
                    .lines()
                    .all(|one| !one.contains('[') || one.contains("[none]"))
                    .then_some(()))
            },
        )?;
    }
    container.shell("echo kept > /kept; mkdir /etc/x; chown 12:34 /etc/x; dd if=/dev/zero of=/large bs=1M count=20 2>/dev/null")?;
    container.kill("KILL")?;
    container.wait_for_status("STOPPED")?;
    container.delete_task()?;
    of_snapshot(case, &container.id, |place| {
        assert_eq!(fs::read_to_string(place.join("kept"))?, "kept\n");
        assert_eq!(fs::metadata(place.join("large"))?.len(), 20 << 20);
        Ok(())
    })?;
    container.delete()
}

/// Of a root that the caller wants to be read-only.
fn a_read_only_root(case: &mut Case<'_>) -> Result<()> {
    let flags = [&case.on("devmapper")?[..], &["--read-only"]].concat();
    let output = case.shell(&flags, "echo x > /new; echo y > /dev/shm/f && cat /dev/shm/f")?;
    assert_eq!(
        output.stderr.matches("Read-only file system").count(),
        1,
        "{output}"
    );
    assert_eq!(output.success()?, "y\n");
    Ok(())
}

/// Two devices: one for reading and writing, one that the container may only read.
fn devices(case: &mut Case<'_>) -> Result<()> {
    let (one, two) = (case.path("one"), case.path("two"));
    for (path, text) in [(&one, "first disk"), (&two, "second disk")] {
        fs::write(path, text)?;
        File::options().write(true).open(path)?.set_len(1 << 20)?;
    }
    let (first, second) = (Loop::new(&one)?, Loop::new(&two)?);
    let container = case.start(&["--device", first.path(), "--device", second.path()], FOREVER)?;
    let script = format!(
        "head -c 10 {0}; echo; head -c 11 {1}; echo; echo written | dd of={0} conv=fsync 2>/dev/null; ls /dev/vd* 2>/dev/null | wc -l",
        first.path(),
        second.path()
    );
    assert_eq!(container.shell(&script)?, "first disk\nsecond disk\n0\n");
    container.remove()?;
    assert_eq!(&fs::read(&one)?[..8], b"written\n");
    // Nobody holds them any more.
    case.shell(&["--device", first.path()], "true")?.success()?;
    Ok(())
}

/// A bind mount of a device's node; read-only, it cannot be written whatever the guest does.
fn a_bound_device_is_a_device(case: &mut Case<'_>) -> Result<()> {
    let file = case.path("disk");
    fs::write(&file, "on the disk")?;
    File::options().write(true).open(&file)?.set_len(1 << 20)?;
    let device = Loop::new(&file)?;
    let mount = |options: &str| format!("type=bind,src={},dst=/dev/data,options={options}", device.path());
    let script = "head -c 11 /dev/data; echo; echo changed | dd of=/dev/data conv=fsync; echo $?";
    let output = case.shell(&["--mount", &mount("rbind:ro")], script)?;
    assert_eq!(output.success()?, "on the disk\n1\n");
    assert_eq!(&fs::read(&file)?[..7], b"on the ");
    // A privileged one may make nodes of its own: the disk itself is read-only.
    let made = "for b in /sys/block/vd*; do [ $(cat $b/ro) = 0 ] || n=$(cat $b/dev); done; mknod /tmp/d b ${n%:*} ${n#*:}; blockdev --setrw /tmp/d 2>/dev/null; \
                head -c 11 /tmp/d; echo; echo changed | dd of=/tmp/d conv=fsync; echo $?";
    let privileged = ["--privileged", "--mount", &mount("rbind:ro")];
    let output = case.shell(&privileged, made)?;
    assert_eq!(output.success()?, "on the disk\n1\n");
    assert_eq!(&fs::read(&file)?[..7], b"on the ");
    let output = case.shell(&["--mount", &mount("rbind:rw")], script)?;
    assert_eq!(output.success()?, "on the disk\n0\n");
    assert_eq!(&fs::read(&file)?[..8], b"changed\n");
    Ok(())
}

/// `kata-runtime direct-volume add`.
fn add(case: &Case<'_>, volume: &Path, device: &Path, fs_type: &str, options: &[&str]) -> Result<()> {
    let info = serde_json::json!({
        "volume-type": "block", "device": device, "fstype": fs_type, "options": options,
    });
    fs::create_dir_all(volume)?;
    Program::new(case.target().programs().join("kata-runtime"))
        .args(["direct-volume", "add", "--volume-path"])
        .args([volume])
        .args(["--mount-info", &info.to_string()])
        .read()
        .map(drop)
}

fn remove(case: &Case<'_>, volume: &Path) -> Result<()> {
    Program::new(case.target().programs().join("kata-runtime"))
        .args(["direct-volume", "remove", "--volume-path"])
        .args([volume])
        .read()
        .map(drop)
}

/// The guest mounts a device, or a file with the content of one, where the container binds a directory.
fn direct_volume(case: &mut Case<'_>, fs_type: &str, flags: &[&str]) -> Result<()> {
    let file = case.path("volume");
    made(&file, 320, &format!("mkfs.{fs_type}"), flags)?;
    let directory = case.path("directory");
    let mount = |options: &str| {
        format!(
            "type=bind,src={},dst=/data,options={options}",
            directory.display()
        )
    };
    let device = Loop::new(&file)?;
    add(case, &directory, &device.0, fs_type, &[])?;
    let script = "grep -c ' /data .*rw' /proc/mounts; grep ' /data ' /proc/mounts | cut -d' ' -f3; echo data > /data/file; id > /data/id";
    let container = case.start(&["--mount", &mount("rbind:rw")], FOREVER)?;
    assert_eq!(container.shell(script)?, format!("1\n{fs_type}\n"));
    ensure!(
        fs::read_dir(&directory)?.next().is_none(),
        "nothing reached the host's directory"
    );
    it_grows(case, &directory, &file, &device)?;
    container.remove()?;
    drop(device);

    // What was written is on it, whatever names it.
    add(case, &directory, &file, fs_type, &[])?;
    let output = case.shell(
        &["--mount", &mount("rbind:ro")],
        "cat /data/file; echo x > /data/new; echo $?",
    )?;
    assert_eq!(output.success()?, "data\n1\n");
    remove(case, &directory)?;
    let output = case.shell(&["--mount", &mount("rbind:rw")], "ls /data | wc -l")?;
    assert_eq!(
        output.success()?,
        "0\n",
        "without a word, it is the host's directory"
    );
    case.forgive("file /run/kata-containers");
    Ok(())
}

/// An administrator, or a CSI driver, is told how full it is, and has the guest use what the device has on top.
fn it_grows(case: &Case<'_>, directory: &Path, file: &Path, device: &Loop) -> Result<()> {
    const LARGER: u64 = 384 << 20;
    let configuration = case.path("configuration.toml");
    Configuration::new(case.target()).write(&configuration)?;
    let kata = |words: &[&str]| {
        Program::new(case.target().programs().join("kata-runtime"))
            .args(["--config".as_ref(), configuration.as_os_str()])
            .args(["direct-volume"])
            .args(words)
            .args(["--volume-path".as_ref(), directory.as_os_str()])
            .within(deadlines::RUN)
    };
    let total = || -> Result<u64> {
        let stats: serde_json::Value = serde_json::from_str(&kata(&["stats"]).read()?)?;
        let bytes = &stats["usage"][0];
        ensure!(
            bytes["unit"] == 1 && bytes["available"].as_u64() < bytes["total"].as_u64(),
            "{stats}"
        );
        bytes["total"].as_u64().with_context(|| stats.to_string())
    };
    let before = total()?;
    let resize = || kata(&["resize", "--size", &LARGER.to_string()]);
    let refused = resize().output()?.failure()?;
    ensure!(
        refused.contains("make the block device or the file larger first"),
        "{refused}"
    );
    File::options().write(true).open(file)?.set_len(LARGER)?;
    Program::new("losetup")
        .args(["--set-capacity", device.path()])
        .read()?;
    resize().read()?;
    let after = total()?;
    ensure!(after > before + (48 << 20), "{before} bytes became {after}");
    Ok(())
}

/// The same, of a kind that is never written.
fn direct_volume_erofs(case: &mut Case<'_>) -> Result<()> {
    let content = case.path("content");
    fs::create_dir_all(&content)?;
    fs::write(content.join("file"), "read only\n")?;
    let file = case.path("volume");
    Program::new("mkfs.erofs").args([&file, &content]).read()?;
    let directory = case.path("directory");
    add(case, &directory, &file, "erofs", &[])?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", directory.display());
    let output = case.shell(
        &["--mount", &mount],
        "cat /data/file; echo x > /data/new; echo $?",
    )?;
    assert_eq!(output.success()?, "read only\n1\n");
    remove(case, &directory)?;
    case.forgive("file /run/kata-containers");
    Ok(())
}

/// Each with its reason, before anything is started.
fn what_cannot_be_a_disk_is_refused(case: &mut Case<'_>) -> Result<()> {
    let good = case.path("good");
    made(&good, 8, "mkfs.ext4", &["-F", "-q"])?;
    let device = Loop::new(&good)?;
    let link = case.path("link");
    symlink(&device.0, &link)?;
    let empty = case.path("empty");
    File::create(&empty)?;
    let blank = case.path("blank");
    File::create(&blank)?.set_len(1 << 20)?;
    let image = case.path("image");
    fs::write(&image, [&b"QFI\xfb\0\0\0\x03"[..], &[0; 4096]].concat())?;
    let place = case.path("mounted");
    fs::create_dir(&place)?;
    let directory = case.path("directory");

    let bind = format!("type=bind,src={},dst=/data,options=rbind:rw", directory.display());
    let refused = |what: &str, wanted: &str, flags: &[&str]| {
        let log = case.log_length()?;
        let output = case.shell(flags, "true")?;
        let error = output.failure().with_context(|| format!("{what} is taken"))?;
        ensure!(error.contains(wanted), "{what}: {wanted:?} is not said: {error}");
        let log = case.log_since(log)?;
        ensure!(
            !log.contains("the agent answers"),
            "{what}: a virtual machine was started"
        );
        Ok(())
    };
    for (what, path, fs_type, wanted) in [
        ("a link to a device", &link, "ext4", "it is a link"),
        ("nothing", &case.path("missing"), "ext4", "No such file"),
        ("an empty file", &empty, "ext4", "0 bytes"),
        (
            "a file without a file system",
            &blank,
            "ext4",
            "no ext4 file system",
        ),
        ("another file system", &device.0, "xfs", "ext4, not xfs"),
        ("an image of another format", &image, "ext4", "qcow2; only raw"),
        ("a directory", &place, "ext4", "it is a directory"),
        ("a file that a loop device has", &good, "ext4", device.path()),
        (
            "a file system that is not for disks",
            &device.0,
            "btrfs",
            "ext4, xfs, erofs",
        ),
    ] {
        add(case, &directory, path, fs_type, &[])?;
        refused(what, wanted, &["--mount", &bind])?;
    }
    // Whatever its name is by now.
    let renamed = case.path("renamed");
    fs::rename(&good, &renamed)?;
    add(case, &directory, &renamed, "ext4", &[])?;
    refused(
        "a file that a loop device has",
        device.path(),
        &["--mount", &bind],
    )?;
    add(case, &directory, &device.0, "ext4", &[])?;
    mounted(&device.0, &place, || {
        refused("a device that is mounted", "in use", &["--mount", &bind])?;
        refused("a device that is mounted", "in use", &["--device", device.path()])
    })?;
    // Half of it is a partition, with a file system of its own.
    Program::new("addpart")
        .args([device.path(), "1", "8192", "8192"])
        .read()?;
    let partition = format!("{}p1", device.path());
    Program::new("mkfs.ext4").args(["-F", "-q", &partition]).read()?;
    mounted(Path::new(&partition), &place, || {
        refused(
            "a disk with a partition that is mounted",
            "in use",
            &["--mount", &bind],
        )?;
        refused("a partition that is mounted", "in use", &["--device", &partition])
    })?;
    Program::new("delpart").args([device.path(), "1"]).read()?;
    remove(case, &directory)?;
    case.forgive("file /run/kata-containers");
    Ok(())
}

/// By the planner, with what to do instead, as `ctr` says it: a disk where none can be plugged, and a directory where none is shared.
fn a_root_that_has_no_way_into_its_guest_is_refused(case: &mut Case<'_>) -> Result<()> {
    let path = case.path("configuration.toml");
    for (key, value, snapshotter, wanted) in [
        (
            "machine_type",
            "microvm",
            "devmapper",
            ["is on a block device", "q35", "disable_block_device_use = true"],
        ),
        (
            "shared_fs",
            "none",
            "overlayfs",
            ["is no block device", "devmapper, blockfile", "virtio-fs"],
        ),
    ] {
        Configuration::new(case.target())
            .hypervisor(key, value)
            .write(&path)?;
        let flags = [&case.on(snapshotter)?[..], &["--rm"]].concat();
        let log = case.log_length()?;
        let output = case
            .run_configured(&path, &flags, &case.id(), &["true"])
            .output()?;
        let error = output
            .failure()
            .with_context(|| format!("{key} = {value}: it is taken"))?;
        for wanted in wanted {
            ensure!(
                error.contains(wanted),
                "{key} = {value}: {wanted:?} is not said: {error}"
            );
        }
        let log = case.log_since(log)?;
        ensure!(
            !log.contains("the agent answers"),
            "{key} = {value}: a virtual machine was started"
        );
    }
    Ok(())
}
