//! Many pods, and many containers of one.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::pod::{Pod, PodSpec};

chapter!("many":
    eight_pods_at_once,
    twenty_pods_in_a_row,
    five_containers_of_a_pod,
    five_containers_cost_little(Kata: "what is dear of a pod is its VM, and runc has none"),
);

fn eight_pods_at_once(bed: &mut Bed) -> Result<()> {
    let (world, runtime) = (&bed.world, bed.runtime());
    thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || {
                    let name = format!("many-{number}");
                    let pod = Pod::run(world, runtime, PodSpec::new(&name))?;
                    same(&pod.output(ContainerSpec::script("hostname"))?, &name)?;
                    let address = pod.address()?;
                    let seen = pod.output(ContainerSpec::script("ip -o -4 addr show dev eth0"))?;
                    ensure!(seen.contains(&format!("inet {address}/")), "{address}: {seen}");
                    pod.remove()
                })
            })
            .collect();
        for run in runs {
            run.join().map_err(|_| anyhow!("a thread has panicked"))??;
        }
        anyhow::Ok(())
    })?;
    bed.nothing_left()
}

/// The memory of a process that is its own, in KiB.
fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let word = line.and_then(|line| line.split_whitespace().next());
    Ok(word.context("a process has memory")?.parse()?)
}

fn twenty_pods_in_a_row(bed: &mut Bed) -> Result<()> {
    let pid = bed.world.containerd().pid().context("containerd runs")?;
    let mut at_half = 0;
    for number in 0..20 {
        if number == 10 {
            at_half = memory(pid)?;
        }
        let pod = bed.fresh(PodSpec::new("one-of-twenty"))?;
        same(&pod.output(ContainerSpec::script("echo fine"))?, "fine")?;
        pod.remove()?;
    }
    bed.nothing_left()?;
    // What it takes once it does take; after ten pods that has been.
    let grown = memory(pid)?.saturating_sub(at_half);
    ensure!(
        grown < 8 << 10,
        "containerd has grown by {grown} KiB, from {at_half}, with ten pods"
    );
    Ok(())
}

fn five_containers_of_a_pod(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("five"))?;
    let containers = (0..5)
        .map(|number| {
            pod.start(ContainerSpec::idle().with(|config| {
                config.envs.push(k8s_cri::v1::KeyValue {
                    key: "NUMBER".into(),
                    value: number.to_string(),
                });
            }))
        })
        .collect::<Result<Vec<_>>>()?;
    for (number, container) in containers.iter().enumerate() {
        same(
            &container.sh("echo $NUMBER; ps | grep -c '[s]leep'")?,
            &format!("{number}\n1"),
        )?;
    }
    // In an order of its own.
    for number in [2, 0, 4, 1, 3] {
        containers[number].stop(Duration::ZERO)?;
        containers[number].remove()?;
    }
    pod.remove()
}

fn five_containers_cost_little(bed: &mut Bed) -> Result<()> {
    // Of a size that there is no template of, so that it boots whatever the others do: a copy would cost little itself.
    let spec = PodSpec::new("cost").annotation("io.katacontainers.config.hypervisor.default_vcpus", "2");
    let begin = Instant::now();
    let pod = bed.fresh(spec)?;
    pod.start(ContainerSpec::idle())?;
    let first = begin.elapsed();
    let begin = Instant::now();
    for _ in 0..4 {
        pod.start(ContainerSpec::idle())?;
    }
    let next = begin.elapsed() / 4;
    pod.remove()?;
    ensure!(
        next * 100 < first * 15,
        "the first took {first:?}, each of the others {next:?}"
    );
    Ok(())
}
