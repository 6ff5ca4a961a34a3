//! Promises that need the doubles of monitors: what is asked of a monitor, and of which.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use configuration::HypervisorConfig;
use hypervisor::{
    Boot, Device, Disk, ErrorKind, MemoryBacking, SaveTo, Saved, SerialPort, VirtioFs, Vm, VmSpec, Vsock,
    registry,
};
use tokio::net::UnixListener;

use super::mutation::Findings;
use super::sys::{Tap, landlock_abi};
use crate::suite::{PROCESS, Place, Subject, leftovers};

pub async fn a_monitor_that_is_too_old_is_refused_in_one_sentence(subject: Subject) {
    let _shared = PROCESS.read().await;
    // The last version of either that is refused.
    let newest = match subject {
        Subject::Clh => "50.0.0",
        _ => "1.6.9",
    };
    for (version, problem) in [(newest, "or later is needed"), ("", "or later is needed")] {
        let place = Place::of_version(subject, version);
        let launched = place.driver.launch(place.spec(), Boot::Cold).await;
        let error = launched.err().expect("a refusal");
        assert_eq!(error.kind, ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains(problem) && text.contains("`path`"), "{text}");
        assert_eq!(leftovers(place.run_dir()), Vec::<String>::new());
    }
}

/// Nobody is started for it, so that there need not even be a program.
pub async fn what_firecracker_lacks_is_refused_before_anything_starts(subject: Subject) {
    let _shared = PROCESS.read().await;
    let mut config = subject.config();
    config.path = "/nonexistent/firecracker".into();
    config.jailer_path = Default::default();
    let place = Place::with(config);
    let refused = async |change: &dyn Fn(&mut VmSpec), words: &str| {
        let mut spec = place.spec();
        change(&mut spec);
        let error = place
            .driver
            .launch(spec, Boot::Cold)
            .await
            .err()
            .expect("a refusal");
        let text = error.to_string();
        assert!(text.contains(words), "{text}");
        let kinds = [ErrorKind::Unsupported, ErrorKind::InvalidArgument];
        assert!(kinds.contains(&error.kind), "{:?}: {text}", error.kind);
    };
    let share = Device::VirtioFs(VirtioFs {
        tag: "shared".into(),
        socket: "/s".into(),
        directory: "/d".into(),
    });
    let port = Device::SerialPort(SerialPort {
        name: "p".into(),
        socket: "/p".into(),
    });
    let kernels = Device::Vsock(Vsock::Kernel { cid: 7 });
    for (device, words) in [
        (share, "give its containers block devices"),
        (port, "reached by hybrid vsock"),
        (kernels, "its own hybrid vsock"),
    ] {
        refused(&|spec| spec.devices.push(device.clone()), words).await;
    }
    refused(&|spec| spec.max_vcpus = 2, "keep the vCPUs").await;
    refused(&|spec| spec.memory.max_mib = 512, "static_sandbox_resource_mgmt").await;
    refused(
        &|spec| spec.memory.backing = MemoryBacking::Shared,
        "shares guest memory with nobody",
    )
    .await;
    refused(&|spec| (spec.vcpus, spec.max_vcpus) = (33, 33), "32 vCPUs").await;
    refused(&|spec| spec.vcpus = 0, "at least one vCPU").await;
    refused(&|spec| spec.kernel = "vmlinux".into(), "not absolute").await;
    let queues = Device::Net {
        id: "2".into(),
        taps: [(); 2].map(|()| open_null()).into(),
        mac: "02:00:00:00:00:01".into(),
    };
    refused(&|spec| spec.devices.push(queues.clone()), "has one queue").await;
}

fn open_null() -> Arc<std::os::fd::OwnedFd> {
    Arc::new(File::open("/dev/null").expect("a file").into())
}

/// Lives of VMs in which the driver sends everything that it can. The double, which is as strict as the description, takes it all;
/// and of each request it refuses every wrong form, and the right one in a wrong state.
pub async fn every_request_is_sent_and_wrong_ones_are_refused(subject: Subject) {
    let _shared = PROCESS.read().await;
    let reports = tempfile::tempdir().expect("a directory");
    let place = || {
        Place::reporting(subject, reports.path(), |config: &mut HypervisorConfig| {
            config.disk_rate_limiter_bw_max_rate = 8_000_000;
            config.disk_rate_limiter_ops_max_rate = 100;
            config.net_rate_limiter_bw_max_rate = 8_000_000;
            config.net_rate_limiter_bw_one_time_burst = 80;
        })
    };
    live(subject, &place()).await;
    save_and_copy(subject, &place).await;

    let findings = Findings::read(reports.path());
    assert_eq!(
        findings.passed,
        Vec::<String>::new(),
        "wrong requests that were not refused"
    );
    let all: BTreeSet<String> = registry::requests(subject.config().kind)
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    assert_eq!(
        findings.served, all,
        "requests that were sent, and those that can be"
    );
    // What can be asked at any time.
    let always = ["GET /vmm.ping", "PUT /vmm.shutdown", "GET /version"].map(String::from);
    let by_state = findings
        .refused_by_state
        .union(&always.into())
        .cloned()
        .collect::<BTreeSet<_>>();
    let missing: Vec<_> = all.difference(&by_state).collect();
    assert!(missing.is_empty(), "never refused for its state: {missing:?}");
    assert!(findings.refused > 5 * all.len(), "{findings:?}");
    what_confines_and_limits_was_said(subject, &findings.said);
}

/// What is left on, or asked for, and what a guest would not miss.
fn what_confines_and_limits_was_said(subject: Subject, said: &BTreeSet<String>) {
    let mut wanted = match subject {
        Subject::Clh => vec![
            "argument --seccomp",
            "argument true",
            "PUT /vm.create balloon.free_page_reporting = true",
            "PUT /vm.create balloon.deflate_on_oom = true",
            "PUT /vm.create memory.hotplug_method = \"VirtioMem\"",
            "PUT /vm.create memory.zones.0.hotplug_size = 268435456",
            "PUT /vm.create disks.0.image_type = \"Raw\"",
            "PUT /vm.create disks.0.readonly = true",
            "PUT /vm.create disks.0.rate_limiter_config.bandwidth.size = 1000000",
            "PUT /vm.add-disk image_type = \"Raw\"",
            "PUT /vm.add-disk rate_limiter_config.ops.size = 100",
            "PUT /vm.add-net rate_limiter_config.bandwidth.one_time_burst = 10",
        ],
        _ => vec![
            "PUT /balloon deflate_on_oom = true",
            "PUT /drives/{drive_id} is_read_only = true",
            "PUT /drives/{drive_id} rate_limiter.bandwidth.size = 1000000",
            "PUT /drives/{drive_id} rate_limiter.ops.size = 100",
            "PUT /network-interfaces/{iface_id} rx_rate_limiter.bandwidth.size = 1000000",
            "PUT /network-interfaces/{iface_id} tx_rate_limiter.bandwidth.one_time_burst = 10",
        ],
    };
    // Linux 6.2: before that it could not confine this monitor.
    if subject == Subject::Clh && landlock_abi() >= 3 {
        wanted.push("PUT /vm.create landlock_enable = true");
        wanted.push("PUT /vm.create landlock_rules.0.access = \"rw\"");
    }
    let missing: Vec<_> = wanted.iter().filter(|words| !said.contains(**words)).collect();
    assert!(missing.is_empty(), "never said: {missing:?}, but: {said:#?}");
    let wrong = ["argument --no-seccomp", "argument false"];
    assert!(!wrong.iter().any(|words| said.contains(*words)), "{said:#?}");
}

/// A VM with everything from the start, which is given more and loses it again.
async fn live(subject: Subject, place: &Place) {
    let has_shares = place.driver.capabilities().fs_sharing;
    let file = |name: &str| {
        let path = place.run_dir().join(name);
        File::create(&path)
            .and_then(|file| file.set_len(1 << 20))
            .expect("a disk");
        let opened = File::options().read(true).write(true).open(&path);
        Arc::new(opened.expect("a disk").into())
    };
    let disk = |id: &str, readonly| {
        Device::Block(Disk {
            id: id.into(),
            file: file(id),
            readonly,
        })
    };
    let socket = place.run_dir().join("fs.sock");
    let _daemon = UnixListener::bind(&socket).expect("a socket");
    let share = |tag: &str| {
        Device::VirtioFs(VirtioFs {
            tag: tag.into(),
            socket: socket.clone(),
            directory: "/".into(),
        })
    };
    let mut tap = Tap::make(&format!("{}{}", subject.name(), std::process::id() % 10_000));
    let card = |id: &str, taps| Device::Net {
        id: id.into(),
        taps,
        mac: "02:00:00:00:00:01".into(),
    };
    let mut spec = place.spec();
    if has_shares {
        spec.memory.backing = MemoryBacking::Shared;
        (spec.max_vcpus, spec.memory.max_mib) = (2, 512);
        spec.devices.push(share("first"));
    }
    spec.devices
        .extend([disk("first-disk", true), card("2", tap.queues())]);
    let launched = place.driver.launch(spec, Boot::Cold).await;
    let mut vm = launched.expect("a VM");
    place.greeted().await;

    let hotplug = vm.hotplug().expect("hotplug");
    hotplug.plug(disk("later", false)).await.expect("a disk");
    if has_shares {
        hotplug.plug(share("later-share")).await.expect("a share");
        hotplug.plug(card("3", vec![open_null()])).await.expect("a card");
    } else {
        for device in [share("later-share"), card("3", vec![open_null()])] {
            let error = hotplug.plug(device).await.expect_err("nothing of the kind");
            assert_eq!(error.kind, ErrorKind::Unsupported);
        }
    }
    hotplug.unplug("later").await.expect("a disk that is gone");
    if let Some(resize) = vm.resize() {
        resize.grow_vcpus(2).await.expect("a vCPU");
        resize.grow_memory(512).await.expect("memory");
    }
    vm.stop().await.expect("a stop");
    drop(vm);
    let kept = ["fs.sock", "first-disk", "later"];
    let left: Vec<String> = leftovers(place.run_dir());
    assert!(left.iter().all(|name| kept.contains(&name.as_str())), "{left:?}");
}

async fn save_and_copy(_: Subject, place: &dyn Fn() -> Place) {
    let template = place();
    let launched = template.driver.launch(template.spec(), Boot::ToSave).await;
    let mut vm: Box<dyn Vm> = launched.expect("a VM");
    template.greeted().await;
    let (memory, state) = (tempfile::NamedTempFile::new(), tempfile::NamedTempFile::new());
    let (memory, state) = (memory.expect("a file"), state.expect("a file"));
    let to = SaveTo {
        memory: memory.reopen().expect("it").into(),
        state: Arc::new(state.reopen().expect("it").into()),
    };
    vm.save(to).await.expect("a saved VM");
    vm.stop().await.expect("a stop");

    let copy = place();
    let saved = Saved {
        memory: memory.reopen().expect("it").into(),
        state: state.reopen().expect("it").into(),
        devices: Vec::new(),
    };
    let launched = copy.driver.launch(copy.spec(), Boot::Clone(saved)).await;
    let mut vm = launched.expect("a copy");
    copy.greeted().await;
    vm.stop().await.expect("a stop");
}
