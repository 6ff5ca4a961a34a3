//! What separates a container from the agent: namespaces, privileges, system calls, descriptors.

use std::fs;

use serde_json::json;

use crate::fixture::{Fixture, Streams, exit_code};

const KINDS: [&str; 6] = ["pid", "mnt", "ipc", "uts", "net", "cgroup"];

fn own(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}"))
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

pub async fn namespaces_are_new() {
    let fixture = Fixture::script(
        "for n in pid mnt ipc uts net cgroup user; do readlink /proc/self/ns/$n; done; echo $$",
    );
    let output = fixture.run().await;
    let lines: Vec<&str> = output.stdout.lines().collect();
    for (kind, line) in KINDS.iter().zip(&lines) {
        assert!(line.starts_with(kind), "{output:?}");
        assert_ne!(*line, own(kind));
    }
    assert_eq!(lines[6], own("user"), "not asked for");
    assert_eq!(lines[7], "1", "the first process of its pid namespace");
}

pub async fn a_pod_shares_namespaces() {
    let pause = Fixture::script("sleep 1000");
    let (first, started) = pause.start().await;
    let path = |kind: &str| Some(format!("/proc/{}/ns/{kind}", started.pid).into());
    let mut member =
        Fixture::script("for n in pid ipc uts net mnt; do readlink /proc/self/ns/$n; done; ps; hostname");
    let namespaces = member.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    member.environment.pod.pid = path("pid");
    member.environment.pod.ipc = path("ipc");
    member.environment.pod.uts = path("uts");
    member.environment.pod.network = path("net");
    let output = member.run().await;
    let lines: Vec<&str> = output.stdout.lines().collect();
    for (kind, line) in ["pid", "ipc", "uts", "net"].iter().zip(&lines) {
        let shared = fs::read_link(path(kind).unwrap()).unwrap();
        assert_eq!(*line, shared.to_str().unwrap());
    }
    assert_ne!(
        lines[4],
        fs::read_link(path("mnt").unwrap()).unwrap().to_str().unwrap()
    );
    assert!(
        output.stdout.contains("sleep 1000"),
        "the other container's process is seen: {output:?}"
    );
    // The agent itself is where it was, and so are its next children.
    let children = fs::read_link("/proc/thread-self/ns/pid_for_children").unwrap();
    assert_eq!(children.to_str().unwrap(), own("pid"));
    first.delete().await.unwrap();
    exit_code(started.pid).await;
}

/// What the host asks for with `enable_agent_pidns`, in a pod whose processes are elsewhere.
pub async fn the_agents_processes_can_be_asked_for() {
    let pause = Fixture::script("sleep 1000");
    let (first, started) = pause.start().await;
    let mut debugger = Fixture::script(&format!(
        "readlink /proc/self/ns/pid; kill -0 {} && test -d /proc/{} && echo seen",
        started.pid,
        std::process::id()
    ));
    debugger.environment.pod.pid = Some(format!("/proc/{}/ns/pid", started.pid).into());
    let namespaces = debugger.spec["linux"]["namespaces"].as_array_mut().unwrap();
    let pid = namespaces.iter_mut().find(|namespace| namespace["type"] == "pid");
    pid.unwrap()["path"] = json!("/proc/self/ns/pid");
    let output = debugger.run().await;
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines, [own("pid").as_str(), "seen"], "{output:?}");
    first.delete().await.unwrap();
    exit_code(started.pid).await;
}

pub async fn a_user_namespace_maps_ids() {
    let mut fixture =
        Fixture::script("id -u; cat /proc/self/uid_map; touch /tmp/mine; echo x > /dev/null && echo device");
    let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    fixture.spec["linux"]["uidMappings"] = map.clone();
    fixture.spec["linux"]["gidMappings"] = map;
    fixture.spec["process"]["oomScoreAdj"] = json!(1);
    let root = fixture.root();
    fs::set_permissions(
        fixture.top.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    for path in ["", "tmp", "dev", "proc", "sys"] {
        std::os::unix::fs::chown(root.join(path), Some(100_000), Some(100_000)).unwrap();
    }
    let output = fixture.run().await;
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536", "device"], "{output:?}");
    let made = fs::metadata(root.join("tmp/mine")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 100_000);
}

fn status(output: &str, key: &str) -> String {
    let line = output
        .lines()
        .find(|line| line.starts_with(key))
        .unwrap_or_else(|| panic!("{key} in {output}"));
    line.split_whitespace().nth(1).unwrap().to_owned()
}

/// CHOWN 0, KILL 5, SETGID 6, SETUID 7, NET_BIND_SERVICE 10: the fixture's.
const FIXTURE_SET: &str = "00000000000004e1";
const NONE: &str = "0000000000000000";

pub async fn capabilities_are_exact() {
    let fixture = Fixture::script("cat /proc/self/status");
    let output = fixture.run().await.stdout;
    for (set, expected) in [
        ("CapInh", NONE),
        ("CapPrm", FIXTURE_SET),
        ("CapEff", FIXTURE_SET),
        ("CapBnd", FIXTURE_SET),
        ("CapAmb", NONE),
        ("NoNewPrivs", "1"),
    ] {
        assert_eq!(status(&output, set), expected, "{set}");
    }
}

pub async fn a_user_without_capabilities_has_none() {
    let mut fixture = Fixture::script("cat /proc/self/status");
    fixture.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = fixture.run().await.stdout;
    assert_eq!(status(&output, "CapPrm"), NONE);
    assert_eq!(status(&output, "CapEff"), NONE);
    assert_eq!(status(&output, "CapBnd"), FIXTURE_SET);
}

pub async fn ambient_capabilities_reach_a_user() {
    let mut fixture = Fixture::script("cat /proc/self/status");
    fixture.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let one = json!(["CAP_NET_BIND_SERVICE"]);
    fixture.spec["process"]["capabilities"]["inheritable"] = one.clone();
    fixture.spec["process"]["capabilities"]["ambient"] = one;
    let output = fixture.run().await.stdout;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(&output, set), "0000000000000400", "{set}");
    }
}

fn profile() -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["mkdir", "mkdirat", "not_yet_invented"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    })
}

const DENIED: &str = "grep Seccomp: /proc/self/status; mkdir /tmp/x";

fn assert_denied(output: &crate::fixture::Output) {
    assert_eq!(status(&output.stdout, "Seccomp:"), "2", "{output:?}");
    // 95 is EOPNOTSUPP.
    assert!(output.stderr.contains("not supported"), "{output:?}");
    assert_ne!(output.code, 0);
}

pub async fn seccomp_is_active_in_init_and_exec() {
    let mut fixture = Fixture::script(&format!("{DENIED}; sleep 1000"));
    fixture.spec["linux"]["seccomp"] = profile();
    let (container, started) = fixture.start().await;
    assert_denied(&fixture.exec(&container, DENIED).await);
    container.delete().await.unwrap();
    exit_code(started.pid).await;

    fixture.spec["process"]["args"] = json!(["sh", "-c", DENIED]);
    assert_denied(&fixture.run().await);
}

pub async fn seccomp_without_no_new_privileges() {
    let mut fixture = Fixture::script(&format!("cat /proc/self/status; {DENIED}"));
    fixture.spec["linux"]["seccomp"] = profile();
    fixture.spec["process"]["noNewPrivileges"] = json!(false);
    fixture.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = fixture.run().await;
    assert_denied(&output);
    assert_eq!(status(&output.stdout, "NoNewPrivs"), "0");
    assert_eq!(status(&output.stdout, "CapPrm"), NONE);
}

pub async fn no_descriptor_leaks() {
    // One that anybody would inherit.
    let (_read, write) = rustix::pipe::pipe().unwrap();
    let script = "ls /proc/$$/fd; true";
    let fixture = Fixture::script(script);
    assert_eq!(fixture.run().await.stdout, "0\n1\n2\n");
    drop(write);

    let fixture = Fixture::script("sleep 1000");
    let (container, started) = fixture.start().await;
    assert_eq!(fixture.exec(&container, script).await.stdout, "0\n1\n2\n");
    container.delete().await.unwrap();
    exit_code(started.pid).await;

    // Before the program runs as well: the first process of a waiting container must not keep others' pipes open.
    let (stdio, _streams) = Streams::new();
    let (container, started) = fixture.create(stdio).await.unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", started.pid)).unwrap().count();
    assert_eq!(open, 4, "the standard streams and the socket to the agent");
    container.delete().await.unwrap();
    exit_code(started.pid).await;
}

pub async fn the_environment_is_the_containers() {
    let mut fixture = Fixture::script("env | grep -v -e PWD -e SHLVL");
    fixture.spec["process"]["env"] = json!(["PATH=/bin", "HOME=/x", "A=b=c"]);
    let output = fixture.run().await;
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=b=c", "HOME=/x", "PATH=/bin"]);
}
