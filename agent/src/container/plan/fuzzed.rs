//! Specifications that a runtime on the host would not write.

use std::path::Component;

use super::tests::{environment, minimal};
use super::*;
use serde_json::json;

#[test]
fn containers() {
    let mut document = minimal();
    document["hostname"] = json!("box");
    document["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]);
    document["process"]["capabilities"] = json!({"bounding": ["CAP_CHOWN"], "ambient": []});
    document["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": "/x", "options": ["rbind", "ro", "nosuid"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=1777"]},
    ]);
    document["linux"] = json!({
        "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "network", "path": "/x"}],
        "cgroupsPath": "/pod/c1",
        "sysctl": {"net.core.somaxconn": "1", "kernel.shm_rmid_forced": "1"},
        "devices": [{"type": "c", "path": "/dev/x", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "rootfsPropagation": "rslave",
        "resources": {"memory": {"limit": 1 << 20}, "cpu": {"cpus": "0"}, "pids": {"limit": 1}},
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]},
    });
    let seeds = [
        &b""[..],
        b"\x00\x05\x0c\x04/a/b\x00\x10\x00",
        b"\x00\x30\x0e\x03/..\x00\x07\x04\x00",
        b"\x00\x18\x08\x00\x20\x09\x05",
    ];
    fuzz::target("containers-in-a-guest", seeds, move |input| {
        let spec = fuzz::edited(&document, input);
        let Ok(spec) = serde_json::from_value::<Spec>(spec) else {
            return;
        };
        let Ok(plan) = Plan::new("id", &spec, &environment()) else {
            return;
        };
        let within = |path: &Path| {
            let mut parts = path.components();
            parts.all(|part| matches!(part, Component::Normal(_)))
        };
        assert!(within(&plan.cgroup), "{}", plan.cgroup.display());
        assert!(plan.hostname.is_none_or(|name| name.len() <= 64));
    });
}
