//! Everything that `ctr task` does to a container that runs.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{deadlines, wait};
use serde_json::Value;

use super::Listed;
use crate::bed::{Case, Container};

pub const CASES: &[Listed] = &[
    Listed::both("exec", exec),
    Listed::both("exec_refusals", exec_refusals),
    Listed::both("sixteen_execs_at_once", sixteen_execs_at_once),
    Listed::both("signals", signals),
    Listed::both("pause_and_resume", pause_and_resume),
    Listed::both("ps_and_metrics", ps_and_metrics),
    Listed::both("delete", delete),
];

const FOREVER: &[&str] = &["sleep", "1000"];

/// A further process has its own everything, and its own exit code.
fn exec(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&["--env", "OF=container"], FOREVER)?;
    let output = container
        .exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 3"])
        .output()?;
    assert_eq!(output.stderr, "err\n");
    assert_eq!(output.exits(3)?, "out\n");
    let killed = container.exec(&[], &["sh", "-c", "kill -9 $$"]).output()?;
    killed.exits(137)?;

    assert_eq!(container.shell("echo $OF")?, "container\n");
    assert_eq!(container.exec(&["--cwd", "/tmp"], &["pwd"]).read()?, "/tmp\n");
    let user = container.exec(&["--user", "1000:1000"], &["id", "-u"]).read()?;
    assert_eq!(user, "1000\n");

    for count in 0..3 {
        let text = count.to_string();
        assert_eq!(
            container.exec_named("same", &[], &["echo", &text]).read()?,
            format!("{text}\n")
        );
    }
    container.remove()
}

/// What can't be done is refused with the reason, and does the container no harm.
fn exec_refusals(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], FOREVER)?;
    let error = container.exec(&[], &["no-such-program"]).output()?.failure()?;
    ensure!(
        error.contains("no-such-program"),
        "the program is not named: {error}"
    );

    let first = container.exec_named("taken", &[], FOREVER).start()?;
    wait_for_process(&container, "taken")?;
    let error = container
        .exec_named("taken", &[], &["true"])
        .output()?
        .failure()?;
    ensure!(
        error.contains("already exists"),
        "not refused as a duplicate: {error}"
    );
    case.ctr(&[
        "task",
        "kill",
        "--exec-id",
        "taken",
        "--signal",
        "KILL",
        &container.id,
    ])
    .read()?;
    first.end()?.exits(137)?;

    let kill = ["task", "kill", "--exec-id", "nobody", &container.id];
    let error = case.ctr(&kill).output()?.failure()?;
    ensure!(
        error.contains("not found") || error.contains("has no process nobody"),
        "not refused as unknown: {error}"
    );
    assert_eq!(container.shell("echo unharmed")?, "unharmed\n");

    container.kill("KILL")?;
    container.wait_for_status("STOPPED")?;
    container.exec(&[], &["true"]).output()?.failure()?;
    container.delete_task()?;
    container.delete()
}

/// Waits until a further process runs: until a signal finds it, that is.
fn wait_for_process(container: &Container<'_>, exec: &str) -> Result<()> {
    wait::until("the process runs", deadlines::PROGRESS, || {
        let found = container.signal_exec(exec, "CONT")?;
        Ok(found.then_some(()))
    })
}

/// Sixteen further processes at the same time do not mix up their outputs.
fn sixteen_execs_at_once(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], FOREVER)?;
    let script = "for i in $(seq 100); do echo $0; done";
    let running = (0..16)
        .map(|count| {
            let program = container.exec(&[], &["sh", "-c", script, &count.to_string()]);
            program.within(deadlines::RUN).start()
        })
        .collect::<Result<Vec<_>>>()?;
    for (count, running) in running.into_iter().enumerate() {
        assert_eq!(running.end()?.success()?, format!("{count}\n").repeat(100));
    }
    container.remove()
}

/// Signals arrive: at the container, at one further process, and at all of them.
fn signals(case: &mut Case<'_>) -> Result<()> {
    let id = case.id();
    let script =
        "trap 'echo hup' HUP; trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let run = case.run(&["--rm"], &id, &["sh", "-c", script]).start()?;
    run.wait_for("ready\n")?;
    let container = case.container(&id);
    container.kill("HUP")?;
    run.wait_for("hup\n")?;

    // The trap of the further process is its own.
    let exec = container
        .exec_named("other", &[], &["sh", "-c", &script.replace("7", "8")])
        .start()?;
    exec.wait_for("ready\n")?;
    ensure!(
        container.signal_exec("other", "TERM")?,
        "the process is not known"
    );
    exec.end()?.exits(8)?;

    let exec = container.exec_named("all", &[], &["sh", "-c", script]).start()?;
    exec.wait_for("ready\n")?;
    case.ctr(&["task", "kill", "--all", "--signal", "HUP", &id])
        .read()?;
    exec.wait_for("hup\n")?;
    run.wait_for("hup\nhup\n")?;
    ensure!(container.signal_exec("all", "KILL")?, "the process is not known");
    exec.end()?.exits(137)?;

    container.kill("TERM")?;
    assert_eq!(run.end()?.exits(7)?, "ready\nhup\nhup\nterm\n");
    Ok(())
}

/// A container that is paused does nothing, and goes on where it was.
fn pause_and_resume(case: &mut Case<'_>) -> Result<()> {
    let id = case.id();
    let run = case
        .run(
            &["--rm"],
            &id,
            &["sh", "-c", "while :; do echo tick; sleep 0.05; done"],
        )
        .start()?;
    run.wait_for("tick\n")?;
    let container = case.container(&id);
    case.ctr(&["task", "pause", &id]).read()?;
    container.wait_for_status("PAUSED")?;
    // What was written before may still be on its way; after that there must be silence.
    sleep(Duration::from_millis(500));
    let before = run.stdout().len();
    sleep(Duration::from_secs(1));
    assert_eq!(run.stdout().len(), before, "a paused container writes");
    case.ctr(&["task", "resume", &id]).read()?;
    container.wait_for_status("RUNNING")?;
    wait::until("the container goes on", deadlines::PROGRESS, || {
        Ok((run.stdout().len() > before).then_some(()))
    })?;
    container.kill("KILL")?;
    run.end()?.exits(137)?;
    Ok(())
}

/// What it is made of, and what it uses.
fn ps_and_metrics(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], FOREVER)?;
    let list = case.ctr(&["task", "ps", &container.id]).read()?;
    let pid = container.pid()?.to_string();
    let pids: Vec<_> = list
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(pids.contains(&pid.as_str()), "{pid} is not among {list}");

    let metrics = || -> Result<Value> {
        let text = case
            .ctr(&["task", "metrics", "--format", "json", &container.id])
            .read()?;
        serde_json::from_str(&text).with_context(|| format!("understand {text}"))
    };
    let before = metrics()?;
    // Enough to be seen in any unit; the memory stays as long as the process has it.
    container.shell("dd if=/dev/zero of=/dev/shm/file bs=1M count=8 2>&1; sha256sum /dev/shm/file")?;
    let after = metrics()?;
    // Of version 1, then of version 2: the host's version counts.
    let of = |metrics: &Value, paths: [&str; 2]| {
        paths
            .iter()
            .find_map(|path| metrics.pointer(path)?.as_u64())
            .with_context(|| format!("{paths:?} in {metrics}"))
    };
    for paths in [
        ["/cpu/usage/total", "/cpu/usage_usec"],
        ["/memory/usage/usage", "/memory/usage"],
    ] {
        let (before, after) = (of(&before, paths)?, of(&after, paths)?);
        ensure!(after > before, "{paths:?} did not grow: {before}, {after}");
    }
    ensure!(
        of(&after, ["/pids/current", "/pids/current"])? >= 1,
        "no processes: {after}"
    );
    container.remove()
}

/// What runs is not deleted unless by force.
fn delete(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], FOREVER)?;
    let error = case.ctr(&["task", "delete", &container.id]).output()?.failure()?;
    ensure!(
        error.contains("running") || error.contains("stopped"),
        "the reason is not told: {error}"
    );
    assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
    case.ctr(&["task", "delete", "--force", &container.id]).read()?;
    assert_eq!(container.status()?, None);
    container.delete()
}
