//! Every kind of wrong input, and exactly what is said of it.

use super::{line, load, refused};

const QEMU: &str = "hypervisor.qemu";

#[test]
fn a_value_of_the_wrong_type_is_told_with_what_would_be_right() {
    for (table, text, expected) in [
        (
            QEMU,
            "default_vcpus = \"two\"",
            "main:2: hypervisor.qemu.default_vcpus is the string \"two\", not an integer: it takes an integer from 1 to \
             240; 0 is 1, a negative one all of the host's",
        ),
        (
            QEMU,
            "default_vcpus = \"2\"",
            "main:2: hypervisor.qemu.default_vcpus is the string \"2\", not an integer: write 2 without quotes",
        ),
        (
            QEMU,
            "default_memory = 512.5",
            "main:2: hypervisor.qemu.default_memory is the float 512.5, not an integer: it takes an integer from 64 to \
             16777216",
        ),
        (
            "runtime",
            "enable_debug = \"true\"",
            "main:2: runtime.enable_debug is the string \"true\", not true or false: write true without quotes",
        ),
        (
            "runtime",
            "enable_debug = 1",
            "main:2: runtime.enable_debug is the integer 1, not true or false: it takes true or false",
        ),
        (
            QEMU,
            "kernel = true",
            "main:2: hypervisor.qemu.kernel is true, not a string: it takes an absolute path",
        ),
        (
            QEMU,
            "kernel_params = [\"quiet\"]",
            "main:2: hypervisor.qemu.kernel_params is an array, not a string: it takes a string of kernel parameters, at \
             most 1536 bytes",
        ),
        (
            QEMU,
            "machine_type = {}",
            "main:2: hypervisor.qemu.machine_type is a table, not a string: it takes \"q35\" or \"microvm\"",
        ),
        (
            QEMU,
            "enable_annotations = \"default_vcpus\"",
            "main:2: hypervisor.qemu.enable_annotations is the string \"default_vcpus\", not an array of strings: write \
             [\"default_vcpus\"]",
        ),
        (
            QEMU,
            "valid_hypervisor_paths = [7]",
            "main:2: hypervisor.qemu.valid_hypervisor_paths contains the integer 7: it takes an array of absolute paths, \
             without wildcards",
        ),
        (
            "agent.kata",
            "dial_timeout = 2020-01-01",
            "main:2: agent.kata.dial_timeout is the date 2020-01-01, not an integer: it takes an integer from 0 to \
             86400, in seconds",
        ),
    ] {
        assert_eq!(refused(line(table, text)), expected);
    }
}

#[test]
fn a_value_out_of_range_is_told_with_the_range() {
    for (table, text, expected) in [
        (
            QEMU,
            "default_vcpus = 241",
            "main:2: hypervisor.qemu.default_vcpus is 241: it takes an integer from 1 to 240; 0 is 1, a negative one all \
             of the host's",
        ),
        (
            QEMU,
            "default_maxvcpus = -1",
            "main:2: hypervisor.qemu.default_maxvcpus is -1: it takes an integer from 0 to 240",
        ),
        (
            QEMU,
            "default_memory = 63",
            "main:2: hypervisor.qemu.default_memory is 63: it takes an integer from 64 to 16777216",
        ),
        (
            QEMU,
            "default_memory = 99999999999999999999",
            "main:2: hypervisor.qemu.default_memory is 99999999999999999999: it takes an integer from 64 to 16777216",
        ),
        (
            "agent.kata",
            "request_timeout = 0",
            "main:2: agent.kata.request_timeout is 0: it takes an integer from 1 to 86400, in seconds",
        ),
        (
            QEMU,
            "machine_type = \"virt\"",
            "main:2: hypervisor.qemu.machine_type is \"virt\": it takes \"q35\" or \"microvm\"",
        ),
        (
            "runtime",
            "internetworking_model = \"bridge\"",
            "main:2: runtime.internetworking_model is \"bridge\": it takes \"tcfilter\", \"macvtap\" or \"none\"",
        ),
        (
            "runtime",
            "hypervisor_name = \"dragonball\"",
            "main:2: runtime.hypervisor_name is \"dragonball\": it takes \"qemu\", \"clh\", \"firecracker\" or \"fake\"",
        ),
    ] {
        assert_eq!(refused(line(table, text)), expected);
    }
}

#[test]
fn a_path_is_absolute_and_plain() {
    for (text, expected) in [
        ("path = \"\"", "path is empty: it takes an absolute path"),
        (
            "path = \"qemu\"",
            "path is \"qemu\", which is not absolute: begin it with /",
        ),
        (
            "virtio_fs_daemon = \"./virtiofsd\"",
            "virtio_fs_daemon is \"./virtiofsd\", which is not absolute: begin it with /",
        ),
        (
            "kernel = \"/a\\u0000b\"",
            "kernel is \"/a\\0b\", which has a control character: no path here may",
        ),
        (
            "valid_hypervisor_paths = [\"/usr/bin/qemu*\"]",
            "valid_hypervisor_paths contains \"/usr/bin/qemu*\", a pattern: name each path in full",
        ),
        (
            "valid_virtio_fs_daemon_paths = [\"/ok\", \"virtiofsd\"]",
            "valid_virtio_fs_daemon_paths has an entry that is \"virtiofsd\", which is not absolute: begin it with /",
        ),
    ] {
        assert_eq!(
            refused(line(QEMU, text)),
            format!("main:2: hypervisor.qemu.{expected}")
        );
    }
    let long = format!("initrd = \"/{}\"", "x".repeat(5000));
    assert_eq!(
        refused(line(QEMU, &long)),
        format!(
            "main:2: hypervisor.qemu.initrd is \"/{}…\", which is too long for a path",
            "x".repeat(59)
        )
    );
}

#[test]
fn kernel_parameters_and_cpu_features_have_a_syntax() {
    for (text, expected) in [
        (
            "kernel_params = 'quiet x=\"a b'",
            "kernel_params has a quote that is not closed: close it",
        ),
        (
            "kernel_params = \"quiet\\u001b[0m\"",
            "kernel_params has the control character '\\u{1b}': remove it",
        ),
        (
            "cpu_features = \"pmu=off,\"",
            "cpu_features has the feature \"\": write features as \"pmu=off,+pcid\"",
        ),
        (
            "cpu_features = \"pmu=off -vmx\"",
            "cpu_features has the feature \"pmu=off -vmx\": write features as \"pmu=off,+pcid\"",
        ),
    ] {
        assert_eq!(
            refused(line(QEMU, text)),
            format!("main:2: hypervisor.qemu.{expected}")
        );
    }
    let long = format!("kernel_params = \"{}\"", "x".repeat(1537));
    assert_eq!(
        refused(line(QEMU, &long)),
        "main:2: hypervisor.qemu.kernel_params has 1537 bytes: the kernel's command line has room for 1536"
    );
}

#[test]
fn an_unknown_key_is_told_with_what_may_have_been_meant() {
    for (table, text, expected) in [
        (
            QEMU,
            "default_vcpu = 2",
            "main:2: hypervisor.qemu.default_vcpu is not a key: did you mean default_vcpus?",
        ),
        (
            QEMU,
            "Kernel_Params = \"\"",
            "main:2: hypervisor.qemu.Kernel_Params is not a key: did you mean kernel_params?",
        ),
        (
            QEMU,
            "frobnicate = 1",
            "main:2: hypervisor.qemu.frobnicate is not a key: remove it",
        ),
        (
            QEMU,
            "run_dir = \"/run\"",
            "main:2: hypervisor.qemu.run_dir is a key of another table: move it to [runtime]",
        ),
        (
            QEMU,
            "path.to = 1",
            "main:2: hypervisor.qemu.path is a table, not a string: it takes an absolute path",
        ),
        (
            "hypervisor",
            "path = \"/x\"",
            "main:2: hypervisor.path is in the wrong table: move it below [hypervisor.qemu]",
        ),
        (
            "runtimes",
            "",
            "main:1: runtimes is not a table of the configuration: did you mean runtime?",
        ),
        (
            "elsewhere",
            "",
            "main:1: elsewhere is not a table of the configuration: remove it",
        ),
        (
            "agent.kat",
            "",
            "main:1: agent.kat is not an agent: the only table is [agent.kata]",
        ),
        (
            "hypervisor.qemuu",
            "",
            "main:1: hypervisor.qemuu is not a hypervisor: did you mean qemu?",
        ),
        (
            "hypervisor.xen",
            "",
            "main:1: hypervisor.xen is not a hypervisor: use [hypervisor.qemu]",
        ),
    ] {
        assert_eq!(refused(line(table, text)), expected);
    }
    assert_eq!(
        refused(load(&["run_dir = \"/run\""])),
        "main:1: run_dir is in no table: move it below [runtime]"
    );
}

#[test]
fn what_only_kata_has_is_told_with_the_reason() {
    for (table, text, expected) in [
        (
            QEMU,
            "image = \"/usr/share/kata/image\"",
            "hypervisor.qemu.image is known to Kata but not supported here: the guest runs from an initramfs and has no \
             disk of its own; set initrd and remove this",
        ),
        (
            QEMU,
            "block_device_driver = \"virtio-scsi\"",
            "hypervisor.qemu.block_device_driver is known to Kata but not supported here: block devices are virtio-blk \
             with our settings; remove it",
        ),
        (
            "agent.kata",
            "dial_timeout_ms = 10",
            "agent.kata.dial_timeout_ms is known to Kata but not supported here: the wait for the agent is one, in \
             seconds; remove it and set dial_timeout",
        ),
        (
            "runtime",
            "create_container_timeout = 60",
            "runtime.create_container_timeout is known to Kata but not supported here: move it to [agent.kata]",
        ),
        (
            "runtime",
            "jaeger_endpoint = \"http://localhost:14268/api/traces\"",
            "runtime.jaeger_endpoint is known to Kata but not supported here: traces are files that a collector of \
             OpenTelemetry's reads; remove it, and set trace_directory",
        ),
        (
            "agent.kata",
            "enable_tracing = true",
            "agent.kata.enable_tracing is known to Kata but not supported here: calls to the agent are in the runtime's \
             trace; remove it, and set enable_tracing in [runtime]",
        ),
        (
            QEMU,
            "enable_annotations = [\"kernel_params\", \"enable_iommu\"]",
            "hypervisor.qemu.enable_annotations contains \"enable_iommu\", which is known to Kata but not supported \
             here: host devices are not passed to guests; remove it",
        ),
    ] {
        assert_eq!(refused(line(table, text)), format!("main:2: {expected}"));
    }
    for (table, expected) in [
        ("hypervisor.dragonball", "use [hypervisor.qemu]"),
        ("netmon", "Kata itself has removed it; remove the table"),
    ] {
        assert_eq!(
            refused(line(table, "")),
            format!("main:1: {table} is known to Kata but not supported here: {expected}")
        );
    }
}

#[test]
fn annotations_are_allowed_by_exact_name() {
    for (name, expected) in [
        (".*", "a pattern: name each annotation exactly"),
        (
            "default_vcpu",
            "which is no annotation: did you mean \"default_vcpus\"?",
        ),
        (
            "hypervisor.default_vcpus",
            "which is too long: write \"default_vcpus\"",
        ),
        (
            "io.katacontainers.config.hypervisor.path",
            "which is too long: write \"path\"",
        ),
        (
            "io.katacontainers.config.runtime.enable_debug",
            "which is too long: write \"runtime.enable_debug\"",
        ),
        (
            "everything",
            "which is no annotation: there are path, kernel_params, machine_type, cpu_features, default_vcpus, \
             default_max_vcpus, default_memory, shared_fs, virtio_fs_daemon, virtio_fs_cache, enable_debug, \
             runtime.create_container_timeout, agent.enable_debug, runtime.enable_debug, \
             runtime.internetworking_model, runtime.disable_new_netns, runtime.disable_guest_seccomp, \
             runtime.sandbox_cgroup_only, \
             runtime.static_sandbox_resource_mgmt",
        ),
    ] {
        assert_eq!(
            refused(line(QEMU, &format!("enable_annotations = [{name:?}]"))),
            format!("main:2: hypervisor.qemu.enable_annotations contains {name:?}, {expected}")
        );
    }
}

#[test]
fn what_should_be_a_table_is_one() {
    for (text, expected) in [
        (
            "hypervisor = 3",
            "main:1: hypervisor is the integer 3, not a table: write [hypervisor.qemu]",
        ),
        (
            "[hypervisor]\nqemu = 3",
            "main:2: hypervisor.qemu is the integer 3, not a table: write [hypervisor.qemu]",
        ),
        (
            "agent = \"kata\"",
            "main:1: agent is the string \"kata\", not a table: write [agent.kata]",
        ),
        (
            "[[runtime]]",
            "main:1: runtime is an array, not a table: write [runtime]",
        ),
    ] {
        assert_eq!(refused(load(&[text])), expected);
    }
}

#[test]
fn what_is_not_toml_is_told_by_place() {
    for (text, expected) in [
        (
            "# é\n[hypervisor.qemu\n",
            "main:2:17: not TOML: unclosed table, expected `]`, in \"[hypervisor.qemu\"",
        ),
        (
            "[runtime]\n  é foo",
            "main:2:5: not TOML: key with no value, expected `=`, in \"é foo\"",
        ),
        (
            "[runtime]\nenable_debug = true\nenable_debug = false\n",
            "main:3:1: not TOML: duplicate key, in \"enable_debug = false\"",
        ),
        (
            "a = 1\u{0}",
            "main:1:5: not TOML: string values must be quoted, expected literal string, in \"a = 1\\0\"",
        ),
    ] {
        assert_eq!(refused(load(&[text])), expected);
    }
}

#[test]
fn one_mistake_does_not_hide_which_hypervisor_is_meant() {
    let both = "[hypervisor.qemu]\n[hypervisor.fake]\npath = \"/agent\"\n";
    assert_eq!(
        refused(load(&[
            both,
            "[runtime]\nhypervisor_name = \"fake\"\nrun_dir = \"\""
        ])),
        "drop-in-1:3: runtime.run_dir is empty: it takes an absolute path"
    );
}

#[test]
fn the_drop_in_that_is_wrong_is_named() {
    let main = "[hypervisor.qemu]\ndefault_vcpus = 2\n";
    let good = "[runtime]\nenable_debug = true\n";
    for (bad, expected) in [
        (
            "\n[hypervisor.qemu]\ndefault_vcpus = 1.5",
            "drop-in-2:3: hypervisor.qemu.default_vcpus is the float 1.5, not an integer: it takes an integer from 1 to \
             240; 0 is 1, a negative one all of the host's",
        ),
        (
            "[runtime]\nenable_debugs = true",
            "drop-in-2:2: runtime.enable_debugs is not a key: did you mean enable_debug?",
        ),
        (
            "hypervisor.qemu.default_maxvcpus = 1",
            "drop-in-2:1: hypervisor.qemu.default_maxvcpus does not fit with hypervisor.qemu.default_vcpus: 2 vCPUs are \
             more than the 1 that there may be; lower the one or raise the other",
        ),
        (
            "runtime = false",
            "drop-in-2:1: runtime is false, not a table: write [runtime]",
        ),
        (
            "[hypervisor.fake]\npath = \"/agent\"",
            "drop-in-2:1: [hypervisor.fake] is there besides [hypervisor.qemu]: remove one, or select with \
             runtime.hypervisor_name",
        ),
        (
            "runtime",
            "drop-in-2:1:8: not TOML: key with no value, expected `=`, in \"runtime\"",
        ),
    ] {
        assert_eq!(refused(load(&[main, good, bad])), expected);
    }
}

#[test]
fn all_problems_are_there_in_the_order_of_the_files() {
    let error = load(&[
        "[runtime]\nrun_dir = \"run\"\n[hypervisor.qemu]\nimage = \"/image\"\n",
        "[agent.kata]\nchanel = \"auto\"\n",
    ])
    .unwrap_err();
    let places: Vec<_> = error
        .problems()
        .map(|problem| problem.split(' ').next().unwrap())
        .collect();
    assert_eq!(places, ["main:2:", "main:4:", "drop-in-1:2:"]);
    assert_eq!(
        error.to_string(),
        "main:2: runtime.run_dir is \"run\", which is not absolute: begin it with / (and 2 more problems)"
    );
}
