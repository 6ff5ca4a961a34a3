//! What the tests of plans stand on: a configuration, a driver's abilities, specifications.

mod any;
mod container;
mod copies;
mod disks;
mod fuzzed;
mod hooks;
mod joined;
mod sandbox;

use std::time::Duration;

use configuration::{
    Accelerator, AgentChannel, AgentConfig, FactoryConfig, HypervisorConfig, HypervisorKind, MachineType,
    NetworkModel, RuntimeConfig, SharedFs, VirtioFsCache,
};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::*;
use crate::oci::{self, tests::CALLERS};
use crate::{ContainerId, SandboxId};

const VIRTIOFSD: &str = "/opt/virtiofsd";
const VSOCK: &str = "/opt/vhost-device-vsock";

fn config() -> Config {
    Config {
        sources: Vec::new(),
        hypervisor: HypervisorConfig {
            kind: HypervisorKind::Qemu,
            path: "/opt/qemu".into(),
            jailer_path: Default::default(),
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
            disable_block_device_use: false,
            disable_selinux: false,
            vhost_user_vsock_daemon: VSOCK.into(),
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
            enable_annotations: Vec::new(),
            valid_hypervisor_paths: Vec::new(),
            valid_virtio_fs_daemon_paths: Vec::new(),
        },
        agent: AgentConfig {
            channel: AgentChannel::Auto,
            dial_timeout: Some(Duration::from_secs(1)),
            request_timeout: Duration::from_secs(1),
            create_container_timeout: Duration::from_secs(1),
            debug_console_enabled: false,
            debug_console_program: "/bin/busybox".into(),
            enable_debug: false,
        },
        runtime: RuntimeConfig {
            enable_debug: false,
            internetworking_model: NetworkModel::None,
            disable_new_netns: false,
            disable_guest_seccomp: false,
            sandbox_cgroup_only: false,
            static_sandbox_resource_mgmt: true,
            enable_agent_pidns: false,
            experimental: Vec::new(),
            enable_tracing: false,
            trace_directory: Default::default(),
            trace_max_size_mib: 8,
            run_dir: "/run/x".into(),
        },
        factory: FactoryConfig {
            enable_template: false,
            template_path: "/run/t".into(),
            vm_cache_number: 0,
            vm_cache_endpoint: PathBuf::new(),
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
        block_hotplug: true,
        multiqueue: true,
        resize: false,
        snapshots: false,
        saves_shares: false,
        transfer: false,
        emulated: false,
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
    super::sandbox(&config(), &sandbox_of(&spec), &abilities(), &all).unwrap()
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
    let plan = super::container(
        &config(),
        &sandbox_plan(),
        &container_of(spec),
        &Volumes::default(),
    )?;
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
