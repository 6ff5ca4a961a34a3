//! Processes that are added to a container, and what any process comes with: its stand-in, in its place, and its streams.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use runtime::error::Result;
use runtime::{
    ContainerId, Error, ErrorKind, ExecId, ExecRequest, Input, Output, Sandbox, Status, Stdio, oci,
};
use serde_json::Value;
use slog::warn;

use super::{Pod, Slot, not_running};
use crate::daemon::attend::Standin;
use crate::daemon::{cgroup, is_null};
use crate::wire::NewProcess;

impl Pod {
    /// Adds a process and starts it.
    ///
    /// # Errors
    /// The runtime's; the process is forgotten then.
    pub async fn exec(
        &self,
        id: &ContainerId,
        spec: Value,
        process: NewProcess,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        let member = self.member(id)?;
        let container = member.container.clone();
        match container.state(None).await?.status {
            Status::Running => {}
            Status::Created => {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("container {id} is not started yet: container not running"),
                ));
            }
            Status::Paused => {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("container {id} is paused: resume it first"),
                ));
            }
            Status::Stopped => return Err(not_running(id)),
        }
        let number = self.next_exec.fetch_add(1, Ordering::Relaxed);
        let exec = ExecId::new(format!("exec-{number}"))?;
        let (mut standin, stdio) = ends(&process, fds)?;
        let sandbox = match &self.books().sandbox {
            Slot::Ready(sandbox) => sandbox.clone(),
            _ => return Err(not_running(id)),
        };
        let request = ExecRequest {
            id: exec.clone(),
            process: oci::process(spec.to_string().as_bytes())?,
            stdio,
        };
        self.settle(&mut standin, &process, &sandbox, member.leader)
            .await?;
        container.exec(request).await?;
        let started = async {
            if let Some((rows, columns)) = process.size {
                container.resize(Some(&exec), rows, columns).await?;
            }
            container.start_exec(&exec).await
        };
        if let Err(error) = started.await {
            // It never ran; only its name is left.
            let _ = container.delete_exec(&exec).await;
            return Err(error);
        }
        member.execs().insert(exec.clone(), process.standin);
        let attended = standin.attend(container, Some(exec.clone()), self.log.clone());
        tokio::spawn(async move {
            attended.await;
            member.execs().remove(&exec);
        });
        Ok(())
    }

    /// Puts a stand-in where its process seems to be: in the pod's network, and in the cgroups that a leader is in.
    pub(super) async fn settle(
        &self,
        standin: &mut Standin,
        process: &NewProcess,
        sandbox: &Sandbox,
        leader: u32,
    ) -> Result<()> {
        if process.attached {
            return Ok(());
        }
        standin.settle(sandbox.pid()).await.map_err(|error| {
            Error::caused(
                ErrorKind::Internal,
                "the stand-in cannot be in the pod's network and in the container's root file system",
                error,
            )
        })?;
        if let Err(error) = cgroup::follow(leader, process.standin) {
            warn!(self.log, "a stand-in is not in the cgroup"; "error" => %error);
        }
        Ok(())
    }
}

/// The connection to a process's stand-in, and its streams.
pub(super) fn ends(process: &NewProcess, fds: Vec<OwnedFd>) -> Result<(Standin, Stdio)> {
    let missing = || {
        Error::new(
            ErrorKind::InvalidArgument,
            "a descriptor of the process is missing",
        )
    };
    let mut fds = fds.into_iter();
    let standin = Standin::new(fds.next().ok_or_else(missing)?)
        .map_err(|error| Error::caused(ErrorKind::Internal, "the stand-in cannot be watched", error))?;
    let mut next = |wanted: bool| -> Result<Option<OwnedFd>> {
        if !wanted {
            return Ok(None);
        }
        let fd = fds.next().ok_or_else(missing)?;
        Ok((!is_null(&fd)).then_some(fd))
    };
    let [stdin, stdout, stderr] = process.streams;
    let streams = [next(stdin)?, next(stdout)?, next(stderr)?];
    let descriptors: Vec<OwnedFd> = fds.take(process.more).collect();
    if descriptors.len() < process.more {
        return Err(missing());
    }
    let [stdin, stdout, stderr] = streams;
    Ok((
        standin,
        Stdio {
            terminal: process.terminal,
            stdin: stdin.map_or(Input::Null, Input::Descriptor),
            stdout: stdout.map_or(Output::Null, Output::Descriptor),
            stderr: stderr.map_or(Output::Null, Output::Descriptor),
            descriptors,
        },
    ))
}
