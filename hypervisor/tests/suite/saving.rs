//! VMs are saved, and copies of them live.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hypervisor::{Boot, ErrorKind, MemoryBacking, Origin, SaveTo, Saved, Vm, VmSpec};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::subject::{Place, SOON, Subject, is_slow, patient};
use super::{PROCESS, leftovers};

/// A saved VM.
struct Shelf(TempDir);

impl Shelf {
    /// Boots a VM until its agent greets, and saves it.
    async fn fill(subject: Subject, growing: bool) -> Self {
        // On the disk that all of this was built on: a tmpfs could not be common to several.
        let shelf = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory"));
        let place = Place::new(subject);
        let launched = place.driver.launch(spec(&place, growing), Boot::ToSave).await;
        let mut vm = launched.expect("a VM");
        assert_eq!(vm.report().origin, Origin::Boot);
        hang_up(&place).await;
        let file = |name| -> OwnedFd { File::create_new(shelf.path(name)).expect("a file").into() };
        let to = SaveTo {
            memory: file("memory"),
            state: std::sync::Arc::new(file("state")),
        };
        vm.save(to).await.expect("a saved VM");
        vm.stop().await.expect("a stop");
        assert_eq!(leftovers(place.run_dir()), Vec::<String>::new());
        shelf
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn saved(&self) -> Saved {
        let open = |name| -> OwnedFd { File::open(self.path(name)).expect("a file").into() };
        Saved {
            memory: open("memory"),
            state: open("state"),
            devices: Vec::new(),
        }
    }
}

fn spec(place: &Place, growing: bool) -> VmSpec {
    let mut spec = place.spec();
    if growing && place.driver.capabilities().resize {
        spec.max_vcpus = 2;
        spec.memory.max_mib = 512;
    }
    spec
}

/// Lets the agent greet, and ends the connection; returns when the VMM has seen it.
async fn hang_up(place: &Place) {
    let mut stream = place.greeted().await;
    stream.shutdown().await.expect("the end of what we say");
    let mut rest = Vec::new();
    timeout(patient(SOON), stream.read_to_end(&mut rest))
        .await
        .expect("the VMM hangs up too")
        .expect("an end");
}

/// Size and time of the last change. What a file takes is no part of it: a disk's may be allocated when it is written back.
fn identity(path: &Path) -> (u64, i64, i64) {
    let metadata = fs::metadata(path).expect("a file");
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// Copies live side by side, whether their memory is shared with other processes or not, and leave what they are copies of
/// as it was.
pub async fn copies_go_on_where_the_saved_vm_stopped(subject: Subject) {
    let _shared = PROCESS.read().await;
    let shelf = Shelf::fill(subject, true).await;
    let memory = shelf.path("memory");
    let metadata = fs::metadata(&memory).expect("a file");
    assert_eq!(metadata.len(), 256 << 20);
    let blocks = metadata.blocks();
    assert!(
        blocks * 512 < metadata.len() / 2,
        "{blocks} blocks of a file that is mostly zero"
    );
    let before = identity(&memory);

    let places = [
        MemoryBacking::Private,
        MemoryBacking::Private,
        MemoryBacking::Shared,
    ]
    .map(|backing| {
        let place = Place::new(subject);
        let mut spec = spec(&place, true);
        // Not every one can share its memory.
        if place.driver.capabilities().vhost_user {
            spec.memory.backing = backing;
        }
        (place, spec)
    });
    let places = match is_slow() {
        true => &places[..1],
        false => &places[..],
    };
    let mut copies: Vec<Box<dyn Vm>> = Vec::new();
    for (place, spec) in places {
        let boot = Boot::Clone(shelf.saved());
        let vm = place.driver.launch(spec.clone(), boot).await.expect("a copy");
        assert_eq!(vm.report().origin, Origin::Clone);
        copies.push(vm);
    }
    for (place, _) in places {
        place.greeted().await;
    }
    for vm in &mut copies {
        assert!(vm.exited().borrow().is_none());
        vm.stop().await.expect("a stop");
    }
    assert_eq!(identity(&memory), before);
}

/// A copy grows like any other VM.
pub async fn a_copy_grows(subject: Subject) {
    let _shared = PROCESS.read().await;
    let shelf = Shelf::fill(subject, true).await;
    let place = Place::new(subject);
    let boot = Boot::Clone(shelf.saved());
    let mut vm = place
        .driver
        .launch(spec(&place, true), boot)
        .await
        .expect("a copy");
    place.greeted().await;
    let growing = vm.resize().expect("it can grow");
    growing.grow_vcpus(2).await.expect("a vCPU");
    growing.grow_memory(512).await.expect("memory");
    let size = growing.size();
    assert_eq!((size.vcpus, size.memory_mib), (2, 512));
    vm.stop().await.expect("a stop");
}

/// What is not whole is refused, and nothing runs.
pub async fn a_damaged_vm_is_not_copied(subject: Subject) {
    let _shared = PROCESS.read().await;
    let shelf = Shelf::fill(subject, false).await;
    let refused = async |what: &str, words: &str| {
        let place = Place::new(subject);
        let boot = Boot::Clone(shelf.saved());
        let launched = place.driver.launch(spec(&place, false), boot).await;
        let error = launched.err().unwrap_or_else(|| panic!("a copy of {what}"));
        assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{what}: {error}");
        assert!(error.to_string().contains(words), "{what}: {error}");
        assert_eq!(leftovers(place.run_dir()), Vec::<String>::new());
    };
    let state = fs::read(shelf.path("state")).expect("the state");
    fs::write(shelf.path("state"), &state[..state.len() / 2]).expect("half of it");
    refused("half of the state", "cannot be read").await;
    fs::write(shelf.path("state"), &state).expect("all of it");
    let memory = File::options().write(true).open(shelf.path("memory"));
    memory
        .expect("the memory")
        .set_len(255 << 20)
        .expect("a shorter file");
    refused("less memory", "the saved memory has").await;
}

/// A VM that was not meant to be saved is not, and lives on.
pub async fn only_what_was_started_to_be_saved_is(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let mut vm = place.launch().await;
    let to = SaveTo {
        memory: tempfile::tempfile().expect("a file").into(),
        state: std::sync::Arc::new(tempfile::tempfile().expect("a file").into()),
    };
    let error = vm.save(to).await.expect_err("nothing is saved");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    place.greeted().await;
    vm.stop().await.expect("a stop");
}

/// What a saved VM depends on is in its fingerprint: the size and the files, and not the sandbox.
pub async fn a_fingerprint_is_of_everything_that_matters(subject: Subject) {
    let place = Place::new(subject);
    let spec = spec(&place, true);
    let print = |spec: &VmSpec| place.driver.fingerprint(spec).expect("a fingerprint");
    let first = print(&spec);
    let held: Vec<File> = (0..7)
        .map(|_| File::open("/dev/null").expect("a descriptor"))
        .collect();
    assert_eq!(print(&spec), first, "the numbers of descriptors do not matter");
    drop(held);

    let mut larger = spec.clone();
    larger.memory.size_mib += 2;
    assert_ne!(print(&larger), first);
    let mut other = spec.clone();
    other.kernel_params.push("debug".into());
    assert_ne!(print(&other), first);

    let copied = place.run_dir().join("initrd.img");
    fs::copy(&spec.initrd, &copied).expect("a copy of the initramfs");
    let mut same = spec.clone();
    same.initrd = copied.clone();
    let before = print(&same);
    assert_eq!(print(&same), before);
    File::options()
        .append(true)
        .open(&copied)
        .expect("it")
        .set_len(100)
        .expect("a change");
    assert_ne!(print(&same), before);
}

/// Copies have the memory in common that they have not changed. Where this process may not look into a VMM's memory, without which
/// nothing can be carried to those that must share it, each has its own: that counts in the cgroups of its VMM, and not in those of
/// whoever has started it.
pub async fn the_memory_of_a_copy_counts_in_its_cgroups(subject: Subject) {
    let _shared = PROCESS.read().await;
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let (parent, count) = match controllers.contains("memory") {
        true => ("/sys/fs/cgroup", "memory.current"),
        false => ("/sys/fs/cgroup/memory", "memory.usage_in_bytes"),
    };
    let dir = Path::new(parent).join(format!("kata-copy-{}", std::process::id()));
    fs::create_dir(&dir).expect("a cgroup that counts memory (is this root?)");
    let procs = File::options().write(true).open(dir.join("cgroup.procs"));
    let procs: std::sync::Arc<OwnedFd> = std::sync::Arc::new(procs.expect("its list of processes").into());
    let shelf = Shelf::fill(subject, false).await;
    let memory = shelf.path("memory");
    let saved = fs::metadata(&memory).expect("a file").blocks() * 512;
    for may_look in [false, true] {
        let place = Place::new(subject);
        let mut spec = spec(&place, false);
        spec.memory.backing = MemoryBacking::Shared;
        spec.cgroups = vec![procs.clone()];
        let launch = place.driver.launch(spec, Boot::Clone(shelf.saved()));
        let launched = match may_look {
            true => launch.await,
            false => without_looking(launch).await,
        };
        // Before the guest has done anything but come to life; QEMU itself takes less than half of what is saved.
        let counted = fs::read_to_string(dir.join(count)).expect("a count");
        let mut vm = launched.expect("a copy");
        let maps = fs::read_to_string(format!("/proc/{}/maps", vm.pid())).expect("its mappings");
        let mut lines = maps
            .lines()
            .filter(|line| line.ends_with(&*memory.to_string_lossy()));
        let is_common = lines.any(|line| line.contains(" rw-p "));
        place.greeted().await;
        vm.stop().await.expect("a stop");
        assert_eq!(is_common, may_look, "{maps}");
        let counted: u64 = counted.trim().parse().expect("a number");
        assert!(
            is_common || counted >= saved,
            "{counted} bytes count where {saved} were copied"
        );
    }
    fs::remove_dir(&dir).expect("an empty cgroup");
}

/// Does something without the right to look into other processes. It is this thread's.
async fn without_looking<T>(work: impl Future<Output = T>) -> T {
    let all = capabilities(None).expect("the rights of this thread");
    let mut fewer = all;
    fewer.effective.remove(CapabilitySet::SYS_PTRACE);
    set_capabilities(None, fewer).expect("fewer of them");
    let done = work.await;
    set_capabilities(None, all).expect("all of them again");
    done
}
