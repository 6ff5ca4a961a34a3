//! containerd's sandbox API (2.0 and later): each call is translated, made, and its answer translated back. No decisions.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox;
use runtime::error::Result;
use runtime::{Error, ErrorKind, SandboxId};
use ttrpc::r#async::TtrpcContext as Context;

use crate::pod::{BareOrder, Phase};
use crate::service::{Service, carried_out};
use crate::timestamp::timestamp;
use crate::{options, podconfig};

/// What the CRI calls a sandbox that takes containers, and one that does not.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// See the module's documentation.
pub struct Sandboxes(pub Arc<Service>);

/// A sandbox to be created.
fn order(request: CreateSandboxRequest) -> Result<BareOrder> {
    let invalid = |text: String| Error::new(ErrorKind::InvalidArgument, text);
    let bundle = PathBuf::from(&request.bundle_path);
    if !bundle.is_absolute() {
        return Err(invalid(format!(
            "the bundle {:?} is no absolute path",
            request.bundle_path
        )));
    }
    if !request.rootfs.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a sandbox has no root file system of its own: its virtual machine has the guest image",
        ));
    }
    let options = request.options.as_ref();
    let mut pod = podconfig::read(options).map_err(invalid)?;
    pod.network_namespace =
        Some(PathBuf::from(&request.netns_path)).filter(|path| !path.as_os_str().is_empty());
    pod.annotations.extend(request.annotations);
    Ok(BareOrder {
        id: SandboxId::new(request.sandbox_id)?,
        bundle,
        configuration: options::config_path(options).map_err(invalid)?,
        pod,
    })
}

impl Sandboxes {
    fn create(&self, request: CreateSandboxRequest) -> Result<CreateSandboxResponse> {
        self.0.pod.create_bare(order(request)?)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start(&self, id: &str) -> Result<StartSandboxResponse> {
        let pod = Arc::clone(&self.0.pod);
        let (pid, at) = carried_out(pod.start_bare(SandboxId::new(id)?)).await?;
        Ok(StartSandboxResponse {
            pid,
            created_at: Some(timestamp(at)).into(),
            ..Default::default()
        })
    }

    async fn stop(&self, id: &str) -> Result<StopSandboxResponse> {
        let pod = Arc::clone(&self.0.pod);
        carried_out(pod.stop_bare(SandboxId::new(id)?)).await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait(&self, id: &str) -> Result<WaitSandboxResponse> {
        let exit = self.0.pod.wait_bare(&SandboxId::new(id)?).await?;
        Ok(WaitSandboxResponse {
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    fn show(&self, id: &str, verbose: bool) -> Result<SandboxStatusResponse> {
        let shown = self.0.pod.show_bare(&SandboxId::new(id)?)?;
        let mut info: HashMap<_, _> = shown
            .info
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        // Where `crictl inspectp` and its users look for the process.
        let mut inspected = serde_json::to_value(&info).unwrap_or_default();
        inspected["pid"] = shown.pid.into();
        info.insert("info".to_owned(), inspected.to_string());
        if !verbose {
            info.clear();
        }
        Ok(SandboxStatusResponse {
            sandbox_id: id.to_owned(),
            pid: shown.pid,
            state: match shown.phase {
                Phase::Running => READY,
                Phase::Created | Phase::Starting | Phase::Ended(_) => NOT_READY,
            }
            .to_owned(),
            info,
            created_at: shown.started_at.map(timestamp).into(),
            exited_at: match shown.phase {
                Phase::Ended(exit) => Some(timestamp(exit.at)),
                _ => None,
            }
            .into(),
            ..Default::default()
        })
    }

    fn ping(&self, id: &str) -> Result<PingResponse> {
        match self.0.pod.show_bare(&SandboxId::new(id)?)?.phase {
            Phase::Ended(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("sandbox {id} has ended"),
            )),
            _ => Ok(PingResponse::default()),
        }
    }

    fn platform(&self, id: &str) -> Result<PlatformResponse> {
        self.0.pod.show_bare(&SandboxId::new(id)?)?;
        let mut response = PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        // Go's names. Guests are of the host's kind.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned();
        Ok(response)
    }

    async fn measure(&self, id: &str) -> Result<SandboxMetricsResponse> {
        let figures = self.0.pod.measure_bare(&SandboxId::new(id)?).await?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = Some(timestamp(SystemTime::now())).into();
        metrics.id = id.to_owned();
        metrics.data = Some(self.0.form.express(&figures)?).into();
        Ok(response)
    }

    async fn shut_down(&self, id: &str) -> Result<ShutdownSandboxResponse> {
        self.0.pod.show_bare(&SandboxId::new(id)?)?;
        self.0.leave().await;
        Ok(ShutdownSandboxResponse::default())
    }
}

#[async_trait]
impl Sandbox for Sandboxes {
    async fn create_sandbox(
        &self,
        _: &Context,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let id = request.sandbox_id.clone();
        let outcome = self.create(request);
        self.0.answer("CreateSandbox", &id, "", outcome)
    }

    async fn start_sandbox(
        &self,
        _: &Context,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let outcome = self.start(&request.sandbox_id).await;
        self.0.answer("StartSandbox", &request.sandbox_id, "", outcome)
    }

    async fn platform(&self, _: &Context, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        let outcome = Self::platform(self, &request.sandbox_id);
        self.0.answer("Platform", &request.sandbox_id, "", outcome)
    }

    async fn stop_sandbox(
        &self,
        _: &Context,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let outcome = self.stop(&request.sandbox_id).await;
        self.0.answer("StopSandbox", &request.sandbox_id, "", outcome)
    }

    async fn wait_sandbox(
        &self,
        _: &Context,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let outcome = self.wait(&request.sandbox_id).await;
        self.0.answer("WaitSandbox", &request.sandbox_id, "", outcome)
    }

    async fn sandbox_status(
        &self,
        _: &Context,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let outcome = self.show(&request.sandbox_id, request.verbose);
        self.0.answer("SandboxStatus", &request.sandbox_id, "", outcome)
    }

    async fn ping_sandbox(&self, _: &Context, request: PingRequest) -> ttrpc::Result<PingResponse> {
        let outcome = self.ping(&request.sandbox_id);
        self.0.answer("PingSandbox", &request.sandbox_id, "", outcome)
    }

    async fn shutdown_sandbox(
        &self,
        _: &Context,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let outcome = self.shut_down(&request.sandbox_id).await;
        self.0.answer("ShutdownSandbox", &request.sandbox_id, "", outcome)
    }

    async fn sandbox_metrics(
        &self,
        _: &Context,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let outcome = self.measure(&request.sandbox_id).await;
        self.0.answer("SandboxMetrics", &request.sandbox_id, "", outcome)
    }
}
