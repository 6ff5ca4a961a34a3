//! Limits, and what comes of them.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};

use super::{chapter, processor_time, same};
use crate::bed::Bed;
use crate::container::{Container, ContainerSpec};
use crate::pod::{Pod, PodSpec};

chapter!("resources":
    a_memory_limit,
    out_of_memory,
    out_of_memory_of_a_child,
    memory_is_updated,
    a_share_of_the_processors,
    a_quota_of_processors,
    a_quota_is_updated,
    a_set_of_processors,
    a_limit_of_processes(Kata: "the host's cgroups, which runc uses, are of version 1 and have no unified keys"),
    limits_of_the_pod,
    a_machine_grows_with_its_containers(Kata: "runc has no machine"),
    a_machine_keeps_its_size_unless_it_is_to_grow(Kata: "runc has no machine"),
);

const MIB: i64 = 1 << 20;

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("resources", |spec| spec)
}

/// Reads a setting of the container's cgroup: of version 2 in a guest, and of version 1 on the machines of the tests.
fn setting(container: &Container, v2: &str, v1: &str) -> Result<String> {
    container.sh(&format!(
        "cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}"
    ))
}

fn limited(mebibytes: i64, spec: ContainerSpec) -> ContainerSpec {
    spec.resources(|resources| resources.memory_limit_in_bytes = mebibytes * MIB)
}

/// Touches this much memory.
fn touch(mebibytes: u32) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1 2>/dev/null")
}

fn end(container: &Container) -> Result<()> {
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn a_memory_limit(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(limited(64, ContainerSpec::idle()))?;
    same(
        &setting(&container, "memory.max", "memory/memory.limit_in_bytes")?,
        &(64 * MIB).to_string(),
    )?;
    end(&container)
}

fn out_of_memory(bed: &mut Bed) -> Result<()> {
    let ended = pod(bed)?.ends(limited(48, ContainerSpec::script(&format!("exec {}", touch(96)))))?;
    ensure!(ended.code() == 137, "{ended:?}");
    same(&ended.status.reason, "OOMKilled")
}

fn out_of_memory_of_a_child(bed: &mut Bed) -> Result<()> {
    // The container goes on; that a program of it was killed is its own business.
    let script = format!("{}; echo $?", touch(96));
    let ended = pod(bed)?.ends(limited(48, ContainerSpec::script(&script)))?;
    same(&ended.stdout, "137\n")?;
    ensure!(ended.code() == 0, "{ended:?}");
    Ok(())
}

fn update(pod: &Pod, container: &Container, change: impl FnOnce(&mut LinuxContainerResources)) -> Result<()> {
    let mut resources = LinuxContainerResources::default();
    change(&mut resources);
    let request = UpdateContainerResourcesRequest {
        container_id: container.id().into(),
        linux: Some(resources),
        ..Default::default()
    };
    pod.world()
        .cri
        .call("UpdateContainerResources", async move |mut client| {
            client.update_container_resources(request).await
        })
        .map(drop)
}

fn memory_is_updated(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let container = pod.start(limited(48, ContainerSpec::idle()))?;
    let code = |container: &Container| anyhow::Ok(container.exec(&["sh", "-c", &touch(96)])?.code);
    ensure!(code(&container)? == 137, "more than the limit was to be had");
    update(&pod, &container, |resources| {
        resources.memory_limit_in_bytes = 160 * MIB
    })?;
    same(
        &setting(&container, "memory.max", "memory/memory.limit_in_bytes")?,
        &(160 * MIB).to_string(),
    )?;
    ensure!(code(&container)? == 0, "the new limit is not in force");
    end(&container)
}

fn a_share_of_the_processors(bed: &mut Bed) -> Result<()> {
    let container =
        pod(bed)?.start(ContainerSpec::idle().resources(|resources| resources.cpu_shares = 512))?;
    let share = setting(&container, "cpu.weight", "cpu/cpu.shares")?;
    // 512 of 2..262144 is 20 of 1..10000 where one is a line over the other; newer engines have a curve on which the
    // defaults of both (1024 and 100) meet, and there it is 59.
    ensure!(["512", "20", "59"].contains(&&*share), "{share}");
    end(&container)
}

/// The percentage of one processor that a busy loop gets.
fn busy(container: &Container) -> Result<u128> {
    let begin = Instant::now();
    let worked = processor_time(container, "timeout 3 sh -c 'while :; do :; done'")?;
    Ok(100 * worked.as_nanos() / begin.elapsed().as_nanos())
}

fn a_quota_of_processors(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(ContainerSpec::idle().resources(|resources| {
        resources.cpu_period = 100_000;
        resources.cpu_quota = 20_000;
    }))?;
    let got = busy(&container)?;
    ensure!(
        (10..=25).contains(&got),
        "a container with 20 % of a processor got {got} %"
    );
    end(&container)
}

fn a_quota_is_updated(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let container = pod.start(ContainerSpec::idle())?;
    update(&pod, &container, |resources| {
        resources.cpu_period = 50_000;
        resources.cpu_quota = 10_000;
    })?;
    let got = busy(&container)?;
    ensure!(
        (10..=25).contains(&got),
        "a container with 20 % of a processor got {got} %"
    );
    end(&container)
}

fn a_set_of_processors(bed: &mut Bed) -> Result<()> {
    let spec = ContainerSpec::script("nproc; sed -n 's/^Cpus_allowed_list:\\t//p' /proc/self/status");
    same(
        &pod(bed)?.output(spec.resources(|resources| resources.cpuset_cpus = "0".into()))?,
        "1\n0",
    )
}

fn a_limit_of_processes(bed: &mut Bed) -> Result<()> {
    let spec = ContainerSpec::idle().resources(|resources| {
        resources.unified.insert("pids.max".into(), "12".into());
    });
    let container = pod(bed)?.start(spec)?;
    same(&container.sh("cat /sys/fs/cgroup/pids.max")?, "12")?;
    let tried = container.exec(&["sh", "-c", "for i in $(seq 20); do sleep 1 & done; wait"])?;
    ensure!(tried.stderr.contains("can't fork"), "{tried:?}");
    end(&container)
}

fn limits_of_the_pod(bed: &mut Bed) -> Result<()> {
    // The sum of its containers' limits, as the kubelet tells it; a VM is made for that.
    let pod = bed.fresh(PodSpec::new("limited").linux(|linux| {
        let resources = linux.resources.get_or_insert_default();
        resources.cpu_period = 100_000;
        resources.cpu_quota = 200_000;
        resources.memory_limit_in_bytes = 256 * MIB;
    }))?;
    let said = pod.output(ContainerSpec::script(
        "nproc; awk '/^MemTotal/ { print $2 }' /proc/meminfo",
    ))?;
    let (processors, memory) = said.split_once('\n').context("two lines")?;
    let host = fs::read_to_string("/proc/cpuinfo")?
        .matches("processor\t")
        .count();
    ensure!(processors.parse::<usize>()? >= host.min(2), "{said}");
    // Of a VM some is the kernel's.
    ensure!(memory.parse::<i64>()? * 1024 >= 230 * MIB, "{said}");
    pod.remove()
}

/// A pod with a machine of 1 vCPU and 256 MiB.
fn small(name: &str) -> PodSpec {
    PodSpec::new(name).annotation("io.katacontainers.config.hypervisor.default_memory", "256")
}

/// Processors, and memory in MiB, as a container sees them.
fn machine(container: &Container) -> Result<(u32, i64)> {
    let told = container.sh("nproc; sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
    let (processors, kib) = told.split_once('\n').context("two lines")?;
    Ok((processors.parse()?, kib.trim().parse::<i64>()? >> 10))
}

fn a_processor_and(mebibytes: i64) -> impl FnOnce(&mut LinuxContainerResources) {
    move |resources| {
        resources.cpu_period = 100_000;
        resources.cpu_quota = 100_000;
        resources.memory_limit_in_bytes = mebibytes * MIB;
    }
}

fn a_machine_grows_with_its_containers(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(small("grows").annotation(
        "io.katacontainers.config.runtime.static_sandbox_resource_mgmt",
        "false",
    ))?;
    let first = pod.start(ContainerSpec::idle())?;
    let (processors, memory) = machine(&first)?;
    ensure!(processors == 1 && memory < 256, "{processors}, {memory} MiB");

    update(&pod, &first, a_processor_and(384))?;
    let (processors, grown) = machine(&first)?;
    ensure!(
        processors == 2 && grown == memory + 384,
        "{processors}, {memory} and then {grown} MiB"
    );
    same(&setting(&first, "memory.max", "")?, &(384 * MIB).to_string())?;

    // One more container brings what it may use. There is no third processor: the host has two.
    let second = pod.start(ContainerSpec::idle().resources(a_processor_and(128)))?;
    let (processors, grown) = machine(&second)?;
    ensure!(
        processors == 2 && grown == memory + 512,
        "{processors}, {memory} and then {grown} MiB"
    );

    // More than the machine had at first, through the daemon that serves its files: it has to see what was added. What was
    // written stays in the guest's memory.
    first.sh("dd if=/dev/urandom of=/end bs=1M count=1 2>/dev/null")?;
    for file in ["/first", "/second"] {
        first.sh(&format!(
            "{{ dd if=/dev/zero bs=1M count=130 2>/dev/null; cat /end; }} >{file}"
        ))?;
    }
    let ends =
        first.sh("for file in /first /second; do tail -c 1048576 $file | cmp - /end && echo same; done")?;
    same(&ends, "same\nsame")?;
    // The chapter's own pod is still there.
    pod.remove()
}

fn a_machine_keeps_its_size_unless_it_is_to_grow(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(small("stays"))?;
    let container = pod.start(ContainerSpec::idle())?;
    let before = machine(&container)?;
    update(&pod, &container, a_processor_and(384))?;
    ensure!(
        machine(&container)? == before,
        "{before:?} and then {:?}",
        machine(&container)?
    );
    same(&setting(&container, "memory.max", "")?, &(384 * MIB).to_string())?;
    pod.remove()
}
