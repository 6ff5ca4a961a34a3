//! containerd's messages to our own values and back. Pure.

use std::path::PathBuf;

use containerd_shim_protos::api::{
    CreateTaskRequest, ExecProcessRequest, PidsResponse, ProcessInfo, StateResponse, Status,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use oci_spec::runtime::LinuxResources;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use runtime::error::Result;
use runtime::{ContainerId, Error, ErrorKind, ExecId, oci};

use crate::options;
use crate::pod::{ExecOrder, Order, Shown};
use crate::stdio::Streams;
use crate::timestamp::timestamp;

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

/// The id of an additional process; empty: the init process.
pub fn exec(id: &str) -> Result<Option<ExecId>> {
    match id {
        "" => Ok(None),
        id => ExecId::new(id).map(Some),
    }
}

/// Rows or columns of a terminal.
pub fn size(told: u32) -> Result<u16> {
    u16::try_from(told).map_err(|_| {
        invalid(format!(
            "{told} is no size of a terminal: at most {} are",
            u16::MAX
        ))
    })
}

/// A container to be created.
pub fn order(request: CreateTaskRequest) -> Result<Order> {
    let bundle = PathBuf::from(&request.bundle);
    if !bundle.is_absolute() {
        return Err(invalid(format!(
            "the bundle {:?} is no absolute path",
            request.bundle
        )));
    }
    if !request.checkpoint.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a container cannot be restored from a checkpoint",
        ));
    }
    let streams = Streams {
        terminal: request.terminal,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    Ok(Order {
        id: ContainerId::new(request.id)?,
        bundle,
        rootfs: request.rootfs,
        wanted: streams.parse()?,
        streams,
        configuration: options::config_path(request.options.as_ref()).map_err(invalid)?,
    })
}

/// A process to be added.
pub fn exec_order(request: ExecProcessRequest) -> Result<ExecOrder> {
    let streams = Streams {
        terminal: request.terminal,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    Ok(ExecOrder {
        container: ContainerId::new(request.id)?,
        id: ExecId::new(request.exec_id)?,
        process: oci::process(json("process", request.spec.as_ref())?)?,
        wanted: streams.parse()?,
        streams,
    })
}

/// New limits.
pub fn resources(told: Option<&Any>) -> Result<LinuxResources> {
    oci::resources(json("resources", told)?)
}

/// An object of the OCI specification: JSON, whatever type its envelope names.
fn json<'a>(what: &str, told: Option<&'a Any>) -> Result<&'a [u8]> {
    told.map(|told| told.value.as_slice())
        .ok_or_else(|| invalid(format!("the request has no {what}")))
}

/// A process as State shows it.
pub fn state(id: &str, exec: &str, shown: Shown) -> StateResponse {
    let status = match shown.state.status {
        runtime::Status::Created => Status::CREATED,
        runtime::Status::Running => Status::RUNNING,
        runtime::Status::Paused => Status::PAUSED,
        runtime::Status::Stopped => Status::STOPPED,
    };
    let exit = shown.state.exit;
    StateResponse {
        // As runc's shim has it.
        id: if exec.is_empty() { id } else { exec }.to_owned(),
        exec_id: exec.to_owned(),
        bundle: shown.bundle.display().to_string(),
        pid: shown.pid,
        status: status.into(),
        stdin: shown.streams.stdin,
        stdout: shown.streams.stdout,
        stderr: shown.streams.stderr,
        terminal: shown.streams.terminal,
        exit_status: exit.map(|exit| exit.code).unwrap_or_default(),
        exited_at: exit.map(|exit| timestamp(exit.at)).into(),
        ..Default::default()
    }
}

/// The processes of a container, additional ones with their ids.
pub fn pids(pids: Vec<(u32, Option<ExecId>)>) -> Result<PidsResponse> {
    let info = |exec: Option<ExecId>| -> Result<Option<Any>> {
        let Some(exec) = exec else {
            return Ok(None);
        };
        let details = ProcessDetails {
            exec_id: exec.to_string(),
            ..Default::default()
        };
        let value = details
            .write_to_bytes()
            .map_err(|error| Error::caused(ErrorKind::Internal, "the process cannot be described", error))?;
        Ok(Some(Any {
            type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
            value,
            ..Default::default()
        }))
    };
    let processes = pids.into_iter().map(|(pid, exec)| {
        Ok(ProcessInfo {
            pid,
            info: info(exec)?.into(),
            ..Default::default()
        })
    });
    Ok(PidsResponse {
        processes: processes.collect::<Result<_>>()?,
        ..Default::default()
    })
}
