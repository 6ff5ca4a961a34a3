//! Hooks: programs of the host's that are told of a container, and give it its network.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use e2e::image;
use serde_json::json;

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::both("give_a_network", give_a_network),
    Listed::both("that_fail", that_fail),
];

/// What a hook of the host's does: it finds the network by the pid in the state, as nerdctl's and Docker's.
const HOOK: &str = r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
state=$(cat)
echo "$1" >>told
case $1 in
createRuntime)
    pid=$(echo "$state" | sed 's/.*"pid": *\([0-9]*\).*/\1/')
    in="nsenter --target $pid --net"
    $in ip link add eth0 type veth peer name far
    $in ip address add 10.9.8.2/24 dev eth0
    $in ip link set eth0 up
    $in ip link set far up
    ;;
fail) echo no such network >&2; exit 7 ;;
esac
"#;

/// Runs a container with these hooks, each given its own name; answers with what came of it and what the hooks were told.
fn run(case: &mut Case<'_>, hooks: &[(&str, &str)]) -> Result<(e2e::program::Output, String)> {
    let root = case.path("root");
    for directory in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(image::BUSYBOX_PROGRAM, root.join("bin/busybox"))?;
    let hook = case.path("hook");
    let told = case.path("told");
    fs::write(&hook, HOOK.replace(">>told", &format!(">>{}", told.display())))?;
    fs::set_permissions(&hook, PermissionsExt::from_mode(0o755))?;
    let of = |does: &str| json!([{ "path": hook, "args": ["hook", does], "timeout": 20 }]);
    let hooks: serde_json::Map<_, _> = hooks
        .iter()
        .map(|(kind, does)| ((*kind).to_owned(), of(does)))
        .collect();
    let spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": root },
        "process": {
            "args": ["/bin/busybox", "ip", "-o", "-4", "address", "show", "eth0"],
            "cwd": "/", "user": { "uid": 0, "gid": 0 },
        },
        "hooks": hooks,
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "network" }] },
    });
    let path = case.path("config.json");
    fs::write(&path, spec.to_string())?;
    let path = path.display().to_string();
    let output = case
        .run_specification(&["--rm", "--config", &path], &case.id())
        .output()?;
    fs::remove_dir_all(&root)?;
    let lines = fs::read_to_string(&told)?;
    // The other runtime's case writes there as well.
    fs::remove_file(&told)?;
    Ok((output, lines))
}

fn give_a_network(case: &mut Case<'_>) -> Result<()> {
    let kinds = ["createRuntime", "poststart", "poststop"];
    let (output, told) = run(case, &kinds.map(|kind| (kind, kind)))?;
    let seen = output.success()?;
    ensure!(seen.contains("10.9.8.2/24"), "{seen}");
    assert_eq!(told, "createRuntime\npoststart\npoststop\n");
    Ok(())
}

/// A hook that fails keeps the container from being created, and its end is told all the same.
fn that_fail(case: &mut Case<'_>) -> Result<()> {
    let (output, told) = run(case, &[("createRuntime", "fail"), ("poststop", "poststop")])?;
    let error = output.failure()?;
    ensure!(error.contains("no such network"), "{error}");
    assert_eq!(told, "fail\npoststop\n");
    Ok(())
}
