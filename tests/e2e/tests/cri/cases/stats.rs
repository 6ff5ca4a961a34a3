//! Statistics, held against a load that is known: within 10 %.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::census::Process;
use e2e::{deadlines, wait};
use k8s_cri::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ListContainerStatsRequest,
    ListPodSandboxStatsRequest, PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, UInt64Value,
};

use super::{chapter, processor_time, same, told_by_times};
use crate::bed::Bed;
use crate::container::{Container, ContainerSpec};
use crate::pod::Pod;
use crate::stream::Session;
use crate::suite::Runtime;

chapter!("stats":
    processor_time_of_a_container,
    memory_of_a_container,
    written_files_of_a_container,
    whom_they_are_of,
    a_list_of_them,
    of_a_pod,
    network_of_a_pod,
);

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("stats", |spec| spec)
}

fn stats(pod: &Pod, container: &Container) -> Result<ContainerStats> {
    let request = ContainerStatsRequest {
        container_id: container.id().into(),
    };
    let answer = pod.world().cri.call("ContainerStats", async move |mut client| {
        client.container_stats(request).await
    })?;
    answer.stats.context("a container has statistics")
}

fn pod_stats(pod: &Pod) -> Result<PodSandboxStats> {
    let request = PodSandboxStatsRequest {
        pod_sandbox_id: pod.id().into(),
    };
    let answer = pod.world().cri.call("PodSandboxStats", async move |mut client| {
        client.pod_sandbox_stats(request).await
    })?;
    answer.stats.context("a pod has statistics")
}

fn value(value: Option<UInt64Value>) -> u64 {
    value.unwrap_or_default().value
}

fn processor(stats: &ContainerStats) -> u64 {
    value(stats.cpu.unwrap_or_default().usage_core_nano_seconds)
}

fn memory(stats: &ContainerStats) -> u64 {
    value(stats.memory.unwrap_or_default().working_set_bytes)
}

/// Checks that a number is as expected within 10 %.
fn near(what: &str, got: u64, expected: u64) -> Result<()> {
    ensure!(
        got.abs_diff(expected) <= expected / 10,
        "{what}: {got} instead of {expected}"
    );
    Ok(())
}

/// Work for about 3 s of the container's clock.
const WORK: &str = "timeout 3 sh -c 'while :; do :; done'";

fn processor_time_of_a_container(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let shell = pod.shell()?;
    // Figures are read while the worker waits: how it gets there, and how it ends, is work as well, and of which process is nobody's
    // promise; on a busy host that was a tenth.
    let script = format!("times; echo ready; read go; {WORK}; times; echo worked; read end");
    let mut worker = Session::exec(&pod, &shell, &["sh", "-c", &script], false)?;
    worker.wait_for("ready\n")?;
    let before = processor(&stats(&pod, &shell)?);
    worker.write(b"go\n")?;
    worker.wait_for("worked\n")?;
    let after = processor(&stats(&pod, &shell)?);
    worker.write(b"end\n")?;
    let said = worker.end()?.stdout;
    let (waited, worked) = said
        .trim_end_matches("worked\n")
        .split_once("ready\n")
        .with_context(|| said.clone())?;
    let worked = told_by_times(worked)?.saturating_sub(told_by_times(waited)?);
    near("processor time", after - before, worked.as_nanos().try_into()?)
}

fn memory_of_a_container(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let container = pod.start(ContainerSpec::idle())?;
    let before = memory(&stats(&pod, &container)?);
    container.sh("dd if=/dev/zero of=/dev/shm/load bs=1M count=48 2>/dev/null")?;
    let loaded = memory(&stats(&pod, &container)?);
    near("memory", loaded - before, 48 << 20)?;
    container.sh("rm /dev/shm/load")?;
    let freed = memory(&stats(&pod, &container)?);
    ensure!(freed < before + (5 << 20), "{before} before, {freed} after");
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn written_files_of_a_container(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let container = pod.start(ContainerSpec::script(
        "dd if=/dev/zero of=/load bs=1M count=12; sync; exec sleep 100000",
    ))?;
    // containerd looks once in a second.
    let mut used = 0;
    let seen = wait::until("the files are counted", deadlines::PROGRESS, || {
        used = value(
            stats(&pod, &container)?
                .writable_layer
                .unwrap_or_default()
                .used_bytes,
        );
        Ok((used.abs_diff(12 << 20) < 12 << 20 >> 3).then_some(()))
    });
    seen.with_context(|| format!("{used} bytes"))?;
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn whom_they_are_of(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let container = pod.start(ContainerSpec::idle().with(|config| {
        config.labels.insert("e2e".into(), "stats".into());
    }))?;
    let stats = stats(&pod, &container)?;
    let attributes = stats.attributes.clone().unwrap_or_default();
    same(&attributes.id, container.id())?;
    same(&attributes.labels["e2e"], "stats")?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_nanos();
    let then = stats.cpu.unwrap_or_default().timestamp;
    ensure!(
        now.abs_diff(u128::try_from(then)?) < 10_000_000_000,
        "{then} at {now}"
    );
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn a_list_of_them(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let containers = [
        pod.start(ContainerSpec::idle())?,
        pod.start(ContainerSpec::idle())?,
    ];
    let request = ListContainerStatsRequest {
        filter: Some(ContainerStatsFilter {
            pod_sandbox_id: pod.id().into(),
            ..Default::default()
        }),
    };
    let answer = bed
        .world
        .cri
        .call("ListContainerStats", async move |mut client| {
            client.list_container_stats(request).await
        })?;
    for container in &containers {
        let of = |stats: &&ContainerStats| {
            stats
                .attributes
                .as_ref()
                .is_some_and(|attributes| attributes.id == container.id())
        };
        let stats = answer
            .stats
            .iter()
            .find(of)
            .context("a container is not in the list")?;
        ensure!(processor(stats) > 0 && memory(stats) > 0, "{stats:?}");
    }
    for container in containers {
        container.stop(Duration::ZERO)?;
        container.remove()?;
    }
    Ok(())
}

/// What the processes of a pod's virtual machine, its daemons included, have had of the host's processors, in nanoseconds.
fn time_of_its_machine(pod: &Pod) -> Result<u64> {
    let is_of_it = |process: &Process| {
        let names_it = process.command.iter().any(|word| word.contains(pod.id()));
        names_it && !process.name.starts_with("containerd-shim")
    };
    let mut ticks = 0;
    for process in e2e::census::processes()?.into_iter().filter(is_of_it) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
        // After the name, which may have blanks: fields 14 and 15 of the line, in hundredths of a second.
        let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
        let used: Vec<u64> = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        ticks += used.iter().sum::<u64>();
    }
    ensure!(ticks > 0, "the pod has no machine, or one that never ran");
    Ok(ticks * 10_000_000)
}

fn of_a_pod(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let shell = pod.shell()?;
    let read = |pod: &Pod| {
        let stats = pod_stats(pod)?.linux.context("statistics of Linux")?;
        let processor = value(stats.cpu.unwrap_or_default().usage_core_nano_seconds);
        let memory = value(stats.memory.unwrap_or_default().working_set_bytes);
        anyhow::Ok((processor, memory, stats))
    };
    let (processor, memory, _) = read(&pod)?;
    let machine = match bed.runtime() {
        Runtime::Runc => None,
        Runtime::Kata => Some(time_of_its_machine(&pod)?),
    };
    let worked = u64::try_from(processor_time(&shell, WORK)?.as_nanos())?;
    shell.sh("dd if=/dev/zero of=/dev/shm/load bs=1M count=48 2>/dev/null")?;
    let (worked_after, loaded, stats) = read(&pod)?;
    let pods = worked_after - processor;
    match machine {
        // It is at least what its containers did.
        None => ensure!(pods >= worked / 10 * 9, "{pods} of {worked}"),
        // A guest counts as worked what its host has given to others meanwhile: the host's own figures are the measure.
        Some(before) => near(
            "processor time of a pod",
            pods,
            time_of_its_machine(&pod)? - before,
        )?,
    }
    shell.sh("rm /dev/shm/load")?;
    match bed.runtime() {
        Runtime::Runc => ensure!(loaded - memory >= 43 << 20, "{memory} before, {loaded} after"),
        // The host sees what a guest has ever touched: of a load, what does not fit into pages that it has freed.
        Runtime::Kata => ensure!(loaded >= memory.max(48 << 20), "{memory} before, {loaded} after"),
    }
    let of = |stats: &ContainerStats| {
        stats
            .attributes
            .as_ref()
            .is_some_and(|attributes| attributes.id == shell.id())
    };
    ensure!(
        stats.containers.iter().any(of),
        "a container is not among the pod's: {stats:?}"
    );
    let processes = value(stats.process.unwrap_or_default().process_count);
    ensure!(processes >= 1, "{processes} processes");

    let request = ListPodSandboxStatsRequest {
        filter: Some(PodSandboxStatsFilter {
            id: pod.id().into(),
            ..Default::default()
        }),
    };
    let list = bed
        .world
        .cri
        .call("ListPodSandboxStats", async move |mut client| {
            client.list_pod_sandbox_stats(request).await
        })?;
    ensure!(list.stats.len() == 1, "{list:?}");
    Ok(())
}

fn network_of_a_pod(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let read = |pod: &Pod| {
        let network = pod_stats(pod)?
            .linux
            .and_then(|linux| linux.network)
            .context("a network")?;
        let interface = network.default_interface.context("an interface")?;
        anyhow::Ok((value(interface.rx_bytes), value(interface.tx_bytes)))
    };
    let server = pod.start(ContainerSpec::script(
        "nc -ll -p 7002 -e sh -c 'head -c 4194304 | wc -c'",
    ))?;
    let (received, sent) = read(&pod)?;
    crate::network::send(&pod.address()?, 7002, &vec![7; 4 << 20], b"4194304\n")?;
    let (received_after, sent_after) = read(&pod)?;
    // Headers are a few percent.
    near("bytes received", received_after - received, 4 << 20)?;
    ensure!(
        sent_after > sent && sent_after - sent < 1 << 20,
        "{} bytes sent",
        sent_after - sent
    );
    server.stop(Duration::ZERO)?;
    server.remove()
}
