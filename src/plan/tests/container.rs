//! Plans of containers: real callers' against golden files, and each rule by itself.

use agent_protocol::{GUEST_HOSTNAME, GUEST_RESOLV_CONF, GUEST_SHM};

use super::super::*;
use super::*;
use crate::ContainerId;
use crate::model::{BindPlan, ContainerConfig, FileKind, Found, Identity, Medium, RootPlan};
use crate::sandbox::RootfsMount;

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
            RootPlan::Mounts(_) | RootPlan::Disk => panic!("no mounts were given"),
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
            name: "v0".to_owned(),
            source: on_host.into(),
            readonly,
            recursive,
            identity: None,
        };
        assert_eq!(binds, [expected], "{source} {options:?}");
        assert_eq!(guest["source"], "/run/kata/shared/v0/data");
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
            json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]),
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
    let plan = container(
        &config,
        &sandbox_plan(),
        &container_of(spec()),
        &Volumes::default(),
    )
    .unwrap();
    let guest: Value = serde_json::from_slice(&plan.guest.spec).unwrap();
    assert_eq!(guest["linux"].get("seccomp"), None);
}

#[test]
fn a_root_is_made_of_the_callers_mounts_or_is_there() {
    let root = |path: &str, rootfs: Vec<RootfsMount>| {
        let mut container = container_of(spec(&[("/root/path", json!(path))]));
        container.rootfs = rootfs;
        super::container(&config(), &sandbox_plan(), &container, &Volumes::default())
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

/// A container with these bind mounts, whose sources are found with these inodes.
fn mounting(id: &str, mounts: &[(&str, &str, u64)]) -> ContainerConfig {
    let list: Vec<Value> = mounts
        .iter()
        .map(|(source, option, _)| {
            json!({"destination": "/x", "type": "bind", "source": source, "options": ["rbind", option]})
        })
        .collect();
    let mut container = container_of(spec(&[("/mounts", json!(list))]));
    container.id = ContainerId::new(id).unwrap();
    for (source, _, inode) in mounts {
        let identity = Identity {
            device: 1,
            inode: *inode,
            mounts: vec![1],
        };
        let found = Found {
            identity,
            medium: Medium::Disk,
            mode: 0o755,
            uid: 0,
            gid: 0,
            kind: FileKind::Directory,
            block: None,
            direct: None,
        };
        container.found.insert(source.into(), found);
    }
    container
}

#[test]
fn what_containers_mount_in_common_is_one_thing_in_the_guest() {
    const EMPTY: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/scratch";
    let mut volumes = Volumes::default();
    let mut plan = |id: &str, mounts: &[(&str, &str, u64)]| {
        let plan =
            super::super::container(&config(), &sandbox_plan(), &mounting(id, mounts), &volumes).unwrap();
        for bind in &plan.binds {
            volumes.enter(bind, &plan.id);
        }
        let guest: Value = serde_json::from_slice(&plan.guest.spec).unwrap();
        let mounts = guest["mounts"].as_array().unwrap();
        let sources: Vec<String> = mounts
            .iter()
            .map(|mount| mount["source"].as_str().unwrap().replace("/run/kata/shared/", ""))
            .collect();
        (sources.join(" "), plan.binds)
    };
    let (sources, binds) = plan(
        "a",
        &[
            ("/srv", "rw", 7),
            ("/link", "rw", 7),
            ("/etc/x", "ro", 8),
            (EMPTY, "ro", 9),
        ],
    );
    assert_eq!(sources, "v0/data v0/data v1/data v2/data");
    let shown: Vec<_> = binds
        .iter()
        .map(|bind| (bind.name.as_str(), bind.readonly))
        .collect();
    assert_eq!(shown, [("v0", false), ("v1", true), ("v2", false)]);
    // The same again, in another container; what was read-only for all is not writable for one.
    let (sources, binds) = plan(
        "b",
        &[
            (EMPTY, "rw", 9),
            ("/etc/x", "rw", 8),
            ("/srv", "ro", 7),
            ("/new", "rw", 10),
        ],
    );
    assert_eq!(sources, "v2/data v3/data v0/data v4/data");
    assert_eq!(binds.len(), 4, "it uses all of them, whoever has made them");
}

#[test]
fn a_volume_of_memory_is_mounted_in_the_guest_for_the_pod() {
    const EMPTY: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/memory";
    let mut container = mounting("a", &[(EMPTY, "rw", 1), (EMPTY, "ro", 1), ("/srv", "rw", 7)]);
    container.found.get_mut(Path::new(EMPTY)).unwrap().medium = Medium::Memory { limit: 4096 };
    let plan = super::super::container(&config(), &sandbox_plan(), &container, &Volumes::default()).unwrap();
    assert_eq!(plan.guest.storages.len(), 1, "{:?}", plan.guest.storages);
    assert!(plan.guest.storages[0].pod);
    let guest: Value = serde_json::from_slice(&plan.guest.spec).unwrap();
    let sources: Vec<_> = (0..3)
        .map(|n| guest["mounts"][n]["source"].as_str().unwrap())
        .collect();
    let memory = plan.guest.storages[0].mount_point.as_str();
    assert_eq!(sources, [memory, memory, "/run/kata/shared/v0/data"]);
}

#[test]
fn a_pod_that_stands_alone_gives_what_its_containers_have_not() {
    let mut pod = sandbox_plan();
    pod.guest.hostname = "web".into();
    pod.guest.dns = Some(agent_protocol::Dns {
        servers: vec!["10.0.0.1".into()],
        ..Default::default()
    })
    .into();
    let mounts = |pod: &SandboxPlan, readonly: bool, mounts: Value| -> Value {
        let spec = spec(&[("/root/readonly", json!(readonly)), ("/mounts", mounts)]);
        let plan = super::super::container(&config(), pod, &container_of(spec), &Volumes::default()).unwrap();
        let guest: Value = serde_json::from_slice(&plan.guest.spec).unwrap();
        guest["mounts"].clone()
    };
    let own_memory =
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=1m"]});
    let own_names = json!({"destination": "/etc/resolv.conf", "type": "tmpfs", "source": "tmpfs"});
    let given = |destination, source, options: &[&str]| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    // Its caller has given everything.
    assert_eq!(mounts(&pod, false, json!([own_memory])), json!([own_memory]));

    pod.is_alone = true;
    let hostname = |options| given("/etc/hostname", GUEST_HOSTNAME, options);
    assert_eq!(
        mounts(&pod, false, json!([own_memory, own_names])),
        json!([
            given("/dev/shm", GUEST_SHM, &["bind"]),
            own_names,
            hostname(&["bind"])
        ])
    );
    let names = given("/etc/resolv.conf", GUEST_RESOLV_CONF, &["bind", "ro"]);
    assert_eq!(
        mounts(&pod, true, json!([own_memory])),
        json!([
            given("/dev/shm", GUEST_SHM, &["bind"]),
            names,
            hostname(&["bind", "ro"])
        ])
    );

    // What was told of neither is not there.
    pod.guest.hostname.clear();
    pod.guest.dns = None.into();
    assert_eq!(
        mounts(&pod, true, json!([])),
        json!([given("/dev/shm", GUEST_SHM, &["bind"])])
    );
}
