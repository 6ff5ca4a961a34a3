//! Command lines compared with files, one per case, in `golden/`. `UPDATE_GOLDEN=1` writes them anew.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use configuration::MachineType;
use rustix::io::fcntl_dupfd_cloexec;

use super::argv::{Channels, Life, Settings, build};
use crate::{Device, Disk, ErrorKind, Memory, MemoryBacking, SerialPort, VirtioFs, VmSpec, Vsock};

/// A descriptor with this number or, if it is taken, the next one: what is in the files must not depend on what else
/// the test's process has open.
fn numbered(file: &File, number: i32) -> Arc<OwnedFd> {
    Arc::new(fcntl_dupfd_cloexec(file, number).unwrap())
}

fn settings(machine: MachineType) -> Settings {
    Settings {
        program: "/usr/bin/qemu-system-x86_64".into(),
        machine,
        kvm: false,
        cpu_features: vec![],
        sandbox: true,
        tsc_khz: None,
    }
}

fn spec(devices: Vec<Device>) -> VmSpec {
    VmSpec {
        id: "sandbox-1".into(),
        run_dir: "/run/kata/sandbox-1".into(),
        kernel: "/usr/share/kata/vmlinux".into(),
        initrd: "/usr/share/kata/initrd.img".into(),
        kernel_params: vec!["kata.agent=serial".into(), "agent.log=debug".into()],
        vcpus: 2,
        max_vcpus: 2,
        memory: Memory {
            size_mib: 256,
            max_mib: 256,
            backing: MemoryBacking::Shared,
        },
        devices,
        network_namespace: None,
        cgroups: Vec::new(),
        labels: Vec::new(),
    }
}

fn serial_port() -> Device {
    Device::SerialPort(SerialPort {
        name: "kata.agent.0".into(),
        socket: "/run/kata/sandbox-1/agent.sock".into(),
    })
}

fn shared_directory() -> Device {
    Device::VirtioFs(VirtioFs {
        tag: "kataShared".into(),
        socket: "/run/kata/sandbox-1/fs.sock".into(),
        directory: "/run/kata/sandbox-1/shared".into(),
    })
}

fn vsock_daemon() -> Device {
    Device::Vsock(Vsock::VhostUser {
        socket: "/run/kata/sandbox-1/vsock,1.sock".into(),
    })
}

#[test]
fn command_lines_are_as_they_were() {
    let disk = tempfile::tempfile().unwrap();
    let null = File::open("/dev/null").unwrap();
    let channels = Channels {
        control: numbered(&null, 600),
        console: numbered(&null, 601),
        transfer: None,
        vacant: vec![numbered(&null, 610)],
        vhost_net: Vec::new(),
    };
    // Of the one card with two queues, then of one with a single queue.
    let with_vhost = Channels {
        vhost_net: (606..609).map(|number| numbered(&null, number)).collect(),
        ..channels.clone()
    };
    let everything = vec![
        vsock_daemon(),
        serial_port(),
        shared_directory(),
        Device::Net {
            id: "eth0".into(),
            taps: vec![numbered(&null, 602), numbered(&null, 603)],
            mac: "02:00:00:00:00:01".into(),
        },
        Device::Block(Disk {
            id: "rootfs".into(),
            file: numbered(&disk, 604),
            readonly: true,
        }),
        Device::Block(Disk {
            id: "data".into(),
            file: numbered(&disk, 605),
            readonly: false,
        }),
    ];
    let mut plain = spec(vec![Device::Vsock(Vsock::Kernel { cid: 42 })]);
    plain.id = "a,b".into();
    (plain.vcpus, plain.max_vcpus) = (1, 1);
    plain.memory.backing = MemoryBacking::Private;
    let mut growing = spec(vec![serial_port()]);
    growing.max_vcpus = 4;
    growing.memory.max_mib = 1000;
    let mut cards = everything.clone();
    cards.retain(|device| matches!(device, Device::Net { .. }));
    cards.push(Device::Net {
        id: "net1".into(),
        taps: vec![numbered(&null, 609)],
        mac: "02:00:00:00:00:02".into(),
    });
    let kvm = Settings {
        kvm: true,
        sandbox: false,
        cpu_features: vec!["pmu=off".into()],
        ..settings(MachineType::Q35)
    };
    let cases = [
        ("q35-growing", settings(MachineType::Q35), growing, &channels),
        (
            "q35",
            settings(MachineType::Q35),
            spec(everything.clone()),
            &channels,
        ),
        (
            "microvm",
            Settings {
                tsc_khz: Some(2_600_000),
                ..settings(MachineType::Microvm)
            },
            spec(everything),
            &channels,
        ),
        ("q35-kvm-plain", kvm.clone(), plain, &channels),
        ("q35-kvm-vhost-net", kvm, spec(cards), &with_vhost),
    ];
    let cases = cases.map(|(name, settings, spec, channels)| (name, settings, spec, channels, Life::Cold));
    let memory = || numbered(&null, 606);
    let mut alone = spec(vec![serial_port()]);
    alone.memory.max_mib = 512;
    let saved = [
        ("q35-to-save", Life::ToSave(memory())),
        ("q35-clone", Life::Clone(memory())),
    ];
    let saved = saved.map(|(name, life)| {
        let mut spec = alone.clone();
        // What the copies are given a process for.
        if let Life::ToSave(_) = life {
            spec.devices.push(shared_directory());
        }
        (name, settings(MachineType::Q35), spec, &channels, life)
    });
    for (name, settings, spec, channels, life) in cases.into_iter().chain(saved) {
        let line = build(&settings, &spec, channels, &life).unwrap();
        let mut text = String::new();
        for argument in &line.args {
            let argument = argument.to_str().unwrap();
            if argument.starts_with('-') && !text.is_empty() {
                text.push('\n');
            } else if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(argument);
        }
        text.push('\n');
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src/qemu/golden")
            .join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &text).unwrap();
        }
        assert_eq!(
            text,
            fs::read_to_string(&file).unwrap(),
            "{name}: if this is meant, run with UPDATE_GOLDEN=1"
        );
    }
}

#[test]
fn every_descriptor_that_is_named_is_inherited() {
    let null = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
    let channels = Channels {
        control: Arc::clone(&null),
        console: Arc::clone(&null),
        transfer: None,
        vacant: Vec::new(),
        vhost_net: Vec::new(),
    };
    let net = Device::Net {
        id: "eth0".into(),
        taps: vec![Arc::clone(&null)],
        mac: "02:00:00:00:00:01".into(),
    };
    let line = build(
        &settings(MachineType::Q35),
        &spec(vec![net]),
        &channels,
        &Life::Cold,
    )
    .unwrap();
    assert_eq!(line.fds.len(), 3);
}

#[test]
fn what_cannot_be_is_refused() {
    let null: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
    let channels = Channels {
        control: Arc::clone(&null),
        console: Arc::clone(&null),
        transfer: None,
        vacant: Vec::new(),
        vhost_net: Vec::new(),
    };
    let with = |change: &dyn Fn(&mut VmSpec)| {
        let mut spec = spec(vec![serial_port()]);
        change(&mut spec);
        let result = build(&settings(MachineType::Q35), &spec, &channels, &Life::Cold);
        result
            .map(|_| ())
            .map_err(|error| (error.kind, error.to_string()))
    };
    assert_eq!(with(&|_| ()), Ok(()));

    let private = |spec: &mut VmSpec, device: Device| {
        spec.memory.backing = MemoryBacking::Private;
        spec.devices.push(device);
    };
    let named = |id: &str| Device::Net {
        id: id.into(),
        taps: vec![Arc::clone(&null)],
        mac: "02:00:00:00:00:01".into(),
    };
    type Case<'a> = (&'a dyn Fn(&mut VmSpec), ErrorKind, &'a str);
    let table: &[Case<'_>] = &[
        (&|spec| spec.vcpus = 0, ErrorKind::InvalidArgument, "vCPU"),
        (
            &|spec| spec.memory.size_mib = 0,
            ErrorKind::InvalidArgument,
            "0 MiB",
        ),
        (
            &|spec| spec.memory.size_mib = u64::MAX,
            ErrorKind::InvalidArgument,
            "MiB",
        ),
        (
            &|spec| spec.memory.max_mib = u64::MAX,
            ErrorKind::InvalidArgument,
            "cannot grow to",
        ),
        (
            &|spec| spec.kernel = "vmlinux".into(),
            ErrorKind::InvalidArgument,
            "vmlinux",
        ),
        (
            &|spec| private(spec, shared_directory()),
            ErrorKind::InvalidArgument,
            "shared guest memory",
        ),
        (
            &|spec| private(spec, vsock_daemon()),
            ErrorKind::InvalidArgument,
            "shared guest memory",
        ),
        (
            &|spec| spec.devices.push(named("a,b")),
            ErrorKind::InvalidArgument,
            "a,b",
        ),
        (
            &|spec| spec.devices.push(named("")),
            ErrorKind::InvalidArgument,
            "name a device",
        ),
        (
            &|spec| {
                let (cid, uds) = (3, "/run/v.sock".into());
                spec.devices.push(Device::Vsock(Vsock::Hybrid { cid, uds }));
            },
            ErrorKind::Unsupported,
            "hybrid",
        ),
        (
            &|spec| {
                let file = Arc::clone(&null);
                spec.devices.push(Device::Block(Disk {
                    id: "d".into(),
                    file,
                    readonly: true,
                }));
            },
            ErrorKind::InvalidArgument,
            "block device",
        ),
    ];
    for grow in [
        |spec: &mut VmSpec| spec.max_vcpus = 3,
        |spec: &mut VmSpec| spec.memory.max_mib = 512,
    ] {
        let mut spec = spec(vec![serial_port()]);
        grow(&mut spec);
        let error = build(&settings(MachineType::Microvm), &spec, &channels, &Life::Cold).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.to_string().contains("machine_type = \"q35\""), "{error}");
    }
    let life = Life::Clone(Arc::clone(&null));
    let error = build(&settings(MachineType::Microvm), &spec(vec![]), &channels, &life).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    let error = build(
        &settings(MachineType::Q35),
        &spec(vec![shared_directory()]),
        &channels,
        &life,
    )
    .unwrap_err();
    assert!(error.to_string().contains("kataShared"), "{error}");
    for (change, kind, words) in table {
        let (found, message) = with(change).unwrap_err();
        assert_eq!(found, *kind, "{message}");
        assert!(message.contains(words), "{message}");
    }
}
