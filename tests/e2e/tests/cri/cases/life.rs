//! The lives of pods and containers.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::deadlines;
use k8s_cri::v1::{
    ContainerFilter, ContainerMetadata, ContainerState, ContainerStateValue, ListContainersRequest,
};
use tonic::Code;

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::cri::refusal;
use crate::pod::{Pod, PodSpec};

chapter!("life":
    a_pod_is_ready,
    a_container_runs_to_its_end,
    exit_codes_are_kept,
    a_killed_container_says_137,
    a_stop_gives_time,
    a_stop_kills_in_the_end,
    a_stop_of_what_has_ended_is_nothing,
    a_container_is_created_again,
    containers_in_any_order,
    what_never_started_is_removed,
    what_runs_is_removed,
    a_container_starts_once,
    removed_is_unknown,
    labels_and_lists,
    an_unknown_image_is_refused,
    an_unknown_program_is_told,
    a_file_that_is_no_program_is_told,
    init_containers_take_turns,
    a_pod_that_stops_ends_its_containers,
    a_pod_is_run_again,
);

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("life", |spec| spec)
}

/// Says `ready`, and does at `SIGTERM` what `script` says.
fn at_term(script: &str) -> ContainerSpec {
    ContainerSpec::script(&format!(
        "trap '{script}' TERM; echo ready; while :; do sleep 0.1; done"
    ))
}

fn named(name: &str, attempt: u32, spec: ContainerSpec) -> ContainerSpec {
    spec.with(|config| {
        config.metadata = Some(ContainerMetadata {
            name: name.into(),
            attempt,
        });
    })
}

fn a_pod_is_ready(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let status = pod.status()?;
    ensure!(pod.is_ready()?, "{status:?}");
    same(&status.runtime_handler, bed.runtime().name())?;
    ensure!(status.created_at > 0, "{status:?}");
    same(&status.metadata.unwrap_or_default().name, "life")
}

fn a_container_runs_to_its_end(bed: &mut Bed) -> Result<()> {
    let ended = pod(bed)?.ends(ContainerSpec::script("echo out; echo err >&2"))?;
    same(&ended.stdout, "out\n")?;
    same(&ended.stderr, "err\n")?;
    same(&ended.status.reason, "Completed")?;
    let status = &ended.status;
    // A short process may end before containerd notes that it was started, with runc as well.
    ensure!(
        status.created_at <= status.started_at && status.created_at <= status.finished_at,
        "{status:?}"
    );
    ended.success().map(drop)
}

fn exit_codes_are_kept(bed: &mut Bed) -> Result<()> {
    for code in [1, 7, 126, 255] {
        let ended = pod(bed)?.ends(ContainerSpec::script(&format!("exit {code}")))?;
        ensure!(ended.code() == code, "{ended:?}");
        same(&ended.status.reason, "Error")?;
    }
    Ok(())
}

fn a_killed_container_says_137(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(ContainerSpec::idle())?;
    container.stop(Duration::ZERO)?;
    let ended = container.wait()?;
    ensure!(ended.code() == 137, "{ended:?}");
    same(&ended.status.reason, "Error")?;
    container.remove()
}

fn a_stop_gives_time(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(at_term("echo bye; exit 3"))?;
    container.wait_for_output("ready")?;
    container.stop(Duration::from_secs(20))?;
    let ended = container.wait()?;
    ensure!(ended.code() == 3 && ended.stdout.contains("bye"), "{ended:?}");
    container.remove()
}

fn a_stop_kills_in_the_end(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(at_term(""))?;
    container.wait_for_output("ready")?;
    let begin = Instant::now();
    container.stop(Duration::from_secs(1))?;
    let took = begin.elapsed();
    ensure!(took >= Duration::from_secs(1), "stopped after {took:?}");
    let ended = container.wait()?;
    ensure!(ended.code() == 137, "{ended:?}");
    container.remove()
}

fn a_stop_of_what_has_ended_is_nothing(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(ContainerSpec::script("exit 4"))?;
    container.wait()?;
    container.stop(Duration::from_secs(1))?;
    container.stop(Duration::ZERO)?;
    let ended = container.wait()?;
    ensure!(ended.code() == 4, "{ended:?}");
    container.remove()
}

fn a_container_is_created_again(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let spec = |attempt| {
        named(
            "again",
            attempt,
            ContainerSpec::script("test -e /mark && echo old; touch /mark; echo done; exit 1"),
        )
    };
    let first = pod.start(spec(0))?;
    first.wait()?;
    // As the kubelet does: the next attempt beside the one that ended.
    let second = pod.start(spec(1))?;
    let ended = second.wait()?;
    same(&ended.stdout, "done\n")?;
    first.remove()?;
    second.remove()
}

fn containers_in_any_order(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let one = pod.create(ContainerSpec::idle())?;
    let two = pod.create(ContainerSpec::idle())?;
    let three = pod.create(ContainerSpec::idle())?;
    for container in [&three, &one, &two] {
        container.start()?;
    }
    two.stop(Duration::ZERO)?;
    two.remove()?;
    let four = pod.start(ContainerSpec::idle())?;
    for container in [&one, &three, &four] {
        same(&container.sh("echo here")?, "here")?;
    }
    one.stop(Duration::ZERO)?;
    same(&four.sh("echo here")?, "here")?;
    for container in [&four, &one, &three] {
        container.stop(Duration::ZERO)?;
        container.remove()?;
    }
    ensure!(pod.is_ready()?, "the pod has ended with its containers");
    Ok(())
}

fn what_never_started_is_removed(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.create(ContainerSpec::idle())?;
    let status = container.status()?;
    ensure!(status.state() == ContainerState::ContainerCreated, "{status:?}");
    container.remove()
}

fn what_runs_is_removed(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(ContainerSpec::idle())?;
    container.remove()?;
    ensure!(refusal(container.status())?.code == Code::NotFound);
    Ok(())
}

fn a_container_starts_once(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(ContainerSpec::idle())?;
    refusal(container.start())?.says("CONTAINER_RUNNING")?;
    container.stop(Duration::ZERO)?;
    refusal(container.start())?.says("CONTAINER_EXITED")?;
    container.remove()
}

fn removed_is_unknown(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.create(ContainerSpec::idle())?;
    container.remove()?;
    container.remove()?;
    ensure!(refusal(container.status())?.code == Code::NotFound);
    ensure!(refusal(container.start())?.code == Code::NotFound);
    ensure!(refusal(container.exec(&["true"]))?.code == Code::NotFound);
    Ok(())
}

fn labels_and_lists(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let labelled = |value: &str| {
        ContainerSpec::idle().with(|config| {
            config.labels.insert("e2e".into(), value.into());
            config
                .annotations
                .insert("e2e.test/note".into(), "ünïcode\n2".into());
        })
    };
    let running = pod.start(labelled("a"))?;
    let created = pod.create(labelled("a"))?;
    let other = pod.create(labelled("b"))?;
    let list = |filter: ContainerFilter| {
        let request = ListContainersRequest { filter: Some(filter) };
        let answer = bed.world.cri.call("ListContainers", async move |mut client| {
            client.list_containers(request).await
        })?;
        anyhow::Ok(
            answer
                .containers
                .into_iter()
                .map(|container| container.id)
                .collect::<Vec<_>>(),
        )
    };
    let filter = ContainerFilter {
        pod_sandbox_id: pod.id().into(),
        label_selector: [("e2e".to_owned(), "a".to_owned())].into(),
        ..Default::default()
    };
    let found = list(filter.clone())?;
    ensure!(
        found.len() == 2 && !found.contains(&other.id().into()),
        "{found:?}"
    );
    let found = list(ContainerFilter {
        state: Some(ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        }),
        ..filter
    })?;
    ensure!(found == [running.id()], "{found:?}");
    same(&running.status()?.annotations["e2e.test/note"], "ünïcode\n2")?;
    for container in [running, created, other] {
        container.remove()?;
    }
    Ok(())
}

fn an_unknown_image_is_refused(bed: &mut Bed) -> Result<()> {
    let spec = ContainerSpec::idle().with(|config| {
        config.image.get_or_insert_default().image = "e2e.test/nothing:1".into();
    });
    let refused = refusal(pod(bed)?.create(spec))?;
    ensure!(refused.code == Code::NotFound, "{refused:?}");
    refused.says("e2e.test/nothing:1")
}

fn an_unknown_program_is_told(bed: &mut Bed) -> Result<()> {
    told(bed, "/bin/nothing-like-it", "no such file or directory")
}

fn a_file_that_is_no_program_is_told(bed: &mut Bed) -> Result<()> {
    told(bed, "/etc/passwd", "permission denied")
}

fn told(bed: &mut Bed, program: &str, why: &str) -> Result<()> {
    let container = pod(bed)?.create(ContainerSpec::new(&[program]))?;
    let refused = refusal(container.start())?;
    refused.says(program)?;
    ensure!(refused.text.to_lowercase().contains(why), "{refused:?}");
    let status = container.wait_for(ContainerState::ContainerExited, deadlines::CALL)?;
    ensure!(
        status.exit_code == 128 && status.reason == "StartError",
        "{status:?}"
    );
    container.remove()
}

fn init_containers_take_turns(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.empty_dir("turns")?;
    for turn in ["one", "two", "three"] {
        let spec = ContainerSpec::script(&format!("echo {turn} >>/data/turns"));
        pod.output(spec.mount(&volume, "/data"))?;
    }
    let spec = ContainerSpec::script("cat /data/turns").mount(&volume, "/data");
    same(&pod.output(spec)?, "one\ntwo\nthree")?;
    same(&fs::read_to_string(volume.join("turns"))?, "one\ntwo\nthree\n")
}

fn a_pod_that_stops_ends_its_containers(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("stops"))?;
    let containers = [
        pod.start(ContainerSpec::idle())?,
        pod.start(ContainerSpec::idle())?,
    ];
    pod.stop()?;
    ensure!(!pod.is_ready()?, "a stopped pod is ready");
    for container in &containers {
        let status = container.status()?;
        ensure!(
            status.state() == ContainerState::ContainerExited && status.exit_code == 137,
            "{status:?}"
        );
    }
    pod.stop()?;
    let refused = refusal(pod.start(ContainerSpec::idle()))?;
    // The second is what containerd 2 says of a sandbox that was made by itself.
    refused
        .says("no running task")
        .or_else(|error| refused.says("is not running").map_err(|_| error))?;
    pod.remove()?;
    for container in &containers {
        ensure!(refusal(container.status())?.code == Code::NotFound);
    }
    ensure!(refusal(pod.status())?.code == Code::NotFound);
    Ok(())
}

fn a_pod_is_run_again(bed: &mut Bed) -> Result<()> {
    let spec = |attempt| {
        PodSpec::new("again").with(|config| {
            let metadata = config.metadata.get_or_insert_default();
            metadata.uid = "again".into();
            metadata.attempt = attempt;
        })
    };
    let first = bed.fresh(spec(0))?;
    refusal(bed.fresh(spec(0)))?.says("is reserved")?;
    first.stop()?;
    let second = bed.fresh(spec(1))?;
    same(&second.output(ContainerSpec::script("hostname"))?, "again")?;
    first.remove()?;
    second.remove()
}
