//! Limits and privileges.

use anyhow::{Result, ensure};

use super::{cases, same};
use crate::bed::Bed;

cases! {
    memory_is_limited,
    who_takes_too_much_memory_is_killed,
    processors_are_limited,
    processes_are_limited,
    capabilities_are_dropped,
    a_resource_limit_is_set,
    a_sysctl_is_set,
}

/// A file of the container's cgroup, whichever version it is.
fn limit(bed: &Bed, option: &str, v2: &str, v1: &str) -> Result<String> {
    let script = format!("cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}");
    let said = bed.run(&["--rm", option], &["sh", "-c", &script])?.success()?;
    Ok(said.trim().to_owned())
}

fn memory_is_limited(bed: &Bed) -> Result<()> {
    let said = limit(bed, "--memory=64m", "memory.max", "memory/memory.limit_in_bytes")?;
    same(&said, "67108864")
}

fn who_takes_too_much_memory_is_killed(bed: &Bed) -> Result<()> {
    let script = "x=1234567890123456; while :; do x=$x$x; done";
    let name = bed.background(&["--memory=32m", "--memory-swap=32m"], &["sh", "-c", script])?;
    same(&bed.call(&["wait", &name])?, "137")?;
    bed.remove(&name)
}

fn processors_are_limited(bed: &Bed) -> Result<()> {
    let script = "cat /sys/fs/cgroup/cpu.max 2>/dev/null || echo $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us) \
                  $(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us)";
    let said = bed
        .run(&["--rm", "--cpus=0.5"], &["sh", "-c", script])?
        .success()?;
    same(said.trim(), "50000 100000")
}

fn processes_are_limited(bed: &Bed) -> Result<()> {
    same(&limit(bed, "--pids-limit=77", "pids.max", "pids/pids.max")?, "77")
}

fn capabilities_are_dropped(bed: &Bed) -> Result<()> {
    let script = "grep CapEff /proc/self/status | cut -f2";
    let all = bed.run(&["--rm"], &["sh", "-c", script])?.success()?;
    let none = bed
        .run(&["--rm", "--cap-drop=all"], &["sh", "-c", script])?
        .success()?;
    same(none.trim(), "0000000000000000")?;
    ensure!(all != none, "it had none before");
    Ok(())
}

fn a_resource_limit_is_set(bed: &Bed) -> Result<()> {
    let said = bed.run(
        &["--rm", "--ulimit=nofile=321:321", "--ulimit=nproc=1000:1000"],
        &["sh", "-c", "ulimit -n"],
    )?;
    same(&said.success()?, "321\n")
}

fn a_sysctl_is_set(bed: &Bed) -> Result<()> {
    let said = bed.run(
        &["--rm", "--sysctl=kernel.msgmax=4321"],
        &["cat", "/proc/sys/kernel/msgmax"],
    )?;
    same(&said.success()?, "4321\n")
}
