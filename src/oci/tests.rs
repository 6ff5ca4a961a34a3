//! Specifications as callers write them, and as they must not be.

use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{ContainerType, Dns, NetworkNamespace, Resources};

/// Specifications of real callers; `crate::plan` plans the same.
pub(crate) const CALLERS: [(&str, &str); 5] = [
    ("ctr", include_str!("../../tests/golden/ctr.json")),
    ("cri-sandbox", include_str!("../../tests/golden/cri-sandbox.json")),
    (
        "cri-container",
        include_str!("../../tests/golden/cri-container.json"),
    ),
    (
        "podman-member",
        include_str!("../../tests/golden/podman-member.json"),
    ),
    (
        "crio-privileged",
        include_str!("../../tests/golden/crio-privileged.json"),
    ),
];

/// A caller's specification.
pub(crate) fn caller(name: &str) -> Spec {
    let (_, text) = CALLERS.into_iter().find(|(caller, _)| *caller == name).unwrap();
    load(text.as_bytes()).unwrap()
}

fn minimal() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["sh"], "env": ["PATH=/bin"], "capabilities": {}},
        "linux": {"namespaces": [{"type": "mount"}], "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}},
    })
}

/// The minimal specification with the value at a JSON pointer replaced; `null` removes it.
fn with(pointer: &str, value: Value) -> Vec<u8> {
    let mut spec = minimal();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => parent.remove(key),
        value => parent.insert(key.to_owned(), value),
    };
    spec.to_string().into_bytes()
}

fn id<T>(new: impl Fn(String) -> Result<T>) -> T {
    new("first".to_owned()).unwrap()
}

#[test]
fn callers_are_understood() {
    let kinds = CALLERS.map(|(name, text)| {
        let spec = load(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        container(&id(ContainerId::new), spec, "/bundle".into(), Vec::new())
            .unwrap()
            .container_type
    });
    use ContainerType::{PodContainer, PodSandbox, SingleContainer};
    assert_eq!(
        kinds,
        [
            SingleContainer,
            PodSandbox,
            PodContainer,
            PodContainer,
            PodContainer
        ]
    );
    // Of the ones that this runtime does not know yet.
    let capabilities = caller("crio-privileged")
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .clone()
        .unwrap();
    assert_eq!(capabilities.effective().as_ref().unwrap().len(), 15);
}

#[test]
fn a_lone_container_is_its_own_sandbox() {
    let sandbox = sandbox(&id(SandboxId::new), &caller("ctr"), None).unwrap();
    assert_eq!(sandbox.container_type, ContainerType::SingleContainer);
    assert_eq!(sandbox.hostname, "");
    assert_eq!(sandbox.dns, Dns::default());
    assert_eq!(sandbox.shm_size, 64 << 20);
    assert_eq!(sandbox.network_namespace, NetworkNamespace::New);
    let resources = Resources {
        cpu_millis: Some(1500),
        memory_bytes: Some(128 << 20),
    };
    assert_eq!(sandbox.resources, resources);
}

#[test]
fn a_pod_is_what_its_first_container_and_the_annotations_say() {
    let resolv_conf = "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n";
    let sandbox = sandbox(&id(SandboxId::new), &caller("cri-sandbox"), Some(resolv_conf)).unwrap();
    assert_eq!(sandbox.container_type, ContainerType::PodSandbox);
    assert_eq!(sandbox.hostname, "web-0");
    assert_eq!(sandbox.dns.servers, ["10.96.0.10"]);
    assert_eq!(sandbox.shm_size, 0);
    assert_eq!(sandbox.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
    let NetworkNamespace::Existing(namespace) = sandbox.network_namespace else {
        panic!("{:?}", sandbox.network_namespace);
    };
    assert!(namespace.starts_with("/var/run/netns"), "{namespace:?}");
    let resources = Resources {
        cpu_millis: Some(1500),
        memory_bytes: Some(256 << 20),
    };
    assert_eq!(sandbox.resources, resources);
}

#[test]
fn a_network_namespace_is_the_hosts_or_new_or_somebodys() {
    use NetworkNamespace::{Existing, Host, New};
    for (namespaces, expected) in [
        (json!([{"type": "pid"}]), Host),
        (json!([{"type": "network"}]), New),
        (json!([{"type": "network", "path": ""}]), New),
        (json!([{"type": "network", "path": "/proc/0/ns/net"}]), New),
        (
            json!([{"type": "network", "path": "/proc/7/ns/net"}]),
            Existing("/proc/7/ns/net".into()),
        ),
    ] {
        let json = with("/linux/namespaces", namespaces);
        let sandbox = sandbox(&id(SandboxId::new), &load(&json).unwrap(), None).unwrap();
        assert_eq!(sandbox.network_namespace, expected);
    }
}

#[test]
fn a_bad_field_is_named() {
    let mount =
        |destination: &str| json!([{"destination": "/ok"}, {"destination": destination, "type": "tmpfs"}]);
    let long = format!("/{}", "x".repeat(4095));
    let table = [
        ("/ociVersion", Value::Null, "ociVersion: is missing"),
        (
            "/ociVersion",
            json!("2.0.0"),
            "ociVersion: \"2.0.0\" is not version 1",
        ),
        ("/ociVersion", json!("10"), "ociVersion: "),
        ("/ociVersion", json!(1), "ociVersion: invalid type"),
        ("/root", Value::Null, "root: is missing"),
        ("/root/path", json!(""), "root.path: is empty"),
        ("/root/path", json!(long), "root.path: has 4096 bytes"),
        ("/process", Value::Null, "process: is missing"),
        ("/process/args", Value::Null, "process.args: is missing"),
        ("/process/args", json!([]), "process.args: is missing"),
        ("/process/args", json!([""]), "process.args[0]: is empty"),
        (
            "/process/args",
            json!(["a", "b\0"]),
            "process.args[1]: contains a NUL byte",
        ),
        ("/process/args", json!("sh"), "process.args: invalid type"),
        ("/process/cwd", Value::Null, "process: missing field `cwd`"),
        (
            "/process/cwd",
            json!("tmp"),
            "process.cwd: \"tmp\" is not an absolute path",
        ),
        (
            "/process/env",
            json!(["A=b", "NONE"]),
            "process.env[1]: \"NONE\" is not NAME=VALUE",
        ),
        ("/process/env", json!(["=b"]), "process.env[0]: "),
        (
            "/process/user",
            json!({"uid": -1, "gid": 0}),
            "process.user.uid: ",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_FUTURE", "soft": 1, "hard": 1}]),
            "process.rlimits[0].type: unknown variant `RLIMIT_FUTURE`",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
            "process.rlimits[0]: soft limit 2",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 1, "hard": 1}]),
            "process.rlimits[1]: RLIMIT_CPU is named twice",
        ),
        (
            "/process/capabilities",
            json!({"bounding": [1]}),
            "process.capabilities.bounding[0]: ",
        ),
        ("/hostname", json!("x".repeat(65)), "hostname: "),
        ("/hostname", json!("a/b"), "hostname: "),
        (
            "/mounts",
            mount("relative"),
            "mounts[1].destination: \"relative\" is not an absolute path",
        ),
        (
            "/mounts",
            mount("/a/../../etc"),
            "mounts[1].destination: \"/a/../../etc\" has a \"..\"",
        ),
        ("/mounts", mount("/"), "mounts[1].destination: is the root"),
        ("/mounts", mount("//."), "mounts[1].destination: is the root"),
        (
            "/mounts",
            mount("/proc/self/attr"),
            "mounts[1].destination: \"/proc/self/attr\" is inside /proc",
        ),
        (
            "/mounts",
            mount("/a\0b"),
            "mounts[1].destination: contains a NUL byte",
        ),
        (
            "/mounts",
            json!([{"type": "tmpfs"}]),
            "mounts[0]: missing field `destination`",
        ),
        ("/mounts", json!({}), "mounts: invalid type"),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "future"}]),
            "linux.namespaces[1].type: unknown variant `future`",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "mount"}]),
            "linux.namespaces[1]: its type is in the list twice",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "ipc", "path": "x"}]),
            "linux.namespaces[0]: path is not absolute",
        ),
        (
            "/linux/devices",
            json!([{"path": "dev/x", "type": "c"}]),
            "linux.devices[0].path: ",
        ),
        (
            "/linux/maskedPaths",
            json!(["proc/kcore"]),
            "linux.maskedPaths[0]: ",
        ),
        (
            "/linux/readonlyPaths",
            json!(["/a/../b"]),
            "linux.readonlyPaths[0]: ",
        ),
        ("/linux/cgroupsPath", json!("/a/../../b"), "linux.cgroupsPath: "),
        (
            "/linux/sysctl",
            json!({"net..ipv4": "1"}),
            "linux.sysctl: \"net..ipv4\"",
        ),
        (
            "/linux/sysctl",
            json!({"../../etc/passwd": "1"}),
            "linux.sysctl: ",
        ),
        (
            "/linux/seccomp/defaultAction",
            json!("SCMP_ACT_FUTURE"),
            "linux.seccomp.defaultAction: unknown variant",
        ),
        (
            "/linux/seccomp/architectures",
            json!(["x86"]),
            "linux.seccomp.architectures[0]: unknown variant `x86`",
        ),
        (
            "/annotations",
            json!({"a\0": "x"}),
            "annotations.\"a\\0\": contains a NUL byte",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "user"}]),
            "linux.uidMappings: is missing",
        ),
        (
            "/process/oomScoreAdj",
            json!(1001),
            "process.oomScoreAdj: 1001 is not",
        ),
        (
            "/hooks",
            json!({"prestart": [{"path": "/ok"}, {"path": "bin/hook"}]}),
            "hooks.prestart[1].path: ",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "/ok", "timeout": 0}]}),
            "hooks.poststop[0].timeout: ",
        ),
        ("/annotations", json!({"a": 1}), "annotations.a: invalid type"),
    ];
    for (pointer, value, expected) in table {
        let error = load(&with(pointer, value.clone())).expect_err(&format!("{pointer} {value}"));
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        let rest = error
            .context
            .strip_prefix("config.json: ")
            .unwrap_or_else(|| panic!("{}", error.context));
        assert!(rest.starts_with(expected), "{pointer} {value}: {rest}");
    }
}

#[test]
fn what_is_no_specification_is_refused() {
    for (json, expected) in [
        ("", "config.json cannot be read as JSON: EOF"),
        ("{", "config.json cannot be read as JSON: EOF"),
        ("[]", "config.json is not a JSON object"),
        ("{} x", "config.json cannot be read as JSON: trailing characters"),
        ("{}", "config.json: ociVersion: is missing"),
        ("\u{feff}{}", "config.json cannot be read as JSON: "),
    ] {
        let error = load(json.as_bytes()).unwrap_err();
        assert!(error.context.starts_with(expected), "{json:?}: {}", error.context);
    }
    assert!(load(&[b'"', 0xff, b'"']).is_err());
    assert!(load("[".repeat(100_000).as_bytes()).is_err());
}

#[test]
fn names_of_a_later_day_are_passed_over_where_they_change_nothing() {
    let spec = load(&with(
        "/process/capabilities",
        json!({"bounding": ["CAP_KILL", "CAP_FUTURE"], "ambient": null}),
    ))
    .unwrap();
    let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
    let architectures = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_FUTURE"]);
    let spec = load(&with("/linux/seccomp/architectures", architectures)).unwrap();
    let seccomp = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
    assert_eq!(seccomp.architectures().as_ref().unwrap().len(), 1);
    // Fields too, and what Go writes for nothing.
    assert!(load(&with("/linux/future", json!({"a": 1}))).is_ok());
    assert!(load(&with("/linux/namespaces", Value::Null)).is_ok());
}

#[test]
fn a_flood_is_refused_at_once() {
    let begun = Instant::now();
    let mounts = |count: usize| Value::Array(vec![json!({"destination": "/a"}); count]);
    let many = with("/mounts", mounts(100_000));
    let more = with(
        "/process/env",
        json!(vec!["A=0123456789abcdef0123456789abcdef"; 200_000]),
    );
    let odd = with("/linux/namespaces", json!([{"type": "x".repeat(1_000_000)}]));
    let made = Instant::now();
    let error = load(&many).unwrap_err();
    assert!(
        error.context.contains("mounts: has 100000 entries; at most 1024"),
        "{}",
        error.context
    );
    let error = load(&more).unwrap_err();
    assert!(
        error.context.contains("at most 3145728 are allowed"),
        "{}",
        error.context
    );
    let error = load(&odd).unwrap_err();
    assert!(
        error.context.contains("linux.namespaces[0].type") && error.context.len() < 1000,
        "{}",
        error.context
    );
    // Measured by what it takes to make them, which a busy machine makes slower as well.
    assert!(
        made.elapsed() < 20 * made.duration_since(begun),
        "{:?} of {:?}",
        made.elapsed(),
        begun.elapsed()
    );
    assert!(load(&with("/mounts", mounts(MAX_MOUNTS))).is_ok());
}

#[test]
fn annotations_alone_are_enough_to_find_the_sandbox() {
    for (name, text) in CALLERS {
        let expected = annotations_of(&caller(name));
        assert_eq!(annotations(text.as_bytes()).unwrap(), expected, "{name}");
    }
    assert!(annotations(b"{}").unwrap().is_empty());
    assert!(annotations(b"x").is_err());
    assert!(annotations(&vec![b' '; MAX_BYTES + 1]).is_err());
}

#[test]
fn one_more_process_is_read_like_the_first() {
    let read = |value: Value| process(value.to_string().as_bytes());
    let exec = |key: &str, value: Value| {
        let mut exec = json!({"cwd": "/", "args": ["ls"], "user": {"uid": 0, "gid": 0}});
        exec[key] = value;
        read(exec)
    };
    let sets = json!({"bounding": ["CAP_KILL", "CAP_FUTURE"]});
    assert!(exec("capabilities", sets).is_ok());
    assert!(exec("user", Value::Null).is_err());
    assert!(read(json!({"cwd": "/", "args": ["ls"]})).is_ok());
    for (key, value, expected) in [
        ("cwd", json!("x"), "process: cwd: \"x\" is not"),
        ("args", json!([]), "process: args: is missing"),
        ("args", json!(["a\0"]), "process: args[0]: contains a NUL byte"),
        ("env", json!(["x"]), "process: env[0]: \"x\" is not NAME=VALUE"),
        ("user", json!({"uid": "root"}), "process: user.uid: invalid type"),
    ] {
        let error = exec(key, value).unwrap_err();
        assert!(error.context.starts_with(expected), "{}", error.context);
    }
    assert!(
        process(b"[]")
            .unwrap_err()
            .context
            .starts_with("process is not a JSON object")
    );
}

#[test]
fn new_limits_are_read() {
    let limits = resources(br#"{"memory": {"limit": -1}, "unknown": 1}"#).unwrap();
    assert_eq!(limits.memory().as_ref().unwrap().limit(), Some(-1));
    let error = resources(br#"{"memory": {"limit": "1G"}}"#).unwrap_err();
    assert!(
        error.context.starts_with("resources: memory.limit: "),
        "{}",
        error.context
    );
}

#[test]
fn a_bundle_is_absolute() {
    let error = container(&id(ContainerId::new), caller("ctr"), "bundle".into(), Vec::new()).unwrap_err();
    assert!(error.context.contains("bundle"), "{}", error.context);
}

/// A caller's specification with some values replaced.
pub(crate) fn damaged() -> impl Strategy<Value = String> {
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), anything()), 1..4);
    (0..CALLERS.len(), damage).prop_map(|(caller, damage)| {
        let mut spec: Value = serde_json::from_str(CALLERS[caller].1).unwrap();
        for (place, value) in damage {
            let mut places = Vec::new();
            pointers(&spec, String::new(), &mut places);
            let place: &String = place.get(&places);
            *spec.pointer_mut(place).unwrap() = value;
        }
        spec.to_string()
    })
}

/// JSON pointers of every value, the whole one included.
fn pointers(value: &Value, here: String, found: &mut Vec<String>) {
    match value {
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                pointers(value, format!("{here}/{index}"), found);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(value, format!("{here}/{name}"), found);
            }
        }
        _ => {}
    }
    found.push(here);
}

/// JSON with the fields of a specification and any values.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[/a-z.,:=\0-9-]{0,12}".prop_map(Value::from),
        Just(json!("bind")),
        Just(json!("mount")),
        Just(json!("1.0.2")),
    ];
    let names = proptest::sample::select(vec![
        "process",
        "args",
        "cwd",
        "user",
        "uid",
        "root",
        "path",
        "mounts",
        "destination",
        "type",
        "source",
        "options",
        "linux",
        "namespaces",
        "resources",
        "cpu",
        "cpus",
        "memory",
        "limit",
        "annotations",
        "hooks",
        "seccomp",
        "ociVersion",
        "env",
        "capabilities",
        "bounding",
        "devices",
        "sysctl",
    ]);
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = load(&bytes);
        let _ = annotations(&bytes);
    }

    #[test]
    fn any_value_of_any_field_is_answered(json in damaged()) {
        let _ = annotations(json.as_bytes());
        if let Ok(spec) = load(json.as_bytes()) {
            let _ = sandbox(&id(SandboxId::new), &spec, Some("x"));
            let _ = container(&id(ContainerId::new), spec, "/b".into(), Vec::new());
        }
    }
}
