//! A containerd that dies and comes back finds what it left.

use anyhow::{Context as _, Result, ensure};
use e2e::deadlines;
use e2e::wait;
use std::fs;

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::both("neither_output_nor_exit_is_lost", neither_output_nor_exit_is_lost),
    Listed::both("an_exit_without_containerd", an_exit_without_containerd),
];

/// Output goes on while containerd is away, and afterwards everything works as before.
fn neither_output_nor_exit_is_lost(case: &mut Case<'_>) -> Result<()> {
    let (id, log) = (case.id(), case.path("log"));
    let uri = format!("file://{}", log.display());
    let script = "trap 'echo bye; exit 6' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    case.run(&["--detach", "--log-uri", &uri], &id, &["sh", "-c", script])
        .read()?;
    let lines = || Ok::<_, std::io::Error>(fs::read_to_string(&log)?.lines().count());
    let wait_for_more = |before: usize| {
        wait::until("the container writes", deadlines::PROGRESS, || {
            Ok((lines()? > before + 3).then_some(()))
        })
    };
    let pid = case.container(&id).pid()?;
    wait_for_more(0)?;
    case.containerd().kill();
    wait_for_more(lines()?)?;
    case.containerd().start_again()?;

    let container = case.container(&id);
    assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
    assert_eq!(container.pid()?, pid);
    assert_eq!(container.shell("echo again")?, "again\n");
    container.kill("TERM")?;
    container.wait_for_status("STOPPED")?;
    assert_eq!(container.delete_task()?, 6);
    container.delete()?;

    let text = fs::read_to_string(&log)?;
    let counted: Vec<_> = text.lines().collect();
    let (last, numbers) = counted.split_last().context("it has lines")?;
    assert_eq!(*last, "bye");
    for (index, line) in numbers.iter().enumerate() {
        let around = counted.get(index.saturating_sub(3)..(index + 4).min(counted.len()));
        ensure!(
            *line == (index + 1).to_string(),
            "line {} of {} is not its number: around it are {around:?}",
            index + 1,
            counted.len(),
        );
    }
    Ok(())
}

/// What ends while containerd is away is told when it is back, with its exit code.
fn an_exit_without_containerd(case: &mut Case<'_>) -> Result<()> {
    let go = case.path("go");
    fs::create_dir(&go)?;
    let mount = format!("type=bind,src={},dst=/go,options=rbind:rw", go.display());
    let id = case.id();
    let script = "until test -e /go/now; do sleep 0.05; done; touch /go/done; exit 9";
    case.run(
        &["--detach", "--null-io", "--mount", &mount],
        &id,
        &["sh", "-c", script],
    )
    .read()?;
    case.containerd().kill();
    fs::write(go.join("now"), "")?;
    wait::until("the container ends", deadlines::PROGRESS, || {
        Ok(go.join("done").exists().then_some(()))
    })?;
    case.containerd().start_again()?;
    let container = case.container(&id);
    container.wait_for_status("STOPPED")?;
    assert_eq!(container.delete_task()?, 9);
    container.delete()?;
    fs::remove_dir_all(&go)?;
    Ok(())
}
