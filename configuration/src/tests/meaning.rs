//! What values mean: Kata's zeros and negatives, kernel command lines, tables that merge.

use std::path::Path;
use std::time::Duration;

use super::{HOST, line, load};
use crate::host::Host;
use crate::load::from_sources;
use crate::*;

const QEMU: &str = "hypervisor.qemu";

#[test]
fn an_empty_file_is_the_defaults() {
    let config = load(&[""]).unwrap();
    assert_eq!(config.sources, [Path::new("main")]);
    assert_eq!(
        config.hypervisor,
        HypervisorConfig {
            kind: HypervisorKind::Qemu,
            path: "/usr/bin/qemu-system-x86_64".into(),
            jailer_path: Default::default(),
            kernel: "/usr/share/kata/vmlinux".into(),
            initrd: "/usr/share/kata/initrd.img".into(),
            kernel_params: vec![],
            machine_type: MachineType::Q35,
            accelerator: Accelerator::Auto,
            cpu_features: vec!["pmu=off".into()],
            default_vcpus: 1,
            default_maxvcpus: 4,
            default_memory_mib: 2048,
            default_maxmemory_mib: 8192,
            shared_fs: SharedFs::VirtioFs,
            virtio_fs_daemon: "/usr/libexec/kata/virtiofsd".into(),
            virtio_fs_cache: VirtioFsCache::Auto,
            disable_block_device_use: false,
            disable_selinux: false,
            vhost_user_vsock_daemon: "/usr/libexec/kata/vhost-device-vsock".into(),
            disk_rate_limiter_bw_max_rate: 0,
            disk_rate_limiter_bw_one_time_burst: 0,
            disk_rate_limiter_ops_max_rate: 0,
            disk_rate_limiter_ops_one_time_burst: 0,
            net_rate_limiter_bw_max_rate: 0,
            net_rate_limiter_bw_one_time_burst: 0,
            net_rate_limiter_ops_max_rate: 0,
            net_rate_limiter_ops_one_time_burst: 0,
            seccomp_sandbox: true,
            enable_debug: false,
            enable_annotations: ["default_memory", "default_vcpus"].map(String::from).into(),
            valid_hypervisor_paths: vec![],
            valid_virtio_fs_daemon_paths: vec![],
        }
    );
    assert_eq!(
        config.agent,
        AgentConfig {
            channel: AgentChannel::Auto,
            dial_timeout: None,
            request_timeout: Duration::from_secs(60),
            create_container_timeout: Duration::from_secs(60),
            debug_console_enabled: false,
            debug_console_program: "/bin/busybox".into(),
            enable_debug: false,
        }
    );
    assert_eq!(
        config.runtime,
        RuntimeConfig {
            enable_debug: false,
            internetworking_model: NetworkModel::TcFilter,
            disable_new_netns: false,
            disable_guest_seccomp: false,
            sandbox_cgroup_only: true,
            static_sandbox_resource_mgmt: true,
            enable_agent_pidns: false,
            experimental: Vec::new(),
            enable_tracing: false,
            trace_directory: "/var/log/kata/traces".into(),
            trace_max_size_mib: 8,
            run_dir: "/run/kata".into(),
        }
    );
    assert_eq!(
        config.factory,
        FactoryConfig {
            enable_template: false,
            template_path: "/var/cache/kata/template".into(),
            vm_cache_number: 0,
            vm_cache_endpoint: "/run/kata-cache/cache.sock".into(),
        }
    );
}

#[test]
fn zero_negative_and_too_many_have_katas_meaning() {
    for (text, vcpus, most) in [
        ("default_vcpus = 0", 1, 4),
        ("default_vcpus = -1", 4, 4),
        ("default_vcpus = 3", 3, 4),
        ("default_vcpus = 9", 4, 4),
        ("default_maxvcpus = 2", 1, 2),
        ("default_maxvcpus = 200", 1, 4),
        ("default_maxvcpus = 2\ndefault_vcpus = -1", 2, 2),
    ] {
        let config = line(QEMU, text).unwrap().hypervisor;
        assert_eq!(
            (config.default_vcpus, config.default_maxvcpus),
            (vcpus, most),
            "{text}"
        );
    }
    for (text, memory, most) in [
        ("default_memory = 256", 256, 8192),
        ("default_maxmemory = 4096", 2048, 4096),
        ("default_maxmemory = 100000", 2048, 8192),
        // More than the host has: the guest need not use it all.
        ("default_memory = 16384", 16384, 16384),
    ] {
        let config = line(QEMU, text).unwrap().hypervisor;
        assert_eq!(
            (config.default_memory_mib, config.default_maxmemory_mib),
            (memory, most),
            "{text}"
        );
    }
}

#[test]
fn a_machine_has_a_bound_that_a_large_host_has_not() {
    let host = Host { cpus: 512, ..HOST };
    let config = from_sources(&[], host).unwrap().0.hypervisor;
    assert_eq!((config.default_vcpus, config.default_maxvcpus), (1, 240));
}

#[test]
fn kernel_parameters_are_split_as_the_kernel_does() {
    for (text, params) in [
        ("", &[][..]),
        ("  \t ", &[]),
        ("quiet", &["quiet"]),
        (" a=1   b.c=2\td\n", &["a=1", "b.c=2", "d"]),
        (
            r#"dyndbg="file x.c +p" quiet"#,
            &[r#"dyndbg="file x.c +p""#, "quiet"],
        ),
        (
            r#""dyndbg=file x.c +p" quiet"#,
            &[r#""dyndbg=file x.c +p""#, "quiet"],
        ),
    ] {
        let config = line(QEMU, &format!("kernel_params = {}", toml::Value::from(text))).unwrap();
        assert_eq!(config.hypervisor.kernel_params, params, "{text:?}");
    }
}

#[test]
fn every_word_has_its_meaning() {
    let hypervisor = |text: &str| line(QEMU, text).unwrap().hypervisor;
    assert_eq!(
        hypervisor("machine_type = \"microvm\"").machine_type,
        MachineType::Microvm
    );
    assert_eq!(hypervisor("accelerator = \"kvm\"").accelerator, Accelerator::Kvm);
    assert_eq!(hypervisor("accelerator = \"tcg\"").accelerator, Accelerator::Tcg);
    assert_eq!(hypervisor("shared_fs = \"none\"").shared_fs, SharedFs::None);
    for (word, cache) in [
        ("never", VirtioFsCache::Never),
        ("metadata", VirtioFsCache::Metadata),
        ("always", VirtioFsCache::Always),
    ] {
        assert_eq!(
            hypervisor(&format!("virtio_fs_cache = {word:?}")).virtio_fs_cache,
            cache
        );
    }
    assert!(!hypervisor("disable_seccomp = true").seccomp_sandbox);
    assert_eq!(hypervisor("cpu_features = \"\"").cpu_features, [""; 0]);
    assert_eq!(
        hypervisor("cpu_features = \"pmu=off,+pcid\"").cpu_features,
        ["pmu=off", "+pcid"]
    );
    for (word, channel) in [
        ("hybrid-vsock", AgentChannel::HybridVsock),
        ("vsock", AgentChannel::Vsock),
        ("vhost-user-vsock", AgentChannel::VhostUserVsock),
        ("virtio-serial", AgentChannel::VirtioSerial),
    ] {
        let config = line("agent.kata", &format!("channel = {word:?}")).unwrap();
        assert_eq!(config.agent.channel, channel);
    }
    for (word, model) in [("macvtap", NetworkModel::Macvtap), ("none", NetworkModel::None)] {
        let config = line("runtime", &format!("internetworking_model = {word:?}")).unwrap();
        assert_eq!(config.runtime.internetworking_model, model);
    }
}

#[test]
fn what_the_runtime_carries() {
    let config = load(&[
        "[runtime]\ndisable_new_netns = true\ninternetworking_model = \"none\"\nenable_agent_pidns = true\n\
         experimental = []\nenable_tracing = true\ntrace_directory = \"/t\"\ntrace_max_size = 2\n",
    ])
    .unwrap()
    .runtime;
    assert!(config.disable_new_netns && config.enable_agent_pidns && config.enable_tracing);
    assert_eq!(config.experimental, []);
    assert_eq!(
        (config.trace_directory.as_path(), config.trace_max_size_mib),
        (Path::new("/t"), 2)
    );
}

#[test]
fn the_hypervisor_is_the_one_with_a_table_or_the_one_that_is_named() {
    let fake = "[hypervisor.fake]\npath = \"/agent\"\n";
    for (text, kind) in [
        ("", HypervisorKind::Qemu),
        ("[hypervisor.qemu]", HypervisorKind::Qemu),
        ("[runtime]\nhypervisor_name = \"qemu\"", HypervisorKind::Qemu),
        ("[hypervisor.clh]", HypervisorKind::CloudHypervisor),
        ("[hypervisor.firecracker]", HypervisorKind::Firecracker),
        (fake, HypervisorKind::Fake),
        (
            &format!("{fake}[hypervisor.qemu]\n[runtime]\nhypervisor_name = \"fake\""),
            HypervisorKind::Fake,
        ),
        (
            &format!("{fake}[hypervisor.qemu]\n[runtime]\nhypervisor_name = \"qemu\""),
            HypervisorKind::Qemu,
        ),
    ] {
        let config = load(&[text]).unwrap();
        assert_eq!(config.hypervisor.kind, kind, "{text}");
    }
    let config = load(&[fake]).unwrap();
    assert_eq!(config.hypervisor.path, Path::new("/agent"));
    // What is not selected is read as well: it may be tomorrow.
    load(&["[hypervisor.qemu]\npath = 1\n[hypervisor.fake]\npath = \"/agent\"\n[runtime]\nhypervisor_name = \"fake\""])
        .unwrap_err();
}

#[test]
fn drop_ins_merge_tables_and_replace_other_values() {
    let config = load(&[
        "[hypervisor.qemu]\ndefault_vcpus = 2\nkernel_params = \"a b\"\nenable_annotations = [\"path\"]\n",
        "[hypervisor.qemu]\nkernel_params = \"c\"\n[runtime]\nenable_debug = true\n",
        "[hypervisor.qemu]\nenable_annotations = []\n[agent]\nkata.dial_timeout = 5\n",
        "[runtime]\nenable_debug = false\nrun_dir = \"/run/other\"\n",
    ])
    .unwrap();
    assert_eq!(
        config.sources,
        ["main", "drop-in-1", "drop-in-2", "drop-in-3"].map(Path::new)
    );
    assert_eq!(config.hypervisor.default_vcpus, 2);
    assert_eq!(config.hypervisor.kernel_params, ["c"]);
    assert_eq!(config.hypervisor.enable_annotations, [""; 0]);
    assert_eq!(config.agent.dial_timeout, Some(Duration::from_secs(5)));
    assert!(!config.runtime.enable_debug);
    assert_eq!(config.runtime.run_dir, Path::new("/run/other"));
}

#[test]
fn a_drop_in_can_mend_what_is_below_it() {
    let config = load(&[
        "[hypervisor.qemu]\ndefault_vcpus = 9.5\n",
        "hypervisor.qemu.default_vcpus = 2",
    ]);
    assert_eq!(config.unwrap().hypervisor.default_vcpus, 2);
}

#[test]
fn keys_explain_themselves() {
    let keys: Vec<Key> = Config::explain().collect();
    let key = |table: &str, name: &str| {
        let mut found = keys.iter().filter(|key| key.table == table && key.name == name);
        let key = found.next().unwrap_or_else(|| panic!("{table}.{name}"));
        assert_eq!(found.next(), None, "{table}.{name} is there twice");
        key
    };
    let memory = key(QEMU, "default_memory");
    assert_eq!(memory.status, Status::Supported);
    assert_eq!(memory.default, "2048");
    assert_eq!(memory.takes, "an integer from 64 to 16777216");
    assert_eq!(
        memory.annotation.as_deref(),
        Some("io.katacontainers.config.hypervisor.default_memory")
    );
    assert!(memory.doc.contains("in MiB"));
    assert_eq!(key("runtime", "hypervisor_name").default, "\"\"");
    let image = key(QEMU, "image");
    assert_eq!(image.status, Status::Unsupported);
    assert!(image.doc.contains("set initrd"));
    for each in &keys {
        key(each.table, each.name);
    }
}

#[test]
fn hypervisors_have_defaults_of_their_own() {
    for (name, path, shared_fs) in [
        ("qemu", "/usr/bin/qemu-system-x86_64", SharedFs::VirtioFs),
        ("clh", "/usr/bin/cloud-hypervisor", SharedFs::VirtioFs),
        ("firecracker", "/usr/bin/firecracker", SharedFs::None),
    ] {
        let config = load(&[&format!("[hypervisor.{name}]")]).unwrap().hypervisor;
        assert_eq!(
            (config.path, config.shared_fs),
            (path.into(), shared_fs),
            "{name}"
        );
        assert_eq!(config.kernel, Path::new("/usr/share/kata/vmlinux"), "{name}");
    }
    let set = load(&[
        "[hypervisor.firecracker]\npath = \"/opt/fc\"\njailer_path = \"/opt/jailer\"\ndisk_rate_limiter_bw_max_rate = 8",
    ]);
    let set = set.unwrap().hypervisor;
    assert_eq!(
        (set.path, set.jailer_path),
        ("/opt/fc".into(), "/opt/jailer".into())
    );
    assert_eq!(set.disk_rate_limiter_bw_max_rate, 8);
}
