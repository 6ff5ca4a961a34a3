//! What any plan has, whatever was asked for.

use std::collections::HashSet;
use std::path::PathBuf;

use agent_protocol::GUEST_DIR;
use proptest::prelude::*;

use super::*;

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
    fn any_specification_is_planned_or_refused(json in oci::tests::damaged(), is_process in any::<bool>()) {
        let Ok(spec) = oci::load(json.as_bytes()) else {
            return Ok(());
        };
        let abilities = if is_process { of_process() } else { abilities() };
        let pod = oci::sandbox(&SandboxId::new("pod").unwrap(), &spec, None);
        let pod = pod.and_then(|pod| super::super::sandbox(&config(), &pod, &abilities, &all));
        let one = oci::container(&ContainerId::new("c1").unwrap(), spec, "/bundle".into(), Vec::new());
        if let (Ok(pod), Ok(one)) = (pod, one) {
            let _ = super::super::container(&config(), &pod, &one, &Volumes::default());
        }
    }

    #[test]
    fn the_same_request_gives_the_same_plan(caller in 0..CALLERS.len()) {
        let (_, text) = CALLERS[caller];
        let plan = || planned(oci::load(text.as_bytes()).unwrap()).unwrap().0;
        prop_assert_eq!(plan(), plan());
    }
}
