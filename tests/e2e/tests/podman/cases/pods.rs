//! Pods of podman: all their containers in one virtual machine.

use std::fs;

use anyhow::{Result, ensure};
use e2e::image;

use super::command::runtime;
use super::{cases, has, same};
use crate::bed::Bed;
use crate::suite::Runtime;

cases! {
    containers_of_a_pod_share_a_machine,
    containers_of_a_pod_share_the_network_and_not_the_files,
    a_container_of_a_pod_goes_and_another_comes,
    a_pod_is_stopped_and_started,
    members_that_nothing_holds_together_have_machines_of_their_own,
    figures_of_a_member_are_its_own,
}

fn pod(bed: &Bed) -> Result<(String, String, String)> {
    let (pod, one, two) = (bed.name(), bed.name(), bed.name());
    bed.pod(&pod)?;
    bed.in_pod(&pod, &one, &["sleep", "1000"])?;
    bed.in_pod(&pod, &two, &["sleep", "1000"])?;
    Ok((pod, one, two))
}

fn remove(bed: &Bed, pod: &str) -> Result<()> {
    bed.call(&["pod", "rm", "--force", "--time=0", pod]).map(drop)
}

fn containers_of_a_pod_share_a_machine(bed: &Bed) -> Result<()> {
    let (pod, one, two) = pod(bed)?;
    let machines = bed.machines()?;
    let expected = usize::from(bed.runtime() == Runtime::Kata);
    ensure!(
        machines == expected,
        "{machines} virtual machines instead of {expected}"
    );
    let boot = |name: &str| bed.sh(name, "cat /proc/sys/kernel/random/boot_id");
    same(&boot(&one)?, &boot(&two)?)?;
    remove(bed, &pod)
}

fn containers_of_a_pod_share_the_network_and_not_the_files(bed: &Bed) -> Result<()> {
    let (pod, one, two) = pod(bed)?;
    same(&bed.sh(&one, "hostname")?, &pod)?;
    same(&bed.sh(&two, "hostname")?, &pod)?;
    let script = "touch /mine; nc -l -p 7777";
    bed.call(&["exec", "--detach", &one, "sh", "-c", script])?;
    // A socket that listens, as everybody in that network sees it.
    bed.sh(
        &two,
        "until grep -q ':1E61 ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done",
    )?;
    bed.sh(&two, "! test -e /mine")?;
    remove(bed, &pod)
}

fn a_container_of_a_pod_goes_and_another_comes(bed: &Bed) -> Result<()> {
    let (pod, one, two) = pod(bed)?;
    bed.remove(&one)?;
    same(&bed.sh(&two, "echo still")?, "still")?;
    let three = bed.name();
    bed.in_pod(&pod, &three, &["sleep", "1000"])?;
    same(&bed.sh(&three, "echo here")?, "here")?;
    remove(bed, &pod)
}

fn a_pod_is_stopped_and_started(bed: &Bed) -> Result<()> {
    let (pod, one, two) = pod(bed)?;
    bed.call(&["pod", "stop", "--time=1", &pod])?;
    same(&bed.inspect(&one, ".State.Status")?, "exited")?;
    ensure!(bed.machines()? == 0, "the virtual machine still runs");
    bed.call(&["pod", "start", &pod])?;
    same(&bed.sh(&two, "echo again")?, "again")?;
    remove(bed, &pod)
}

fn members_that_nothing_holds_together_have_machines_of_their_own(bed: &Bed) -> Result<()> {
    let (pod, one, two) = (bed.name(), bed.name(), bed.name());
    bed.pod_with(&pod, &["--infra=false"])?;
    for name in [&one, &two] {
        let words = [
            "run",
            "--detach",
            "--network=none",
            "--pod",
            &pod,
            "--name",
            name,
            image::BUSYBOX,
        ];
        bed.podman(words, ["sleep", "1000"]).output()?.success()?;
    }
    if bed.runtime() == Runtime::Kata {
        let machines = bed.machines()?;
        ensure!(machines == 2, "{machines} virtual machines for two members");
    }
    bed.remove(&one)?;
    same(&bed.sh(&two, "echo still")?, "still")?;
    remove(bed, &pod)
}

fn figures_of_a_member_are_its_own(bed: &Bed) -> Result<()> {
    let (pod, one, two) = pod(bed)?;
    bed.call(&["exec", "--detach", &one, "sleep", "1000"])?;
    for (name, processes) in [(&one, "2"), (&two, "1")] {
        let pid = bed.pid(name)?;
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        has(&cgroup, &format!("/libpod-{}", bed.inspect(name, ".Id")?))?;
        // On the host the machine counts as the pod's first container: so it does not count twice.
        let told = bed.call(&["stats", "--no-stream", "--format={{.PIDs}}", name])?;
        same(&told, processes)?;
        let id = bed.inspect(name, ".Id")?;
        let event: serde_json::Value =
            serde_json::from_str(&runtime(bed).args(["events", "--stats", &id]).read()?)?;
        same(&event["data"]["pids"]["current"].to_string(), processes)?;
    }
    remove(bed, &pod)
}
