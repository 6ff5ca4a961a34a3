//! The promises, one function each.

/// Gives a macro the names of what every driver promises, after what it is to have before them.
macro_rules! of_every_driver {
    ($macro:ident! $($before:tt)*) => {
        $macro! { $($before)*
            the_agent_greets_and_a_stop_ends_everything
            a_stop_can_be_repeated
            a_kill_is_an_event_and_leaves_no_zombie
            a_stop_of_a_frozen_vmm_is_bounded
            a_drop_kills
            a_cancelled_launch_leaves_nothing
            a_record_is_enough_to_reap
            two_live_side_by_side
            a_program_that_is_missing_is_an_error
            a_program_that_ends_at_once_leaves_nothing
            a_vmm_gets_only_what_is_meant_for_it
            a_vmm_is_in_the_network_namespace_it_is_given
            a_vmm_is_in_the_cgroups_it_is_given
            no_descriptor_is_lost
            abilities_are_what_the_capabilities_say
            a_vmm_dies_with_its_owner
        }
    };
}

mod daemons;
mod disks;
mod growth;
mod saving;
mod subject;
mod traces;
mod usage;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::{Boot, Device, Disk, ErrorKind, Exit, ExitReason, Vm, VmRecord};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::RwLock;
use tokio::time::timeout;

pub use daemons::daemons_serve_vsock_and_a_directory;
pub use disks::a_disk_is_plugged_and_unplugged;
pub use growth::a_machine_grows_up_to_its_limit_and_not_beyond;
pub use saving::{
    a_copy_grows, a_damaged_vm_is_not_copied, a_fingerprint_is_of_everything_that_matters,
    copies_go_on_where_the_saved_vm_stopped, only_what_was_started_to_be_saved_is,
    the_memory_of_a_copy_counts_in_its_cgroups,
};
use subject::{BOOT, SOON, patient};
pub use subject::{Place, Subject};
pub use traces::leftovers;
use traces::{alive, children, descriptors, ended, is_mounted_below, processes_naming};
use usage::{processor_time, resident_kib};

/// Counting descriptors needs the process for itself: that test takes this for writing, the others for reading.
pub static PROCESS: RwLock<()> = RwLock::const_new(());

pub async fn the_agent_greets_and_a_stop_ends_everything(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    place.driver.check_host().expect("a usable host");
    let mut vm = place.launch().await;
    let pid = vm.pid();
    assert!(alive(pid));
    assert!(vm.exited().borrow().is_none());
    place.greeted().await;
    let report = vm.report();
    assert!(!report.vmm.is_empty() && !report.reason.is_empty(), "{report:?}");
    assert_eq!(
        report.machine.contains("jailed"),
        subject == Subject::Jailed,
        "{report:?}"
    );

    vm.stop().await.expect("a stop");
    let exit = end(vm.as_ref()).await;
    assert_eq!(exit.reason, ExitReason::Stopped);
    assert!(
        exit.console.len() <= 64 && exit.console.iter().all(|line| line.len() <= 512),
        "{exit:?}"
    );
    assert!(!alive(pid));
    assert_eq!(leftovers(place.run_dir()), Vec::<String>::new());
}

pub async fn a_stop_can_be_repeated(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let mut vm = place.launch().await;
    vm.stop().await.expect("the first stop");
    vm.stop().await.expect("the second stop");
    assert_eq!(end(vm.as_ref()).await.reason, ExitReason::Stopped);
}

pub async fn a_kill_is_an_event_and_leaves_no_zombie(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let mut vm = place.launch().await;
    signal(vm.pid(), Signal::KILL);
    assert_eq!(end(vm.as_ref()).await.reason, ExitReason::VmmKilled(9));
    assert!(!alive(vm.pid()));
    vm.stop().await.expect("a stop of what has ended");
    assert_eq!(
        end(vm.as_ref()).await.reason,
        ExitReason::VmmKilled(9),
        "the first reason stays"
    );
}

pub async fn a_stop_of_a_frozen_vmm_is_bounded(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let mut vm = place.launch().await;
    signal(vm.pid(), Signal::STOP);
    timeout(patient(SOON), vm.stop())
        .await
        .expect("a stop in time")
        .expect("a stop");
    assert!(!alive(vm.pid()));
}

pub async fn a_drop_kills(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let vm = place.launch().await;
    let (pid, mut exited) = (vm.pid(), vm.exited());
    drop(vm);
    timeout(patient(SOON), exited.wait_for(Option::is_some))
        .await
        .expect("an end")
        .expect("a reason");
    assert!(!alive(pid));
}

pub async fn a_cancelled_launch_leaves_nothing(subject: Subject) {
    // Whatever is started, it is a child of this process.
    let _alone = PROCESS.write().await;
    let place = Place::new(subject);
    let before = children();
    // Before, while and after the program is being started.
    for milliseconds in [0, 1, 2, 5, 10, 20, 50] {
        let launch = place.driver.launch(place.spec(), Boot::Cold);
        if let Ok(launched) = timeout(Duration::from_millis(milliseconds), launch).await {
            drop(launched.expect("nothing of the one before is in its way"));
        }
        let deadline = Instant::now() + SOON;
        while children() != before {
            assert!(
                Instant::now() < deadline,
                "cancelled after {milliseconds} ms, and something still runs"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(leftovers(place.run_dir()), Vec::<String>::new());
        assert!(!is_mounted_below(place.run_dir()), "something is still mounted");
    }
    let mut vm = place.launch().await;
    vm.stop().await.expect("a stop");
}

pub async fn a_record_is_enough_to_reap(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let vm = place.launch().await;
    let record = vm.record();
    assert_eq!(
        (record.pid, record.driver.as_str()),
        (vm.pid(), place.driver.name())
    );

    let successor = Place::new(subject).driver;
    let mut stranger = record.clone();
    stranger.start_time += 1;
    successor.reap(&stranger).await.expect("nothing to do");
    assert!(alive(vm.pid()), "a process that was not the record's was killed");
    successor.reap(&record).await.expect("a reaped VMM");
    assert_eq!(end(vm.as_ref()).await.reason, ExitReason::VmmKilled(9));
    successor.reap(&record).await.expect("nothing left is success");
}

pub async fn two_live_side_by_side(subject: Subject) {
    let _shared = PROCESS.read().await;
    let (first_place, second_place) = (Place::new(subject), Place::new(subject));
    let (mut first, mut second) = tokio::join!(first_place.launch(), second_place.launch());
    tokio::join!(first_place.greeted(), second_place.greeted());
    assert_ne!(first.pid(), second.pid());
    first.stop().await.expect("a stop");
    assert!(second.exited().borrow().is_none(), "the neighbour ended as well");
    second.stop().await.expect("a stop");
}

pub async fn a_program_that_is_missing_is_an_error(subject: Subject) {
    let _shared = PROCESS.read().await;
    let mut config = subject.config();
    config.path = "/nonexistent/vmm".into();
    let place = Place::with(config);
    assert_eq!(
        place.driver.check_host().map_err(|error| error.kind),
        Err(ErrorKind::NotFound)
    );
    let error = place
        .driver
        .launch(place.spec(), Boot::Cold)
        .await
        .err()
        .expect("an error");
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.to_string().contains("/nonexistent/vmm"), "{error}");
}

pub async fn a_program_that_ends_at_once_leaves_nothing(subject: Subject) {
    let _shared = PROCESS.read().await;
    let bin = tempfile::tempdir().expect("a directory");
    let mut config = subject.config();
    with_script(
        &mut config,
        bin.path(),
        "echo no such thing as a guest >&2; exit 7",
    );
    let place = Place::with(config);
    let told = match place.driver.launch(place.spec(), Boot::Cold).await {
        // A driver that need not talk to its VMM sees the end as an event.
        Ok(vm) => {
            let exit = end(vm.as_ref()).await;
            assert_eq!(exit.reason, ExitReason::VmmExited(7));
            exit.console.join(" ")
        }
        Err(error) => error.to_string(),
    };
    assert!(told.contains("no such thing as a guest"), "{told}");
    assert_eq!(processes_naming(bin.path()), 0);
}

pub async fn a_vmm_gets_only_what_is_meant_for_it(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    // Something that a careless library opened without close-on-exec.
    let careless = tempfile::NamedTempFile::new().expect("a file");
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).expect("an inheritable descriptor");
    let vm = place.launch().await;
    let process = PathBuf::from(format!("/proc/{}", vm.pid()));

    let held = std::fs::read_dir(process.join("fd"))
        .expect("descriptors")
        .flatten();
    let held: Vec<PathBuf> = held
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .collect();
    assert!(!held.iter().any(|path| path == careless.path()), "{held:?}");
    let environment = std::fs::read(process.join("environ")).expect("an environment");
    assert_eq!(String::from_utf8_lossy(&environment), "");
    assert_eq!(
        std::fs::read_link(process.join("cwd")).expect("a directory"),
        Path::new("/")
    );
    let pid = rustix::process::Pid::from_raw(i32::try_from(vm.pid()).expect("a pid"));
    assert_eq!(
        rustix::process::getpgid(pid).ok(),
        pid,
        "it leads a process group of its own"
    );
}

pub async fn a_vmm_is_in_the_network_namespace_it_is_given(subject: Subject) {
    let _shared = PROCESS.read().await;
    let name = format!("kata-vmm-{}-{}", std::process::id(), subject.name());
    let ip = |verb: &str| {
        let status = std::process::Command::new("ip")
            .args(["netns", verb, &name])
            .status();
        status.expect("this test needs iproute2").success()
    };
    assert!(ip("add"), "a network namespace (is this root?)");
    let path = Path::new("/run/netns").join(&name);
    let given = File::open(&path).expect("the namespace");
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("a file"));

    let place = Place::new(subject);
    let mut spec = place.spec();
    spec.network_namespace = Some(Arc::new(given.into()));
    let mut vm = place.driver.launch(spec, Boot::Cold).await.expect("a VM");
    let of_vmm = inode(Path::new(&format!("/proc/{}/ns/net", vm.pid())));
    // The channel to the agent does not care.
    place.greeted().await;
    vm.stop().await.expect("a stop");
    let of_namespace = inode(&path);
    assert!(ip("del"));
    assert_eq!(of_vmm, of_namespace);
    assert_ne!(of_vmm, inode(Path::new("/proc/self/ns/net")));

    let mut spec = place.spec();
    let no_namespace = tempfile::tempfile().expect("a file");
    spec.network_namespace = Some(Arc::new(no_namespace.into()));
    let error = place
        .driver
        .launch(spec, Boot::Cold)
        .await
        .err()
        .expect("an error");
    assert!(error.to_string().contains("cannot start"), "{error}");
    assert_eq!(processes_naming(place.run_dir()), 0);
}

pub async fn a_vmm_is_in_the_cgroups_it_is_given(subject: Subject) {
    let _shared = PROCESS.read().await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the list of mounts");
    let unified = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .expect("this test needs a hierarchy of cgroups of version 2");
    let name = format!("kata-vmm-{}-{}", std::process::id(), subject.name());
    let dir = Path::new(unified).join(&name);
    std::fs::create_dir(&dir).expect("a cgroup (is this root?)");
    let procs = File::options().write(true).open(dir.join("cgroup.procs"));
    let procs: Arc<OwnedFd> = Arc::new(procs.expect("its list of processes").into());

    let place = Place::new(subject);
    let mut spec = place.spec();
    spec.cgroups = vec![Arc::clone(&procs)];
    let mut vm = place.driver.launch(spec, Boot::Cold).await.expect("a VM");
    let of_vmm = std::fs::read_to_string(dir.join("cgroup.procs"));
    place.greeted().await;
    vm.stop().await.expect("a stop");
    // Nothing is left in it, or it could not be removed. A double's guest is a process, which its end ends.
    let deadline = Instant::now() + SOON;
    let mut removed = std::fs::remove_dir(&dir);
    while removed.is_err() && subject.is_double() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        removed = std::fs::remove_dir(&dir);
    }
    assert!(
        of_vmm
            .expect("a list")
            .lines()
            .any(|pid| pid == vm.pid().to_string())
    );
    removed.expect("an empty cgroup");

    // It is gone, and with it the right to be in it.
    let mut spec = place.spec();
    spec.cgroups = vec![procs];
    let error = place
        .driver
        .launch(spec, Boot::Cold)
        .await
        .err()
        .expect("an error");
    assert!(error.to_string().contains("in its cgroups"), "{error}");
    assert_eq!(processes_naming(place.run_dir()), 0);
}

pub async fn no_descriptor_is_lost(subject: Subject) {
    let _alone = PROCESS.write().await;
    let cycle = async || {
        let place = Place::new(subject);
        place.launch().await.stop().await.expect("a stop");
    };
    // The first one makes what stays: the spawner and the runtime's own descriptors.
    cycle().await;
    let before = descriptors();
    for _ in 0..3 {
        cycle().await;
    }
    // The connection's task ends on its own once QEMU's end is closed; give it the turns it needs, within a deadline.
    let deadline = Instant::now() + SOON;
    while descriptors() != before && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    assert_eq!(descriptors(), before);
}

pub async fn abilities_are_what_the_capabilities_say(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let capabilities = place.driver.capabilities();
    let mut vm = place.launch().await;
    assert_eq!(
        vm.hotplug().is_some(),
        capabilities.hotplug || capabilities.block_hotplug
    );
    assert_eq!(vm.resize().is_some(), capabilities.resize);
    assert_eq!(capabilities.guest_is_process, subject == Subject::Fake);
    vm.stop().await.expect("a stop");
}

/// The test runs itself a second time as the owner of a VMM, and kills that.
pub async fn a_vmm_dies_with_its_owner(subject: Subject) {
    const ROLE: &str = "KATA_TEST_OWNER";
    let _shared = PROCESS.read().await;
    if std::env::var_os(ROLE).is_some() {
        let place = Place::new(subject);
        let vm = place.launch().await;
        let record = serde_json::to_string(&vm.record()).expect("a record");
        println!("\nvmm {record}");
        std::future::pending::<()>().await;
    }
    let this = std::env::current_exe().expect("the test's program");
    let test = format!("{}::a_vmm_dies_with_its_owner", subject.name());
    // What the owner leaves behind goes away with this.
    let temporary = tempfile::tempdir().expect("a directory");
    let mut owner = tokio::process::Command::new(this)
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(ROLE, "1")
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("an owner");
    let mut lines = BufReader::new(owner.stdout.take().expect("its output")).lines();
    let record: VmRecord = timeout(patient(BOOT), async {
        loop {
            let line = lines.next_line().await.expect("output").expect("a VMM's record");
            if let Some(record) = line.strip_prefix("vmm ") {
                return serde_json::from_str(record).expect("a record");
            }
        }
    })
    .await
    .expect("an owner with a VMM");
    assert!(alive(record.pid));

    owner.kill().await.expect("a dead owner");
    ended(record.pid).await;
    let successor = Place::new(subject).driver;
    successor.reap(&record).await.expect("nothing left is success");
    assert!(
        !is_mounted_below(temporary.path()),
        "something is still mounted there"
    );
}

pub async fn what_qemu_says_of_its_arguments_is_in_the_error(subject: Subject) {
    let _shared = PROCESS.read().await;
    let mut config = subject.config();
    config.cpu_features = vec!["no-such-feature=on".into()];
    let place = Place::with(config);
    let error = place
        .driver
        .launch(place.spec(), Boot::Cold)
        .await
        .err()
        .expect("an error");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.to_string().contains("no-such-feature"), "{error}");
}

pub async fn a_missing_kernel_is_named(subject: Subject) {
    let _shared = PROCESS.read().await;
    let mut config = subject.config();
    config.kernel = "/nonexistent/vmlinux".into();
    let place = Place::with(config);
    for error in [
        place.driver.check_host().expect_err("an error"),
        place
            .driver
            .launch(place.spec(), Boot::Cold)
            .await
            .err()
            .expect("an error"),
    ] {
        assert!(error.to_string().contains("/nonexistent/vmlinux"), "{error}");
    }
}

pub async fn a_control_socket_that_stays_silent_has_a_deadline(subject: Subject) {
    let _shared = PROCESS.read().await;
    let bin = tempfile::tempdir().expect("a directory");
    let mut config = subject.config();
    with_script(&mut config, bin.path(), "exec sleep 1000");
    let place = Place::with(config);
    let error = place
        .driver
        .launch(place.spec(), Boot::Cold)
        .await
        .err()
        .expect("an error");
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert_eq!(processes_naming(bin.path()), 0);
}

pub async fn a_panic_of_the_guest_is_told_with_its_last_words(subject: Subject) {
    let _shared = PROCESS.read().await;
    // Without a program to run first, the kernel panics.
    let place = Place::new(subject)
        .with_param("rdinit=/nonexistent")
        .with_param("root=/dev/nonexistent");
    let vm = place.launch().await;
    let mut exited = vm.exited();
    let exit = timeout(patient(BOOT), exited.wait_for(Option::is_some))
        .await
        .expect("an end")
        .expect("a reason")
        .clone();
    let Exit { reason, console } = exit.expect("an exit");
    assert_eq!(reason, ExitReason::GuestPanic, "{console:?}");
    assert!(
        console.iter().any(|line| line.contains("Kernel panic")),
        "{console:?}"
    );
}

pub async fn a_guest_that_powers_off_is_told(subject: Subject) {
    let _shared = PROCESS.read().await;
    let place = Place::new(subject);
    let mut spec = place.spec();
    // An agent that is not told where its host is has nothing to live for.
    spec.kernel_params.clear();
    let vm = place.driver.launch(spec, Boot::Cold).await.expect("a VM");
    let mut exited = vm.exited();
    let exit = timeout(patient(BOOT), exited.wait_for(Option::is_some))
        .await
        .expect("an end")
        .expect("a reason")
        .clone();
    let Exit { reason, console } = exit.expect("an exit");
    assert_eq!(reason, ExitReason::GuestShutdown, "{console:?}");
}

pub async fn a_flood_of_output_is_bounded(subject: Subject) {
    let _alone = PROCESS.write().await;
    let bin = tempfile::tempdir().expect("a directory");
    let mut config = subject.config();
    config.path = Place::script(bin.path(), "exec tr '\\000' 'x' </dev/zero");
    let place = Place::with(config);
    let mut vm = place.launch().await;
    let (memory, processor) = (resident_kib(), processor_time());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (grown, used) = (
        resident_kib().saturating_sub(memory),
        processor_time() - processor,
    );
    vm.stop().await.expect("a stop");

    assert!(grown < 1024, "{grown} KiB more after a flood");
    assert!(
        used < Duration::from_millis(400),
        "{used:?} of processor time in 2 s of flood"
    );
    let console = end(vm.as_ref()).await.console;
    assert!(console.iter().all(|line| line.len() <= 512), "{console:?}");
}

/// Has a script stand for the program that is started, which is the jailer where there is one.
fn with_script(config: &mut configuration::HypervisorConfig, directory: &Path, text: &str) {
    config.path = Place::script(directory, text);
    if !config.jailer_path.as_os_str().is_empty() {
        config.jailer_path = config.path.clone();
    }
}

async fn end(vm: &dyn Vm) -> Exit {
    let mut exited = vm.exited();
    let exit = timeout(patient(SOON), exited.wait_for(Option::is_some))
        .await
        .expect("an end in time")
        .expect("an exit");
    exit.clone().expect("an exit")
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("a signal");
}
