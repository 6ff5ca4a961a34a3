//! Logs, in the CRI's format.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_cri::v1::ReopenContainerLogRequest;

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::log;
use crate::pod::Pod;

chapter!("logs":
    lines_of_both_streams,
    no_line_at_the_end,
    long_lines_in_parts,
    a_mebibyte_is_complete,
    rotated,
    of_a_terminal,
);

/// containerd splits longer lines.
const LONGEST: usize = 16 << 10;

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("logs", |spec| spec)
}

fn lines_of_both_streams(bed: &mut Bed) -> Result<()> {
    let script = "for number in 1 2 3; do echo out $number; sleep 0.1; echo err $number >&2; sleep 0.1; done";
    let container = pod(bed)?.start(ContainerSpec::script(script))?;
    container.wait()?;
    let lines = container.log_lines()?;
    let told: Vec<_> = lines
        .iter()
        .map(|line| format!("{} {}", line.stream, line.text))
        .collect();
    ensure!(
        told == [
            "stdout out 1",
            "stderr err 1",
            "stdout out 2",
            "stderr err 2",
            "stdout out 3",
            "stderr err 3",
        ],
        "{told:?}"
    );
    ensure!(lines.iter().all(|line| line.full), "{lines:?}");
    ensure!(lines.is_sorted_by_key(|line| &line.time), "{lines:?}");
    let date = |line: &log::Line| line.time.len() >= "2026-01-01T00:00:00Z".len() && line.time.contains('T');
    ensure!(lines.iter().all(date), "{lines:?}");
    container.remove()
}

fn no_line_at_the_end(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(ContainerSpec::script("echo; echo one; printf two"))?;
    container.wait()?;
    let lines = container.log_lines()?;
    let told: Vec<_> = lines.iter().map(|line| &*line.text).collect();
    ensure!(told == ["", "one", "two"], "{lines:?}");
    container.remove()
}

fn long_lines_in_parts(bed: &mut Bed) -> Result<()> {
    let script = format!(
        "head -c {} /dev/zero | tr '\\0' x; echo; echo next",
        2 * LONGEST + 10
    );
    let container = pod(bed)?.start(ContainerSpec::script(&script))?;
    let ended = container.wait()?;
    let parts: Vec<_> = container
        .log_lines()?
        .iter()
        .map(|line| (line.text.len(), line.full))
        .collect();
    ensure!(
        parts == [(LONGEST, false), (LONGEST, false), (10, true), (4, true)],
        "{parts:?}"
    );
    ensure!(
        ended.stdout.ends_with("xxx\nnext\n"),
        "the next line is not as it was"
    );
    container.remove()
}

fn a_mebibyte_is_complete(bed: &mut Bed) -> Result<()> {
    // It must not end by itself: of a container that has, containerd 1.6 gives up on the log after 2 s, read or not.
    let container = pod(bed)?.start(ContainerSpec::script("seq 1 180000; echo end; exec sleep 100000"))?;
    let wrote = container.wait_for_output("\nend\n")?;
    let mut expected: String = (1..=180_000).map(|number| format!("{number}\n")).collect();
    expected.push_str("end\n");
    ensure!(expected.len() > 1 << 20);
    ensure!(
        wrote == expected,
        "{} bytes of {}, or other ones",
        wrote.len(),
        expected.len()
    );
    container.remove()
}

fn rotated(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let container = pod.start(
        ContainerSpec::script("while read line; do echo $line; done </proc/self/fd/0")
            .with(|config| config.stdin = true),
    )?;
    let mut session = crate::stream::Session::attach(&pod, &container, false)?;
    session.write(b"before\n")?;
    container.wait_for_output("before")?;
    let old = container.log_path().with_extension("old");
    fs::rename(container.log_path(), &old)?;
    let request = ReopenContainerLogRequest {
        container_id: container.id().into(),
    };
    bed.world
        .cri
        .call("ReopenContainerLog", async move |mut client| {
            client.reopen_container_log(request).await
        })?;
    session.write(b"after\n")?;
    same(&container.wait_for_output("after")?, "after\n")?;
    same(
        &log::text(&log::parse(&fs::read_to_string(old)?)?, "stdout"),
        "before\n",
    )?;
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn of_a_terminal(bed: &mut Bed) -> Result<()> {
    let container =
        pod(bed)?.start(ContainerSpec::script("echo out; echo err >&2").with(|config| config.tty = true))?;
    container.wait()?;
    let lines = container.log_lines()?;
    let told: Vec<_> = lines
        .iter()
        .map(|line| (&*line.stream, line.text.trim_end()))
        .collect();
    ensure!(told == [("stdout", "out"), ("stdout", "err")], "{lines:?}");
    container.remove()
}
