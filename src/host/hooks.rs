//! Hooks: programs of the host's that are told of a step in a container's life, by its state on their standard input. They run
//! where we do, or on the container's stage, one after the other, each in a process group of its own that does not outlive it.
//!
//! It must not know who wants to be told.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;

use hypervisor::console::{Lines, Tail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Serialize;
use slog::{Logger, debug, warn};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::{Stage, sys};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{HookPlan, HooksPlan};
use crate::{ContainerId, deadlines};

/// Lines of a hook's output that an error quotes.
const QUOTED_LINES: usize = 4;

/// Bytes that a pipe holds.
const PIPE: usize = 64 * 1024;

/// The hooks of one container. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    id: ContainerId,
    plan: Arc<HooksPlan>,
}

/// What a hook is told: the state of a container as the OCI runtime specification has it.
#[derive(Serialize)]
struct State<'a> {
    #[serde(rename = "ociVersion")]
    version: &'a str,
    id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    bundle: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Hooks {
    /// Of a container.
    pub(crate) fn new(id: &ContainerId, plan: HooksPlan) -> Self {
        Self {
            id: id.clone(),
            plan: Arc::new(plan),
        }
    }

    /// The container's bundle.
    pub(crate) fn bundle(&self) -> &Path {
        &self.plan.bundle
    }

    /// The container is about to be created; `pid` is shown as its process, which is in its pod's network. `stage`: where hooks
    /// of its namespaces act, after which the guest has what they have made.
    ///
    /// # Errors
    /// The first hook that fails: then the container must not be.
    pub(crate) async fn creating(&self, pid: u32, stage: Option<Stage>, log: &Logger) -> Result<()> {
        for hook in &self.plan.create {
            self.run(hook, "creating", Some(pid), None, log).await?;
        }
        let Some(stage) = stage.map(Arc::new) else {
            return Ok(());
        };
        for hook in &self.plan.container {
            self.run(hook, "creating", Some(pid), Some(&stage), log).await?;
        }
        tokio::task::spawn_blocking(move || stage.publish())
            .await
            .unwrap_or_else(|cause| Err(not_run(io::Error::other(cause))))
            .map_err(|error| error.while_doing(format_args!("container {}", self.id)))
    }

    /// Whether anybody is to be told of its start.
    pub(crate) fn await_start(&self) -> bool {
        !self.plan.poststart.is_empty()
    }

    /// Its program executes. A hook that fails changes nothing about that.
    pub(crate) async fn started(&self, pid: u32, log: &Logger) {
        self.tell(&self.plan.poststart, "running", Some(pid), log).await;
    }

    /// Whether anybody is to be told of its end.
    pub(crate) fn await_end(&self) -> bool {
        !self.plan.poststop.is_empty()
    }

    /// Nothing is left of it, and it has no process any more. A hook that fails changes nothing about that.
    pub(crate) async fn stopped(&self, log: &Logger) {
        self.tell(&self.plan.poststop, "stopped", None, log).await;
    }

    async fn tell(&self, hooks: &[HookPlan], status: &str, pid: Option<u32>, log: &Logger) {
        for hook in hooks {
            if let Err(error) = self.run(hook, status, pid, None, log).await {
                warn!(log, "a hook failed"; "container" => %self.id, "error" => error.chain());
            }
        }
    }

    async fn run(
        &self,
        hook: &HookPlan,
        status: &str,
        pid: Option<u32>,
        stage: Option<&Arc<Stage>>,
        log: &Logger,
    ) -> Result<()> {
        let limit = hook.timeout.unwrap_or(deadlines::HOOK);
        debug!(log, "running a hook"; "container" => %self.id, "hook" => &hook.name, "program" => %hook.path.display());
        let ran = match self.state(status, pid) {
            Ok(state) => timeout(limit, run(hook, &self.plan, stage.cloned(), state)).await,
            Err(error) => Ok(Err(error)),
        };
        let ran = ran.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("it did not end within {limit:?} and was killed"),
            ))
        });
        ran.map_err(|error| {
            error.while_doing(format_args!(
                "container {}: config.json: {}, {}",
                self.id,
                hook.name,
                hook.path.display()
            ))
        })
    }

    fn state(&self, status: &str, pid: Option<u32>) -> Result<Vec<u8>> {
        let state = State {
            version: &self.plan.version,
            id: self.id.as_str(),
            status,
            pid,
            bundle: &self.plan.bundle.to_string_lossy(),
            annotations: &self.plan.annotations,
        };
        serde_json::to_vec(&state)
            .map_err(|cause| Error::caused(ErrorKind::Internal, "the container's state", cause))
    }
}

/// Runs one to its end. What is left of it is killed, also if nobody waits for it any more.
async fn run(hook: &HookPlan, plan: &HooksPlan, stage: Option<Arc<Stage>>, state: Vec<u8>) -> Result<()> {
    let directory = stage.as_ref().map_or(&*plan.bundle, |stage| stage.root());
    let (command, input, output) = prepare(hook, directory).map_err(not_run)?;
    // What executes it may have to wait for a file system.
    let started = tokio::task::spawn_blocking(move || Running::start(command, stage.as_deref())).await;
    let mut running = started
        .map_err(|cause| not_run(io::Error::other(cause)))?
        .map_err(|cause| {
            let kind = match cause.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ErrorKind::InvalidArgument,
                _ => ErrorKind::Internal,
            };
            Error::caused(kind, "it cannot be executed", cause)
        })?;
    let ended = running.ended().map_err(not_run)?;
    let mut input = pipe::Sender::from_owned_fd(OwnedFd::from(input)).map_err(not_run)?;
    let tell = async move {
        // One that does not read it does not care.
        drop(input.write_all(&state).await);
        drop(input);
        std::future::pending::<Infallible>().await
    };
    let tail = tokio::select! {
        tail = listen(output, &ended) => tail.map_err(not_run)?,
        never = tell => match never {},
    };
    let status = running.reap().map_err(not_run)?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Internal, failure(status, &tail))),
    }
}

fn not_run(cause: io::Error) -> Error {
    Error::caused(ErrorKind::Internal, "it cannot be run", cause)
}

/// Its command, what it reads, and what it says.
fn prepare(hook: &HookPlan, directory: &Path) -> io::Result<(Command, PipeWriter, pipe::Receiver)> {
    let (stdin, input) = io::pipe()?;
    let (output, stdout) = io::pipe()?;
    let mut command = Command::new(&hook.path);
    if let Some(name) = hook.args.first() {
        command.arg0(name);
    }
    command
        .args(hook.args.iter().skip(1))
        .env_clear()
        .envs(hook.env.iter().map(|variable| (&variable.name, &variable.value)))
        .current_dir(directory)
        .stdin(stdin)
        .stderr(stdout.try_clone()?)
        .stdout(stdout)
        .process_group(0);
    Ok((command, input, pipe::Receiver::from_owned_fd(output.into())?))
}

/// Reads what it says until it has ended; the last lines are the answer.
async fn listen(mut output: pipe::Receiver, ended: &AsyncFd<OwnedFd>) -> io::Result<Vec<String>> {
    let (mut lines, mut tail) = (Lines::default(), Tail::default());
    let mut buffer = [0; 1024];
    let mut open = true;
    loop {
        tokio::select! {
            read = output.read(&mut buffer), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(count) => lines.push(buffer.get(..count).unwrap_or_default(), |line| tail.push(line)),
            },
            ended = ended.readable() => {
                ended?.retain_ready();
                break;
            }
        }
    }
    // What it said last is in the pipe; what it has left behind may go on writing.
    for _ in 0..PIPE / buffer.len() {
        match output.try_read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => lines.push(buffer.get(..count).unwrap_or_default(), |line| tail.push(line)),
        }
    }
    lines.finish(|line| tail.push(line));
    Ok(tail.to_vec())
}

fn failure(status: ExitStatus, tail: &[String]) -> String {
    let from = tail.len().saturating_sub(QUOTED_LINES);
    match tail.get(from..) {
        Some([]) | None => format!("it failed: {status}"),
        Some(lines) => format!("it failed: {status}, its last words: {}", lines.join(" / ")),
    }
}

/// A process that leads a group. Dropping it kills them.
struct Running {
    child: Option<Child>,
}

impl Running {
    fn start(mut command: Command, stage: Option<&Stage>) -> io::Result<Self> {
        let child = match stage {
            Some(stage) => stage.start(command),
            None => command.spawn(),
        }?;
        Ok(Self { child: Some(child) })
    }

    /// Can be read once it has ended; then it is not reaped yet.
    fn ended(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let Some(child) = &self.child else {
            return Err(io::ErrorKind::NotFound.into());
        };
        sys::watch(pidfd_open(Pid::from_child(child), PidfdFlags::NONBLOCK)?)
    }

    /// Kills what it has left behind, and takes its status once it has ended.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        kill_group(&child);
        child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        kill_group(&child);
        // It ends when the kernel lets it.
        let mut reap = move || drop(child.wait());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(reap)),
            Err(_) => reap(),
        }
    }
}

/// Until its leader is reaped, the group's number is nobody else's.
fn kill_group(leader: &Child) {
    // Its members may be gone already.
    let _ = kill_process_group(Pid::from_child(leader), Signal::KILL);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use slog::{Discard, o};

    use super::*;
    use crate::oci::EnvVar;

    fn log() -> Logger {
        Logger::root(Discard, o!())
    }

    fn script(dir: &Path, name: &str, text: &str) -> HookPlan {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        HookPlan {
            name: format!("hooks.createRuntime[{name}]"),
            path,
            args: vec!["named".into(), "first argument".into(), "second".into()],
            env: vec![EnvVar {
                name: "ONE".into(),
                value: "1=1".into(),
            }],
            timeout: None,
        }
    }

    fn hooks(dir: &Path, create: Vec<HookPlan>) -> Hooks {
        let plan = HooksPlan {
            create,
            version: "1.2.0".into(),
            bundle: dir.to_owned(),
            annotations: [("key".to_owned(), "value".to_owned())].into(),
            ..Default::default()
        };
        Hooks::new(&ContainerId::new("c").unwrap(), plan)
    }

    #[tokio::test]
    async fn a_hook_gets_the_state_its_arguments_and_nothing_of_our_environment() {
        let dir = tempfile::tempdir().unwrap();
        let text =
            "cat >state; echo \"$@\" >arguments; /usr/bin/env >environment; readlink /proc/self/ns/net >net";
        let hook = script(dir.path(), "hook", text);
        hooks(dir.path(), vec![hook])
            .creating(7, None, &log())
            .await
            .unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let state: serde_json::Value = serde_json::from_str(&read("state")).unwrap();
        let expected = serde_json::json!({
            "ociVersion": "1.2.0", "id": "c", "status": "creating", "pid": 7,
            "bundle": dir.path(), "annotations": {"key": "value"},
        });
        assert_eq!(state, expected);
        assert_eq!(read("arguments"), "first argument second\n");
        let environment = read("environment");
        assert!(environment.contains("ONE=1=1\n"), "{environment}");
        assert!(!environment.contains("CARGO"), "{environment}");
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(read("net").trim_end(), ours.to_str().unwrap());
    }

    #[tokio::test]
    async fn one_that_fails_is_named_with_its_last_words_and_ends_the_row() {
        let dir = tempfile::tempdir().unwrap();
        let failing = script(dir.path(), "bad", "echo no such network >&2; exit 3");
        let never = script(dir.path(), "never", "touch ran");
        let error = hooks(dir.path(), vec![failing, never])
            .creating(7, None, &log())
            .await
            .unwrap_err();
        for said in [
            "container c",
            "createRuntime[bad]",
            "exit status: 3",
            "no such network",
        ] {
            assert!(error.chain().contains(said), "{}", error.chain());
        }
        assert!(!dir.path().join("ran").exists());

        let mut missing = script(dir.path(), "missing", "");
        missing.path = "/nonexistent/hook".into();
        let error = hooks(dir.path(), vec![missing])
            .creating(7, None, &log())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.chain().contains("/nonexistent/hook"), "{}", error.chain());
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_that_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let text = "sleep 97 & echo $! >child; wait";
        let mut hook = script(dir.path(), "hook", text);
        hook.timeout = Some(Duration::from_secs(1));
        let begun = Instant::now();
        let error = hooks(dir.path(), vec![hook])
            .creating(7, None, &log())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert!(error.chain().contains("1s"), "{}", error.chain());
        assert!(begun.elapsed() < Duration::from_secs(20));
        gone(dir.path()).await;
    }

    #[tokio::test]
    async fn what_a_hook_leaves_behind_neither_delays_nor_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let hook = script(dir.path(), "hook", "sleep 97 & echo $! >child; exit 0");
        let begun = Instant::now();
        hooks(dir.path(), vec![hook])
            .creating(7, None, &log())
            .await
            .unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
        gone(dir.path()).await;
    }

    /// Waits for the end of the process whose pid the hook has written down.
    async fn gone(dir: &Path) {
        let pid = std::fs::read_to_string(dir.join("child")).unwrap();
        let status = format!("/proc/{}/status", pid.trim());
        let alive = || std::fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ"));
        timeout(Duration::from_secs(20), async {
            while alive() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the process goes");
    }

    #[tokio::test]
    async fn a_state_that_nobody_reads_is_no_error_however_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut hooks = hooks(dir.path(), vec![script(dir.path(), "hook", "exit 0")]);
        let plan = Arc::get_mut(&mut hooks.plan).unwrap();
        plan.annotations.insert("long".into(), "x".repeat(4 * PIPE));
        hooks.creating(7, None, &log()).await.unwrap();
    }

    #[tokio::test]
    async fn after_the_start_and_the_end_failures_keep_nobody_from_being_told() {
        let dir = tempfile::tempdir().unwrap();
        let bad = script(dir.path(), "bad", "exit 1");
        let plan = HooksPlan {
            poststart: vec![bad.clone(), script(dir.path(), "started", "cat >running")],
            poststop: vec![bad, script(dir.path(), "ended", "cat >stopped")],
            version: "1.0.2".into(),
            bundle: dir.path().to_owned(),
            ..Default::default()
        };
        let hooks = Hooks::new(&ContainerId::new("c").unwrap(), plan);
        hooks.started(7, &log()).await;
        hooks.stopped(&log()).await;
        let state = |status: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(dir.path().join(status)).unwrap()).unwrap()
        };
        for (status, pid) in [
            ("running", serde_json::json!(7)),
            ("stopped", serde_json::Value::Null),
        ] {
            assert_eq!(state(status)["status"], status);
            assert_eq!(state(status)["pid"], pid, "a stopped container has no process");
        }
    }
}
