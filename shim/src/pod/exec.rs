//! Additional processes of a container.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use oci_spec::runtime::Process as OciProcess;
use runtime::error::Result;
use runtime::{ContainerId, Error, ErrorKind, ExecId, ExecRequest};

use super::Pod;
use super::process::Process;
use crate::stdio::{self, Streams, Wanted};

/// A process to be added.
#[derive(Debug)]
pub struct ExecOrder {
    /// Id of its container.
    pub container: ContainerId,
    /// Its own.
    pub id: ExecId,
    /// OCI process.
    pub process: OciProcess,
    /// Its streams, as they were sent.
    pub streams: Streams,
    /// Its streams, understood.
    pub wanted: Wanted,
}

impl Pod {
    /// Adds a process, which is not started yet.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn exec(self: Arc<Self>, order: ExecOrder) -> Result<()> {
        let member = self.member(&order.container)?;
        if member.execs().contains_key(&order.id) {
            // Before a logger is started for nothing.
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!(
                    "container {}: process {} exists already",
                    order.container, order.id
                ),
            ));
        }
        let owner = stdio::Owner {
            namespace: self.setting.namespace.as_str(),
            id: order.id.as_str(),
        };
        let (stdio, logger) = stdio::connect(order.wanted, &owner, &self.setting.log).await?;
        let request = ExecRequest {
            id: order.id.clone(),
            process: order.process,
            stdio,
        };
        if let Err(error) = member.container.exec(request).await {
            self.finish(logger);
            return Err(error);
        }
        let pid = self.next_pid.fetch_add(1, Ordering::Relaxed);
        let process = Process::new(pid, order.streams, logger);
        member.execs().insert(order.id.clone(), process);
        self.setting.events.exec_added(&order.container, &order.id);
        Ok(())
    }

    /// Starts an added process.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn start_exec(self: Arc<Self>, container: ContainerId, exec: ExecId) -> Result<u32> {
        let member = self.member(&container)?;
        let process = member.process(Some(&exec))?;
        member.container.start_exec(&exec).await?;
        self.setting.events.exec_started(&container, &exec, process.pid);
        // Its end, which may have come already, is announced after its start.
        process.announce(member.container.clone(), Some(exec), self.setting.events.clone());
        Ok(process.pid)
    }
}
