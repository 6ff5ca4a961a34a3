//! Proof that the tests themselves can fail: what is left behind is found, whatever it is.

use std::fs;
use std::os::unix::net::UnixListener;

use anyhow::{Result, ensure};
use e2e::program::Program;

use super::Listed;
use crate::bed::{Case, Runtime};

pub const CASES: &[Listed] = &[Listed {
    runtimes: &[Runtime::Runc],
    ..Listed::both("what_is_left_is_found", what_is_left_is_found)
}];

/// One thing of each kind is left, found, and taken away.
fn what_is_left_is_found(case: &mut Case<'_>) -> Result<()> {
    ensure!(case.left()?.is_empty(), "this begins with {:?}", case.left()?);
    let tag = case.containerd().namespace().to_owned();
    let cgroup = format!(
        "/sys/fs/cgroup/{}/{tag}/left",
        if is_version_2() { "." } else { "pids" }
    );
    let process = Program::new("sleep").args(["1000"]).start()?;
    let _listener = UnixListener::bind("/run/left.sock")?;
    fs::write("/dev/shm/left", "")?;
    fs::create_dir_all("/run/kata/left")?;
    fs::create_dir_all(&cgroup)?;
    for command in [
        "mkdir /run/left && mount -t tmpfs left /run/left",
        "ip netns add left",
        "ip link add left type dummy || ip link add left type bridge || ip tuntap add left mode tap",
    ] {
        Program::new("sh").args(["-c", command]).read()?;
    }

    let left = case.left()?;
    for wanted in [
        "(sleep, ",
        "socket /run/left.sock",
        "file /run/left.sock",
        "file /dev/shm/left",
        "file /run/kata/left",
        "file /run/netns/left",
        "/run/left rw",
        &format!("cgroup {cgroup}").replace("/./", "/"),
        "network interface left",
    ] {
        ensure!(
            left.iter().any(|thing| thing.contains(wanted)),
            "{wanted} is not found: {left:#?}"
        );
    }

    drop(process);
    drop(_listener);
    for command in [
        "umount /run/left",
        "ip netns delete left",
        "ip link delete left",
        "umount /run/netns || true",
    ] {
        Program::new("sh").args(["-c", command]).read()?;
    }
    fs::remove_dir(&cgroup)?;
    fs::remove_dir("/run/left")?;
    // Where `mount` keeps its own records.
    let _ = fs::remove_dir_all("/run/mount");
    fs::remove_dir("/run/kata/left")?;
    fs::remove_file("/run/left.sock")?;
    fs::remove_file("/dev/shm/left")?;
    Ok(())
}

/// Whether this machine has version 2 of cgroups alone.
fn is_version_2() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false)
}
