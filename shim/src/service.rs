//! The task API: each call is translated, made, and its answer translated back. No decisions.
//!
//! A call that changes something is carried out to its end even if its caller goes away meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::well_known_types::empty::Empty;
use runtime::error::Result;
use runtime::{ContainerId, Error, ErrorKind, SandboxId};
use slog::{Logger, debug, info};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use ttrpc::r#async::TtrpcContext as Context;

use crate::pod::Pod;
use crate::stats::Form;
use crate::timestamp::timestamp;
use crate::{deadlines, error, sys, translate};

/// See the module's documentation.
pub struct Service {
    /// What it serves.
    pub pod: Arc<Pod>,
    /// Form of the figures.
    pub form: Form,
    /// Set to have the server end.
    pub leave: watch::Sender<bool>,
    /// Set when it has let go of everything.
    pub left: watch::Receiver<bool>,
    /// Where calls are logged.
    pub log: Logger,
}

/// Carries a change out to its end.
pub async fn carried_out<T: Send + 'static>(
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(change)
        .await
        .unwrap_or_else(|error| Err(Error::caused(ErrorKind::Internal, "the call was cut off", error)))
}

impl Service {
    /// Logs a call's outcome, and makes it an answer.
    pub fn answer<T>(&self, call: &str, id: &str, exec: &str, outcome: Result<T>) -> ttrpc::Result<T> {
        match outcome {
            Ok(answer) => {
                debug!(self.log, "called"; "call" => call, "container" => id, "exec" => exec);
                Ok(answer)
            }
            // As the callers that ask until there is something, or nothing any more.
            Err(error) if call == "State" && error.kind == ErrorKind::NotFound => {
                debug!(self.log, "called"; "call" => call, "container" => id, "exec" => exec, "kind" => ?error.kind);
                Err(error::status(&error))
            }
            Err(error) => {
                info!(self.log, "a call fails"; "call" => call, "container" => id, "exec" => exec,
                    "kind" => ?error.kind, "error" => error.chain());
                Err(error::status(&error))
            }
        }
    }

    async fn create_task(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        let order = translate::order(request)?;
        let (reply, answer) = oneshot::channel();
        tokio::spawn(Arc::clone(&self.pod).create(order, reply));
        let pid = answer
            .await
            .unwrap_or_else(|error| Err(Error::caused(ErrorKind::Internal, "the call was cut off", error)))?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start_process(&self, id: &str, exec: &str) -> Result<StartResponse> {
        let (id, exec) = (ContainerId::new(id)?, translate::exec(exec)?);
        let pod = Arc::clone(&self.pod);
        let pid = match exec {
            None => {
                let pid = carried_out(pod.start(id)).await?;
                sys::give_back_memory();
                pid
            }
            Some(exec) => carried_out(pod.start_exec(id, exec)).await?,
        };
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete_process(&self, id: &str, exec: &str) -> Result<DeleteResponse> {
        let (id, exec) = (ContainerId::new(id)?, translate::exec(exec)?);
        let pod = Arc::clone(&self.pod);
        let (pid, exit) = match exec {
            None => carried_out(pod.delete(id)).await?,
            Some(exec) => carried_out(pod.delete_exec(id, exec)).await?,
        };
        Ok(DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn show(&self, id: &str, exec: &str) -> Result<StateResponse> {
        let shown = self
            .pod
            .state(&ContainerId::new(id)?, translate::exec(exec)?.as_ref())
            .await?;
        Ok(translate::state(id, exec, shown))
    }

    async fn wait_process(&self, id: &str, exec: &str) -> Result<WaitResponse> {
        let exit = self
            .pod
            .wait(&ContainerId::new(id)?, translate::exec(exec)?.as_ref())
            .await?;
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn signal(&self, request: &KillRequest) -> Result<()> {
        let container = self.pod.container(&ContainerId::new(&request.id)?)?;
        let exec = translate::exec(&request.exec_id)?;
        let (signal, all) = (request.signal, request.all);
        carried_out(async move { container.kill(exec.as_ref(), signal, all).await }).await
    }

    async fn list(&self, id: &str) -> Result<PidsResponse> {
        translate::pids(self.pod.pids(&ContainerId::new(id)?).await?)
    }

    async fn add(&self, request: ExecProcessRequest) -> Result<()> {
        carried_out(Arc::clone(&self.pod).exec(translate::exec_order(request)?)).await
    }

    async fn resize(&self, request: &ResizePtyRequest) -> Result<()> {
        let container = self.pod.container(&ContainerId::new(&request.id)?)?;
        let exec = translate::exec(&request.exec_id)?;
        let (rows, columns) = (translate::size(request.height)?, translate::size(request.width)?);
        container.resize(exec.as_ref(), rows, columns).await
    }

    async fn close_stdin(&self, request: &CloseIORequest) -> Result<()> {
        let container = self.pod.container(&ContainerId::new(&request.id)?)?;
        let exec = translate::exec(&request.exec_id)?;
        if request.stdin {
            container.close_stdin(exec.as_ref()).await
        } else {
            Ok(())
        }
    }

    async fn limit(&self, request: UpdateTaskRequest) -> Result<()> {
        let container = self.pod.container(&ContainerId::new(&request.id)?)?;
        let resources = translate::resources(request.resources.as_ref())?;
        carried_out(async move { container.update(&resources).await }).await
    }

    async fn measure(&self, id: &str) -> Result<StatsResponse> {
        let stats = self.pod.container(&ContainerId::new(id)?)?.stats().await?;
        Ok(StatsResponse {
            stats: Some(self.form.express(&stats)?).into(),
            ..Default::default()
        })
    }

    fn greet(&self, id: &str) -> Result<ConnectResponse> {
        // A containerd that is started again asks so whether a sandbox without a container lives, and clears away who says no.
        let bare = SandboxId::new(id).and_then(|id| self.pod.show_bare(&id));
        let task_pid = match bare {
            Ok(shown) => shown.pid,
            Err(_) => self.pod.pid(&ContainerId::new(id)?)?,
        };
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    /// Ends the server if it holds no container; answers when everything is released, or soon will be.
    async fn end(&self) {
        if self.pod.close_if_empty() {
            self.leave().await;
        }
    }

    /// Ends the server; answers when everything is released, or soon will be.
    pub async fn leave(&self) {
        self.leave.send_replace(true);
        let mut left = self.left.clone();
        // containerd does not wait for longer; the rest goes on behind the answer.
        let _ = timeout(deadlines::SHUTDOWN, left.wait_for(|left| *left)).await;
    }
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &Context, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let outcome = self.show(&request.id, &request.exec_id).await;
        self.answer("State", &request.id, &request.exec_id, outcome)
    }

    async fn create(&self, _: &Context, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let id = request.id.clone();
        let outcome = self.create_task(request).await;
        self.answer("Create", &id, "", outcome)
    }

    async fn start(&self, _: &Context, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let outcome = self.start_process(&request.id, &request.exec_id).await;
        self.answer("Start", &request.id, &request.exec_id, outcome)
    }

    async fn delete(&self, _: &Context, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let outcome = self.delete_process(&request.id, &request.exec_id).await;
        self.answer("Delete", &request.id, &request.exec_id, outcome)
    }

    async fn pids(&self, _: &Context, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let outcome = self.list(&request.id).await;
        self.answer("Pids", &request.id, "", outcome)
    }

    async fn pause(&self, _: &Context, request: PauseRequest) -> ttrpc::Result<Empty> {
        let outcome = match ContainerId::new(&request.id) {
            Ok(id) => carried_out(Arc::clone(&self.pod).pause(id)).await,
            Err(error) => Err(error),
        };
        self.answer("Pause", &request.id, "", outcome.map(|()| Empty::new()))
    }

    async fn resume(&self, _: &Context, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let outcome = match ContainerId::new(&request.id) {
            Ok(id) => carried_out(Arc::clone(&self.pod).resume(id)).await,
            Err(error) => Err(error),
        };
        self.answer("Resume", &request.id, "", outcome.map(|()| Empty::new()))
    }

    async fn checkpoint(&self, _: &Context, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let outcome = Err(Error::new(
            ErrorKind::Unsupported,
            "checkpoints of containers are not supported",
        ));
        self.answer("Checkpoint", &request.id, "", outcome)
    }

    async fn kill(&self, _: &Context, request: KillRequest) -> ttrpc::Result<Empty> {
        let outcome = self.signal(&request).await;
        self.answer(
            "Kill",
            &request.id,
            &request.exec_id,
            outcome.map(|()| Empty::new()),
        )
    }

    async fn exec(&self, _: &Context, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let (id, exec) = (request.id.clone(), request.exec_id.clone());
        let outcome = self.add(request).await;
        self.answer("Exec", &id, &exec, outcome.map(|()| Empty::new()))
    }

    async fn resize_pty(&self, _: &Context, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let outcome = self.resize(&request).await;
        self.answer(
            "ResizePty",
            &request.id,
            &request.exec_id,
            outcome.map(|()| Empty::new()),
        )
    }

    async fn close_io(&self, _: &Context, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let outcome = self.close_stdin(&request).await;
        self.answer(
            "CloseIO",
            &request.id,
            &request.exec_id,
            outcome.map(|()| Empty::new()),
        )
    }

    async fn update(&self, _: &Context, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        let outcome = self.limit(request).await;
        self.answer("Update", &id, "", outcome.map(|()| Empty::new()))
    }

    async fn wait(&self, _: &Context, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let outcome = self.wait_process(&request.id, &request.exec_id).await;
        self.answer("Wait", &request.id, &request.exec_id, outcome)
    }

    async fn stats(&self, _: &Context, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let outcome = self.measure(&request.id).await;
        self.answer("Stats", &request.id, "", outcome)
    }

    async fn connect(&self, _: &Context, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let outcome = self.greet(&request.id);
        self.answer("Connect", &request.id, "", outcome)
    }

    async fn shutdown(&self, _: &Context, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.end().await;
        self.answer("Shutdown", &request.id, "", Ok(Empty::new()))
    }
}
