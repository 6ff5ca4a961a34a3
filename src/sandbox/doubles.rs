//! Doubles for tests of the sandbox: a host that only counts, a VMM that is a task, and a guest that serves the fake agent
//! over a real connection, or misbehaves.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_client::{Agent as _, Channel, FakeAgent, Listener};
use agent_protocol::{self as p, GREETING, service};
use async_trait::async_trait;
use futures::StreamExt;
use futures::future::{BoxFuture, ready};
use hypervisor::{
    Boot, Capabilities, Device, Disk, Exit, ExitReason, Hotplug, Hypervisor, Memory, MemoryBacking, Resize,
    SaveTo, Size, Vm, VmRecord, VmReport, VmSpec,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use ttrpc::r#async::TtrpcContext;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::{Listener as Connections, Socket};

use super::ground::{Acquired, Added, Ground, ToAdd};
use crate::ContainerId;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Hooks;
use crate::model::{GrowthPlan, HooksPlan};
use crate::oci::Limits;

/// Where a start goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The host's side cannot be acquired, after a part of it was.
    Acquire,
    /// The VMM does not start.
    Launch,
    /// The record cannot be written.
    Keep,
    /// The guest panics while it boots.
    Panic,
    /// A daemon dies while the guest boots.
    Daemon,
    /// The guest hangs while it boots.
    Silence,
    /// The agent speaks another version.
    Version,
    /// The agent does not answer.
    Deaf,
    /// The guest cannot become the sandbox.
    Refusal,
    /// The VMM adds no vCPU.
    Growth,
    /// As [`Fault::Panic`], and then the host's side cannot be released.
    PanicAndRelease,
}

/// What all doubles of one sandbox share: what is there, and what shall happen.
#[derive(Debug)]
pub(super) struct World {
    pub(super) fault: Fault,
    /// Of every container.
    pub(super) hooks: HooksPlan,
    pub(super) agent: Arc<FakeAgent>,
    pub(super) dir: tempfile::TempDir,
    pub(super) host: AtomicBool,
    pub(super) vms: AtomicU32,
    pub(super) containers: Mutex<BTreeSet<String>>,
    pub(super) daemon: watch::Sender<Option<String>>,
    pub(super) vm: watch::Sender<Option<Exit>>,
    /// What the VMM was made to have.
    pub(super) size: Mutex<Size>,
    /// How it grows, and what each container may use.
    pub(super) growth: Option<GrowthPlan>,
    pub(super) limits: Mutex<Limits>,
    /// Disks that each container has.
    pub(super) disks: AtomicU32,
    /// Those that are plugged.
    pub(super) plugged: Mutex<BTreeSet<String>>,
    /// So many more can be plugged.
    pub(super) ports: AtomicU32,
    /// The guest does not let go of any.
    pub(super) clings: AtomicBool,
    /// Unplugging a disk takes too long.
    pub(super) keeps: AtomicBool,
}

impl World {
    pub(super) fn new(fault: Fault) -> Arc<Self> {
        Self::with(fault, HooksPlan::default(), None)
    }

    pub(super) fn with_hooks(fault: Fault, hooks: HooksPlan) -> Arc<Self> {
        Self::with(fault, hooks, None)
    }

    pub(super) fn growing(fault: Fault, growth: Option<GrowthPlan>) -> Arc<Self> {
        Self::with(fault, HooksPlan::default(), growth)
    }

    fn with(fault: Fault, hooks: HooksPlan, growth: Option<GrowthPlan>) -> Arc<Self> {
        let smallest = Size {
            vcpus: 1,
            memory_mib: 2,
        };
        Arc::new(Self {
            fault,
            hooks,
            agent: Arc::new(FakeAgent::new()),
            dir: tempfile::tempdir().unwrap(),
            host: AtomicBool::new(false),
            vms: AtomicU32::new(0),
            containers: Mutex::default(),
            daemon: watch::Sender::new(None),
            vm: watch::Sender::new(None),
            size: Mutex::new(growth.map_or(smallest, |growth| growth.started)),
            growth,
            limits: Mutex::default(),
            disks: AtomicU32::new(0),
            plugged: Mutex::default(),
            ports: AtomicU32::new(4),
            clings: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
        })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Names of what is left.
    pub(super) fn left(&self) -> Vec<&'static str> {
        [
            (self.host.load(Ordering::SeqCst), "host"),
            (self.vms.load(Ordering::SeqCst) > 0, "vm"),
            (!self.containers.lock().unwrap().is_empty(), "containers"),
            (self.socket().exists(), "socket"),
        ]
        .into_iter()
        .filter_map(|(left, name)| left.then_some(name))
        .collect()
    }

    /// Ends the VMM, as if by itself.
    pub(super) fn end_vm(&self, reason: ExitReason) {
        self.vm.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(Exit {
                reason,
                console: vec!["booting".into(), "Kernel panic - not syncing".into()],
            });
            first
        });
        self.agent.disconnect();
    }
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("{what} is broken"))
}

/// The host's side.
pub(super) struct Counted(pub(super) Arc<World>);

#[async_trait]
impl Ground for Counted {
    async fn acquire(&mut self) -> Result<Acquired> {
        self.0.host.store(true, Ordering::SeqCst);
        if self.0.fault == Fault::Acquire {
            return Err(broken("the host"));
        }
        let listener = Listener::bind(&Channel::Unix {
            path: self.0.socket(),
        })?;
        let mut daemon = self.0.daemon.subscribe();
        let started = *self.0.size.lock().unwrap();
        Ok(Acquired {
            vm: VmSpec {
                id: "s".into(),
                run_dir: self.0.dir.path().into(),
                kernel: PathBuf::new(),
                initrd: PathBuf::new(),
                kernel_params: Vec::new(),
                vcpus: started.vcpus,
                max_vcpus: started.vcpus,
                memory: Memory {
                    size_mib: started.memory_mib,
                    max_mib: started.memory_mib,
                    backing: MemoryBacking::Private,
                },
                devices: Vec::new(),
                network_namespace: None,
                cgroups: Vec::new(),
                labels: Vec::new(),
            },
            listener,
            guest: p::CreateSandboxRequest::default(),
            localhost: Vec::new(),
            late: None,
            growth: self.0.growth,
            template: None,
            admin: None,
            lost: Box::pin(async move {
                let reason = daemon
                    .wait_for(Option::is_some)
                    .await
                    .map(|reason| reason.clone());
                reason.unwrap().unwrap()
            }),
        })
    }

    fn keep(&mut self, _: &VmRecord) -> Result<()> {
        match self.0.fault {
            Fault::Keep => Err(broken("the store")),
            _ => Ok(()),
        }
    }

    fn add(&mut self, request: ToAdd) -> BoxFuture<'static, Result<Added>> {
        let id = request.id.to_string();
        assert!(self.0.containers.lock().unwrap().insert(id.clone()));
        let disks = (0..self.0.disks.load(Ordering::SeqCst)).map(|index| Disk {
            id: format!("{id}{index}"),
            file: Arc::new(std::fs::File::open("/dev/null").unwrap().into()),
            readonly: true,
        });
        let added = Added {
            disks: disks.collect(),
            volumes: Vec::new(),
            guest: p::CreateContainerRequest {
                container_id: id,
                ..Default::default()
            },
            limits: *self.0.limits.lock().unwrap(),
            hooks: Hooks::new(&request.id, self.0.hooks.clone()),
            stage: None,
        };
        Box::pin(ready(Ok(added)))
    }

    fn remove(&mut self, id: &ContainerId) -> BoxFuture<'static, Result<()>> {
        self.0.containers.lock().unwrap().remove(id.as_str());
        Box::pin(ready(Ok(())))
    }

    async fn release(&mut self) -> Result<()> {
        assert_eq!(
            self.0.vms.load(Ordering::SeqCst),
            0,
            "the VM goes before what it stands on"
        );
        self.0.containers.lock().unwrap().clear();
        self.0.host.store(false, Ordering::SeqCst);
        match self.0.fault {
            Fault::PanicAndRelease => Err(broken("the release")),
            _ => Ok(()),
        }
    }
}

/// The VMM.
pub(super) struct Played(pub(super) Arc<World>);

#[async_trait]
impl Hypervisor for Played {
    fn name(&self) -> &'static str {
        "played"
    }

    fn capabilities(&self) -> Capabilities {
        unreachable!("the ground has planned already")
    }

    fn check_host(&self) -> Result<(), hypervisor::Error> {
        Ok(())
    }

    fn fingerprint(&self, _: &VmSpec) -> Result<String, hypervisor::Error> {
        Err(hypervisor::Error::new(
            hypervisor::ErrorKind::Unsupported,
            "a test",
        ))
    }

    async fn launch(&self, _: VmSpec, _: Boot) -> Result<Box<dyn Vm>, hypervisor::Error> {
        let world = Arc::clone(&self.0);
        match world.fault {
            Fault::Launch => {
                let kind = hypervisor::ErrorKind::Internal;
                return Err(hypervisor::Error::new(kind, "the VMM is broken"));
            }
            Fault::Panic | Fault::PanicAndRelease => world.end_vm(ExitReason::GuestPanic),
            Fault::Daemon => {
                world.daemon.send_replace(Some("virtiofsd was killed".into()));
            }
            Fault::Silence => {}
            _ => drop(tokio::spawn(guest(Arc::clone(&world)))),
        }
        world.vms.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(PlayedVm(world)))
    }

    async fn reap(&self, _: &VmRecord) -> Result<(), hypervisor::Error> {
        Ok(())
    }
}

struct PlayedVm(Arc<World>);

#[async_trait]
impl Vm for PlayedVm {
    fn pid(&self) -> u32 {
        4711
    }

    fn record(&self) -> VmRecord {
        VmRecord {
            driver: "played".into(),
            pid: 4711,
            start_time: 0,
            run_dir: PathBuf::new(),
        }
    }

    fn report(&self) -> VmReport {
        VmReport {
            vmm: "played".into(),
            machine: "task".into(),
            accelerator: "none".into(),
            reason: "a test".into(),
            origin: hypervisor::Origin::Boot,
        }
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.0.vm.subscribe()
    }

    async fn save(&mut self, _: SaveTo) -> Result<(), hypervisor::Error> {
        Err(hypervisor::Error::new(
            hypervisor::ErrorKind::Unsupported,
            "a test",
        ))
    }

    async fn stop(&mut self) -> Result<(), hypervisor::Error> {
        self.0.end_vm(ExitReason::Stopped);
        self.0.vms.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn hotplug(&mut self) -> Option<&mut dyn Hotplug> {
        Some(self)
    }

    fn resize(&mut self) -> Option<&mut dyn Resize> {
        Some(self)
    }
}

#[async_trait]
impl Hotplug for PlayedVm {
    async fn plug(&mut self, device: Device) -> Result<(), hypervisor::Error> {
        let Device::Block(disk) = device else {
            unreachable!("only disks are plugged");
        };
        let left = self.0.ports.load(Ordering::SeqCst);
        if left == 0 {
            let kind = hypervisor::ErrorKind::FailedPrecondition;
            return Err(hypervisor::Error::new(kind, "all ports are in use"));
        }
        self.0.ports.store(left - 1, Ordering::SeqCst);
        assert!(self.0.plugged.lock().unwrap().insert(disk.id));
        Ok(())
    }

    async fn unplug(&mut self, id: &str) -> Result<(), hypervisor::Error> {
        if self.0.clings.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.0.keeps.load(Ordering::SeqCst) {
            let kind = hypervisor::ErrorKind::DeadlineExceeded;
            return Err(hypervisor::Error::new(kind, "the guest does not let go"));
        }
        match self.0.plugged.lock().unwrap().remove(id) {
            true => {
                self.0.ports.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            false => Err(hypervisor::Error::new(
                hypervisor::ErrorKind::NotFound,
                "not there",
            )),
        }
    }
}

#[async_trait]
impl Resize for PlayedVm {
    fn size(&self) -> Size {
        *self.0.size.lock().unwrap()
    }

    async fn grow_vcpus(&mut self, vcpus: u32) -> Result<(), hypervisor::Error> {
        if self.0.fault == Fault::Growth {
            let kind = hypervisor::ErrorKind::Internal;
            return Err(hypervisor::Error::new(kind, "the VMM has no vCPU left"));
        }
        self.0.size.lock().unwrap().vcpus = vcpus;
        Ok(())
    }

    async fn grow_memory(&mut self, mib: u64) -> Result<(), hypervisor::Error> {
        self.0.size.lock().unwrap().memory_mib = mib;
        Ok(())
    }
}

/// Dials, greets, and serves the fake agent until the VMM ends.
async fn guest(world: Arc<World>) {
    let Ok(mut stream) = UnixStream::connect(world.socket()).await else {
        // The start has failed before we got here.
        return;
    };
    stream.write_all(GREETING).await.unwrap();
    let (_close, closed) = oneshot::channel::<()>();
    let first = futures::stream::once(async move { Ok::<_, std::io::Error>(Socket::new(stream)) });
    let rest = futures::stream::once(async move {
        let _ = closed.await;
        Err(std::io::Error::other("no more connections"))
    });
    let mut exited = world.vm.subscribe();
    let mut server = Server::new()
        .register_service(service::create_agent(Arc::new(Served(world))))
        .add_listener(Connections::new(first.chain(rest).boxed()));
    server.start().await.unwrap();
    let _ = exited.wait_for(Option::is_some).await;
    let _ = server.shutdown().await;
}

struct Served(Arc<World>);

/// Longest that a call of the host may keep this guest.
const LONG: Option<Duration> = Some(Duration::from_secs(60));

/// As a real agent answers.
fn code(kind: agent_client::ErrorKind) -> ttrpc::Code {
    use agent_client::ErrorKind as Kind;
    match kind {
        Kind::NotFound => ttrpc::Code::NOT_FOUND,
        Kind::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
        Kind::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
        Kind::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
        Kind::Unsupported => ttrpc::Code::UNIMPLEMENTED,
        Kind::Unavailable => ttrpc::Code::UNAVAILABLE,
        Kind::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
        Kind::Internal => ttrpc::Code::INTERNAL,
    }
}

macro_rules! forward {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[async_trait]
        impl service::Agent for Served {
            async fn hello(&self, _: &TtrpcContext, _: p::HelloRequest) -> ttrpc::Result<p::HelloResponse> {
                if self.0.fault == Fault::Deaf {
                    std::future::pending::<()>().await;
                }
                let protocol_version = p::VERSION + u32::from(self.0.fault == Fault::Version);
                Ok(p::HelloResponse { protocol_version, ..Default::default() })
            }

            async fn create_sandbox(&self, _: &TtrpcContext, request: p::CreateSandboxRequest) -> ttrpc::Result<p::Empty> {
                assert_eq!(request.entropy.len(), 64);
                assert!(request.now_unix_ns > 0);
                if self.0.fault == Fault::Refusal {
                    let status = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no such sysctl");
                    return Err(ttrpc::Error::RpcStatus(status));
                }
                Ok(p::Empty::default())
            }

            $(async fn $name(&self, _: &TtrpcContext, request: p::$request) -> ttrpc::Result<p::$response> {
                self.0.agent.$name(request, LONG).await.map_err(|error| {
                    ttrpc::Error::RpcStatus(ttrpc::get_status(code(error.kind), error.message))
                })
            })*
        }
    };
}

forward! {
    take_growth(GrowthRequest) -> GrowthResponse;
    destroy_sandbox(DestroySandboxRequest) -> Empty;
    create_container(CreateContainerRequest) -> ProcessResponse;
    start_container(ContainerRequest) -> Empty;
    delete_container(DeleteContainerRequest) -> Empty;
    update_container(UpdateContainerRequest) -> Empty;
    signal_process(SignalProcessRequest) -> Empty;
    wait_process(ProcessRequest) -> WaitProcessResponse;
    next_events(NextEventsRequest) -> NextEventsResponse;
}
