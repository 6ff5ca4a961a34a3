//! Where hooks run, and what those find that change a container's files.

use super::super::*;
use super::*;
use crate::model::{DisksPlan, HookPlan, StageMount, StagePlan};
use crate::sandbox::RootfsMount;

#[test]
fn hooks_go_where_they_can_act() {
    let hooks = json!({
        "prestart": [{"path": "/p0", "args": ["p", "x"], "env": ["A=b=c"], "timeout": 5}],
        "createRuntime": [{"path": "/c0"}, {"path": "/c1"}],
        "createContainer": [{"path": "/n0"}],
        "startContainer": [{"path": "/in/guest"}],
        "poststart": [{"path": "/s0"}],
        "poststop": [{"path": "/e0"}],
    });
    let (plan, guest) = planned(spec(&[("/hooks", hooks), ("/annotations", json!({"k": "v"}))])).unwrap();
    assert_eq!(guest["hooks"], json!({"startContainer": [{"path": "/in/guest"}]}));
    let names = |hooks: &[HookPlan]| -> Vec<String> { hooks.iter().map(|hook| hook.name.clone()).collect() };
    let host = plan.hooks;
    let create = [
        "hooks.prestart[0]",
        "hooks.createRuntime[0]",
        "hooks.createRuntime[1]",
    ];
    assert_eq!(names(&host.create), create);
    assert_eq!(names(&host.container), ["hooks.createContainer[0]"]);
    assert_eq!(names(&host.poststart), ["hooks.poststart[0]"]);
    assert_eq!(names(&host.poststop), ["hooks.poststop[0]"]);
    assert_eq!(host.create[0].args, ["p", "x"]);
    assert_eq!(
        (
            host.create[0].env[0].name.as_str(),
            host.create[0].env[0].value.as_str()
        ),
        ("A", "b=c")
    );
    assert_eq!(host.create[0].timeout, Some(std::time::Duration::from_secs(5)));
    assert_eq!(host.create[1].timeout, None);
    assert_eq!(
        (host.version.as_str(), host.bundle.to_str().unwrap()),
        ("1.0.2", "/bundle")
    );
    assert_eq!(host.annotations["k"], "v");
}

#[test]
fn hooks_of_its_namespaces_find_its_files_where_it_says() {
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/lib/x.so", "type": "bind", "source": "/usr/lib/x.so", "options": ["rbind", "ro"]},
        {"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]},
        {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind"]},
    ]);
    let plan = |hooks: Value| {
        planned(spec(&[("/hooks", hooks), ("/mounts", mounts.clone())]))
            .unwrap()
            .0
    };
    assert_eq!(plan(json!({"createRuntime": [{"path": "/c"}]})).stage, None);
    let mount = |index, source: Option<&str>, destination: &str, readonly, recursive| StageMount {
        index,
        source: source.map(Into::into),
        destination: destination.into(),
        readonly,
        recursive,
    };
    // What is the guest's kernel's to show is not there.
    let expected = StagePlan {
        root: "/bundle/rootfs".into(),
        mounts: vec![
            mount(1, None, "/run", false, false),
            mount(2, Some("/usr/lib/x.so"), "/lib/x.so", true, true),
            mount(3, Some("/bundle/data"), "/data", false, false),
        ],
    };
    assert_eq!(
        plan(json!({"createContainer": [{"path": "/c"}]})).stage,
        Some(expected)
    );
}

#[test]
fn hooks_that_could_not_find_its_root_are_refused_with_a_remedy() {
    let hooks = json!({"createContainer": [{"path": "/usr/bin/nvidia-cdi-hook"}]});
    let mut container = container_of(spec(&[("/hooks", hooks)]));
    container.rootfs = vec![RootfsMount {
        fs_type: "ext4".to_owned(),
        source: "/dev/vg/x".to_owned(),
        options: Vec::new(),
    }];
    let planned = |disks| {
        let mut sandbox = sandbox_plan();
        sandbox.disks = disks;
        super::container(&config(), &sandbox, &container, &Volumes::default())
    };
    let error = planned(DisksPlan::Plugged).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    for part in [
        "hooks.createContainer[0]",
        "nvidia-cdi-hook",
        "startContainer",
        "disable_block_device_use",
    ] {
        assert!(error.chain().contains(part), "{}", error.chain());
    }
    assert!(planned(DisksPlan::Mounted).unwrap().stage.is_some());
}

#[test]
fn a_hook_with_an_environment_that_is_none_is_refused() {
    let hooks = json!({"poststop": [{"path": "/x", "env": ["A=b", "nothing"]}]});
    let error = planned(spec(&[("/hooks", hooks)])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    for part in ["hooks.poststop[0].env[1]", "nothing"] {
        assert!(error.chain().contains(part), "{}", error.chain());
    }
}
