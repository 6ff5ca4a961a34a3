//! What can't work is refused: with the cause and the remedy, before anything is started, at once.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::configuration::Configuration;
use e2e::image;
use serde_json::{Value, json};

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::ours("configurations", configurations),
    Listed::ours("missing_parts", missing_parts),
    Listed::ours("specifications", specifications),
    Listed::both("names_of_containers", names_of_containers),
];

/// For a refusal, with everything that `ctr` and containerd do for it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Asks for a container, and looks whether the refusal comes at once and says all that is `wanted`.
fn refused(what: &str, wanted: &[&str], ask: impl Fn() -> Result<e2e::program::Output>) -> Result<()> {
    let mut fastest = Duration::MAX;
    // `ctr` and containerd take longer than we do to hand over megabytes.
    let limit = if what.contains("hundred thousand") {
        AT_ONCE * 3
    } else {
        AT_ONCE
    };
    // A machine that is busy with other virtual machines may be slow now and then.
    for _ in 0..5 {
        let output = ask()?;
        fastest = fastest.min(output.took);
        let shown = output.to_string();
        let error = output.failure().with_context(|| format!("{what} is taken"))?;
        for wanted in wanted {
            ensure!(error.contains(wanted), "{what}: {wanted:?} is not said: {shown}");
        }
        if fastest <= limit {
            return Ok(());
        }
    }
    anyhow::bail!("{what}: it took {:.1} s to say so", fastest.as_secs_f64());
}

/// A configuration that is wrong is quoted with file, line and key.
fn configurations(case: &mut Case<'_>) -> Result<()> {
    let path = case.path("configuration.toml");
    let file = path.display().to_string();
    let good = Configuration::new(case.target()).text();
    let with = |line: &str| good.replace("[agent.kata]\n", &format!("{line}\n[agent.kata]\n"));
    // The line that is added is the sixth, behind the table's head and the four keys of ours.
    for (what, text, line, wanted) in [
        (
            "text that is no TOML",
            "[hypervisor.qemu\n".to_owned(),
            ":1:",
            "TOML",
        ),
        ("an unknown key", with("no_such_key = 1"), ":6:", "no_such_key"),
        (
            "an unknown table",
            format!("{good}[no_such_table]\n"),
            ":",
            "no_such_table",
        ),
        (
            "a wrong type",
            with("default_vcpus = \"two\""),
            ":6:",
            "default_vcpus",
        ),
        (
            "a value out of range",
            with("default_memory = 1"),
            ":6:",
            "default_memory",
        ),
        (
            "an unknown machine",
            with("machine_type = \"pc\""),
            ":6:",
            "microvm",
        ),
        (
            "a key of Kata's",
            with("enable_hugepages = true"),
            ":6:",
            "enable_hugepages",
        ),
    ] {
        fs::write(&path, text)?;
        let place = format!("{file}{line}");
        refused(what, &[&place, wanted], || {
            case.run_configured(&path, &["--rm"], &case.id(), &["true"])
                .output()
        })?;
    }
    fs::remove_file(&path)?;
    let run = || {
        case.run_configured(&path, &["--rm"], &case.id(), &["true"])
            .output()
    };
    refused("a configuration that is not there", &[&file], run)
}

/// A part that is missing is named, with its path and the key that names it.
fn missing_parts(case: &mut Case<'_>) -> Result<()> {
    let path = case.path("configuration.toml");
    let empty = case.path("empty");
    fs::write(&empty, "")?;
    for key in ["kernel", "initrd", "path", "virtio_fs_daemon"] {
        for wrong in ["/nonexistent/part", &empty.display().to_string()] {
            Configuration::new(case.target())
                .hypervisor(key, wrong)
                .write(&path)?;
            let what = format!("{key} = {wrong}");
            refused(&what, &[wrong, key], || {
                case.run_configured(&path, &["--rm"], &case.id(), &["true"])
                    .output()
            })?;
        }
    }
    let key = "vhost_user_vsock_daemon";
    let missing = Configuration::new(case.target())
        .hypervisor(key, "/nonexistent/part")
        .agent("channel", "vhost-user-vsock");
    missing.write(&path)?;
    refused(key, &["/nonexistent/part"], || {
        case.run_configured(&path, &["--rm"], &case.id(), &["true"])
            .output()
    })
}

/// A specification that can't be met is refused before a machine is started for it.
fn specifications(case: &mut Case<'_>) -> Result<()> {
    let root = case.path("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(image::BUSYBOX_PROGRAM, root.join("bin/busybox"))?;
    let cycle = case.path("cycle");
    symlink(&cycle, &cycle)?;
    let good = specification(&root);
    let with = |pointer: &str, value: Value| {
        let mut spec = good.clone();
        if let Some(place) = spec.pointer_mut(pointer) {
            *place = value;
        }
        spec
    };
    let mount = json!({ "destination": "/tmp/m", "type": "tmpfs", "source": "tmpfs" });
    let path = case.path("config.json");
    let config = path.display().to_string();
    for (what, spec, wanted) in [
        ("no process", with("/process", Value::Null), &["process"][..]),
        ("no arguments", with("/process/args", json!([])), &["args"]),
        (
            "a relative directory",
            with("/process/cwd", json!("tmp")),
            &["cwd"],
        ),
        (
            "an unknown namespace",
            with("/linux/namespaces/0/type", json!("galaxy")),
            &["galaxy"],
        ),
        (
            "a root that is not there",
            with("/root/path", json!("/nonexistent/root")),
            &["/nonexistent/root"],
        ),
        (
            "a root that is a cycle",
            with("/root/path", json!(cycle)),
            &[cycle.to_str().unwrap_or_default()],
        ),
        (
            "a mount without a place",
            with("/mounts/0/destination", json!("")),
            &["destination"],
        ),
        (
            "a hundred thousand mounts",
            with("/mounts", json!(vec![mount; 100_000])),
            &["mounts"],
        ),
    ] {
        fs::write(&path, spec.to_string())?;
        refused(what, wanted, || {
            case.run_specification(&["--rm", "--config", &config], &case.id())
                .output()
        })?;
    }
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn specification(root: &Path) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root },
        "process": { "args": ["/bin/busybox", "true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
    })
}

/// Names that would leave their directory do not come far.
fn names_of_containers(case: &mut Case<'_>) -> Result<()> {
    let long = "x".repeat(200);
    for id in ["../escaped", "a/b", ".", "-x-", "a b", &long] {
        let run = || case.run(&["--rm"], id, &["true"]).output();
        refused(&format!("the name {id:?}"), &[], run)?;
    }
    Ok(())
}
