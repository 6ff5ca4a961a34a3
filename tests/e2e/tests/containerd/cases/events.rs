//! What containerd tells its subscribers.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::both("order", order),
    Listed::both("out_of_memory", out_of_memory),
    // runc's shim promises no order.
    Listed::ours(
        "out_of_memory_is_told_before_the_end",
        out_of_memory_is_told_before_the_end,
    ),
];

/// Every event comes once, in the order of what happened, and says what it is about.
fn order(case: &mut Case<'_>) -> Result<()> {
    let events = case.events()?;
    let id = case.id();
    let container = case.container(&id);
    case.run(
        &["--detach", "--null-io"],
        &id,
        &["sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.1; done"],
    )
    .read()?;
    let pid = container.pid()?;
    container
        .exec_named("further", &[], &["sh", "-c", "exit 3"])
        .output()?
        .exits(3)?;
    case.ctr(&["task", "pause", &id]).read()?;
    case.ctr(&["task", "resume", &id]).read()?;
    container.kill("TERM")?;
    container.wait_for_status("STOPPED")?;
    assert_eq!(container.delete_task()?, 4);
    container.delete()?;
    events.wait_for(&id, "/tasks/delete")?;

    let found = events.of(&id);
    let topics: Vec<_> = found.iter().map(|(topic, _)| topic.as_str()).collect();
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/paused",
        "/tasks/resumed",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(topics, expected, "{found:#?}");

    let has = |index: usize, key: &str, value: Value| -> Result<()> {
        let (topic, content) = &found[index];
        ensure!(
            content[key] == value,
            "{key} of {topic} is not {value}: {content}"
        );
        Ok(())
    };
    has(0, "pid", pid.into())?;
    has(1, "pid", pid.into())?;
    has(2, "exec_id", "further".into())?;
    has(3, "exec_id", "further".into())?;
    has(4, "id", "further".into())?;
    has(4, "exit_status", 3.into())?;
    has(7, "id", id.as_str().into())?;
    has(7, "exit_status", 4.into())?;
    has(7, "pid", pid.into())?;
    has(8, "exit_status", 4.into())?;
    Ok(())
}

/// A container that takes more than its memory is killed, and everybody is told why.
fn out_of_memory(case: &mut Case<'_>) -> Result<()> {
    let events = case.events()?;
    let id = case.id();
    let limit = (32 << 20).to_string();
    // A file in memory: it grows at the same rate everywhere, and nothing else has to be swapped out for it.
    let script = "dd if=/dev/zero of=/dev/shm/file bs=1M count=60; sleep 1000";
    case.run(
        &["--detach", "--null-io", "--memory-limit", &limit],
        &id,
        &["sh", "-c", script],
    )
    .read()?;
    events.wait_for(&id, "/tasks/oom")?;
    let container = case.container(&id);
    // It is the largest process that is killed, and the shell is none.
    container.kill("KILL")?;
    container.wait_for_status("STOPPED")?;
    container.delete_task()?;
    container.delete()
}

/// The container itself is what is killed: whoever is told of its end knows why already.
fn out_of_memory_is_told_before_the_end(case: &mut Case<'_>) -> Result<()> {
    let events = case.events()?;
    let id = case.id();
    let limit = (32 << 20).to_string();
    case.run(
        &["--detach", "--null-io", "--memory-limit", &limit],
        &id,
        &["dd", "if=/dev/zero", "of=/dev/shm/file", "bs=1M", "count=60"],
    )
    .read()?;
    let container = case.container(&id);
    container.wait_for_status("STOPPED")?;
    assert_eq!(container.delete_task()?, 137);
    container.delete()?;
    events.wait_for(&id, "/tasks/delete")?;
    let found = events.of(&id);
    let topics: Vec<_> = found.iter().map(|(topic, _)| topic.as_str()).collect();
    let place = |wanted: &str| topics.iter().position(|topic| *topic == wanted);
    let (oom, exit) = (place("/tasks/oom"), place("/tasks/exit"));
    ensure!(oom.is_some() && oom < exit, "{topics:?}");
    Ok(())
}
