//! Which namespaces a container has in the guest, and who may see the agent's processes.

use oci_spec::runtime::LinuxNamespaceType;

use super::super::*;
use super::*;
use crate::model::ContainerType;

/// What a user namespace of its own takes.
fn mappings() -> [(&'static str, Value); 2] {
    ["/linux/uidMappings", "/linux/gidMappings"].map(|field| {
        (
            field,
            json!([{"containerID": 0, "hostID": 100000, "size": 65536}]),
        )
    })
}

#[test]
fn namespaces_of_a_sandbox_are_the_guests_own() {
    use ContainerType::{PodContainer, PodSandbox, SingleContainer};
    let new = |kinds: &[&str]| json!(kinds.iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>());
    let joined = |kinds: &[&str]| {
        json!(
            kinds
                .iter()
                .map(|kind| json!({"type": kind, "path": "/proc/7/ns/x"}))
                .collect::<Vec<_>>()
        )
    };
    let usual = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    // Namespaces, place, own kernel; then the guest's.
    let table: [(Value, ContainerType, bool, &[&str]); 9] = [
        (json!([]), SingleContainer, true, &["mount"]),
        (new(&usual), SingleContainer, true, &["mount", "pid", "cgroup"]),
        (new(&usual), PodSandbox, true, &["mount", "pid", "cgroup"]),
        (
            new(&usual),
            PodContainer,
            true,
            &["mount", "pid", "ipc", "uts", "cgroup"],
        ),
        (
            joined(&["network", "ipc", "uts", "pid", "cgroup"]),
            PodContainer,
            true,
            &["mount", "cgroup"],
        ),
        (
            new(&usual),
            SingleContainer,
            false,
            &["mount", "pid", "network", "ipc", "uts", "cgroup"],
        ),
        (joined(&["network", "ipc"]), SingleContainer, false, &["mount"]),
        (
            new(&["user", "ipc", "uts", "network"]),
            SingleContainer,
            true,
            &["mount", "user", "ipc", "uts"],
        ),
        (new(&["pid"]), PodContainer, true, &["mount", "pid"]),
    ];
    for (asked, kind, own_kernel, expected) in table {
        let mut values = vec![("/linux/namespaces", asked.clone())];
        if expected.contains(&"user") {
            values.extend(mappings());
        }
        let setting = namespaces::Setting {
            kind,
            own_kernel,
            agent_pidns: false,
        };
        let chosen = namespaces::plan(&spec(&values), setting).unwrap();
        let kinds: Vec<Value> = chosen
            .list
            .iter()
            .map(|namespace| json!(namespace.typ()))
            .collect();
        assert_eq!(kinds, expected, "{asked} {kind:?} {own_kernel}");
        assert!(chosen.list.iter().all(|namespace| namespace.path().is_none()));
    }
}

/// Kata's `enable_agent_pidns`, container by container.
#[test]
fn the_agents_processes_are_seen_by_who_asks_for_them_and_may() {
    use ContainerType::{PodContainer, PodSandbox, SingleContainer};
    type Case<'a> = (&'a [&'a str], Value, ContainerType, bool, bool);
    let own = || json!([{"type": "pid"}, {"type": "mount"}]);
    let pods = || json!([{"type": "pid", "path": "/proc/7/ns/pid"}]);
    let plan = |(env, asked, kind, own_kernel, agent_pidns): Case<'_>| {
        let mut values = vec![("/process/env", json!(env)), ("/linux/namespaces", asked.clone())];
        if asked.to_string().contains("user") {
            values.extend(mappings());
        }
        let setting = namespaces::Setting {
            kind,
            own_kernel,
            agent_pidns,
        };
        namespaces::plan(&spec(&values), setting)
    };
    // Whether it has the agent's, whether a new one.
    let table: [(Case<'_>, bool, bool); 8] = [
        (
            (&["KATA_AGENT_PIDNS=true"], own(), SingleContainer, true, true),
            true,
            false,
        ),
        (
            (&["KATA_AGENT_PIDNS=1"], own(), PodContainer, true, true),
            true,
            false,
        ),
        // It is above the pod's, which is thus seen as well.
        (
            (&["KATA_AGENT_PIDNS=T"], pods(), PodContainer, true, true),
            true,
            false,
        ),
        (
            (&["KATA_AGENT_PIDNS=true"], json!([]), PodContainer, true, true),
            true,
            false,
        ),
        (
            (
                &["KATA_AGENT_PIDNS=true", "KATA_AGENT_PIDNS=false"],
                own(),
                PodContainer,
                true,
                true,
            ),
            false,
            true,
        ),
        (
            (&["KATA_AGENT_PIDNS=0"], own(), PodContainer, true, false),
            false,
            true,
        ),
        (
            (
                &["KATA_AGENT_PIDNS_X=true", "A=b"],
                own(),
                PodContainer,
                true,
                true,
            ),
            false,
            true,
        ),
        ((&[], pods(), PodContainer, true, true), false, false),
    ];
    for (case, has_agents, has_new) in table {
        let told = format!("{case:?}");
        let chosen = plan(case).unwrap();
        assert_eq!(chosen.with_agent, has_agents, "{told}");
        let list = chosen.list;
        let pid: Vec<_> = list
            .iter()
            .filter(|namespace| namespace.typ() == LinuxNamespaceType::Pid)
            .map(|namespace| namespace.path().as_deref())
            .collect();
        let expected: &[Option<&Path>] = match (has_agents, has_new) {
            (true, _) => &[Some(Path::new("/proc/self/ns/pid"))],
            (false, true) => &[None],
            (false, false) => &[],
        };
        assert_eq!(pid, expected, "{told}");
    }
    let user = json!([{"type": "user"}, {"type": "pid"}]);
    let refused: [(Case<'_>, ErrorKind, &str); 5] = [
        (
            (&["KATA_AGENT_PIDNS=true"], own(), SingleContainer, true, false),
            ErrorKind::FailedPrecondition,
            "set runtime.enable_agent_pidns",
        ),
        (
            (&["KATA_AGENT_PIDNS=yes"], own(), PodContainer, true, true),
            ErrorKind::InvalidArgument,
            "KATA_AGENT_PIDNS is \"yes\": write true or false",
        ),
        (
            (&["KATA_AGENT_PIDNS=true"], own(), PodSandbox, true, true),
            ErrorKind::Unsupported,
            "set it for one of those",
        ),
        (
            (&["KATA_AGENT_PIDNS=true"], own(), SingleContainer, false, true),
            ErrorKind::Unsupported,
            "which is the host's here",
        ),
        (
            (&["KATA_AGENT_PIDNS=true"], user, SingleContainer, true, true),
            ErrorKind::Unsupported,
            "leave out the user namespace",
        ),
    ];
    for (case, kind, told) in refused {
        let error = plan(case).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(
            error
                .context
                .starts_with("config.json: process.env: KATA_AGENT_PIDNS "),
            "{error}"
        );
        assert!(error.context.contains(told), "{error}");
    }
}
