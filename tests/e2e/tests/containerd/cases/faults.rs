//! Parts that die. containerd hears of it within ten seconds, nothing is left, and nobody else notices.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use e2e::census::Process;
use e2e::configuration::Configuration;
use e2e::parts::Part;
use e2e::{deadlines, wait};
use rustix::process::{Pid, Signal, kill_process};

use super::Listed;
use crate::bed::{Case, Container, Runtime};

pub const CASES: &[Listed] = &[
    Listed::both("the_shim_is_killed", the_shim_is_killed),
    Listed::ours("the_vmm_is_killed", |case| part_is_killed(case, "qemu-system")),
    Listed::ours("virtiofsd_is_killed", |case| part_is_killed(case, "virtiofsd")),
    Listed::ours("the_vsock_daemon_is_killed", the_vsock_daemon_is_killed).needing(&[Part::VhostDeviceVsock]),
    Listed::ours("the_vmm_hangs", the_vmm_hangs),
    Listed::ours("the_shim_is_killed_during_boot", |case| {
        killed_during_boot(case, "containerd-shim-kata")
    }),
    Listed::ours("the_vmm_is_killed_during_boot", |case| {
        killed_during_boot(case, "qemu-system")
    }),
    Listed::ours("virtiofsd_is_killed_during_boot", |case| {
        killed_during_boot(case, "virtiofsd")
    }),
    Listed::ours("the_agent_is_killed", the_agent_is_killed),
    Listed::both(
        "the_client_is_killed_during_start",
        the_client_is_killed_during_start,
    ),
];

/// The limit for the news of an end.
const NEWS: Duration = Duration::from_secs(10);

const FOREVER: &[&str] = &["sleep", "1000"];

fn kill(process: &Process, signal: Signal) -> Result<()> {
    match Pid::from_raw(process.pid) {
        Some(pid) => Ok(kill_process(pid, signal)?),
        None => bail!("{process} has no id"),
    }
}

/// Kills a process, and looks how containerd takes it: the news of the exit comes in time, once, and with a code that can
/// be no success. Then the container is taken away.
pub(super) fn dies(case: &Case<'_>, container: &Container<'_>, victim: &Process) -> Result<()> {
    let events = case.events()?;
    let begin = Instant::now();
    kill(victim, Signal::KILL)?;
    let exit = events.wait_for(&container.id, "/tasks/exit")?;
    ensure!(
        begin.elapsed() <= NEWS,
        "the news took {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    let code = exit["exit_status"].as_u64().unwrap_or(0);
    ensure!(code == 137 || code == 255, "the exit code is {code}");
    // The shim may have ended with the container, in which case containerd has deleted the task.
    if container.status()?.is_some() {
        container.wait_for_status("STOPPED")?;
        container.delete_task()?;
    }
    container.delete()?;
    let exits = events
        .of(&container.id)
        .iter()
        .filter(|(topic, _)| topic == "/tasks/exit")
        .count();
    ensure!(exits == 1, "{exits} exits were told");
    Ok(())
}

/// What a dead shim leaves is taken away by containerd and a second call of the shim's program. Others are unharmed.
fn the_shim_is_killed(case: &mut Case<'_>) -> Result<()> {
    if case.runtime() == Runtime::Runc {
        // Its second call does not think of the socket.
        case.forgive("file /run/containerd/s/");
    }
    let neighbour = case.start(&[], FOREVER)?;
    let container = case.start(&[], FOREVER)?;
    dies(case, &container, &case.shim(&container)?)?;
    assert_eq!(neighbour.shell("echo unharmed")?, "unharmed\n");
    neighbour.remove()
}

/// Without one of its parts a virtual machine is at its end.
fn part_is_killed(case: &mut Case<'_>, part: &str) -> Result<()> {
    let neighbour = case.start(&[], FOREVER)?;
    let container = case.start(&[], FOREVER)?;
    dies(case, &container, &part_of(case, part, &container.id)?)?;
    assert_eq!(neighbour.shell("echo unharmed")?, "unharmed\n");
    neighbour.remove()
}

/// A part's process. A part may consist of several, of which one has started the others.
fn part_of(case: &Case<'_>, part: &str, id: &str) -> Result<Process> {
    let parts = case.processes(&[part, id])?;
    let first = parts
        .iter()
        .find(|process| parts.iter().all(|other| other.pid != process.parent));
    match first {
        Some(first) => Ok(first.clone()),
        None => bail!("{id} has no {part}"),
    }
}

fn the_vsock_daemon_is_killed(case: &mut Case<'_>) -> Result<()> {
    let path = case.path("configuration.toml");
    Configuration::new(case.target())
        .agent("channel", "vhost-user-vsock")
        .write(&path)?;
    let id = case.id();
    case.run_configured(&path, &["--detach", "--null-io"], &id, FOREVER)
        .read()?;
    let container = case.container(&id);
    dies(case, &container, &part_of(case, "vhost-device-vsock", &id)?)
}

/// A virtual machine that answers nothing can still be killed.
fn the_vmm_hangs(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], FOREVER)?;
    kill(&part_of(case, "qemu-system", &container.id)?, Signal::STOP)?;
    let begin = Instant::now();
    container.kill("KILL")?;
    wait::until("the container ends", NEWS, || {
        let status = container.status()?;
        Ok((status.as_deref() != Some("RUNNING")).then_some(()))
    })?;
    ensure!(
        begin.elapsed() <= NEWS,
        "it took {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    if container.status()?.is_some() {
        container.delete_task()?;
    }
    container.delete()
}

/// A start that a part does not survive fails, says so at once, and leaves nothing.
fn killed_during_boot(case: &mut Case<'_>, part: &str) -> Result<()> {
    let id = case.id();
    // Whatever the other cases' machines are: of this one, that it boots is what matters.
    let configuration = case.path("booted.toml");
    Configuration::new(case.target()).write(&configuration)?;
    let run = case
        .run_configured(&configuration, &["--rm"], &id, &["true"])
        .start()?;
    // The guest needs seconds from here on. Which of the parts is there first is nobody's promise.
    wait::until("the virtual machine starts", deadlines::RUN, || {
        let has = |part| Ok::<_, anyhow::Error>(!case.processes(&[part, &id])?.is_empty());
        Ok((has("qemu-system")? && has(part)?).then_some(()))
    })?;
    let begin = Instant::now();
    kill(&part_of(case, part, &id)?, Signal::KILL)?;
    let error = run.end()?.failure()?;
    ensure!(
        begin.elapsed() <= NEWS,
        "the news took {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    ensure!(!error.trim().is_empty(), "there is no reason");
    Ok(())
}

/// A guest whose first process has ended is at its end.
fn the_agent_is_killed(case: &mut Case<'_>) -> Result<()> {
    // From within, where only a privileged container can do something like it: the guest's kernel is made to panic.
    let id = case.id();
    let script = "echo ready; read go; echo c > /sysrq/sysrq-trigger; sleep 1000";
    let flags = [
        "--privileged",
        "--mount",
        "type=proc,src=proc,dst=/sysrq,options=rw",
    ];
    let mut run = case
        .run(&flags, &id, &["sh", "-c", script])
        .open_stdin()
        .start()?;
    run.wait_for("ready\n")?;
    let events = case.events()?;
    let begin = Instant::now();
    drop(
        run.stdin()
            .map(|mut stdin| std::io::Write::write_all(&mut stdin, b"go\n")),
    );
    events.wait_for(&id, "/tasks/exit")?;
    ensure!(
        begin.elapsed() <= NEWS,
        "the news took {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    run.end()?.failure()?;
    case.container(&id).delete()
}

/// A client that dies while its container starts leaves a container, and no half of one.
fn the_client_is_killed_during_start(case: &mut Case<'_>) -> Result<()> {
    // Made by the client, for streams that no shim ever heard of.
    case.forgive("file /run/containerd/fifo/");
    if case.runtime() == Runtime::Runc {
        // A shim that containerd takes back before its creation leaves its socket.
        case.forgive("file /run/containerd/s/");
    }
    let id = case.id();
    let client = case.run(&[], &id, FOREVER).start()?;
    let container = case.container(&id);
    wait::until("the container is being created", deadlines::RUN, || {
        match case.runtime() {
            // Its creation is over at once, and is not met in its middle: containerd 1.6 forgets a shim whose creation is given up
            // before the shim has said where it is, and runc's then waits for ever, or leaves what it had made so far.
            Runtime::Runc => Ok(container.status()?.map(drop)),
            Runtime::Kata => Ok(case.processes(&["qemu-system", &id])?.first().map(drop)),
        }
    })?;
    drop(client);
    // Whatever has become of the task, force takes it away; containerd may need a moment to know it.
    wait::until("the task is gone", deadlines::RUN, || {
        let deleted = case.ctr(&["task", "delete", "--force", &id]).output()?;
        let is_gone = container.status()?.is_none() && case.processes(&["containerd-shim", &id])?.is_empty();
        Ok((deleted.code().is_some() && is_gone).then_some(()))
    })?;
    container.delete()
}
