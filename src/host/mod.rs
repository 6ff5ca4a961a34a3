//! The host's side of a sandbox: its directory and record, what it shares with the guest, the channel to the agent, and
//! the daemons behind the virtual machine's devices. All of it can be given back from the directory and the record alone.
//!
//! It must not know the guest, nor any hypervisor driver.

mod bundle;
mod cgroup;
mod copies;
pub(crate) mod daemon;
pub(crate) mod devices;
mod disk;
mod home;
mod hooks;
mod label;
mod leftovers;
mod mount;
mod mountinfo;
pub(crate) mod network;
mod options;
mod ready;
mod release;
mod share;
mod sources;
mod stage;
mod step;
mod sys;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use agent_protocol as p;
use async_trait::async_trait;
use configuration::Config;
use futures::future::{BoxFuture, FutureExt, ready, select_all};
use hypervisor::{Device, Disk, Hypervisor, VmRecord, VmSpec};
use oci_spec::runtime::Spec;
use slog::{Logger, o, warn};
use tokio::net::TcpListener;

pub(crate) use bundle::specification;
use daemon::{Daemon, Place};
use home::Home;
pub(crate) use home::is_owned;
pub(crate) use hooks::Hooks;
use label::Modules;
pub(crate) use leftovers::clean_up_dead;
use network::{Attached, Keeper};
use share::Share;
pub(crate) use stage::Stage;
use step::Steps;

use crate::aside::{Site, aside};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{CgroupPlan, ChannelPlan, ContainerType, NetworkPlan, PodConfig, SandboxPlan, SharePlan};
use crate::oci::Limits;
use crate::plan::Volumes;
use crate::sandbox::{Acquired, Added, Ground, Look, SandboxRequest, ToAdd, Wanted};
use crate::store::{CgroupRecord, Record};
use crate::{ContainerId, SandboxId, admin, direct, guest, oci, plan};

/// Name of the VMM's own directory in the sandbox's.
const VM_DIRECTORY: &str = "vm";

/// The host's side of one sandbox.
pub(crate) struct Host {
    config: Arc<Config>,
    hypervisor: Arc<dyn Hypervisor>,
    scope: SandboxId,
    plan: Arc<SandboxPlan>,
    held: Option<Held>,
    /// Its hooks look at the pid of its virtual machine, and may look for the pod's network there.
    has_hooks: bool,
    /// See [`Ground::expect`].
    expected: Option<Arc<OwnedFd>>,
    /// Containers so far, so that no name in the share is ever used twice.
    added: u64,
    steps: Steps,
    modules: Modules,
    log: Logger,
}

/// What it holds, from the moment that the directory is its own.
struct Held {
    home: Arc<Home>,
    record: Record,
    share: Option<Share>,
    daemons: Vec<Daemon>,
    network: Option<Keeper>,
    /// Where its daemons are started.
    place: Place,
}

/// What a pod's network means for its virtual machine.
#[derive(Default)]
struct Networked {
    namespace: Option<Arc<OwnedFd>>,
    devices: Vec<Device>,
    guest: Option<p::Network>,
    localhost: Vec<TcpListener>,
    late: Option<Look>,
}

impl Host {
    /// Checks a request and plans the sandbox. Nothing is acquired yet.
    ///
    /// # Errors
    /// What is wrong with the host, the bundle or their combination with the configuration.
    pub(crate) fn plan(request: &SandboxRequest, site: &Site) -> Result<Self> {
        request.hypervisor.check_host()?;
        let spec = bundle::specification(&bundle::absolute(&request.bundle)?, site)?;
        let resolv_conf = bundle::resolv_conf(&spec, site)?;
        let sandbox = oci::sandbox(&request.id, &spec, resolv_conf.as_deref())?;
        let abilities = request.hypervisor.capabilities();
        let plan = plan::sandbox(&request.config, &sandbox, &abilities, &is_program)?;
        let has_hooks = Self::look_ahead(request, &plan, spec, site)?;
        let mut host = Self::new(request, plan)?;
        host.has_hooks = has_hooks;
        Ok(host)
    }

    /// The same for a pod that no container stands for.
    ///
    /// # Errors
    /// What is wrong with the host, the pod or their combination with the configuration.
    pub(crate) fn plan_pod(request: &SandboxRequest, pod: PodConfig) -> Result<Self> {
        request.hypervisor.check_host()?;
        let sandbox = oci::pod(&request.id, pod, &bundle::resolv_conf_of_the_host())?;
        let abilities = request.hypervisor.capabilities();
        let plan = plan::sandbox(&request.config, &sandbox, &abilities, &is_program)?;
        Self::new(request, plan)
    }

    /// The first container is planned, and what it needs of the host is looked for: what can't be is refused here, and not
    /// after a virtual machine was started for it.
    /// Answers whether the container has hooks of the host.
    fn look_ahead(request: &SandboxRequest, plan: &SandboxPlan, spec: Spec, site: &Site) -> Result<bool> {
        let id = ContainerId::new(request.id.as_str())?;
        let bundle = bundle::absolute(&request.bundle)?;
        // A relative root is the caller's to mount, and may have to be made first.
        let root = spec.root().as_ref().map(|root| root.path().clone());
        let mut container = oci::container(&id, spec, bundle, request.rootfs.clone())?;
        container.found = sources::look(plan::sources(&container)?, Path::new(direct::PLACE), site)?;
        let mut container = plan::container(&request.config, plan, &container, &Volumes::default())?;
        share::find_sources(&container, root.is_some_and(|root| root.is_absolute()), site)
            .and_then(|()| copies::fill(&mut container, site))
            .and_then(|()| disk::open_all(&container.disks, site))
            .map(|_| container.stage.is_some() || container.hooks.look_at_the_pid())
            .map_err(|error| error.while_doing(format_args!("container {id}")))
    }

    /// The host's side of a sandbox that is planned.
    fn new(request: &SandboxRequest, plan: SandboxPlan) -> Result<Self> {
        home::directory(&request.config.runtime.run_dir, &request.scope, &request.id)?;
        Ok(Self {
            config: Arc::clone(&request.config),
            hypervisor: Arc::clone(&request.hypervisor),
            scope: request.scope.clone(),
            plan: Arc::new(plan),
            held: None,
            has_hooks: false,
            expected: None,
            added: 0,
            steps: Steps::default(),
            modules: Modules::of_the_host(),
            log: request.log.new(o!("sandbox" => request.id.to_string())),
        })
    }

    /// The share, and how to count what is done in it.
    fn shared(&self) -> Result<(Share, Steps)> {
        let share = self.held.as_ref().and_then(|held| held.share.clone());
        Ok((share.ok_or_else(not_acquired)?, self.steps.clone()))
    }

    /// The cgroups that processes are to be started in.
    fn cgroup(held: &mut Held, plan: &CgroupPlan, steps: &Steps) -> Result<()> {
        let (record, dir) = (&mut held.record, held.home.dir());
        let mut keep = |made: CgroupRecord| {
            record.cgroup = Some(made);
            record.write(dir)
        };
        held.place.cgroups = cgroup::make(plan, steps, &mut keep)?;
        Ok(())
    }

    /// The pod's network.
    async fn network(
        held: &mut Held,
        plan: &NetworkPlan,
        expected: Option<Arc<OwnedFd>>,
        steps: &Steps,
        log: &Logger,
    ) -> Result<Networked> {
        let model = network::Model::of(plan.model);
        let attached = match (&plan.namespace, expected) {
            (None, Some(namespace)) => Attached::hold_new(namespace, model, plan.queues)?,
            (path, _) => Attached::hold(path.as_deref(), model, plan.queues).await?,
        };
        // Held first, so that a release waits for what is under way when a start is given up.
        let keeper = held.network.insert(Keeper::start(attached)).clone();
        let connected = keeper.connect(plan.localhost).await?;
        for what in &connected.left_out {
            warn!(log, "{} and is not in the guest", what);
        }
        let localhost = connected.localhost.unwrap_or_else(|error| {
            warn!(log, "ports of the guest's localhost cannot be forwarded"; "error" => error.chain());
            Vec::new()
        });
        held.record.network = connected.record;
        held.record.write(held.home.dir())?;
        steps.take()?;
        let namespace = keeper.namespace();
        let late: Option<Look> = (plan.late && model.is_some()).then(|| {
            let look = move || {
                let keeper = keeper.clone();
                async move { keeper.look_again().await }.boxed()
            };
            Arc::new(look) as Look
        });
        Ok(Networked {
            namespace: Some(namespace),
            devices: connected.devices,
            guest: Some(connected.guest),
            localhost,
            late,
        })
    }

    /// The share, and its device where anything is shared: else nobody serves it, and nothing is put into it.
    async fn share(held: &mut Held, plan: &SharePlan, steps: &Steps, log: &Logger) -> Result<Option<Device>> {
        let inert = *plan != SharePlan::Process;
        let dir = held.home.dir().to_owned();
        let share = Share::make(&dir, inert, steps)?;
        let shared = share.directory().to_owned();
        held.share = Some(share);
        match plan {
            SharePlan::Nothing => Ok(None),
            SharePlan::Process => Ok(Some(devices::process_share(&shared))),
            SharePlan::VirtioFs { daemon, cache } => {
                let (daemon, device) =
                    devices::virtiofsd(daemon, cache, &dir, &shared, &held.place, log).await?;
                held.took(daemon)?;
                steps.take()?;
                Ok(Some(device))
            }
        }
    }
}

impl Held {
    /// Takes a daemon over.
    fn took(&mut self, daemon: Daemon) -> Result<()> {
        self.record.daemons.push(daemon.record());
        self.daemons.push(daemon);
        self.record.write(self.home.dir())
    }
}

#[async_trait]
impl Ground for Host {
    fn wanted(&self) -> std::result::Result<Wanted, String> {
        let plan = &self.plan;
        let Some(template) = plan.template.filter(|_| plan.channel == ChannelPlan::Serial) else {
            return Err("virtual machines of this hypervisor and channel are not kept ready".to_owned());
        };
        let is_elses = plan
            .network
            .as_ref()
            .is_some_and(|network| network.namespace.is_some());
        if is_elses && self.has_hooks {
            return Err(
                "its hooks may look for the pod's network namespace where its virtual machine is, and one that is kept ready \
                 is in another"
                    .to_owned(),
            );
        }
        let labels = self.modules.for_monitor(&plan.labels);
        if !labels.is_empty() {
            return Err(
                "its process is to have the pod's security label from its start, and one that is kept ready has started".to_owned(),
            );
        }
        Ok(Wanted {
            vm: VmSpec {
                labels,
                id: plan.id.to_string(),
                run_dir: Default::default(),
                kernel: plan.kernel.clone(),
                initrd: plan.initrd.clone(),
                kernel_params: [&plan.kernel_params[..], &[guest::serial_channel()]].concat(),
                vcpus: plan.vcpus,
                max_vcpus: plan.max_vcpus,
                memory: plan.memory.clone(),
                devices: vec![devices::serial_port(Path::new("/"))],
                network_namespace: None,
                cgroups: Vec::new(),
            },
            plan: template,
        })
    }

    fn expect(&mut self, namespace: Arc<OwnedFd>) {
        self.expected = Some(namespace);
    }

    async fn acquire(&mut self) -> Result<Acquired> {
        let (plan, steps, log) = (&self.plan, &self.steps, &self.log);
        let (home, left_over) = Home::claim(&self.config.runtime.run_dir, &self.scope, &plan.id).await?;
        let home = match left_over {
            false => home,
            true => {
                warn!(log, "an owner of this id has died; it is cleaned up after"; "dir" => %home.dir().display());
                leftovers::clear_dead(home, &*self.hypervisor).await?;
                // Nobody keeps us from claiming it but a rival.
                Home::claim(&self.config.runtime.run_dir, &self.scope, &plan.id)
                    .await?
                    .0
            }
        };
        let held = self.held.insert(Held {
            home: Arc::new(home),
            record: Record::new(&self.scope, &plan.id),
            share: None,
            daemons: Vec::new(),
            network: None,
            place: Place {
                cgroups: Vec::new(),
                labels: self.modules.for_daemon(&plan.labels),
            },
        });
        steps.take()?;
        held.record.write(held.home.dir())?;
        steps.take()?;
        let dir = held.home.dir().to_owned();
        let run_dir = dir.join(VM_DIRECTORY);
        make_private(&run_dir)?;
        steps.take()?;

        if let Some(cgroup) = &plan.cgroup {
            Self::cgroup(held, cgroup, steps)?;
        }
        let share = Self::share(held, &plan.share, steps, log).await?;
        let agents = devices::listen(&dir, &plan.channel)?;
        steps.take()?;
        if let ChannelPlan::DaemonVsock(program) = &plan.channel {
            let daemon = devices::vsock_daemon(program, &dir, &held.place, log).await?;
            held.took(daemon)?;
            steps.take()?;
        }

        let mut machine_devices = vec![agents.device];
        machine_devices.extend(share);
        let mut guest = plan.guest.clone();
        let network = match &plan.network {
            Some(plan) => Self::network(held, plan, self.expected.take(), steps, log).await?,
            None => Networked::default(),
        };
        machine_devices.extend(network.devices);
        guest.network = network.guest.into();

        let mut kernel_params = plan.kernel_params.clone();
        kernel_params.push(agents.kernel_param);
        Ok(Acquired {
            vm: VmSpec {
                id: plan.id.to_string(),
                run_dir,
                kernel: plan.kernel.clone(),
                initrd: plan.initrd.clone(),
                kernel_params,
                vcpus: plan.vcpus,
                max_vcpus: plan.max_vcpus,
                memory: plan.memory.clone(),
                devices: machine_devices,
                network_namespace: network.namespace,
                cgroups: held.place.cgroups.clone(),
                labels: self.modules.for_monitor(&plan.labels),
            },
            listener: agents.listener,
            guest,
            localhost: network.localhost,
            late: network.late,
            growth: plan.growth,
            template: plan.template,
            admin: Some(admin::listen(held.home.dir())?),
            lost: match held.daemons.is_empty() {
                true => Box::pin(std::future::pending()),
                false => {
                    let ends: Vec<_> = held.daemons.iter().map(|daemon| daemon.ended().boxed()).collect();
                    Box::pin(select_all(ends).map(|(news, _, _)| news))
                }
            },
        })
    }

    fn keep(&mut self, vm: &VmRecord) -> Result<()> {
        let held = self.held.as_mut().ok_or_else(not_acquired)?;
        held.record.vm = Some(vm.clone());
        held.record.write(held.home.dir())?;
        self.steps.take()
    }

    fn add(&mut self, request: ToAdd) -> BoxFuture<'static, Result<Added>> {
        let (config, sandbox, shared) = (Arc::clone(&self.config), Arc::clone(&self.plan), self.shared());
        let held = self.held.as_ref();
        let network = held.and_then(|held| held.network.as_ref()).map(Keeper::namespace);
        // A guest remembers what it has seen under a name for a while.
        let number = self.added;
        let directory = format!("{}.{number}", request.id);
        self.added += 1;
        let hypervisor = Arc::clone(&self.hypervisor);
        let limit = config.agent.create_container_timeout;
        let (id, log) = (request.id.clone(), self.log.clone());
        let work = move |site: &Site| {
            let (share, steps) = shared?;
            let bundle = bundle::absolute(&request.bundle)?;
            let spec = bundle::specification(&bundle, site)?;
            let mut container = oci::container(&request.id, spec, bundle, request.rootfs)?;
            container.container_type = match container.container_type {
                // It has joined another one without a word of a pod: what is the sandbox's is not its own.
                ContainerType::SingleContainer if request.id.as_str() != sandbox.id.as_str() => {
                    ContainerType::PodContainer
                }
                // It is the sandbox, whatever it says of a pod.
                ContainerType::PodContainer if request.id.as_str() == sandbox.id.as_str() => {
                    ContainerType::SingleContainer
                }
                container_type => container_type,
            };
            (container.directory, container.number) = (directory, number);
            container.found = sources::look(plan::sources(&container)?, Path::new(direct::PLACE), site)?;
            let limits = Limits::of(&container.spec)?;
            let planned = |volumes: &Volumes| plan::container(&config, &sandbox, &container, volumes);
            let mut plan = share.add(planned, &steps.aside(site))?;
            if plan.has_agents_pids {
                warn!(log, "a container sees the guest's own processes, and can do what the agent can";
                    "container" => %plan.id);
            }
            let (disks, volumes, stage) = disk::open_all(&plan.disks, site)
                .and_then(|disks| {
                    steps.take()?;
                    tell_serials(&mut plan.guest, &disks, &*hypervisor)?;
                    copies::fill(&mut plan, site)?;
                    let volumes = disk::volumes(&plan.disks, &disks)?;
                    let stage = share.stage(&plan, network, &steps.aside(site))?;
                    Ok((disks, volumes, stage))
                })
                .map_err(|error| {
                    let error = error.while_doing(format_args!("container {}", plan.id));
                    match share.remove(&plan.id) {
                        Ok(()) => error,
                        Err(second) => error.and(&second),
                    }
                })?;
            Ok(Added {
                guest: plan.guest,
                disks,
                volumes,
                limits,
                hooks: Hooks::new(&plan.id, plan.hooks),
                stage,
            })
        };
        let late = move |error: Error| match error.kind {
            ErrorKind::DeadlineExceeded => error.while_doing(format_args!("container {id}")),
            _ => error,
        };
        aside(limit, work).map(|added| added.map_err(late)).boxed()
    }

    fn remove(&mut self, id: &ContainerId) -> BoxFuture<'static, Result<()>> {
        let Ok((share, _)) = self.shared() else {
            return ready(Ok(())).boxed();
        };
        let (id, limit) = (id.clone(), self.config.agent.request_timeout);
        aside(limit, move |_| share.remove(&id)).boxed()
    }

    fn forgo(&mut self) {
        let Some(held) = &self.held else {
            return;
        };
        for daemon in &held.daemons {
            daemon.kill();
        }
        // Some have processes of their own.
        if let Some(cgroup) = &held.record.cgroup {
            cgroup::end_others(cgroup, held.record.vm.as_ref().map(|vm| vm.pid));
        }
    }

    async fn release(&mut self) -> Result<()> {
        let Some(held) = &mut self.held else {
            return Ok(());
        };
        if let Some(share) = &held.share {
            share.settled().await;
        }
        let released = held.release().await;
        self.held = None;
        released
    }
}

/// Without a release, as when the runtime itself is torn down.
impl Drop for Host {
    fn drop(&mut self) {
        let Some(mut held) = self.held.take() else {
            return;
        };
        held.daemons.clear();
        let emptied = match &held.record.cgroup {
            Some(cgroup) => cgroup::remove_now(cgroup),
            None => Ok(()),
        };
        if let Err(error) = emptied.and(held.clear()) {
            warn!(self.log, "a sandbox that was dropped is not all released"; "error" => error.chain());
        }
    }
}

/// Names the disks to the guest as it sees them, where the virtual machine monitor does not name them as the plan does.
fn tell_serials(
    guest: &mut p::CreateContainerRequest,
    disks: &[Disk],
    hypervisor: &dyn Hypervisor,
) -> Result<()> {
    for disk in disks {
        let (planned, seen) = (guest::serial(&disk.id), guest::serial(&hypervisor.serial(disk)?));
        let storages = guest.storages.iter_mut().map(|storage| &mut storage.source);
        let devices = guest.devices.iter_mut().map(|device| &mut device.source);
        for source in storages.chain(devices).filter(|source| **source == planned) {
            source.clone_from(&seen);
        }
    }
    Ok(())
}

/// Whether a path is one of a program.
fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn make_private(dir: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(dir).map_err(|cause| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot make the directory {}", dir.display()),
            cause,
        )
    })
}

fn not_acquired() -> Error {
    Error::new(ErrorKind::Internal, "the host's side of the sandbox is not there")
}
