//! What a pod may change, and what it may not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::{load, refused};
use crate::{Config, Error, ErrorKind, MachineType, NetworkModel, SharedFs};

/// Everything that can be allowed is.
const OPEN: &str = r#"
[hypervisor.qemu]
kernel_params = "quiet"
default_maxvcpus = 3
default_maxmemory = 4096
enable_annotations = [
    "path", "kernel_params", "machine_type", "cpu_features", "default_vcpus", "default_max_vcpus", "default_memory",
    "shared_fs", "virtio_fs_daemon", "virtio_fs_cache", "enable_debug", "agent.enable_debug", "runtime.enable_debug",
    "runtime.create_container_timeout", "runtime.internetworking_model", "runtime.disable_guest_seccomp",
    "runtime.sandbox_cgroup_only", "runtime.static_sandbox_resource_mgmt", "runtime.disable_new_netns",
]
valid_hypervisor_paths = ["/opt/qemu"]
valid_virtio_fs_daemon_paths = ["/opt/virtiofsd"]
"#;

fn open() -> Config {
    load(&[OPEN]).unwrap()
}

fn with(config: &Config, annotations: &[(&str, &str)]) -> Result<Config, Error> {
    let annotations: BTreeMap<String, String> = annotations
        .iter()
        .map(|(name, text)| (format!("io.katacontainers.config.{name}"), (*text).to_owned()))
        .collect();
    config.with_annotations(&annotations)
}

#[test]
fn what_is_not_configuration_is_passed_over() {
    let config = open();
    let annotations = [
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("io.katacontainers.pkg.oci.bundle_path", "/bundle"),
        ("io.katacontainers.volume", "x"),
        ("IO.KATACONTAINERS.CONFIG.HYPERVISOR.PATH", "/bin/sh"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into();
    assert_eq!(config.with_annotations(&annotations).unwrap(), config);
    assert_eq!(config.with_annotations(&BTreeMap::new()).unwrap(), config);
}

#[test]
fn what_is_allowed_takes_effect() {
    let config = with(
        &open(),
        &[
            ("hypervisor.path", "/opt/qemu"),
            ("hypervisor.kernel_params", "loglevel=7 x=\"a b\""),
            ("hypervisor.machine_type", "microvm"),
            ("hypervisor.cpu_features", "pmu=on"),
            ("hypervisor.default_vcpus", "2"),
            ("hypervisor.default_max_vcpus", "2"),
            ("hypervisor.default_memory", "512"),
            ("hypervisor.shared_fs", "none"),
            ("hypervisor.virtio_fs_daemon", "/opt/virtiofsd"),
            ("hypervisor.enable_debug", "true"),
            ("agent.enable_debug", "true"),
            ("runtime.enable_debug", "true"),
            ("runtime.create_container_timeout", "7"),
            ("runtime.internetworking_model", "none"),
            ("runtime.disable_new_netns", "true"),
            ("runtime.disable_guest_seccomp", "true"),
            ("runtime.sandbox_cgroup_only", "false"),
        ],
    )
    .unwrap();
    let hypervisor = &config.hypervisor;
    assert_eq!(hypervisor.path, Path::new("/opt/qemu"));
    // Appended, so that they win over the configured ones without hiding them.
    assert_eq!(hypervisor.kernel_params, ["quiet", "loglevel=7", "x=\"a b\""]);
    assert_eq!(hypervisor.machine_type, MachineType::Microvm);
    assert_eq!(hypervisor.cpu_features, ["pmu=on"]);
    assert_eq!((hypervisor.default_vcpus, hypervisor.default_maxvcpus), (2, 2));
    assert_eq!(
        (hypervisor.default_memory_mib, hypervisor.default_maxmemory_mib),
        (512, 4096)
    );
    assert_eq!(hypervisor.shared_fs, SharedFs::None);
    assert_eq!(hypervisor.virtio_fs_daemon, Path::new("/opt/virtiofsd"));
    assert!(hypervisor.enable_debug && config.agent.enable_debug && config.runtime.enable_debug);
    assert_eq!(config.agent.create_container_timeout, Duration::from_secs(7));
    assert_eq!(config.runtime.internetworking_model, NetworkModel::None);
    assert!(config.runtime.disable_new_netns);
    assert!(config.runtime.disable_guest_seccomp && !config.runtime.sandbox_cgroup_only);
}

#[test]
fn all_means_what_the_administrator_allows() {
    for (text, vcpus) in [("0", 1), ("-1", 3)] {
        let config = with(&open(), &[("hypervisor.default_vcpus", text)]).unwrap();
        assert_eq!(config.hypervisor.default_vcpus, vcpus);
    }
    let config = with(&open(), &[("hypervisor.default_max_vcpus", "0")]).unwrap();
    assert_eq!(config.hypervisor.default_maxvcpus, 3);
}

#[test]
fn what_is_not_allowed_or_not_valid_is_told_by_name() {
    for (name, text, expected) in [
        (
            "hypervisor.default_vcpus",
            "two",
            "is the string \"two\", not an integer: it takes an integer from 1 to 240; 0 is 1, a negative one all of the \
             host's",
        ),
        (
            "runtime.disable_new_netns",
            "true",
            "cannot be used: runtime.internetworking_model does not fit with runtime.disable_new_netns: interfaces of \
             the host itself would be the guest's; set internetworking_model = \"none\", or disable_new_netns = false",
        ),
        (
            "runtime.enable_agent_pidns",
            "true",
            "sets what only the administrator can: remove it",
        ),
        (
            "runtime.experimental",
            "anything",
            "sets what only the administrator can: remove it",
        ),
        (
            "runtime.enable_tracing",
            "true",
            "sets what only the administrator can: remove it",
        ),
        (
            "hypervisor.default_vcpus",
            "4",
            "cannot be used: hypervisor.qemu.default_vcpus does not fit with hypervisor.qemu.default_maxvcpus: 4 vCPUs \
             are more than the 3 that there may be; lower the one or raise the other",
        ),
        (
            "hypervisor.default_max_vcpus",
            "4",
            "is 4: the administrator allows at most 3",
        ),
        (
            "hypervisor.default_memory",
            "8192",
            "cannot be used: hypervisor.qemu.default_memory does not fit with hypervisor.qemu.default_maxmemory: 8192 \
             MiB are more than the 4096 that there may be; lower the one or raise the other",
        ),
        (
            "hypervisor.default_memory",
            "512Mi",
            "is the string \"512Mi\", not an integer: it takes an integer from 64 to 16777216",
        ),
        (
            "hypervisor.path",
            "/bin/sh",
            "is \"/bin/sh\", which is not in hypervisor.qemu.valid_hypervisor_paths",
        ),
        (
            "hypervisor.path",
            "/opt/../bin/sh",
            "is \"/opt/../bin/sh\", which is not in hypervisor.qemu.valid_hypervisor_paths",
        ),
        (
            "hypervisor.path",
            "qemu",
            "is \"qemu\", which is not absolute: begin it with /",
        ),
        (
            "hypervisor.virtio_fs_daemon",
            "/bin/sh",
            "is \"/bin/sh\", which is not in hypervisor.qemu.valid_virtio_fs_daemon_paths",
        ),
        (
            "hypervisor.virtio_fs_daemon",
            "",
            "is \"\", which is not in hypervisor.qemu.valid_virtio_fs_daemon_paths",
        ),
        (
            "hypervisor.kernel_params",
            "x=\"",
            "has a quote that is not closed: close it",
        ),
        (
            "hypervisor.kernel_params",
            "x\u{0}",
            "has the control character '\\0': remove it",
        ),
        (
            "runtime.disable_guest_seccomp",
            "yes",
            "is the string \"yes\", not true or false: it takes true or false",
        ),
        (
            "hypervisor.default_vcpu",
            "1",
            "is unknown: did you mean io.katacontainers.config.hypervisor.default_vcpus?",
        ),
        ("hypervisor.frobnicate", "1", "is unknown: remove it"),
        ("", "1", "is unknown: remove it"),
        (
            "hypervisor.kernel",
            "/vmlinux",
            "sets what only the administrator can: remove it",
        ),
        (
            "hypervisor.enable_annotations",
            "path",
            "sets what only the administrator can: remove it",
        ),
        (
            "runtime.run_dir",
            "/run/other",
            "sets what only the administrator can: remove it",
        ),
        (
            "hypervisor.image",
            "/image",
            "is known to Kata but not supported here: the guest runs from an initramfs and has no disk of its own; set \
             initrd and remove this",
        ),
        (
            "hypervisor.kernel_hash",
            "0",
            "is known to Kata but not supported here: files of the host are the administrator's to check; remove it",
        ),
        (
            "agent.kernel_modules",
            "x",
            "is known to Kata but not supported here: the guest image loads the modules it has; remove it",
        ),
    ] {
        let problem = refused(with(&open(), &[(name, text)]));
        assert_eq!(
            problem,
            format!("the annotation io.katacontainers.config.{name} {expected}")
        );
    }
    let error = with(&open(), &[("hypervisor.path", "/bin/sh")]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Annotation);
}

#[test]
fn nothing_is_allowed_that_is_not_listed() {
    let config = load(&["[hypervisor.qemu]\nenable_annotations = [\"default_vcpus\"]"]).unwrap();
    assert_eq!(
        refused(with(&config, &[("hypervisor.default_memory", "512")])),
        "the annotation io.katacontainers.config.hypervisor.default_memory is not allowed: remove it, or let the \
         administrator add \"default_memory\" to hypervisor.qemu.enable_annotations"
    );
    assert_eq!(
        refused(with(&config, &[("runtime.disable_guest_seccomp", "true")])),
        "the annotation io.katacontainers.config.runtime.disable_guest_seccomp is not allowed: remove it, or let the \
         administrator add \"runtime.disable_guest_seccomp\" to hypervisor.qemu.enable_annotations"
    );
    // `enable_debug` is the hypervisor's alone.
    let config = load(&["[hypervisor.qemu]\nenable_annotations = [\"enable_debug\"]"]).unwrap();
    assert!(with(&config, &[("hypervisor.enable_debug", "true")]).is_ok());
    assert!(with(&config, &[("runtime.enable_debug", "true")]).is_err());
}

#[test]
fn several_annotations_are_checked_together() {
    let config = open();
    assert_eq!(
        refused(with(
            &config,
            &[
                ("hypervisor.machine_type", "microvm"),
                ("runtime.static_sandbox_resource_mgmt", "false"),
            ],
        )),
        "the annotation io.katacontainers.config.hypervisor.machine_type cannot be used: hypervisor.qemu.machine_type \
         does not fit with runtime.static_sandbox_resource_mgmt: a microvm cannot grow; set machine_type = \"q35\", or \
         static_sandbox_resource_mgmt = true"
    );
    // A lower maximum in the pod's own annotations binds it.
    assert!(
        with(
            &config,
            &[
                ("hypervisor.default_vcpus", "3"),
                ("hypervisor.default_max_vcpus", "2")
            ],
        )
        .is_err()
    );
    // Each of two is short enough; appended they are not.
    let config = with(&config, &[("hypervisor.kernel_params", &"x".repeat(1500))]).unwrap();
    assert_eq!(
        refused(with(&config, &[("hypervisor.kernel_params", &"y".repeat(100))])),
        "the annotation io.katacontainers.config.hypervisor.kernel_params has 1607 bytes: the kernel's command line has \
         room for 1536"
    );
}
