//! Hooks: programs of the host's around a container, and of the container's own before its process.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::image;
use e2e::program::Output;
use serde_json::{Value, json};

use super::command::{bundle, runtime};
use super::{cases, has, same};
use crate::bed::Bed;

cases! {
    hooks_are_told_of_every_step,
    a_hook_of_the_containers_runs_before_its_process,
    a_hook_that_fails_keeps_the_container_from_being,
    podmans_own_hooks_run,
    a_hook_of_its_namespaces_changes_its_files,
    a_hook_of_its_namespaces_that_fails_leaves_nothing,
}

/// Writes down what it was called for, and the status that it was told; fails if it is to.
const HOOK: &str = r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
status=$(sed 's/.*"status": *"\([a-z]*\)".*/\1/')
echo "$1 $status" >>TOLD
if [ "$1" = fail ]; then
    echo no such network >&2
    exit 7
fi
"#;

/// A hook of the host's, and the file that it writes.
fn hook(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (hook, told) = (directory.join("hook"), directory.join("told"));
    fs::write(&hook, HOOK.replace("TOLD", &told.display().to_string()))?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    Ok((hook, told))
}

/// Runs a bundle with these hooks.
fn run(bed: &Bed, bundle: &Path, hooks: &Value) -> Result<Output> {
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    spec["hooks"] = hooks.clone();
    fs::write(&path, spec.to_string())?;
    runtime(bed)
        .args(["run", "--bundle"])
        .args([bundle])
        .args([bed.name()])
        .output()
}

fn hooks_are_told_of_every_step(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "sleep 3; echo done")?;
    let (hook, told) = hook(&bundle)?;
    let kinds = ["prestart", "createRuntime", "poststart", "poststop"];
    let hooks: serde_json::Map<_, _> = kinds
        .iter()
        .map(|&kind| {
            (
                kind.to_owned(),
                json!([{ "path": hook, "args": ["hook", kind], "timeout": 20 }]),
            )
        })
        .collect();
    same(&run(bed, &bundle, &hooks.into())?.success()?, "done\n")?;
    // runc tells poststart of a container that is created still.
    let told = fs::read_to_string(told)?.replace("poststart created", "poststart running");
    same(
        &told,
        "prestart creating\ncreateRuntime creating\npoststart running\npoststop stopped\n",
    )
}

fn a_hook_of_the_containers_runs_before_its_process(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "cat /tmp/told")?;
    let hooks = json!({
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "/bin/busybox cat >/tmp/told"] }],
    });
    let told: Value = serde_json::from_str(&run(bed, &bundle, &hooks)?.success()?)?;
    ensure!(told["id"].is_string() && told["status"].is_string(), "{told}");
    Ok(())
}

fn a_hook_that_fails_keeps_the_container_from_being(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "echo never")?;
    let (hook, told) = hook(&bundle)?;
    let of = |does: &str| json!([{ "path": hook, "args": ["hook", does] }]);
    let hooks = json!({ "createRuntime": of("fail"), "poststop": of("poststop") });
    has(&run(bed, &bundle, &hooks)?.failure()?, "no such network")?;
    let told = fs::read_to_string(told)?;
    ensure!(told.starts_with("fail creating\n"), "{told}");
    has(&told, "poststop ")
}

fn podmans_own_hooks_run(bed: &Bed) -> Result<()> {
    let directory = bed.directory().join(bed.name());
    let hooks = directory.join("hooks.d");
    fs::create_dir_all(&hooks)?;
    let (hook, told) = hook(&directory)?;
    for stage in ["createRuntime", "poststop"] {
        let hook = json!({
            "version": "1.0.0",
            "hook": { "path": hook, "args": ["hook", stage] },
            "when": { "always": true },
            "stages": [stage],
        });
        fs::write(hooks.join(format!("{stage}.json")), hook.to_string())?;
    }
    let words = [
        format!("--hooks-dir={}", hooks.display()),
        "run".into(),
        "--network=none".into(),
        format!("--cgroup-parent={}", bed.cgroup()),
        format!("--name={}", bed.name()),
    ];
    let run = bed.podman(words, [image::BUSYBOX, "echo", "done"]);
    same(&run.output()?.success()?, "done\n")?;
    has(&fs::read_to_string(&told)?, "createRuntime creating\n")?;
    let name = bed.call(&["ps", "--all", "--format={{.Names}}"])?;
    bed.remove(&name)?;
    let told = fs::read_to_string(told).context("read what hooks were told")?;
    has(&told, "poststop stopped\n")
}

/// As those of container toolkits do it: they look for the root in the bundle that they are told of.
const OF_NAMESPACES: &str = r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
set -e
state=$(cat)
bundle=$(echo "$state" | sed 's/.*"bundle": *"\([^"]*\)".*/\1/')
root=$bundle/rootfs
echo "$state" | grep -q '"status": *"creating"'
ln -s libx.so.1 "$root/tmp/libx.so"
cat "$root/srv/given" >"$root/tmp/libx.so.1"
[ "$1" != fail ] || { echo no such library >&2; exit 7; }
"#;

/// A bundle whose process reads what such a hook has made of its files, and what it mounts; the hook.
fn staged(bed: &Bed) -> Result<(PathBuf, PathBuf)> {
    let bundle = bundle(bed, "cat /tmp/libx.so; readlink /tmp/libx.so; cat /srv/given")?;
    fs::write(bundle.join("given"), "of the host\n")?;
    let hook = bundle.join("toolkit");
    fs::write(&hook, OF_NAMESPACES)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    spec["mounts"].as_array_mut().context("mounts")?.push(json!({
        "destination": "/srv/given", "type": "bind", "source": bundle.join("given"), "options": ["bind", "ro"],
    }));
    fs::write(&path, spec.to_string())?;
    Ok((bundle, hook))
}

fn a_hook_of_its_namespaces_changes_its_files(bed: &Bed) -> Result<()> {
    let (bundle, hook) = staged(bed)?;
    let (of_host, told) = self::hook(&bundle)?;
    let hooks = json!({
        "createRuntime": [{ "path": of_host, "args": ["hook", "first"] }],
        "createContainer": [
            { "path": hook, "timeout": 60 },
            { "path": of_host, "args": ["hook", "second"] },
        ],
    });
    let said = run(bed, &bundle, &hooks)?.success()?;
    same(&said, "of the host\nlibx.so.1\nof the host\n")?;
    same(&fs::read_to_string(told)?, "first creating\nsecond creating\n")
}

fn a_hook_of_its_namespaces_that_fails_leaves_nothing(bed: &Bed) -> Result<()> {
    let (bundle, hook) = staged(bed)?;
    let mounts = || -> Result<usize> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let of_ours = |line: &&str| line.contains(&*bundle.to_string_lossy());
        Ok(mounts.lines().filter(of_ours).count())
    };
    let before = mounts()?;
    let hooks = json!({ "createContainer": [{ "path": hook, "args": ["hook", "fail"] }] });
    has(&run(bed, &bundle, &hooks)?.failure()?, "no such library")?;
    ensure!(
        mounts()? == before,
        "{}",
        fs::read_to_string("/proc/self/mountinfo")?
    );
    let gone = runtime(bed).args(["state", &bed.name()]).output()?;
    has(&gone.failure()?, "does not exist")
}
