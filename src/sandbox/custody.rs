//! The custodian of a running virtual machine: a task that owns it, so that many may ask for its end, at any time, and
//! all get the same answer.

use hypervisor::{Device, Exit, Size, Vm, VmRecord};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::start;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

/// What the custodian is asked, and where the answer goes. A stop is no order: it does not wait for one.
enum Order {
    Plug(Device, oneshot::Sender<Result<()>>),
    Unplug(String, oneshot::Sender<Result<()>>),
    Grow(Size, oneshot::Sender<Result<Size>>),
    GrowDisk(String, u64, oneshot::Sender<Result<()>>),
}

/// Handle to the custodian. The virtual machine is killed when the last one is dropped.
#[derive(Debug, Clone)]
pub(super) struct Custody {
    orders: mpsc::Sender<Order>,
    stops: mpsc::Sender<oneshot::Sender<Result<()>>>,
    exited: watch::Receiver<Option<Exit>>,
    pid: u32,
    record: VmRecord,
}

impl Custody {
    /// Takes a virtual machine over.
    pub(super) fn new(mut vm: Box<dyn Vm>) -> Self {
        let (orders, mut asked) = mpsc::channel::<Order>(1);
        let (stops, mut to_stop) = mpsc::channel::<oneshot::Sender<Result<()>>>(1);
        let custody = Self {
            orders,
            stops,
            exited: vm.exited(),
            pid: vm.pid(),
            record: vm.record(),
        };
        tokio::spawn(async move {
            loop {
                // An order that is under way is given up for a stop: the guest may hold it up as long as it can.
                let stop = tokio::select! {
                    biased;
                    stop = to_stop.recv() => stop,
                    Some(order) = asked.recv() => tokio::select! {
                        biased;
                        stop = to_stop.recv() => stop,
                        () = carry_out(&mut *vm, order) => continue,
                    },
                };
                match stop {
                    // Stopping is idempotent.
                    Some(reply) => drop(reply.send(vm.stop().await.map_err(Into::into))),
                    None => return,
                }
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

    /// Adds a device.
    pub(super) async fn plug(&self, device: Device) -> Result<()> {
        let gone = || Error::new(ErrorKind::Unavailable, "the virtual machine has ended");
        let (reply, answer) = oneshot::channel();
        let order = Order::Plug(device, reply);
        self.orders.send(order).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Takes a device out, of which the guest has to let go. One that is not there, or whose virtual machine is not, is success.
    pub(super) async fn unplug(&self, name: String) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let unplugged = match self.orders.send(Order::Unplug(name, reply)).await {
            // No answer: a stop has come between.
            Ok(()) => answer.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        };
        match unplugged {
            Err(error) if error.kind == ErrorKind::Unavailable => {
                // Its control socket closes before its end is known.
                let ended = timeout(deadlines::EXIT_NEWS, start::ended(self.exited()));
                ended.await.map(drop).map_err(|_| error)
            }
            Err(_) if self.exited.borrow().is_some() => Ok(()),
            unplugged => unplugged,
        }
    }

    /// Adds vCPUs and memory until there is this much. Answers with what there is, for the guest to take into use.
    pub(super) async fn grow(&self, to: Size) -> Result<Size> {
        let gone = || Error::new(ErrorKind::Unavailable, "the virtual machine has ended");
        let (reply, answer) = oneshot::channel();
        let order = Order::Grow(to, reply);
        self.orders.send(order).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Tells the virtual machine that a disk has so many bytes now.
    pub(super) async fn grow_disk(&self, name: String, bytes: u64) -> Result<()> {
        let gone = || Error::new(ErrorKind::Unavailable, "the virtual machine has ended");
        let (reply, answer) = oneshot::channel();
        let order = Order::GrowDisk(name, bytes, reply);
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

async fn carry_out(vm: &mut dyn Vm, order: Order) {
    // Whoever does not wait for the answer any more does not need it.
    match order {
        Order::Plug(device, reply) => drop(reply.send(plug(vm, device).await)),
        Order::Unplug(name, reply) => drop(reply.send(unplug(vm, &name).await)),
        Order::Grow(to, reply) => drop(reply.send(grow(vm, to).await)),
        Order::GrowDisk(name, bytes, reply) => drop(reply.send(grow_disk(vm, &name, bytes).await)),
    }
}

async fn unplug(vm: &mut dyn Vm, name: &str) -> Result<()> {
    let Some(hotplug) = vm.hotplug() else {
        return Ok(());
    };
    match hotplug.unplug(name).await {
        Err(error) if error.kind == hypervisor::ErrorKind::NotFound => Ok(()),
        unplugged => Ok(unplugged?),
    }
}

async fn plug(vm: &mut dyn Vm, device: Device) -> Result<()> {
    match vm.hotplug() {
        Some(hotplug) => Ok(hotplug.plug(device).await?),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            "the virtual machine can be given no devices while it runs; use a machine with hotplug (machine_type = \"q35\")",
        )),
    }
}

async fn grow_disk(vm: &mut dyn Vm, name: &str, bytes: u64) -> Result<()> {
    match vm.hotplug() {
        Some(hotplug) => Ok(hotplug.grow_disk(name, bytes).await?),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            "this virtual machine has no disks that were plugged",
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
