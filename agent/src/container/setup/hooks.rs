//! `startContainer` hooks: programs of the container's own, run in it just before its program.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::container::error::{Error, Result, Step};
use crate::container::plan::Hook;

/// Runs the hooks one after the other, each with the container's state on its standard input.
pub(super) fn run(hooks: &[Hook], id: &str) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = serde_json::json!({
        "ociVersion": oci_spec::runtime::VERSION,
        "id": id,
        "status": "created",
        "pid": std::process::id(),
        "bundle": "/",
    })
    .to_string();
    hooks.iter().try_for_each(|hook| run_one(hook, &state))
}

fn run_one(hook: &Hook, state: &str) -> Result<()> {
    let step = || format!("startContainer hook {}", hook.path.display());
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().stdin(Stdio::piped());
    command.envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    let mut child = command.spawn().step(step)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its state is no error.
        let _ = stdin.write_all(state.as_bytes());
    }
    let ended = wait(child.id(), hook.timeout).step(step)?;
    if !ended {
        child.kill().step(step)?;
    }
    let status = child.wait().step(step)?;
    match status.success() {
        true => Ok(()),
        false if !ended => Err(Error::Late {
            what: "the end of a startContainer hook",
            limit: hook.timeout,
        }),
        false => Err(std::io::Error::other(status.to_string())).step(step),
    }
}

fn wait(pid: u32, limit: std::time::Duration) -> std::io::Result<bool> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(std::io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)))?;
    Ok(ready > 0)
}
