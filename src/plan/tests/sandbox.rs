//! Plans of sandboxes: every choice, and every refusal.

use super::super::*;
use super::*;
use crate::model::{CgroupPlan, DisksPlan, Resources};

/// Monitors with a vsock of their own have no other, but for virtio-serial where there is that.
#[test]
fn a_monitors_own_vsock_is_the_best_channel() {
    use AgentChannel as Wanted;
    let own = Capabilities {
        vsock_kernel: false,
        vhost_user: false,
        vsock_hybrid: true,
        serial_port: false,
        ..abilities()
    };
    let choose = |wanted, abilities: &Capabilities| {
        let mut config = config();
        config.agent.channel = wanted;
        let chosen = channel::choose(&config, abilities, &|_| true);
        chosen.map_err(|error| error.to_string())
    };
    for wanted in [Wanted::Auto, Wanted::HybridVsock] {
        assert_eq!(choose(wanted, &own), Ok(ChannelPlan::HybridVsock));
    }
    let mut templates = config();
    templates.factory.enable_template = true;
    let chosen = channel::choose(&templates, &own, &|_| true).unwrap();
    assert_eq!(chosen, ChannelPlan::HybridVsock, "it can be saved");
    for (wanted, abilities, words) in [
        (Wanted::Vsock, &own, "use channel = \"hybrid-vsock\""),
        (Wanted::VhostUserVsock, &own, "no vhost-user devices"),
        (Wanted::VirtioSerial, &own, "no virtio-serial"),
        (Wanted::HybridVsock, &abilities(), "no vsock of its own"),
    ] {
        let refused = choose(wanted, abilities).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
}

/// A card with one queue has one tap, however many processors the machine has.
#[test]
fn queues_are_as_many_as_the_monitor_can_have() {
    let mut config = config();
    config.hypervisor.default_vcpus = 4;
    let mut pod = sandbox_of(&spec(&[]));
    pod.network_namespace = NetworkNamespace::Existing("/n".into());
    for (multiqueue, queues) in [(true, 4), (false, 1)] {
        let abilities = Capabilities {
            multiqueue,
            ..abilities()
        };
        let planned = sandbox(&config, &pod, &abilities, &|_| true).unwrap();
        assert_eq!(planned.network.unwrap().queues, queues);
    }
}

#[test]
fn the_best_channel_is_taken_and_a_forced_one_is_taken_or_refused() {
    use AgentChannel as Wanted;
    let daemon = || ChannelPlan::DaemonVsock(VSOCK.into());
    // Wanted, kernel's vsock, vhost-user, its daemon, serial; then the choice or the words of the error.
    type Expected<'a> = Result<ChannelPlan, &'a [&'a str]>;
    let table: [(Wanted, bool, bool, bool, bool, Expected<'_>); 12] = [
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
        share::choose(&config.hypervisor, abilities, DisksPlan::Plugged, exists)
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
    let error = choose(&without, &all).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.context.contains("gives block devices"), "{}", error.context);
    let mut none = config.hypervisor.clone();
    none.shared_fs = SharedFs::None;
    let choose = |disks| share::choose(&none, &abilities(), disks, &|_| false);
    assert_eq!(choose(DisksPlan::Plugged).unwrap(), SharePlan::Nothing);
    for without_disks in [DisksPlan::Mounted, DisksPlan::Impossible] {
        let error = choose(without_disks).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(
            error.context.contains("shared_fs = \"virtio-fs\""),
            "{}",
            error.context
        );
    }
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
        let started = Size { vcpus, memory_mib };
        let sizing = sizing::size(&config(), &abilities(), workload);
        assert_eq!(
            (sizing.started, sizing.growth),
            (started, None),
            "static: {workload:?}"
        );
        let sizing = sizing::size(&dynamic(), &resizes(), workload);
        assert_eq!(sizing.started, started, "{workload:?}");
        let most = Size {
            vcpus: 4,
            memory_mib: 4096,
        };
        assert_eq!(sizing.growth.unwrap().most, most, "dynamic: {workload:?}");
    }
}

fn dynamic() -> Config {
    let mut config = config();
    config.runtime.static_sandbox_resource_mgmt = false;
    config
}

fn resizes() -> Capabilities {
    Capabilities {
        resize: true,
        ..abilities()
    }
}

#[test]
fn a_machine_grows_by_what_was_not_counted_at_its_start() {
    let mib = 1 << 20;
    let uses = |cpu_millis, memory_mib: Option<u64>| Resources {
        cpu_millis,
        memory_bytes: memory_mib.map(|count| count * mib),
    };
    let of = |millis: u64, memory_mib: u64| uses(Some(millis), Some(memory_mib));
    // What was counted at the start, what each container may use, then vCPUs and MiB.
    let table = [
        (uses(None, None), vec![], (1, 256)),
        (uses(None, None), vec![uses(None, None); 3], (1, 256)),
        (uses(None, None), vec![of(500, 64), of(500, 64)], (2, 384)),
        (uses(None, None), vec![of(600, 64), of(500, 1)], (3, 322)),
        // The annotations of a pod are the sum of its containers already.
        (of(2000, 512), vec![of(1000, 256), of(1000, 256)], (3, 768)),
        (of(2000, 512), vec![of(1000, 256)], (3, 768)),
        // One of them may use more since.
        (of(2000, 512), vec![of(1000, 256), of(1500, 512)], (4, 1024)),
        (of(2000, 512), vec![uses(Some(2500), None)], (4, 768)),
        // The administrator's limit is the end of it.
        (
            uses(None, None),
            vec![of(u64::MAX, 0), of(u64::MAX, 9000)],
            (4, 4096),
        ),
    ];
    for (counted, containers, (vcpus, memory_mib)) in table {
        let plan = sizing::size(&dynamic(), &resizes(), counted).growth.unwrap();
        let size = super::super::grown(&plan, containers.clone());
        assert_eq!(size, Size { vcpus, memory_mib }, "{counted:?} {containers:?}");
        assert!(size.vcpus >= plan.started.vcpus && size.memory_mib >= plan.started.memory_mib);
    }
}

#[test]
fn a_guest_is_told_whether_it_grows() {
    let spec = oci::load(CALLERS[0].1.as_bytes()).unwrap();
    let plan = |config: &Config, abilities: &Capabilities| {
        sandbox(config, &sandbox_of(&spec), abilities, &all).unwrap()
    };
    let fixed = plan(&config(), &resizes());
    assert!(fixed.growth.is_none() && !fixed.guest.grows);
    assert_eq!(
        (fixed.max_vcpus, fixed.memory.max_mib),
        (fixed.vcpus, fixed.memory.size_mib)
    );
    let unable = plan(&dynamic(), &abilities());
    assert!(unable.growth.is_none() && !unable.guest.grows);
    let growing = plan(&dynamic(), &resizes());
    assert!(growing.growth.is_some() && growing.guest.grows);
    assert_eq!((growing.max_vcpus, growing.memory.max_mib), (4, 4096));
}

#[test]
fn what_is_to_be_a_copy_has_a_port_and_grows_from_the_templates_size() {
    let mut config = config();
    config.factory.enable_template = true;
    let able = Capabilities {
        snapshots: true,
        saves_shares: false,
        ..resizes()
    };
    let spec = |cpus: i64| {
        spec(&[(
            "/linux/resources/cpu",
            json!({"quota": cpus * 100_000, "period": 100_000}),
        )])
    };
    let plan = |cpus, abilities: &Capabilities| {
        super::super::sandbox(&config, &sandbox_of(&spec(cpus)), abilities, &all).unwrap()
    };
    let small = plan(0, &able);
    assert_eq!(small.channel, ChannelPlan::Serial);
    let template = small.template.unwrap();
    assert_eq!(
        (template.size.vcpus, template.size.memory_mib),
        (small.vcpus, small.memory.size_mib)
    );
    assert!(!small.guest.grows);
    let large = plan(1, &able);
    assert_eq!(large.template, Some(template), "all are copies of one");
    assert!(large.guest.grows && large.vcpus == small.vcpus + 1 && large.growth.is_none());

    assert_eq!(plan(0, &resizes()).template, None, "where nothing can be saved");
    config.factory.enable_template = false;
    let plan = super::super::sandbox(&config, &sandbox_of(&spec(1)), &able, &all).unwrap();
    assert_eq!((plan.template, plan.channel), (None, ChannelPlan::KernelVsock));
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
fn the_agent_of_an_emulated_guest_is_patient() {
    let mut config = config();
    let params = |config: &Config, emulated| {
        let abilities = Capabilities {
            emulated,
            ..abilities()
        };
        let pod = sandbox_of(&spec(&[]));
        sandbox(config, &pod, &abilities, &all).unwrap().kernel_params
    };
    assert_eq!(params(&config, false), ["quiet"]);
    assert_eq!(params(&config, true), ["kata.patience=3", "quiet"]);
    // The agent takes the last one.
    config.hypervisor.kernel_params = vec!["kata.patience=20".to_owned()];
    assert_eq!(params(&config, true), ["kata.patience=3", "kata.patience=20"]);
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

#[test]
fn the_network_is_that_of_the_pods_namespace() {
    let spec = oci::load(CALLERS[0].1.as_bytes()).unwrap();
    let mut sandbox = sandbox_of(&spec);
    sandbox.resources = Resources {
        cpu_millis: Some(3000),
        memory_bytes: None,
    };
    let mut config = config();
    config.runtime.internetworking_model = NetworkModel::TcFilter;
    let mut abilities = abilities();
    let plan = |sandbox: &SandboxConfig, config: &Config, abilities: &Capabilities| {
        super::super::sandbox(config, sandbox, abilities, &all).unwrap()
    };
    sandbox.network_namespace = NetworkNamespace::Host;
    sandbox.container_type = ContainerType::SingleContainer;
    assert_eq!(plan(&sandbox, &config, &abilities).network, None);
    sandbox.container_type = ContainerType::PodSandbox;
    let error = super::super::sandbox(&config, &sandbox, &abilities, &all).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    for told in ["linux.namespaces", "hostNetwork", "another runtime class"] {
        assert!(error.context.contains(told), "{error}");
    }

    sandbox.network_namespace = NetworkNamespace::New;
    let new = plan(&sandbox, &config, &abilities).network.unwrap();
    assert_eq!((new.namespace, new.late), (None, true));

    sandbox.network_namespace = NetworkNamespace::Existing("/run/netns/pod".into());
    sandbox.network_may_change = true;
    let hooked = plan(&sandbox, &config, &abilities).network.unwrap();
    assert!(hooked.late, "a hook may put interfaces into it");
    sandbox.network_may_change = false;
    let made = plan(&sandbox, &config, &abilities);
    let expected = NetworkPlan {
        namespace: Some("/run/netns/pod".into()),
        model: NetworkModel::TcFilter,
        queues: made.vcpus,
        localhost: true,
        late: false,
    };
    assert!(made.vcpus > 1);
    assert_eq!(made.network, Some(expected.clone()));

    // `disable_new_netns`: whatever it was given, and whether one would be made.
    let mut disabled = config.clone();
    disabled.runtime.disable_new_netns = true;
    disabled.runtime.internetworking_model = NetworkModel::None;
    assert_eq!(plan(&sandbox, &disabled, &abilities).network, None);
    sandbox.network_namespace = NetworkNamespace::New;
    assert_eq!(plan(&sandbox, &disabled, &abilities).network, None);
    sandbox.network_namespace = NetworkNamespace::Host;
    let error = super::super::sandbox(&disabled, &sandbox, &abilities, &all).unwrap_err();
    assert!(
        error.context.contains("hostNetwork"),
        "it relies on it all the same: {error}"
    );

    // It is in the namespace itself, and needs nothing connected.
    abilities.guest_is_process = true;
    abilities.fs_sharing = true;
    sandbox.network_namespace = NetworkNamespace::Host;
    assert_eq!(
        plan(&sandbox, &config, &abilities).network,
        None,
        "it has the host's"
    );
    sandbox.network_namespace = NetworkNamespace::Existing("/run/netns/pod".into());
    let of_process = plan(&sandbox, &config, &abilities).network.unwrap();
    let nothing = NetworkPlan {
        model: NetworkModel::None,
        localhost: false,
        ..expected
    };
    assert_eq!(of_process, nothing);
}

#[test]
fn processes_are_in_the_pods_cgroup_or_apart_from_it() {
    let config = |sandbox_cgroup_only| {
        let mut config = config();
        config.runtime.sandbox_cgroup_only = sandbox_cgroup_only;
        config
    };
    let table = [
        ("/default/one", "default/one"),
        ("/kubepods/burstable/pod1/a", "kubepods/burstable/pod1/a"),
        (
            "kubepods-pod1.slice:cri-containerd:a",
            "kubepods.slice/kubepods-pod1.slice/cri-containerd-a.scope",
        ),
        (":docker:a", "system.slice/docker-a.scope"),
        ("-.slice::a", "a.scope"),
    ];
    for (asked, expected) in table {
        let spec = spec(&[("/linux/cgroupsPath", json!(asked))]);
        let planned = |only| {
            let plan = super::super::sandbox(&config(only), &sandbox_of(&spec), &abilities(), &all).unwrap();
            plan.cgroup.unwrap()
        };
        let pods = CgroupPlan {
            path: expected.into(),
            name: "kata_pod".into(),
            is_apart: false,
        };
        let apart = CgroupPlan {
            path: Path::new("kata_overhead").join(expected),
            is_apart: true,
            ..pods.clone()
        };
        assert_eq!((planned(true), planned(false)), (pods, apart), "{asked}");
    }
    let nameless = sandbox_of(&spec(&[]));
    for only in [true, false] {
        let plan = super::super::sandbox(&config(only), &nameless, &abilities(), &all).unwrap();
        assert_eq!(plan.cgroup, None, "nobody asked for one");
    }
}

#[test]
fn processes_have_the_labels_of_the_first_container_unless_the_administrator_does_not_want_them() {
    let mut labelled = spec(&[]);
    let mut process = labelled.process().clone().unwrap();
    process.set_selinux_label(Some("system_u:system_r:container_kvm_t:s0".to_owned()));
    process.set_apparmor_profile(Some("a-profile".to_owned()));
    labelled.set_process(Some(process));
    for (of, disabled, expected) in [
        (
            &labelled,
            false,
            ("system_u:system_r:container_kvm_t:s0", "a-profile"),
        ),
        (&labelled, true, ("", "a-profile")),
        (&spec(&[]), false, ("", "")),
    ] {
        let mut config = config();
        config.hypervisor.disable_selinux = disabled;
        let plan = super::super::sandbox(&config, &sandbox_of(of), &abilities(), &all).unwrap();
        assert_eq!(
            (plan.labels.selinux.as_str(), plan.labels.apparmor.as_str()),
            expected
        );
    }
    // In the guest there is no such module.
    let (_, guest) = planned(labelled).unwrap();
    assert!(
        guest["process"].get("selinuxLabel").is_none() && guest["process"].get("apparmorProfile").is_none()
    );
}
