//! What containerd tells everybody of a pod and its containers.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::deadlines;

use super::chapter;
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::pod::PodSpec;
use crate::world::SANDBOXER;

chapter!("events": each_once_and_in_order);

fn each_once_and_in_order(bed: &mut Bed) -> Result<()> {
    let events = bed
        .world
        .containerd()
        .ctr(["events"])
        .within(deadlines::RUN)
        .start()?;
    // Nothing says when it listens; what an image's event tells it must have heard.
    bed.world
        .containerd()
        .ctr(["images", "label", e2e::image::BUSYBOX, "e2e=heard"])
        .read()?;
    let pod = bed.fresh(PodSpec::new("events"))?;
    let container = pod.start(ContainerSpec::idle())?;
    container.exec(&["true"])?;
    let failing = pod.start(ContainerSpec::script("exit 3"))?;
    failing.wait()?;
    failing.remove()?;
    container.stop(Duration::ZERO)?;
    container.remove()?;
    let ids = [
        pod.id().to_owned(),
        container.id().to_owned(),
        failing.id().to_owned(),
    ];
    pod.remove()?;
    let last = format!("/tasks/delete {{\"container_id\":\"{}\"", ids[0]);
    let text = events.wait_for(&last)?;
    let topics = |id: &str| -> Vec<&str> {
        text.lines()
            .filter(|line| line.contains(id))
            .filter_map(|line| line.split(' ').find(|word| word.starts_with("/tasks/")))
            .collect()
    };
    let life = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
    // A pod of the sandbox API has no task; containerd tells of its end alone, when it sees that the connection is gone.
    let of_pod = match std::env::var_os(SANDBOXER) {
        Some(_) => &life[2..],
        None => &life[..],
    };
    for (id, expected) in [(&ids[0], of_pod), (&ids[2], &life[..])] {
        let topics = topics(id);
        ensure!(topics == expected, "{topics:?}\n{text}");
    }
    let topics = topics(&ids[1]);
    let exec = ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"];
    let expected: Vec<_> = life[..2].iter().chain(&exec).chain(&life[2..]).copied().collect();
    ensure!(topics == expected, "{topics:?}\n{text}");
    let code = text.lines().any(|line| {
        line.contains("/tasks/exit") && line.contains(&ids[2]) && line.contains("\"exit_status\":3")
    });
    ensure!(code, "no exit with the code 3:\n{text}");
    Ok(())
}
