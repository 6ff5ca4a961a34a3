//! The custodian of a running virtual machine: a task that owns it, so that many may ask for its end, at any time, and
//! all get the same answer.

use hypervisor::{Exit, Vm, VmRecord};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Result;

/// Handle to the custodian. The virtual machine is killed when the last one is dropped.
#[derive(Debug, Clone)]
pub(super) struct Custody {
    stops: mpsc::Sender<oneshot::Sender<Result<()>>>,
    exited: watch::Receiver<Option<Exit>>,
    pid: u32,
    record: VmRecord,
}

impl Custody {
    /// Takes a virtual machine over.
    pub(super) fn new(mut vm: Box<dyn Vm>) -> Self {
        let (stops, mut asked) = mpsc::channel::<oneshot::Sender<Result<()>>>(1);
        let custody = Self {
            stops,
            exited: vm.exited(),
            pid: vm.pid(),
            record: vm.record(),
        };
        tokio::spawn(async move {
            while let Some(reply) = asked.recv().await {
                // Stopping is idempotent.
                let answer = vm.stop().await.map_err(Into::into);
                drop(reply.send(answer));
            }
        });
        custody
    }

    /// Ends the VMM and reaps it.
    pub(super) async fn stop(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        // The custodian lives as long as its handles.
        match self.stops.send(reply).await {
            Ok(()) => answer.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// Becomes `Some` when the VMM has ended, whatever the cause.
    pub(super) fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.clone()
    }

    /// Pid of the VMM.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// What is needed to reap it without us.
    pub(super) fn record(&self) -> &VmRecord {
        &self.record
    }
}
