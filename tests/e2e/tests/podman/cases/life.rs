//! What is done to a container from outside: stopped, killed, frozen, started again; and what is known of it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{cases, has, same};
use crate::bed::Bed;

cases! {
    what_it_writes_is_logged,
    it_is_stopped_by_a_signal_that_it_heeds,
    it_is_stopped_by_the_last_signal,
    it_is_killed_by_any_signal,
    it_is_frozen_and_thawed,
    it_is_started_again,
    it_is_restarted_by_podman_when_it_fails,
    it_is_waited_for,
    it_is_removed_while_it_runs,
    it_is_removed_before_it_was_started,
    what_is_created_is_started_and_attached_to,
    podman_run_passes_signals_on,
    the_process_that_stands_for_it_can_be_killed,
    the_process_that_stands_for_it_passes_signals_on,
    figures_are_told,
    processes_are_listed_by_the_containers_own_program,
    a_healthcheck_is_run,
}

fn what_it_writes_is_logged(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["sh", "-c", "echo one; echo two >&2; echo three"])?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    let output = bed.output(&["logs", &name])?;
    same(&output.stderr, "two\n")?;
    same(&output.success()?, "one\nthree\n")?;
    bed.remove(&name)
}

fn it_is_stopped_by_a_signal_that_it_heeds(bed: &Bed) -> Result<()> {
    let script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done";
    let name = bed.background(&[], &["sh", "-c", script])?;
    // Not before it heeds it.
    bed.wait_for_log(&name, "up")?;
    bed.call(&["stop", "--time=60", &name])?;
    same(&bed.inspect(&name, ".State.ExitCode")?, "9")?;
    bed.remove(&name)
}

fn it_is_stopped_by_the_last_signal(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["sleep", "1000"])?;
    bed.call(&["stop", "--time=1", &name])?;
    same(&bed.inspect(&name, ".State.ExitCode")?, "137")?;
    bed.remove(&name)
}

fn it_is_killed_by_any_signal(bed: &Bed) -> Result<()> {
    let script = "trap 'exit 7' USR2; echo up; while :; do sleep 0.1; done";
    let name = bed.background(&[], &["sh", "-c", script])?;
    bed.wait_for_log(&name, "up")?;
    bed.call(&["kill", "--signal=USR2", &name])?;
    same(&bed.call(&["wait", &name])?, "7")?;
    bed.output(&["kill", &name])?.failure()?;
    bed.remove(&name)
}

fn it_is_frozen_and_thawed(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    bed.call(&["pause", &name])?;
    same(&bed.inspect(&name, ".State.Status")?, "paused")?;
    bed.output(&["exec", &name, "true"])?.failure()?;
    bed.call(&["unpause", &name])?;
    same(&bed.sh(&name, "echo on")?, "on")?;
    bed.remove(&name)
}

fn it_is_started_again(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["sh", "-c", "echo x >>/mark; wc -l </mark"])?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    bed.call(&["start", &name])?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    same(&bed.call(&["logs", &name])?, "1\n2")?;
    bed.remove(&name)
}

fn it_is_restarted_by_podman_when_it_fails(bed: &Bed) -> Result<()> {
    let name = bed.background(
        &["--restart=on-failure:1"],
        &["sh", "-c", "echo x >>/mark; [ $(wc -l </mark) = 2 ]"],
    )?;
    bed.wait_for(&name, ".RestartCount", "1")?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    same(&bed.inspect(&name, ".State.ExitCode")?, "0")?;
    bed.remove(&name)
}

fn it_is_waited_for(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["sh", "-c", "sleep 1; exit 4"])?;
    same(&bed.call(&["wait", &name])?, "4")?;
    bed.remove(&name)
}

fn it_is_removed_while_it_runs(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    bed.output(&["rm", &name])?.failure()?;
    bed.remove(&name)
}

fn it_is_removed_before_it_was_started(bed: &Bed) -> Result<()> {
    let name = bed.name();
    bed.run_program(&["create", "--network=none", "--name", &name], &["true"])
        .output()?
        .success()?;
    // So far podman alone knows it; this makes the runtime's.
    bed.call(&["init", &name])?;
    same(&bed.inspect(&name, ".State.Status")?, "initialized")?;
    bed.remove(&name)
}

fn what_is_created_is_started_and_attached_to(bed: &Bed) -> Result<()> {
    let name = bed.name();
    bed.run_program(
        &["create", "--network=none", "--name", &name],
        &["sh", "-c", "echo hi; exit 8"],
    )
    .output()?
    .success()?;
    let output = bed.output(&["start", "--attach", &name])?;
    same(&output.exits(8)?, "hi\n")?;
    bed.remove(&name)
}

fn podman_run_passes_signals_on(bed: &Bed) -> Result<()> {
    let script = "trap 'exit 5' USR1; echo up; while :; do sleep 0.1; done";
    let mut running = bed
        .run_program(&["run", "--rm", "--network=none"], &["sh", "-c", script])
        .start()?;
    running.wait_for("up")?;
    // podman begins to pass signals on about when it shows the first output: one may be lost.
    let mut sent: Option<Instant> = None;
    e2e::wait::until("the container ends", e2e::deadlines::PROGRESS, || {
        let ended = running.has_ended()?;
        if !ended && sent.is_none_or(|sent| sent.elapsed() > Duration::from_secs(3)) {
            running.signal(Signal::USR1)?;
            sent = Some(Instant::now());
        }
        Ok(ended.then_some(()))
    })?;
    running.end()?.exits(5).map(drop)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed());
    kill_process(pid.ok_or_else(|| anyhow::anyhow!("there is no process"))?, signal)?;
    Ok(())
}

fn the_process_that_stands_for_it_can_be_killed(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    signal(bed.pid(&name)?, Signal::KILL)?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    same(&bed.inspect(&name, ".State.ExitCode")?, "137")?;
    bed.remove(&name)
}

fn the_process_that_stands_for_it_passes_signals_on(bed: &Bed) -> Result<()> {
    let script = "trap 'exit 6' HUP; echo up; while :; do sleep 0.1; done";
    let name = bed.background(&[], &["sh", "-c", script])?;
    bed.wait_for_log(&name, "up")?;
    signal(bed.pid(&name)?, Signal::HUP)?;
    same(&bed.call(&["wait", &name])?, "6")?;
    bed.remove(&name)
}

fn figures_are_told(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let told = bed.call(&[
        "stats",
        "--no-stream",
        "--format={{.Name}} {{.PIDs}} {{.MemUsage}}",
        &name,
    ])?;
    has(&told, &name)?;
    let pids: u32 = told.split(' ').nth(1).unwrap_or_default().parse()?;
    ensure!(pids > 0, "no processes: {told}");
    let listed = bed.call(&["top", &name])?;
    ensure!(
        listed.lines().count() < 6,
        "processes of others are listed: {listed}"
    );
    bed.remove(&name)
}

fn processes_are_listed_by_the_containers_own_program(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["sleep", "1000"])?;
    // Podman's own list of processes knows no such option; then it has the container's ps answer.
    let listed = bed.call(&["top", &name, "-o", "pid,args"])?;
    has(&listed, "sleep 1000")?;
    bed.remove(&name)
}

fn a_healthcheck_is_run(bed: &Bed) -> Result<()> {
    let options = [
        "--health-cmd=test -e /well",
        "--health-interval=disable",
        "--health-retries=1",
    ];
    let name = bed.sleeper(&options)?;
    bed.output(&["healthcheck", "run", &name])?.failure()?;
    bed.sh(&name, "touch /well")?;
    bed.call(&["healthcheck", "run", &name])?;
    bed.remove(&name)
}
