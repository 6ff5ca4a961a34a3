//! The custodian of a running virtual machine: a task that owns it, so that many may ask for its end, at any time, and
//! all get the same answer.

use hypervisor::{Device, Exit, Size, Vm, VmRecord};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, ErrorKind, Result};

/// What the custodian is asked, and where the answer goes.
enum Order {
    Stop(oneshot::Sender<Result<()>>),
    Plug(Device, oneshot::Sender<Result<()>>),
    Grow(Size, oneshot::Sender<Result<Size>>),
}

/// Handle to the custodian. The virtual machine is killed when the last one is dropped.
#[derive(Debug, Clone)]
pub(super) struct Custody {
    orders: mpsc::Sender<Order>,
    exited: watch::Receiver<Option<Exit>>,
    pid: u32,
    record: VmRecord,
}

impl Custody {
    /// Takes a virtual machine over.
    pub(super) fn new(mut vm: Box<dyn Vm>) -> Self {
        let (orders, mut asked) = mpsc::channel::<Order>(1);
        let custody = Self {
            orders,
            exited: vm.exited(),
            pid: vm.pid(),
            record: vm.record(),
        };
        tokio::spawn(async move {
            while let Some(order) = asked.recv().await {
                match order {
                    // Stopping is idempotent.
                    Order::Stop(reply) => drop(reply.send(vm.stop().await.map_err(Into::into))),
                    Order::Plug(device, reply) => drop(reply.send(plug(&mut *vm, device).await)),
                    Order::Grow(to, reply) => drop(reply.send(grow(&mut *vm, to).await)),
                }
            }
        });
        custody
    }

    /// Ends the VMM and reaps it.
    pub(super) async fn stop(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        // The custodian lives as long as its handles.
        match self.orders.send(Order::Stop(reply)).await {
            Ok(()) => answer.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// Adds a device.
    pub(super) async fn plug(&self, device: Device) -> Result<()> {
        let gone = || Error::new(ErrorKind::Unavailable, "the virtual machine has ended");
        let (reply, answer) = oneshot::channel();
        let order = Order::Plug(device, reply);
        self.orders.send(order).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Adds vCPUs and memory until there is this much. Answers with what there is, for the guest to take into use.
    pub(super) async fn grow(&self, to: Size) -> Result<Size> {
        let gone = || Error::new(ErrorKind::Unavailable, "the virtual machine has ended");
        let (reply, answer) = oneshot::channel();
        let order = Order::Grow(to, reply);
        self.orders.send(order).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
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

async fn plug(vm: &mut dyn Vm, device: Device) -> Result<()> {
    match vm.hotplug() {
        Some(hotplug) => Ok(hotplug.plug(device).await?),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            "a device for the virtual machine has appeared after its start, and it can be given none while it runs; use a \
             machine with hotplug (machine_type = \"q35\")",
        )),
    }
}

async fn grow(vm: &mut dyn Vm, to: Size) -> Result<Size> {
    let Some(resize) = vm.resize() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this virtual machine keeps the vCPUs and the memory that it was started with",
        ));
    };
    // The one does not depend on the other; of two errors the first is told.
    let vcpus = resize.grow_vcpus(to.vcpus).await;
    let memory = resize.grow_memory(to.memory_mib).await;
    vcpus.and(memory)?;
    Ok(resize.size())
}
