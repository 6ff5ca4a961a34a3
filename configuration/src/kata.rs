//! What Kata has and we don't: keys, hypervisors and annotations, each with the reason and what to do. A key that gets
//! supported leaves this table. Pure.

/// Keys of one table with the same reason.
struct Known {
    table: &'static str,
    keys: &'static [&'static str],
    /// Why, and what to do.
    reason: &'static str,
}

const QEMU: &str = "hypervisor.qemu";
const AGENT: &str = "agent.kata";
const RUNTIME: &str = "runtime";

const KNOWN: &[Known] = &[
    Known {
        table: QEMU,
        keys: &[
            "image",
            "rootfs_type",
            "vm_rootfs_driver",
            "kernel_verity_params",
            "disable_image_nvdimm",
            "guest_extension_images",
        ],
        reason: "the guest runs from an initramfs and has no disk of its own; set initrd and remove this",
    },
    Known {
        table: QEMU,
        keys: &["firmware", "firmware_volume", "pflashes"],
        reason: "the kernel is started directly, without firmware; remove it",
    },
    Known {
        table: QEMU,
        keys: &["machine_accelerators"],
        reason: "the machine's options are ours to choose; remove it, and choose kvm or tcg with accelerator",
    },
    Known {
        table: QEMU,
        keys: &["seccompsandbox", "seccomp_sandbox"],
        reason: "the VMM's seccomp filter is on without it; remove it, and turn the filter off with disable_seccomp",
    },
    Known {
        table: QEMU,
        keys: &["rootless", "rootless_user"],
        reason: "the VMM runs as the user of the shim; remove it",
    },
    Known {
        table: QEMU,
        keys: &["valid_jailer_paths"],
        reason: "a pod cannot choose the jailer; remove it, and set jailer_path",
    },
    Known {
        table: QEMU,
        keys: &["overhead_vcpus", "overhead_memory"],
        reason: "a sandbox with limits gets its containers' on top of default_vcpus and default_memory; remove it",
    },
    Known {
        table: QEMU,
        keys: &["default_bridges", "pcie_root_port", "pcie_switch_port"],
        reason: "the ports for hotplug are ours to choose; remove it",
    },
    Known {
        table: QEMU,
        keys: &["memory_slots", "memory_offset", "enable_virtio_mem"],
        reason: "how memory is plugged is ours to choose; remove it, and bound it with default_maxmemory",
    },
    Known {
        table: QEMU,
        keys: &[
            "enable_mem_prealloc",
            "enable_hugepages",
            "hugepage_type",
            "reclaim_guest_freed_memory",
            "enable_numa",
            "numa_mapping",
            "file_mem_backend",
            "valid_file_mem_backends",
        ],
        reason: "guest memory is ordinary pages of the host, taken when first used; remove it",
    },
    Known {
        table: QEMU,
        keys: &[
            "enable_guest_swap",
            "guest_swap_path",
            "guest_swap_size_percent",
            "guest_swap_create_threshold_secs",
        ],
        reason: "guests have no swap; remove it",
    },
    Known {
        table: QEMU,
        keys: &[
            "virtio_fs_cache_size",
            "virtio_fs_queue_size",
            "virtio_fs_is_dax",
            "virtio_fs_extra_args",
            "msize_9p",
        ],
        reason: "virtiofsd's arguments are ours to choose; remove it, and choose the cache with virtio_fs_cache",
    },
    Known {
        table: QEMU,
        keys: &[
            "block_device_driver",
            "block_device_aio",
            "block_device_cache_set",
            "block_device_cache_direct",
            "block_device_cache_noflush",
            "block_device_logical_sector_size",
            "block_device_physical_sector_size",
            "block_device_num_queues",
            "block_device_queue_size",
            "enable_iothreads",
            "indep_iothreads",
            "queue_size",
            "num_queues",
        ],
        reason: "block devices are virtio-blk with our settings; remove it",
    },
    Known {
        table: QEMU,
        keys: &["network_queues", "disable_vhost_net"],
        reason: "network devices are virtio-net with our settings; remove it",
    },
    Known {
        table: QEMU,
        keys: &["rx_rate_limiter_max_rate", "tx_rate_limiter_max_rate"],
        reason: "both directions have the same limit; remove it, and set net_rate_limiter_bw_max_rate",
    },
    Known {
        table: QEMU,
        keys: &[
            "enable_vhost_user_store",
            "vhost_user_store_path",
            "valid_vhost_user_store_paths",
            "vhost_user_reconnect_timeout_sec",
        ],
        reason: "there are no vhost-user block devices; remove it",
    },
    Known {
        table: QEMU,
        keys: &[
            "enable_iommu",
            "enable_iommu_platform",
            "hot_plug_vfio",
            "cold_plug_vfio",
            "default_gpus",
            "default_gpu_model",
        ],
        reason: "host devices are not passed to guests; remove it",
    },
    Known {
        table: QEMU,
        keys: &[
            "confidential_guest",
            "sev_snp_guest",
            "snp_id_block",
            "snp_id_auth",
            "snp_guest_policy",
            "tdx_quote_generation_service_socket_port",
            "measurement_algo",
        ],
        reason: "there are no confidential guests; remove it",
    },
    Known {
        table: QEMU,
        keys: &["entropy_source", "valid_entropy_sources"],
        reason: "the guest's entropy comes from the host's /dev/urandom; remove it",
    },
    Known {
        table: QEMU,
        keys: &[
            "extra_monitor_socket",
            "log_level",
            "hypervisor_loglevel",
            "use_legacy_serial",
            "guest_memory_dump_path",
            "guest_memory_dump_paging",
        ],
        reason: "there is no such debugging aid; remove it, and see more in the log with enable_debug",
    },
    Known {
        table: QEMU,
        keys: &["guest_hook_path"],
        reason: "the guest image has no hooks of its own; remove it",
    },
    Known {
        table: QEMU,
        keys: &["disable_guest_selinux"],
        reason: "the guest has no SELinux; remove it",
    },
    Known {
        table: QEMU,
        keys: &["disable_nesting_checks", "disable_nested_virtualization"],
        reason: "whether KVM works is found out by trying it; remove it, and decide it with accelerator",
    },
    Known {
        table: QEMU,
        keys: &["valid_ctlpaths", "ctlpath"],
        reason: "control sockets are made by the shim; remove it",
    },
    Known {
        table: QEMU,
        keys: &["factory"],
        reason: "it is a table of its own; remove it, and write [factory]",
    },
    Known {
        table: AGENT,
        keys: &["dial_timeout_ms", "reconnect_timeout_ms"],
        reason: "the wait for the agent is one, in seconds; remove it and set dial_timeout",
    },
    Known {
        table: AGENT,
        keys: &["request_timeout_ms", "health_check_request_timeout_ms"],
        reason: "the wait for an answer is in seconds; remove it and set request_timeout",
    },
    Known {
        table: AGENT,
        keys: &[
            "cdh_api_timeout",
            "cdh_api_timeout_ms",
            "image_pull_timeout",
            "launch_process_timeout",
        ],
        reason: "the guest has no such services; remove it",
    },
    Known {
        table: AGENT,
        keys: &["enable_tracing"],
        reason: "calls to the agent are in the runtime's trace; remove it, and set enable_tracing in [runtime]",
    },
    Known {
        table: AGENT,
        keys: &["kernel_modules"],
        reason: "the guest image loads the modules it has; remove it",
    },
    Known {
        table: AGENT,
        keys: &["log_level"],
        reason: "the agent has two levels; remove it, and see more in the log with enable_debug",
    },
    Known {
        table: AGENT,
        keys: &[
            "server_port",
            "log_port",
            "passfd_listener_port",
            "container_pipe_size",
        ],
        reason: "ports and buffers are part of our own protocol; remove it",
    },
    Known {
        table: AGENT,
        keys: &["policy", "visible_cdi_devices", "mem_agent"],
        reason: "the agent has no such part; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["create_container_timeout"],
        reason: "move it to [agent.kata]",
    },
    Known {
        table: RUNTIME,
        keys: &["name", "agent_name"],
        reason: "there is only one; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["log_level"],
        reason: "remove it, and see more in the log with enable_debug",
    },
    Known {
        table: RUNTIME,
        keys: &["jaeger_endpoint", "jaeger_user", "jaeger_password"],
        reason: "traces are files that a collector of OpenTelemetry's reads; remove it, and set trace_directory",
    },
    Known {
        table: RUNTIME,
        keys: &["enable_pprof"],
        reason: "there is no profiling; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["enable_vcpus_pinning"],
        reason: "vCPUs are not pinned; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["guest_selinux_label"],
        reason: "the guest gets no SELinux label; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["sandbox_bind_mounts", "shared_mounts"],
        reason: "only what containers mount is shared; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["vfio_mode", "pod_resource_api_sock"],
        reason: "host devices are not passed to guests; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["disable_guest_empty_dir", "emptydir_mode", "kubelet_root_dir"],
        reason: "how an emptyDir reaches the guest is ours to choose; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["experimental_force_guest_pull"],
        reason: "images are the host's to pull; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["dan_conf"],
        reason: "networks come from the network namespace only; remove it",
    },
    Known {
        table: RUNTIME,
        keys: &["keep_abnormal", "use_passfd_io", "passfd_listener_port"],
        reason: "the shim has no such mode; remove it",
    },
];

/// Tables that only Kata has.
const TABLES: &[(&str, &str)] = &[
    ("netmon", "Kata itself has removed it; remove the table"),
    ("shim", "Kata itself has removed it; remove the table"),
    ("proxy", "Kata itself has removed it; remove the table"),
];

/// Hypervisors that only Kata has.
const HYPERVISORS: &[&str] = &["acrn", "dragonball", "openvmm", "remote", "stratovirt"];

/// Annotations of Kata's, without the prefix, that have no key or another name than their key.
const ANNOTATIONS: &[(&str, &str)] = &[
    (
        "hypervisor.cc_init_data",
        "there are no confidential guests; remove it",
    ),
    (
        "hypervisor.blk_logical_sector_size",
        "block devices have our settings; remove it",
    ),
    (
        "hypervisor.blk_physical_sector_size",
        "block devices have our settings; remove it",
    ),
    (
        "hypervisor.prefetch_files.list",
        "nothing is prefetched; remove it",
    ),
    (
        "runtime.hypervisor_name",
        "the hypervisor is the administrator's choice; remove it",
    ),
];

/// Every key that only Kata has: table, name, reason.
pub(crate) fn keys() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    KNOWN
        .iter()
        .flat_map(|known| known.keys.iter().map(|key| (known.table, *key, known.reason)))
}

/// Why `key` of `table` is not supported, if Kata has it.
pub(crate) fn reason(table: &str, key: &str) -> Option<&'static str> {
    keys()
        .find(|(other, name, _)| *other == table && *name == key)
        .map(|(_, _, reason)| reason)
}

/// Why a top-level table is not supported, if Kata has it.
pub(crate) fn table(name: &str) -> Option<&'static str> {
    TABLES
        .iter()
        .find(|(table, _)| *table == name)
        .map(|(_, reason)| *reason)
}

/// Whether Kata has a hypervisor of that name.
pub(crate) fn has_hypervisor(name: &str) -> bool {
    HYPERVISORS.contains(&name)
}

/// Why an annotation, as `enable_annotations` or without the prefix, is not supported, if Kata has it.
pub(crate) fn annotation(name: &str) -> Option<&'static str> {
    if let Some((_, reason)) = ANNOTATIONS
        .iter()
        .find(|(full, _)| *full == name || full.strip_prefix("hypervisor.") == Some(name))
    {
        return Some(reason);
    }
    if name.ends_with("_hash") && !name.contains('*') {
        return Some("files of the host are the administrator's to check; remove it");
    }
    let (table, key) = match name.split_once('.') {
        None | Some(("hypervisor", _)) => (QEMU, name.strip_prefix("hypervisor.").unwrap_or(name)),
        Some(("agent", key)) => (AGENT, key),
        Some(("runtime", key)) => (RUNTIME, key),
        Some(_) => return None,
    };
    reason(table, key)
}
