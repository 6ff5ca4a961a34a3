//! Plans for real callers' specifications, against golden files, and properties that any plan has.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use agent_protocol::{GUEST_DIR, GUEST_SHM};
use configuration::{
    Accelerator, AgentChannel, AgentConfig, HypervisorConfig, HypervisorKind, MachineType, NetworkModel,
    RuntimeConfig, SharedFs, VirtioFsCache,
};
use oci_spec::runtime::Spec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{BindPlan, ContainerType, Resources, RootPlan};
use crate::oci::{self, tests::CALLERS};
use crate::sandbox::RootfsMount;
use crate::{ContainerId, SandboxId};

const VIRTIOFSD: &str = "/opt/virtiofsd";
const VSOCK: &str = "/opt/vhost-device-vsock";

fn config() -> Config {
    Config {
        sources: Vec::new(),
        hypervisor: HypervisorConfig {
            kind: HypervisorKind::Qemu,
            path: "/opt/qemu".into(),
            kernel: "/opt/vmlinux".into(),
            initrd: "/opt/initrd".into(),
            kernel_params: vec!["quiet".to_owned()],
            machine_type: MachineType::Q35,
            accelerator: Accelerator::Auto,
            cpu_features: Vec::new(),
            default_vcpus: 1,
            default_maxvcpus: 4,
            default_memory_mib: 256,
            default_maxmemory_mib: 4096,
            shared_fs: SharedFs::VirtioFs,
            virtio_fs_daemon: VIRTIOFSD.into(),
            virtio_fs_cache: VirtioFsCache::Auto,
            vhost_user_vsock_daemon: VSOCK.into(),
            seccomp_sandbox: true,
            enable_debug: false,
            enable_annotations: Vec::new(),
        },
        agent: AgentConfig {
            channel: AgentChannel::Auto,
            dial_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            create_container_timeout: Duration::from_secs(1),
            enable_debug: false,
        },
        runtime: RuntimeConfig {
            enable_debug: false,
            internetworking_model: NetworkModel::None,
            disable_guest_seccomp: false,
            sandbox_cgroup_only: false,
            static_sandbox_resource_mgmt: true,
            run_dir: "/run/x".into(),
        },
    }
}

fn abilities() -> Capabilities {
    Capabilities {
        vsock_kernel: true,
        vhost_user: true,
        vsock_hybrid: false,
        serial_port: true,
        fs_sharing: true,
        block: true,
        hotplug: true,
        resize: false,
        snapshots: false,
        guest_is_process: false,
    }
}

fn of_process() -> Capabilities {
    Capabilities {
        vsock_kernel: false,
        vhost_user: false,
        guest_is_process: true,
        ..abilities()
    }
}

fn all(_: &Path) -> bool {
    true
}

fn sandbox_of(spec: &Spec) -> SandboxConfig {
    oci::sandbox(&SandboxId::new("pod").unwrap(), spec, None).unwrap()
}

fn sandbox_plan() -> SandboxPlan {
    let spec = oci::load(CALLERS[0].1.as_bytes()).unwrap();
    sandbox(&config(), &sandbox_of(&spec), &abilities(), &all).unwrap()
}

fn container_of(spec: Spec) -> ContainerConfig {
    oci::container(
        &ContainerId::new("c1").unwrap(),
        spec,
        "/bundle".into(),
        Vec::new(),
    )
    .unwrap()
}

/// Plans a container with this specification in a virtual machine.
fn planned(spec: Spec) -> Result<(ContainerPlan, Value)> {
    let plan = container(&config(), &sandbox_plan(), &container_of(spec))?;
    let guest = serde_json::from_slice(&plan.guest.spec).unwrap();
    Ok((plan, guest))
}

/// The minimal specification with values at JSON pointers.
fn spec(values: &[(&str, Value)]) -> Spec {
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"cwd": "/", "args": ["sh"]},
        "linux": {"resources": {}},
        "hooks": {},
    });
    for (pointer, value) in values {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    oci::load(spec.to_string().as_bytes()).unwrap()
}

#[test]
fn the_best_channel_is_taken_and_a_forced_one_is_taken_or_refused() {
    use AgentChannel as Wanted;
    let daemon = || ChannelPlan::DaemonVsock(VSOCK.into());
    // Wanted, kernel's vsock, vhost-user, its daemon, serial; then the choice or the words of the error.
    let table: [(Wanted, bool, bool, bool, bool, Result<ChannelPlan, &[&str]>); 12] = [
        (Wanted::Auto, true, true, true, true, Ok(ChannelPlan::KernelVsock)),
        (Wanted::Auto, false, true, true, true, Ok(daemon())),
        (Wanted::Auto, false, true, false, true, Ok(ChannelPlan::Serial)),
        (Wanted::Auto, false, false, true, true, Ok(ChannelPlan::Serial)),
        (
            Wanted::Auto,
            false,
            true,
            false,
            false,
            Err(&["channel", "vhost_user_vsock_daemon", VSOCK]),
        ),
        (
            Wanted::Vsock,
            true,
            false,
            false,
            false,
            Ok(ChannelPlan::KernelVsock),
        ),
        (
            Wanted::Vsock,
            false,
            true,
            true,
            true,
            Err(&["channel = \"vsock\"", "/dev/vhost-vsock", "vhost_vsock"]),
        ),
        (Wanted::VhostUserVsock, true, true, true, true, Ok(daemon())),
        (
            Wanted::VhostUserVsock,
            true,
            true,
            false,
            true,
            Err(&["vhost_user_vsock_daemon", VSOCK, "install"]),
        ),
        (
            Wanted::VhostUserVsock,
            true,
            false,
            true,
            true,
            Err(&["vhost-user-vsock", "no vhost-user devices"]),
        ),
        (
            Wanted::VirtioSerial,
            true,
            true,
            true,
            true,
            Ok(ChannelPlan::Serial),
        ),
        (
            Wanted::VirtioSerial,
            true,
            true,
            true,
            false,
            Err(&["virtio-serial"]),
        ),
    ];
    for (wanted, vsock_kernel, vhost_user, is_there, serial_port, expected) in table {
        let mut config = config();
        config.agent.channel = wanted;
        let abilities = Capabilities {
            vsock_kernel,
            vhost_user,
            serial_port,
            ..abilities()
        };
        let chosen = channel::choose(&config, &abilities, &|path| is_there && path == Path::new(VSOCK));
        match (chosen, expected) {
            (Ok(chosen), Ok(expected)) => assert_eq!(chosen, expected, "{wanted:?}"),
            (Err(error), Err(words)) => {
                assert_eq!(error.kind, ErrorKind::FailedPrecondition);
                assert!(
                    words.iter().all(|word| error.context.contains(word)),
                    "{}",
                    error.context
                );
            }
            (chosen, expected) => panic!("{wanted:?}: {chosen:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn directories_are_shared_as_configured_or_the_reason_is_told() {
    let only = |program: &'static str| move |path: &Path| path == Path::new(program);
    let config = config();
    let choose = |abilities: &Capabilities, exists: &dyn Fn(&Path) -> bool| {
        share::choose(&config.hypervisor, abilities, exists)
    };
    let virtio_fs = SharePlan::VirtioFs {
        daemon: VIRTIOFSD.into(),
        cache: "auto",
    };
    assert_eq!(choose(&abilities(), &only(VIRTIOFSD)).unwrap(), virtio_fs);
    assert_eq!(choose(&of_process(), &|_| false).unwrap(), SharePlan::Process);
    let error = choose(&abilities(), &only(VSOCK)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(
        error.context.contains("virtio_fs_daemon") && error.context.contains(VIRTIOFSD),
        "{}",
        error.context
    );
    let without = Capabilities {
        vhost_user: false,
        ..abilities()
    };
    assert_eq!(choose(&without, &all).unwrap_err().kind, ErrorKind::Unsupported);
    let mut none = config.hypervisor.clone();
    none.shared_fs = SharedFs::None;
    let error = share::choose(&none, &abilities(), &all).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(
        error.context.contains("shared_fs = \"virtio-fs\""),
        "{}",
        error.context
    );
}

#[test]
fn a_machine_has_the_default_and_what_its_workload_may_use() {
    let mib = 1 << 20;
    // Thousandths of a CPU, bytes, then vCPUs and MiB.
    let table = [
        (None, None, 1, 256),
        (Some(0), Some(0), 1, 256),
        (Some(1), Some(1), 2, 258),
        (Some(1000), Some(128 * mib), 2, 384),
        (Some(1001), Some(129 * mib), 3, 386),
        (Some(u64::MAX), Some(u64::MAX), 4, 4096),
    ];
    for (cpu_millis, memory_bytes, vcpus, memory_mib) in table {
        let workload = Resources {
            cpu_millis,
            memory_bytes,
        };
        let size = sizing::size(&config(), &abilities(), workload);
        assert_eq!((size.vcpus, size.memory_mib), (vcpus, memory_mib), "{workload:?}");
        assert_eq!(
            (size.max_vcpus, size.max_memory_mib),
            (vcpus, memory_mib),
            "static: {workload:?}"
        );
        let mut dynamic = config();
        dynamic.runtime.static_sandbox_resource_mgmt = false;
        let resizes = Capabilities {
            resize: true,
            ..abilities()
        };
        let size = sizing::size(&dynamic, &resizes, workload);
        assert_eq!((size.vcpus, size.memory_mib), (vcpus, memory_mib), "{workload:?}");
        assert_eq!(
            (size.max_vcpus, size.max_memory_mib),
            (4, 4096),
            "dynamic: {workload:?}"
        );
    }
}

#[test]
fn memory_is_shared_exactly_where_a_daemon_maps_it() {
    let spec = oci::load(CALLERS[0].1.as_bytes()).unwrap();
    let backing = |channel, abilities: &Capabilities| {
        let mut config = config();
        config.agent.channel = channel;
        sandbox(&config, &sandbox_of(&spec), abilities, &all)
            .unwrap()
            .memory
            .backing
    };
    assert_eq!(
        backing(AgentChannel::VirtioSerial, &abilities()),
        MemoryBacking::Shared
    );
    assert_eq!(
        backing(AgentChannel::VirtioSerial, &of_process()),
        MemoryBacking::Private
    );
}

#[test]
fn the_guest_becomes_the_pod() {
    let spec = oci::load(CALLERS[1].1.as_bytes()).unwrap();
    let config = config();
    let pod = oci::sandbox(
        &SandboxId::new("pod").unwrap(),
        &spec,
        Some("nameserver 10.0.0.1\n"),
    )
    .unwrap();
    let plan = sandbox(&config, &pod, &abilities(), &all).unwrap();
    assert_eq!(plan.kernel_params, ["quiet"]);
    let guest = plan.guest;
    assert_eq!(
        (guest.sandbox_id.as_str(), guest.hostname.as_str()),
        ("pod", "web-0")
    );
    assert_eq!(guest.dns.servers, ["10.0.0.1"]);
    assert_eq!(guest.sysctls.len(), 2);
    let [share] = guest.storages.as_slice() else {
        panic!("{:?}", guest.storages);
    };
    assert_eq!(
        (share.driver.as_str(), share.source.as_str()),
        ("virtio-fs", guest::SHARE_TAG)
    );
    assert_eq!(share.mount_point, guest::GUEST_SHARE);
}

/// Set to write the golden files instead of comparing them.
const BLESS: &str = "KATA_TEST_BLESS";

#[test]
fn callers_containers_are_planned_as_the_golden_files_say() {
    for (name, text) in CALLERS {
        let (plan, guest) = planned(oci::load(text.as_bytes()).unwrap()).unwrap();
        let binds: Vec<Value> = plan
            .binds
            .iter()
            .map(|bind| json!({"name": bind.name, "source": bind.source, "readonly": bind.readonly, "recursive": bind.recursive}))
            .collect();
        let root = match &plan.root {
            RootPlan::Directory(path) => path,
            RootPlan::Mounts(_) => panic!("no mounts were given"),
        };
        let actual = json!({"root": root, "binds": binds, "guest": guest});
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.plan.json"));
        let actual = serde_json::to_string_pretty(&actual).unwrap() + "\n";
        if std::env::var_os(BLESS).is_some() {
            std::fs::write(&path, actual).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&path).unwrap();
        assert!(
            actual == expected,
            "{name} is planned otherwise (rewrite with {BLESS}=1, and read the difference):\n{actual}"
        );
    }
}

/// Sources and types of the guest's mounts, and the host's binds, of one mount.
fn mounted(mount: Value) -> Result<(Value, Vec<BindPlan>)> {
    let (plan, guest) = planned(spec(&[("/mounts", json!([mount]))]))?;
    Ok((guest["mounts"][0].clone(), plan.binds))
}

#[test]
fn a_directory_of_the_host_gets_a_name_of_its_own() {
    let bind = |source: &str, options: &[&str]| {
        mounted(json!({"destination": "/x", "type": "bind", "source": source, "options": options})).unwrap()
    };
    // Source, options; then source on the host, recursive, read-only.
    let table: [(&str, &[&str], &str, bool, bool); 9] = [
        ("/srv", &["rbind", "rw"], "/srv", true, false),
        ("/srv", &["bind", "ro"], "/srv", false, true),
        ("/srv", &[], "/srv", false, false),
        ("/srv", &["rbind", "ro", "rw"], "/srv", true, false),
        ("/srv", &["rbind", "rro"], "/srv", true, true),
        ("/srv/../etc/x", &["rbind"], "/srv/../etc/x", true, false),
        ("below", &["rbind"], "/bundle/below", true, false),
        ("/devices", &["rbind"], "/devices", true, false),
        (
            "/run/kata/shared/c2/rootfs",
            &["rbind"],
            "/run/kata/shared/c2/rootfs",
            true,
            false,
        ),
    ];
    for (source, options, on_host, recursive, readonly) in table {
        let (guest, binds) = bind(source, options);
        let expected = BindPlan {
            name: "m0".to_owned(),
            source: on_host.into(),
            readonly,
            recursive,
        };
        assert_eq!(binds, [expected], "{source} {options:?}");
        assert_eq!(guest["source"], "/run/kata/shared/c1/m0");
        assert_eq!(guest["options"], json!(options));
    }
}

#[test]
fn what_belongs_to_the_kernel_is_the_guests_own() {
    // Destination, type, source, options; then type, source and options in the guest.
    let table = [
        (
            ["/x", "bind", "/sys"],
            json!(["rbind", "ro"]),
            ["bind", "/sys"],
            json!(["rbind", "ro"]),
        ),
        (
            ["/x", "bind", "/a/../proc/./sys"],
            json!(["rbind"]),
            ["bind", "/proc/sys"],
            json!(["rbind"]),
        ),
        (
            ["/x", "none", "/dev/net/tun"],
            json!(["bind"]),
            ["none", "/dev/net/tun"],
            json!(["bind"]),
        ),
        (
            ["/x", "bind", "/sys/fs/cgroup/"],
            json!(["rbind", "rslave", "ro"]),
            ["cgroup", "cgroup"],
            json!(["ro"]),
        ),
        (
            ["/dev/shm", "bind", "/run/x/shm"],
            json!(["rbind"]),
            ["bind", GUEST_SHM],
            json!(["rbind"]),
        ),
        (
            ["/x", "bind", "/dev/shm"],
            json!(["rbind"]),
            ["bind", GUEST_SHM],
            json!(["rbind"]),
        ),
        (
            ["/dev/shm", "tmpfs", "shm"],
            json!(["size=1m"]),
            ["tmpfs", "shm"],
            json!(["size=1m"]),
        ),
        (
            ["/x", "tmpfs", "/srv"],
            json!(["context=\"a:b\"", "size=1m"]),
            ["tmpfs", "tmpfs"],
            json!(["size=1m"]),
        ),
        (["/proc", "proc", ""], json!([]), ["proc", "proc"], json!([])),
    ];
    for ([destination, kind, source], options, [guest_kind, guest_source], guest_options) in table {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        let (guest, binds) = mounted(mount.clone()).unwrap();
        assert_eq!(
            (&guest["type"], &guest["source"]),
            (&json!(guest_kind), &json!(guest_source)),
            "{mount}"
        );
        assert_eq!(guest["options"], guest_options, "{mount}");
        assert_eq!(binds, [], "{mount}");
    }
    let (guest, binds) =
        mounted(json!({"destination": "/x", "source": "/srv", "options": ["remount", "bind", "ro"]}))
            .unwrap();
    assert!(guest.get("source").is_none() && binds.is_empty());
}

#[test]
fn what_no_guest_can_give_is_refused_by_name() {
    let ns = |kind: &str| json!([{"type": kind, "path": "/proc/7/ns/x"}]);
    let mount = |mount: Value| ("/mounts", json!([mount]));
    let table = [
        mount(json!({"destination": "/x", "type": "ext4", "source": "/dev/sda"})),
        mount(json!({"destination": "/x", "type": "overlay", "options": ["lowerdir=/a"]})),
        mount(json!({"destination": "/x", "type": "bind", "source": "/y", "uidMappings": []})),
        mount(json!({"destination": "/x"})),
        mount(json!({"destination": "/x", "options": ["bind"]})),
        ("/linux/namespaces", ns("mount")),
        ("/linux/namespaces", ns("user")),
        ("/linux/namespaces", json!([{"type": "time"}])),
        (
            "/linux/devices",
            json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
        ),
        ("/linux/personality", json!({"domain": "LINUX32"})),
        ("/linux/netDevices", json!({"eth0": {"name": "x"}})),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 4}),
        ),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"})),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}),
        ),
    ];
    for (pointer, value) in table {
        let error = planned(spec(&[(pointer, value.clone())])).expect_err(&format!("{pointer} {value}"));
        let field = pointer.trim_start_matches('/').replace('/', ".");
        assert!(
            error.context.contains(&field),
            "{pointer} {value}: {}",
            error.context
        );
    }
}

#[test]
fn namespaces_of_a_sandbox_are_the_guests_own() {
    use ContainerType::{PodContainer, PodSandbox, SingleContainer};
    let new = |kinds: &[&str]| json!(kinds.iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>());
    let joined = |kinds: &[&str]| {
        json!(
            kinds
                .iter()
                .map(|kind| json!({"type": kind, "path": "/proc/7/ns/x"}))
                .collect::<Vec<_>>()
        )
    };
    let usual = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    // Namespaces, place, own kernel; then the guest's.
    let table: [(Value, ContainerType, bool, &[&str]); 9] = [
        (json!([]), SingleContainer, true, &["mount"]),
        (new(&usual), SingleContainer, true, &["mount", "pid", "cgroup"]),
        (new(&usual), PodSandbox, true, &["mount", "pid", "cgroup"]),
        (
            new(&usual),
            PodContainer,
            true,
            &["mount", "pid", "ipc", "uts", "cgroup"],
        ),
        (
            joined(&["network", "ipc", "uts", "pid", "cgroup"]),
            PodContainer,
            true,
            &["mount", "cgroup"],
        ),
        (
            new(&usual),
            SingleContainer,
            false,
            &["mount", "pid", "network", "ipc", "uts", "cgroup"],
        ),
        (joined(&["network", "ipc"]), SingleContainer, false, &["mount"]),
        (
            new(&["user", "ipc", "uts", "network"]),
            SingleContainer,
            true,
            &["mount", "user", "ipc", "uts"],
        ),
        (new(&["pid"]), PodContainer, true, &["mount", "pid"]),
    ];
    for (asked, kind, own_kernel, expected) in table {
        let chosen =
            namespaces::plan(&spec(&[("/linux/namespaces", asked.clone())]), kind, own_kernel).unwrap();
        let kinds: Vec<Value> = chosen
            .list
            .iter()
            .map(|namespace| json!(namespace.typ()))
            .collect();
        assert_eq!(kinds, expected, "{asked} {kind:?} {own_kernel}");
        assert!(chosen.list.iter().all(|namespace| namespace.path().is_none()));
    }
}

#[test]
fn a_host_name_goes_where_its_namespace_is() {
    let named = |extra: &[(&str, Value)]| {
        let mut values = vec![
            ("/linux/namespaces", json!([{"type": "uts"}])),
            ("/hostname", json!("box")),
        ];
        values.extend_from_slice(extra);
        planned(spec(&values)).unwrap().1
    };
    assert_eq!(named(&[]).get("hostname"), None, "the sandbox has it");
    let member =
        json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"});
    assert_eq!(named(&[("/annotations", member)])["hostname"], "box");
    assert_eq!(named(&[("/domainname", json!("example"))])["hostname"], "box");
}

#[test]
fn a_privileged_container_gets_what_the_guest_has() {
    let disk = json!({"path": "/dev/sda", "type": "b", "major": 8, "minor": 0});
    let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
    let fifo = json!({"path": "/dev/x", "type": "p"});
    let (_, guest) = planned(spec(&[
        ("/linux/devices", json!([disk, fuse, fifo])),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "access": "rwm"}]),
        ),
    ]))
    .unwrap();
    let paths: Vec<&Value> = guest["linux"]["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| &device["path"])
        .collect();
    assert_eq!(paths, ["/dev/fuse", "/dev/x"]);
}

#[test]
fn a_rule_about_a_device_of_the_host_allows_none_of_the_guests() {
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "c", "major": 136, "access": "rwm"},
        {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "rwm"},
        {"allow": true, "type": "b", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "c", "major": -1, "minor": -1, "access": "m"},
        {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ]);
    let (_, guest) = planned(spec(&[("/linux/resources/devices", rules.clone())])).unwrap();
    let kept: Vec<Value> = [0, 1, 2, 6, 7].map(|index| rules[index].clone()).to_vec();
    assert_eq!(guest["linux"]["resources"]["devices"], json!(kept));
}

#[test]
fn a_profile_is_applied_in_the_guest_unless_the_administrator_drops_it() {
    let spec = || spec(&[("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}))]);
    let mut config = config();
    config.runtime.disable_guest_seccomp = true;
    let plan = container(&config, &sandbox_plan(), &container_of(spec())).unwrap();
    let guest: Value = serde_json::from_slice(&plan.guest.spec).unwrap();
    assert_eq!(guest["linux"].get("seccomp"), None);
}

#[test]
fn a_root_is_made_of_the_callers_mounts_or_is_there() {
    let root = |path: &str, rootfs: Vec<RootfsMount>| {
        let mut container = container_of(spec(&[("/root/path", json!(path))]));
        container.rootfs = rootfs;
        super::container(&config(), &sandbox_plan(), &container)
            .unwrap()
            .root
    };
    let mount = RootfsMount {
        fs_type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: Vec::new(),
    };
    assert_eq!(
        root("rootfs", Vec::new()),
        RootPlan::Directory("/bundle/rootfs".into())
    );
    assert_eq!(
        root("/srv/root", Vec::new()),
        RootPlan::Directory("/srv/root".into())
    );
    assert_eq!(root("rootfs", vec![mount.clone()]), RootPlan::Mounts(vec![mount]));
}

#[test]
fn a_plan_is_no_larger_than_the_guest_takes() {
    // Each mount's source grows when it becomes the guest's.
    let args = vec!["x".repeat(1000); 3130];
    let mounts: Vec<Value> = (0..100)
        .map(|_| json!({"destination": "/x", "type": "bind", "source": "/y"}))
        .collect();
    let error = planned(spec(&[
        ("/process/args", json!(args)),
        ("/mounts", json!(mounts)),
    ]))
    .unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.context.contains("for the guest"), "{}", error.context);
}

/// What may be a path in a mount, nasty ones included.
fn path() -> impl Strategy<Value = String> {
    let part = proptest::sample::select(vec![
        "sys", "proc", "dev", "shm", "run", "kata", "shared", "..", ".", "", "a b", "c1", "ü",
    ]);
    proptest::collection::vec(part, 0..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn mount() -> impl Strategy<Value = Value> {
    let kind = proptest::sample::select(vec!["bind", "none", "tmpfs", "sysfs", "cgroup", "ext4", ""]);
    let options = proptest::collection::vec(
        proptest::sample::select(vec![
            "bind",
            "rbind",
            "ro",
            "rw",
            "rro",
            "remount",
            "rshared",
            "size=1k",
            "context=x",
        ]),
        0..4,
    );
    let source = prop_oneof![
        path(),
        path().prop_map(|path| path.trim_start_matches('/').to_owned())
    ];
    ("/[a-z]{1,3}", kind, source, options).prop_map(|(destination, kind, source, options)| {
        json!({"destination": destination, "type": kind, "source": source, "options": options})
    })
}

fn is_of_the_guest(path: &Path) -> bool {
    let below = |top: &str| {
        path.starts_with(top)
            && path
                .components()
                .all(|part| part != std::path::Component::ParentDir)
    };
    path.is_relative() || [GUEST_DIR, "/sys", "/proc", "/dev"].into_iter().any(below)
}

proptest! {
    #[test]
    fn the_guest_is_told_of_no_path_but_its_own(
        mounts in proptest::collection::vec(mount(), 0..8),
        caller in 0..CALLERS.len(),
        root in path(),
    ) {
        let mut json: Value = serde_json::from_str(CALLERS[caller].1).unwrap();
        json["mounts"].as_array_mut().unwrap().extend(mounts);
        json["root"]["path"] = json!(root);
        let spec = oci::load(json.to_string().as_bytes());
        let Ok((plan, guest)) = spec.and_then(planned) else {
            return Ok(());
        };
        let guest_spec: Spec = serde_json::from_value(guest).unwrap();
        prop_assert_eq!(guest_spec.root().as_ref().unwrap().path(), Path::new("/run/kata/shared/c1/rootfs"));
        for mount in guest_spec.mounts().iter().flatten() {
            let source = mount.source().clone().unwrap_or_default();
            prop_assert!(is_of_the_guest(&source), "{mount:?}");
        }
        for namespace in guest_spec.linux().as_ref().unwrap().namespaces().iter().flatten() {
            prop_assert!(namespace.path().is_none());
        }
        prop_assert_eq!(guest_spec.linux().as_ref().unwrap().cgroups_path(), &Some(PathBuf::from("/c1")));
        prop_assert!(guest_spec.annotations().is_none());

        let names: HashSet<&str> = plan.binds.iter().map(|bind| bind.name.as_str()).collect();
        prop_assert_eq!(names.len(), plan.binds.len());
        prop_assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric()) && *name != guest::ROOTFS));
        prop_assert!(plan.binds.iter().all(|bind| bind.source.is_absolute()));
        let shared = guest_spec.mounts().iter().flatten();
        let shared = shared.filter(|mount| mount.source().as_ref().is_some_and(|source| source.starts_with(guest::GUEST_SHARE)));
        prop_assert_eq!(shared.count(), plan.binds.len());
    }

    #[test]
    fn the_same_request_gives_the_same_plan(caller in 0..CALLERS.len()) {
        let (_, text) = CALLERS[caller];
        let plan = || planned(oci::load(text.as_bytes()).unwrap()).unwrap().0;
        prop_assert_eq!(plan(), plan());
    }
}
