//! Bad specifications and the field that the error names.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

pub(super) fn minimal() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "/rootfs"},
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]},
    })
}

/// The minimal specification with the value at a JSON pointer replaced; `null` removes it.
fn with(pointer: &str, value: Value) -> Result<Plan> {
    let mut spec = minimal();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => parent.remove(key),
        value => parent.insert(key.to_owned(), value),
    };
    let spec: Spec = serde_json::from_value(spec).unwrap();
    Plan::new("id", &spec, &environment())
}

pub(super) fn environment() -> Environment {
    Environment {
        cgroup_root: "/sys/fs/cgroup".into(),
        state_dir: "/run".into(),
        pod: super::super::PodNamespaces::default(),
    }
}

#[test]
fn the_minimal_specification_is_a_plan() {
    let plan = with("/hostname", json!("box")).unwrap();
    assert_eq!(plan.hostname.as_deref(), Some("box"));
    assert_eq!(plan.cgroup, Path::new("id"));
    assert_eq!(plan.filesystem.devices.len(), 6);
    assert!(plan.namespaces.join.is_empty());
}

#[test]
fn a_bad_field_is_named() {
    let mount = |mount: Value| json!([mount]);
    let table = [
        ("/root", Value::Null, "root"),
        ("/root/path", json!("relative"), "root.path"),
        ("/root/path", json!("/x/.."), "root.path"),
        ("/process", Value::Null, "process"),
        ("/linux", Value::Null, "linux"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!([""]), "process.args"),
        ("/process/args", json!(["a\u{0}b"]), "process.args"),
        ("/process/env", json!(["NOVALUE"]), "process.env"),
        ("/process/cwd", json!("here"), "process.cwd"),
        ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]),
            "process.rlimits",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 4}),
            "process.ioPriority",
        ),
        ("/linux/namespaces", json!([{"type": "pid"}]), "linux.namespaces"),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "mount"}]),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "time"}]),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount", "path": "/proc/1/ns/mnt"}]),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "ipc", "path": "x"}]),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "user"}]),
            "linux.uidMappings",
        ),
        ("/linux/sysctl", json!({"net..ipv4": "1"}), "linux.sysctl"),
        ("/linux/sysctl", json!({"../../etc/passwd": "1"}), "linux.sysctl"),
        ("/linux/maskedPaths", json!(["proc/kcore"]), "linux.maskedPaths"),
        (
            "/linux/rootfsPropagation",
            json!("sideways"),
            "linux.rootfsPropagation",
        ),
        ("/linux/cgroupsPath", json!("/../x"), "linux.cgroupsPath"),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "a", "major": 1, "minor": 1}]),
            "linux.devices[0].type",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 1}]),
            "linux.devices[0].major",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX"}),
            "linux.personality",
        ),
        (
            "/mounts",
            mount(json!({"destination": "/", "type": "tmpfs"})),
            "mounts[0].destination",
        ),
        (
            "/mounts",
            mount(json!({"destination": "/a/..", "type": "tmpfs"})),
            "mounts[0].destination",
        ),
        ("/mounts", mount(json!({"destination": "/x"})), "mounts[0].type"),
        (
            "/mounts",
            mount(json!({"destination": "/x", "options": ["bind"]})),
            "mounts[0].source",
        ),
        (
            "/mounts",
            mount(json!({"destination": "/x", "type": "bind", "source": "y"})),
            "mounts[0].source",
        ),
        (
            "/mounts",
            mount(json!({"destination": "/proc", "type": "tmpfs"})),
            "mounts[0].destination",
        ),
        (
            "/mounts",
            mount(json!({"destination": "/proc/self/attr", "type": "bind", "source": "/x"})),
            "mounts[0].destination",
        ),
        (
            "/mounts",
            mount(json!({"destination": "/x", "type": "bind", "source": "/y", "options": ["idmap"]})),
            "mounts[0].options",
        ),
        (
            "/hooks",
            json!({"startContainer": [{"path": "hook"}]}),
            "hooks.startContainer",
        ),
    ];
    for (pointer, value, field) in table {
        let error = with(pointer, value.clone()).expect_err(&format!("{pointer} {value}"));
        let (Error::Spec { field: named, .. } | Error::Unsupported { field: named, .. }) = &error else {
            panic!("{pointer} {value}: {error}");
        };
        assert_eq!(named, field, "{pointer} {value}: {error}");
    }
}

/// What the runtime plans for callers' specifications (its golden files) is what this agent takes.
#[test]
fn the_runtimes_plans_are_understood() {
    for plan in [
        include_str!("../../../../tests/golden/ctr.plan.json"),
        include_str!("../../../../tests/golden/cri-sandbox.plan.json"),
        include_str!("../../../../tests/golden/cri-container.plan.json"),
        include_str!("../../../../tests/golden/podman-member.plan.json"),
        include_str!("../../../../tests/golden/crio-privileged.plan.json"),
    ] {
        let plan: Value = serde_json::from_str(plan).unwrap();
        let guest: Spec = serde_json::from_value(plan["guest"].clone()).unwrap();
        Plan::new("c1", &guest, &environment()).unwrap();
        if let Some(profile) = guest.linux().as_ref().unwrap().seccomp() {
            crate::container::seccomp::Filter::compile(profile).unwrap();
        }
    }
}

#[test]
fn a_hostname_needs_a_namespace_of_its_own() {
    let mut spec = minimal();
    spec["hostname"] = json!("box");
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let error = Plan::new("id", &spec, &environment()).unwrap_err();
    assert!(error.to_string().starts_with("hostname: "), "{error}");
}

#[test]
fn the_pods_namespaces_stand_in_for_new_ones() {
    let mut environment = environment();
    environment.pod.ipc = Some("/run/ns/ipc".into());
    let mut spec = minimal();
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let namespaces = Plan::new("id", &spec, &environment).unwrap().namespaces;
    assert_eq!(
        namespaces.join,
        [(CloneFlags::CLONE_NEWIPC, PathBuf::from("/run/ns/ipc"))]
    );
    assert_eq!(namespaces.new, CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS);
}

#[test]
fn the_pods_processes_are_joined_or_the_parent_of_new_ones() {
    const POD: &str = "/run/ns/pid";
    let pid = CloneFlags::CLONE_NEWPID;
    // What the specification says; whether there is a pod; what is joined, whether it is new, its parent.
    let table = [
        (json!(null), false, None, false, None),
        (json!({"type": "pid"}), false, None, true, None),
        (json!(null), true, Some(POD), false, None),
        (json!({"type": "pid"}), true, None, true, Some(POD)),
        (
            json!({"type": "pid", "path": "/other"}),
            true,
            Some("/other"),
            false,
            None,
        ),
    ];
    for (asked, is_pod, join, is_new, parent) in table {
        let mut environment = environment();
        environment.pod.pid = is_pod.then(|| POD.into());
        let mut spec = minimal();
        spec["linux"]["namespaces"] = match &asked {
            serde_json::Value::Null => json!([{"type": "mount"}]),
            asked => json!([{"type": "mount"}, asked]),
        };
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let namespaces = Plan::new("id", &spec, &environment).unwrap().namespaces;
        let join: Vec<_> = join.map(|path| (pid, PathBuf::from(path))).into_iter().collect();
        assert_eq!(namespaces.join, join, "{asked} {is_pod}");
        assert_eq!(namespaces.new.contains(pid), is_new, "{asked} {is_pod}");
        assert_eq!(
            namespaces.pid_parent,
            parent.map(PathBuf::from),
            "{asked} {is_pod}"
        );
    }
}

#[test]
fn sysctl_names_take_both_separators() {
    let plan = with(
        "/linux/sysctl",
        json!({"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.1/rp_filter": "0", "net.ipv4.conf.eth0/1.arp": "2"}),
    )
    .unwrap();
    let paths: Vec<_> = plan
        .sysctl
        .iter()
        .map(|setting| setting.path.to_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "net/ipv4/conf/eth0.1/arp",
            "net/ipv4/conf/eth0.1/rp_filter",
            "net/ipv4/ip_forward"
        ]
    );
}

proptest! {
    #[test]
    fn a_clean_path_is_absolute_and_plain(path in "[a./]{0,16}") {
        let clean = clean(Path::new(&path));
        prop_assert!(clean.is_absolute());
        prop_assert!(clean.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
        prop_assert_eq!(super::clean(&clean), clean);
    }
}
