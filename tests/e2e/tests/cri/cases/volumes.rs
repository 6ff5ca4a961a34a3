//! Volumes, as the kubelet prepares them: directories and files of the host, mounted into containers.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{deadlines, wait};
use k8s_cri::v1::MountPropagation;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::{Container, ContainerSpec};
use crate::cri::refusal;
use crate::pod::Pod;

chapter!("volumes":
    a_directory_of_the_host,
    a_file_of_the_host,
    read_only,
    what_is_mounted_below,
    owners_modes_and_links,
    a_link_is_followed_on_the_host,
    a_link_made_inside_is_not_followed_by_the_host,
    a_missing_directory_is_made,
    a_broken_link_is_refused,
    empty_dir_on_disk_is_shared,
    empty_dir_of_memory_is_shared,
    a_subpath_directory,
    a_subpath_file,
    projected_files_change_while_the_container_runs,
    shared_memory_of_the_pod,
    a_hugetlbfs,
    a_mount_that_comes_later(Runc: "a mount on the host does not propagate into a VM's share"),
    names_of_any_bytes,
    a_volume_outlives_its_container,
    over_a_directory_of_the_image,
    many_volumes,
    what_is_removed_is_let_go(Kata: "runc's containers have nobody who holds their files"),
);

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("volumes", |spec| spec)
}

fn a_directory_of_the_host(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "both-ways")?;
    fs::write(volume.join("from-host"), "host")?;
    let container = pod.start(ContainerSpec::idle().mount(&volume, "/data"))?;
    same(
        &container.sh("cat /data/from-host; echo -n inside >/data/from-inside; mkdir /data/d")?,
        "host",
    )?;
    same(&fs::read_to_string(volume.join("from-inside"))?, "inside")?;
    // What is there later, and what goes, is seen as well.
    fs::write(volume.join("d/later"), "later")?;
    fs::remove_file(volume.join("from-host"))?;
    let wait =
        "for i in $(seq 100); do test -e /data/d/later -a ! -e /data/from-host && break; sleep 0.1; done; ";
    same(
        &container.sh(&format!("{wait} cat /data/d/later; ls /data"))?,
        "laterd\nfrom-inside",
    )?;
    container.sh("mv /data/d/later /data/moved; echo more >>/data/moved; rmdir /data/d")?;
    same(&fs::read_to_string(volume.join("moved"))?, "latermore\n")?;
    ensure!(
        !volume.join("d").exists(),
        "a directory that was removed inside is there"
    );
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn a_file_of_the_host(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let file = pod.volume("kubernetes.io~host", "file")?.join("config");
    fs::write(&file, "one\n")?;
    fs::write(file.with_extension("secret"), "not to be seen")?;
    let script = "cat /etc/app/config; ls /etc/app; echo two >/etc/app/config";
    same(
        &pod.output(ContainerSpec::script(script).mount(&file, "/etc/app/config"))?,
        "one\nconfig",
    )?;
    same(&fs::read_to_string(&file)?, "two\n")
}

fn read_only(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "read-only")?;
    fs::write(volume.join("file"), "text")?;
    let script = "cat /data/file; { touch /data/x || echo x >/data/file || rm /data/file || mount -o remount,rw /data; } \
         2>/dev/null || echo; grep -c ' /data .*[ ,]ro[ ,]' /proc/mounts";
    let spec = ContainerSpec::script(script).mount_read_only(&volume, "/data");
    same(&pod.output(spec)?, "text\n1")?;
    same(&fs::read_to_string(volume.join("file"))?, "text")?;
    // The same volume in another container of the pod, for writing.
    let spec = ContainerSpec::script("echo -n changed >/data/file").mount(&volume, "/data");
    pod.output(spec)?;
    same(&fs::read_to_string(volume.join("file"))?, "changed")
}

/// Calls `case` with a tmpfs mounted at `path`.
fn with_tmpfs(path: &Path, case: impl FnOnce() -> Result<()>) -> Result<()> {
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), None::<&CStr>)
        .with_context(|| format!("mount a tmpfs on {}", path.display()))?;
    let result = case();
    let unmounted = unmount(path, UnmountFlags::empty()).context("unmount a tmpfs");
    result.and(unmounted)
}

fn what_is_mounted_below(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "nested")?;
    let below = volume.join("below");
    fs::create_dir(&below)?;
    with_tmpfs(&below, || {
        fs::write(below.join("file"), "nested")?;
        let spec = ContainerSpec::script("cat /data/below/file; echo -n more >>/data/below/file");
        same(&pod.output(spec.mount(&volume, "/data"))?, "nested")?;
        same(&fs::read_to_string(below.join("file"))?, "nestedmore")
    })
}

fn owners_modes_and_links(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "modes")?;
    let file = volume.join("file");
    fs::write(&file, "x")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4640))?;
    std::os::unix::fs::chown(&file, Some(1234), Some(5678))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4640))?;
    fs::hard_link(&file, volume.join("hard"))?;
    symlink("file", volume.join("soft"))?;
    let script = "cd /data; stat -c '%a %u:%g %h' file; readlink soft; test file -ef hard && echo same; \
         chown 4321:8765 file; chmod 600 file; ln -s nowhere broken; ln file third; mkfifo pipe; stat -c %h file";
    let said = pod.output(ContainerSpec::script(script).mount(&volume, "/data"))?;
    same(&said, "4640 1234:5678 2\nfile\nsame\n3")?;
    let metadata = fs::metadata(&file)?;
    let shown = (
        std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777,
        std::os::unix::fs::MetadataExt::uid(&metadata),
        std::os::unix::fs::MetadataExt::gid(&metadata),
    );
    ensure!(shown == (0o600, 4321, 8765), "{shown:?}");
    same(
        &fs::read_link(volume.join("broken"))?.display().to_string(),
        "nowhere",
    )
}

fn a_link_is_followed_on_the_host(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "link")?;
    fs::create_dir(volume.join("real"))?;
    fs::write(volume.join("real/file"), "real")?;
    symlink("real", volume.join("link"))?;
    let spec = ContainerSpec::script("cat /data/file").mount(&volume.join("link"), "/data");
    same(&pod.output(spec)?, "real")
}

fn a_link_made_inside_is_not_followed_by_the_host(bed: &mut Bed) -> Result<()> {
    // A container points its volume's file at a file of the host; what it then reads is its own root's.
    let pod = pod(bed)?;
    let volume = pod.empty_dir("trap")?;
    let outside = pod.volume("kubernetes.io~host", "outside")?.join("secret");
    fs::write(&outside, "the host's")?;
    let script = format!(
        "ln -s {0} /data/link; cat /data/link 2>/dev/null || echo nothing; echo x >/data/link 2>/dev/null; true",
        outside.display()
    );
    same(
        &pod.output(ContainerSpec::script(&script).mount(&volume, "/data"))?,
        "nothing",
    )?;
    same(&fs::read_to_string(&outside)?, "the host's")
}

fn a_missing_directory_is_made(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "missing")?.join("not/there");
    let spec = ContainerSpec::script("touch /data/x && ls /data").mount(&volume, "/data");
    same(&pod.output(spec)?, "x")?;
    ensure!(volume.join("x").exists(), "it was not made on the host");
    Ok(())
}

fn a_broken_link_is_refused(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let link = pod.volume("kubernetes.io~host", "broken")?.join("link");
    symlink("/not/there", &link)?;
    let spec = ContainerSpec::idle().mount(&link, "/data");
    refusal(pod.create(spec))?.says(&link.display().to_string())
}

fn empty_dir_on_disk_is_shared(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.empty_dir("disk")?;
    shared(&pod, &volume, "")
}

fn empty_dir_of_memory_is_shared(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.mounted_empty_dir("memory", "tmpfs", c"size=16m")?;
    shared(&pod, &volume, "stat -f -c %T /data; ")?;
    // As large as the volume says, whatever the container may use.
    let spec = ContainerSpec::script("df -k /data | tail -n 1 | awk '{print $2}'").mount(&volume, "/data");
    same(&pod.output(spec)?, "16384")
}

/// Two containers talk to each other through a volume: files, a pipe with both of its ends, and a lock.
fn shared(pod: &Pod, volume: &Path, ask: &str) -> Result<()> {
    let one = pod.start(ContainerSpec::idle().mount(volume, "/data"))?;
    let two = pod.start(ContainerSpec::idle().mount(volume, "/other/place"))?;
    if !ask.is_empty() {
        same(&one.sh(ask)?, "tmpfs")?;
    }
    one.sh("echo hello >/data/file; mkfifo /data/pipe; (echo through >/data/pipe) >/dev/null 2>&1 &")?;
    same(
        &two.sh("cat /other/place/file; timeout 10 cat /other/place/pipe")?,
        "hello\nthrough",
    )?;
    one.sh("busybox flock /data/lock sleep 20 >/dev/null 2>&1 &")?;
    let script = "for i in $(seq 100); do busybox flock -n /other/place/lock true || { echo locked; break; }; sleep 0.1; done";
    same(&two.sh(script)?, "locked")?;
    two.sh("rm /other/place/file")?;
    same(&one.sh("test -e /data/file || echo gone")?, "gone")?;
    for container in [one, two] {
        container.stop(Duration::ZERO)?;
        container.remove()?;
    }
    Ok(())
}

fn a_subpath_directory(bed: &mut Bed) -> Result<()> {
    // The kubelet hands over the path of the directory within the volume.
    let pod = pod(bed)?;
    let volume = pod.empty_dir("sub")?;
    fs::create_dir_all(volume.join("a/b"))?;
    fs::write(volume.join("a/b/file"), "below")?;
    fs::write(volume.join("a/above"), "above")?;
    let spec = ContainerSpec::script(
        "ls -a /data | tail -n +3; cat /data/file; cat /data/../above 2>/dev/null; true",
    );
    same(
        &pod.output(spec.mount(&volume.join("a/b"), "/data"))?,
        "file\nbelow",
    )
}

fn a_subpath_file(bed: &mut Bed) -> Result<()> {
    // Of a file, the kubelet makes a bind mount of its own and hands over that.
    let pod = pod(bed)?;
    let volume = pod.empty_dir("sub-file")?;
    fs::write(volume.join("key"), "value")?;
    let target = pod.volume("volume-subpaths", "key")?.join("0");
    fs::write(&target, "")?;
    rustix::mount::mount_bind(volume.join("key"), &target).context("bind a file")?;
    let result = pod
        .output(ContainerSpec::script("cat /etc/key; echo -n changed >/etc/key").mount(&target, "/etc/key"))
        .and_then(|said| same(&said, "value"))
        .and_then(|()| same(&fs::read_to_string(volume.join("key"))?, "changed"));
    unmount(&target, UnmountFlags::empty()).context("unmount a file")?;
    result
}

/// Writes files as the kubelet does: a directory of its own for each state, and links that change at once.
fn project(volume: &Path, state: &str, value: &str) -> Result<()> {
    fs::create_dir(volume.join(state))?;
    fs::write(volume.join(state).join("key"), value)?;
    symlink(state, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    if !volume.join("key").is_symlink() {
        symlink("..data/key", volume.join("key"))?;
    }
    Ok(())
}

fn projected_files_change_while_the_container_runs(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~projected", "config")?;
    project(&volume, "..2026_01", "one")?;
    let script = "cat /etc/config/key; echo; for value in two three; do \
         for i in $(seq 200); do test \"$(cat /etc/config/key)\" = $value && break; sleep 0.05; done; \
         cat /etc/config/key; echo; done; ls -a /etc/config | tail -n +3";
    let container = pod.start(ContainerSpec::script(script).mount_read_only(&volume, "/etc/config"))?;
    container.wait_for_output("one\n")?;
    project(&volume, "..2026_02", "two")?;
    fs::remove_dir_all(volume.join("..2026_01"))?;
    container.wait_for_output("two\n")?;
    project(&volume, "..2026_03", "three")?;
    fs::remove_dir_all(volume.join("..2026_02"))?;
    same(
        &container.wait()?.success()?,
        "one\ntwo\nthree\n..2026_03\n..data\nkey",
    )?;
    container.remove()
}

fn shared_memory_of_the_pod(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let one = pod.start(ContainerSpec::idle())?;
    let two = pod.start(ContainerSpec::idle())?;
    one.sh("echo hello >/dev/shm/word")?;
    let script = "cat /dev/shm/word; stat -f -c %T /dev/shm; stat -c %a /dev/shm; df -k /dev/shm | tail -n 1 | awk '{print $2}'";
    same(&two.sh(script)?, "hello\ntmpfs\n1777\n65536")?;
    for container in [&one, &two] {
        container.stop(Duration::ZERO)?;
        container.remove()?;
    }
    // It is the pod's, and outlives containers.
    same(&pod.output(ContainerSpec::script("cat /dev/shm/word"))?, "hello")
}

fn a_hugetlbfs(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.mounted_empty_dir("huge", "hugetlbfs", c"pagesize=2M")?;
    let script =
        "awk '$2 == \"/huge\" { print $3 }' /proc/mounts; grep ' /huge ' /proc/mounts | grep -c pagesize=2M";
    same(
        &pod.output(ContainerSpec::script(script).mount(&volume, "/huge"))?,
        "hugetlbfs\n1",
    )
}

fn a_mount_that_comes_later(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "later")?;
    fs::create_dir(volume.join("below"))?;
    // Only what is below a shared mount propagates.
    rustix::mount::mount_bind(&volume, &volume).context("make a mount of a volume")?;
    let result = (|| {
        rustix::mount::mount_change(&volume, rustix::mount::MountPropagationFlags::SHARED)?;
        let container = pod.start(ContainerSpec::idle().mount_with(&volume, "/data", |mount| {
            mount.propagation = MountPropagation::PropagationHostToContainer.into();
        }))?;
        with_tmpfs(&volume.join("below"), || {
            fs::write(volume.join("below/file"), "later")?;
            same(&container.sh("cat /data/below/file")?, "later")
        })?;
        container.stop(Duration::ZERO)?;
        container.remove()
    })();
    unmount(&volume, UnmountFlags::empty()).context("unmount a volume")?;
    result
}

fn names_of_any_bytes(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.volume("kubernetes.io~host", "a b,c=d:ü")?;
    fs::write(volume.join("new\nline"), "x")?;
    let script = "cat '/data, of:any=name ü/new\nline'";
    same(
        &pod.output(ContainerSpec::script(script).mount(&volume, "/data, of:any=name ü"))?,
        "x",
    )
}

fn a_volume_outlives_its_container(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.empty_dir("outlives")?;
    pod.output(ContainerSpec::script("echo $$ >/data/first").mount(&volume, "/data"))?;
    for _ in 0..3 {
        same(
            &pod.output(ContainerSpec::script("cat /data/first").mount(&volume, "/data"))?,
            "1",
        )?;
    }
    Ok(())
}

fn over_a_directory_of_the_image(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.empty_dir("over")?;
    fs::write(volume.join("only"), "")?;
    let outer = ContainerSpec::script("ls /usr /usr/below; touch /usr/below/x; ls /usr");
    // In the order in which they are given, one in the other.
    let below = pod.empty_dir("below")?;
    let spec = outer.mount(&volume, "/usr").mount(&below, "/usr/below");
    let said = pod.output(spec)?;
    ensure!(
        said.ends_with("below\nonly") && below.join("x").exists(),
        "{said}"
    );
    Ok(())
}

fn many_volumes(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let mut spec = ContainerSpec::script("cat /data/*/name | sort -n | uniq | wc -l");
    for number in 0..40 {
        let volume = pod.empty_dir(&format!("many-{number}"))?;
        fs::write(volume.join("name"), format!("{number}\n"))?;
        spec = spec.mount(&volume, &format!("/data/{number}"));
    }
    same(&pod.output(spec)?, "40")
}

/// The number of the file system that is a container's root, on the host.
fn root_device(container: &Container) -> Result<u64> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let directory = format!("/mounts/{}.", container.id());
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let root = fields
        .find(|fields| fields[4].contains(&directory) && fields[4].ends_with("/rootfs"))
        .context("a container has a root file system on the host")?;
    Ok(fs::metadata(root[4])?.dev())
}

/// How many files of these file systems the pod's file server holds open.
fn held(pod: &Pod, devices: &[u64]) -> Result<usize> {
    let mut servers = 0;
    let mut held = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if !line.contains(pod.id())
            || !line
                .split('\0')
                .next()
                .is_some_and(|program| program.ends_with("virtiofsd"))
        {
            continue;
        }
        servers += 1;
        let files = fs::read_dir(process.path().join("fd"))?.flatten();
        // One that was closed meanwhile is held no more.
        let devices_of = files.filter_map(|file| fs::metadata(file.path()).ok());
        held += devices_of.filter(|file| devices.contains(&file.dev())).count();
    }
    ensure!(servers > 0, "the pod has no file server");
    Ok(held)
}

fn what_is_removed_is_let_go(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let stays = pod.start(ContainerSpec::idle())?;
    let volume = pod.volume("kubernetes.io~host", "let-go")?;
    with_tmpfs(&volume, || {
        fs::write(volume.join("file"), "x")?;
        let goes = pod.start(ContainerSpec::idle().mount(&volume, "/data"))?;
        same(&goes.sh("ls / /bin /etc >/dev/null; cat /data/file")?, "x")?;
        let devices = [root_device(&goes)?, fs::metadata(&volume)?.dev()];
        for device in devices {
            ensure!(held(&pod, &[device])? > 0, "what is used is held open");
        }
        goes.stop(Duration::ZERO)?;
        goes.remove()?;
        wait::until("nothing of it is held open", deadlines::GONE, || {
            Ok((held(&pod, &devices)? == 0).then_some(()))
        })?;
        same(&stays.sh("echo alive")?, "alive")
    })?;
    stays.stop(Duration::ZERO)?;
    stays.remove()
}
