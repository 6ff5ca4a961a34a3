//! What a pod needs is taken away from it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{deadlines, wait};
use k8s_cri::v1::{ContainerState, PodSandboxStatusRequest, StatusRequest};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::cri::refusal;
use crate::pod::{Pod, PodSpec};
use crate::suite::Runtime;

chapter!("faults":
    the_sandbox_is_killed,
    the_monitor_is_killed(Kata: "runc's containers outlive the pod's first one; a VM's can't outlive the VM"),
    the_shim_is_killed,
    containerd_is_killed,
    the_network_namespace_vanishes,
    a_network_that_fails,
);

/// The process that stands for a pod: of a VM its monitor, else its first container's.
fn process(pod: &Pod) -> Result<Pid> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.id().into(),
        verbose: true,
    };
    let answer = pod
        .world()
        .cri
        .call("PodSandboxStatus", async move |mut client| {
            client.pod_sandbox_status(request).await
        })?;
    let info: Value = serde_json::from_str(&answer.info["info"])?;
    let pid = info["pid"].as_i64().context("a pod has a process")?;
    Pid::from_raw(pid.try_into()?).context("a process has a positive id")
}

fn not_ready(pod: &Pod) -> Result<()> {
    wait::until("the pod is not ready", deadlines::GONE, || {
        Ok((!pod.is_ready()?).then_some(()))
    })
}

fn the_sandbox_is_killed(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("killed"))?;
    let container = pod.start(ContainerSpec::idle())?;
    kill_process(process(&pod)?, Signal::KILL)?;
    not_ready(&pod)?;
    container.stop(Duration::ZERO)?;
    // What has ended already is stopped at once; that it has ended containerd may still have to hear.
    container.wait_for(ContainerState::ContainerExited, deadlines::GONE)?;
    container.remove()?;
    pod.remove()?;
    bed.nothing_left()
}

fn the_monitor_is_killed(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("vm-killed"))?;
    let containers = [
        pod.start(ContainerSpec::idle())?,
        pod.start(ContainerSpec::idle())?,
    ];
    kill_process(process(&pod)?, Signal::KILL)?;
    for container in &containers {
        let status = container.wait_for(ContainerState::ContainerExited, deadlines::GONE)?;
        ensure!(status.exit_code == 137 || status.exit_code == 255, "{status:?}");
    }
    not_ready(&pod)?;
    pod.remove()?;
    bed.nothing_left()
}

fn the_shim_is_killed(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("shim-killed"))?;
    let container = pod.start(ContainerSpec::idle())?;
    let shims: Vec<_> = e2e::census::processes()?
        .into_iter()
        .filter(|process| {
            process.name.starts_with("containerd-shim") && process.command.iter().any(|word| word == pod.id())
        })
        .collect();
    ensure!(!shims.is_empty(), "the pod has no shim");
    for shim in shims {
        kill_process(
            Pid::from_raw(shim.pid).context("a process has a positive id")?,
            Signal::KILL,
        )?;
    }
    let status = container.wait_for(ContainerState::ContainerExited, deadlines::GONE)?;
    ensure!(status.exit_code == 137 || status.exit_code == 255, "{status:?}");
    not_ready(&pod)?;
    pod.remove()?;
    match bed.runtime() {
        // runc's shim leaves its socket.
        Runtime::Runc => bed.nothing_left_but(&["file /run/containerd/s/"]),
        Runtime::Kata => bed.nothing_left(),
    }
}

fn containerd_is_killed(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("survives"))?;
    let script = "echo before; while ! test -e /go; do sleep 0.1; done; echo after; exit 6";
    let container = pod.start(ContainerSpec::script(script))?;
    container.wait_for_output("before")?;
    {
        let mut containerd = bed.world.containerd();
        containerd.kill();
        containerd.start_again()?;
    }
    bed.world.wait_until_ready()?;
    ensure!(pod.is_ready()?, "the pod was lost");
    let status = container.status()?;
    ensure!(status.state() == ContainerState::ContainerRunning, "{status:?}");
    container.exec(&["touch", "/go"])?;
    let ended = container.wait()?;
    ensure!(ended.code() == 6, "{ended:?}");
    same(&ended.stdout, "before\nafter\n")?;
    same(&pod.output(ContainerSpec::script("echo new"))?, "new")?;
    pod.remove()?;
    bed.nothing_left()
}

fn the_network_namespace_vanishes(bed: &mut Bed) -> Result<()> {
    let known = namespaces()?;
    let pod = bed.fresh(PodSpec::new("vanishes"))?;
    let own = namespaces()?.into_iter().find(|name| !known.contains(name));
    let path = Path::new("/run/netns").join(own.context("a pod has a network namespace")?);
    unmount(&path, UnmountFlags::DETACH).context("unmount a network namespace")?;
    fs::remove_file(&path)?;
    same(&pod.output(ContainerSpec::script("echo goes on"))?, "goes on")?;
    pod.remove()?;
    // The bridge's plugin does not find its own rules without the namespace.
    bed.nothing_left_but(&[
        "tables-save: -A CNI-",
        "tables-save: :CNI-",
        "tables-save: -A POSTROUTING",
    ])
}

fn namespaces() -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir("/run/netns").context("read /run/netns")?;
    entries.map(|entry| Ok(entry?.file_name())).collect()
}

/// Waits until containerd has read a configuration of the network that is as wanted.
fn wait_for_network(bed: &Bed, wanted: impl Fn(&str) -> bool) -> Result<()> {
    wait::until(
        "containerd reads the network's configuration",
        deadlines::GONE,
        || {
            let request = StatusRequest { verbose: true };
            let answer = bed
                .world
                .cri
                .call("Status", async move |mut client| client.status(request).await)?;
            Ok(answer
                .info
                .get("cniconfig")
                .is_some_and(|text| wanted(text))
                .then_some(()))
        },
    )
}

fn a_network_that_fails(bed: &mut Bed) -> Result<()> {
    // The bridge and its addresses are made first; what fails is the port, with a rule that iptables does not understand.
    const WRONG: &str = "--no-such-condition";
    let path = bed.world.inside.directory.join("cni/10-pods.conflist");
    let good = fs::read_to_string(&path)?;
    let mut list: Value = serde_json::from_str(&good)?;
    list["plugins"][1]["conditionsV4"] = json!([WRONG]);
    // As a whole, so that containerd does not read a part of it.
    let write = |text: &str| {
        let fresh = path.with_extension("fresh");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &path)
    };
    write(&list.to_string())?;
    let refused = wait_for_network(bed, |text| text.contains(WRONG))
        .and_then(|()| refusal(bed.fresh(PodSpec::new("unconnected").port(80, 7090))));
    write(&good)?;
    wait_for_network(bed, |text| !text.contains(WRONG))?;
    refused?.says(WRONG)?;
    bed.nothing_left()
}
