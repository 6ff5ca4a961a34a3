//! The Firecracker driver. Needs version 1.7 or later, and KVM. It has no shared file systems, keeps its size, and takes network
//! cards only at the start; disks for containers that come later wait from the beginning.

mod drives;
mod place;
mod request;
mod snapshot;
mod sys;
mod vm;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use configuration::HypervisorConfig;
use serde_json::Value;
use slog::{Logger, debug};
use tokio::net::UnixStream;
use tokio::time::timeout;

use self::drives::Drives;
use self::place::Place;
use self::request::Settings;
use self::snapshot::Revival;
use self::vm::FirecrackerVm;
use crate::probe::{self, Choice};
use crate::rest::{Awaited, Call, Client, Litter, RateLimit};
use crate::saved::check_saveable;
use crate::spec::checked;
use crate::supervisor::{Sources, Supervised};
use crate::version::Version;
use crate::{
    Boot, Capabilities, Device, Disk, Error, ErrorKind, Hypervisor, Origin, Vm, VmRecord, VmSpec, Vsock,
    deadlines, files, process,
};

const NAME: &str = "firecracker";

/// What people call it.
const VMM: &str = "Firecracker";

/// The oldest version whose API is the one that is spoken here.
const OLDEST: Version = Version(1, 7);

/// From this version on a copy can be given sockets of its own; those of older ones need a jail each.
const JAILED_ONLY: Version = Version(1, 16);

/// Every request that the driver can send.
pub const CALLS: &[Call] = request::CALLS;

/// Starts Firecracker.
#[derive(Debug)]
pub struct Firecracker {
    program: PathBuf,
    jailer: Option<PathBuf>,
    kernel: PathBuf,
    initrd: PathBuf,
    settings: Settings,
    choice: Choice,
    log: Logger,
}

/// What a VM says of itself.
#[derive(Debug, Clone)]
struct Reported {
    version: String,
    reason: String,
    origin: Origin,
}

/// A request that is to be sent.
#[derive(Debug)]
struct Order {
    call: Call,
    /// For the parameter of its path.
    id: String,
    body: Value,
}

impl Order {
    fn new(call: Call, body: Value) -> Self {
        Self::of(call, "", body)
    }

    fn of(call: Call, id: &str, body: Value) -> Self {
        let id = id.to_owned();
        Self { call, id, body }
    }
}

/// A monitor that has said who it is.
struct Started {
    supervised: Supervised,
    client: Client,
    text: String,
    version: Version,
}

impl Firecracker {
    /// A driver with these settings. Fails if the accelerator that they ask for cannot be used.
    pub fn new(config: &HypervisorConfig, run_dir: &Path, log: Logger) -> Result<Self, Error> {
        Ok(Self {
            program: config.path.clone(),
            jailer: Some(config.jailer_path.clone()).filter(|path| !path.as_os_str().is_empty()),
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
            settings: Settings {
                seccomp: config.seccomp_sandbox,
                disk_limit: RateLimit::of_disks(config),
                net_limit: RateLimit::of_nets(config),
            },
            choice: probe::only_kvm(VMM, config.accelerator, run_dir, &log)?,
            log,
        })
    }

    /// Starts the monitor, and asks it who it is.
    async fn start(
        &self,
        spec: &VmSpec,
        place: &Place,
        inherited: Vec<Arc<OwnedFd>>,
        litter: Litter,
        log: Logger,
    ) -> Result<Started, Error> {
        let mut args = vec!["--level", "Warning"];
        if !self.settings.seccomp {
            args.push("--no-seccomp");
        }
        let line = place.command_line(&self.program, self.jailer.as_deref(), &args)?;
        debug!(log, "starting Firecracker"; "arguments" => ?line.args);
        let awaited = Awaited::new(place.directory(), place::CONTROL).map_err(no_control)?;
        let program = process::Program {
            path: line.program,
            args: line.args,
            fds: inherited,
            network_namespace: spec.network_namespace.clone(),
            cgroups: spec.cgroups.clone(),
            labels: spec.labels.clone(),
            litter,
        };
        let (process, output) = process::start(program).await?;
        let sources = Sources {
            output,
            console: None,
            announcement: None,
            verdict: Some(vm::verdict),
        };
        let mut supervised = Supervised::start(process, sources, log.clone());
        let socket = place.directory().join(place::CONTROL);
        let control = Litter::new([socket]);
        let greeted = async {
            let stream = connect(&supervised, &awaited).await?;
            // Nobody else ever finds it.
            drop(control);
            let client = Client::new(stream, VMM, "", log.clone());
            let (text, version) = version(&client.greet(request::VERSION).await?)?;
            Ok((client, text, version))
        };
        match greeted.await {
            Ok((client, text, version)) => Ok(Started {
                supervised,
                client,
                text,
                version,
            }),
            Err(error) => Err(supervised.failed_early(VMM, error).await),
        }
    }

    /// Everything that is said to a machine that is booted, in order.
    fn orders(
        &self,
        spec: &mut VmSpec,
        place: &mut Place,
        drives: &Drives,
        inherited: &mut Vec<Arc<OwnedFd>>,
    ) -> Result<Vec<Order>, Error> {
        let kernel = place.file("kernel", &spec.kernel)?;
        let initrd = place.file("initrd", &spec.initrd)?;
        let mut orders = vec![
            Order::new(request::MACHINE, request::machine(spec)),
            Order::new(
                request::BOOT_SOURCE,
                request::boot_source(&kernel, &initrd, &spec.kernel_params),
            ),
            Order::new(request::ENTROPY, request::entropy()),
            Order::new(request::BALLOON, request::balloon()),
        ];
        for (number, device) in std::mem::take(&mut spec.devices).into_iter().enumerate() {
            match device {
                Device::Vsock(Vsock::Hybrid { cid, uds }) => {
                    let body = request::vsock(cid, &place.vsock(&uds)?);
                    orders.push(Order::new(request::VSOCK, body));
                }
                Device::Block(disk) => {
                    checked(&disk.id)?;
                    let id = format!("d{number}");
                    let path = place.descriptor(&id, &disk.file, inherited)?;
                    let body = request::drive(&self.settings, &id, &path, disk.readonly);
                    orders.push(Order::of(request::DRIVE, &id, body));
                }
                Device::Net { id, taps, mac } => {
                    let tap = hand_over(&id, taps)?;
                    let id = format!("net{number}");
                    let body = request::net(&self.settings, &id, &tap, &mac);
                    orders.push(Order::of(request::NET, &id, body));
                }
                other => return Err(request::lacking(&other)),
            }
        }
        for (id, readonly) in drives.ids() {
            let body = request::drive(&self.settings, id, &place.nothing(), readonly);
            orders.push(Order::of(request::DRIVE, id, body));
        }
        orders.push(Order::new(request::START, request::start()));
        Ok(orders)
    }
}

fn no_control(source: io::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        format!("cannot wait for {VMM}'s control socket: {source}"),
        source,
    )
}

/// Connects to a monitor that has just been started, if it lives long enough.
async fn connect(supervised: &Supervised, awaited: &Awaited) -> Result<UnixStream, Error> {
    let mut exited = supervised.exited();
    let connected = async {
        tokio::select! {
            connected = awaited.connect() => connected.map_err(no_control),
            _ = exited.wait_for(Option::is_some) => {
                Err(Error::new(ErrorKind::Unavailable, format!("{VMM} has ended")))
            }
        }
    };
    timeout(deadlines::CONTROL_READY, connected)
        .await
        .unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "{VMM} did not open its control socket within {:?}",
                    deadlines::CONTROL_READY
                ),
            ))
        })
}

/// Makes a tap one that Firecracker can open by its name: nobody else may have it open then, and so it must outlast us.
fn hand_over(id: &str, taps: Vec<Arc<OwnedFd>>) -> Result<String, Error> {
    let failed = |source: io::Error| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot hand the tap of the network card {id:?} over to {VMM}: {source}"),
            source,
        )
    };
    let tap = taps.into_iter().next().and_then(Arc::into_inner).ok_or_else(|| {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "the tap of the network card {id:?} is held by somebody else, and {VMM} opens it by its name"
            ),
        )
    })?;
    let name = sys::name(tap.as_fd()).map_err(failed)?;
    sys::persist(tap.as_fd()).map_err(failed)?;
    Ok(name)
}

/// The version of a monitor's answer, if it can be worked with.
fn version(answer: &Value) -> Result<(String, Version), Error> {
    let text = answer["firecracker_version"].as_str().unwrap_or_default();
    match Version::leading(text) {
        Some(version) if version >= OLDEST => Ok((text.trim_start_matches('v').to_owned(), version)),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{VMM} {OLDEST} or later is needed, and this is {text:?}; install a newer one, or set `path`"
            ),
        )),
    }
}

#[async_trait]
impl Hypervisor for Firecracker {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            vsock_kernel: false,
            vhost_user: false,
            vsock_hybrid: true,
            serial_port: false,
            fs_sharing: false,
            block: true,
            hotplug: false,
            block_hotplug: true,
            multiqueue: false,
            resize: false,
            snapshots: true,
            saves_shares: false,
            transfer: false,
            emulated: !self.choice.kvm,
            guest_is_process: false,
        }
    }

    fn check_host(&self) -> Result<(), Error> {
        let mut needed = vec![
            (VMM, &*self.program, "install firecracker or set `path`"),
            files::kernel(&self.kernel),
            files::initrd(&self.initrd),
        ];
        if let Some(jailer) = &self.jailer {
            needed.push((
                "Firecracker's jailer",
                jailer,
                "install it or set `jailer_path` = \"\"",
            ));
        }
        files::usable(&needed)?;
        files::kvm(VMM)
    }

    async fn launch(&self, mut spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, Error> {
        let log = self.log.new(slog::o!("vm" => spec.id.clone()));
        request::check(&spec)?;
        // The monitor would not say which of them it cannot open.
        files::usable(&[files::kernel(&spec.kernel), files::initrd(&spec.initrd)])?;
        let saveable = !matches!(boot, Boot::Cold);
        if saveable {
            check_saveable(&spec)?;
        }
        let mut place = Place::new(&self.program, self.jailer.as_deref(), &spec.run_dir)?;
        let litter = Litter::new(
            spec.devices
                .iter()
                .filter_map(|device| match device {
                    Device::Vsock(Vsock::Hybrid { uds, .. }) => Some(uds.clone()),
                    _ => None,
                })
                .chain([place.directory().join(place::CONTROL)]),
        );
        let (drives, mut inherited) = (Drives::new(), Vec::new());
        let (orders, revival) = match boot {
            Boot::Cold | Boot::ToSave => {
                let orders = self.orders(&mut spec, &mut place, &drives, &mut inherited)?;
                (orders, None)
            }
            Boot::Clone(saved) => {
                let revival = Revival::begin(&spec, saved, &mut place, &mut inherited)?;
                (Vec::new(), Some(revival))
            }
        };
        let mut started = self.start(&spec, &place, inherited, litter, log).await?;
        let brought_up = async {
            for Order { call, id, body } in orders {
                started.client.send_for(call, &id, body).await?;
            }
            match &revival {
                None => Ok(()),
                Some(revival) => revival.load(&started.client, &place, started.version).await,
            }
        };
        if let Err(error) = brought_up.await {
            return Err(started.supervised.failed_early(VMM, error).await);
        }
        let mut vm = FirecrackerVm {
            supervised: started.supervised,
            client: started.client,
            run_dir: spec.run_dir,
            reported: Reported {
                version: started.text,
                reason: self.choice.reason.clone(),
                origin: match revival {
                    None => Origin::Boot,
                    Some(_) => Origin::Clone,
                },
            },
            drives,
            saveable: saveable && revival.is_none(),
            place,
        };
        if let Some(revival) = revival
            && let Err(error) = revival.finish(&mut vm).await
        {
            return Err(vm.supervised.failed_early(VMM, error).await);
        }
        Ok(Box::new(vm))
    }

    fn fingerprint(&self, spec: &VmSpec) -> Result<String, Error> {
        check_saveable(spec)?;
        let programs: Vec<&Path> = [Some(&self.program), self.jailer.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        snapshot::fingerprint(&programs, &self.settings, spec)
    }

    fn serial(&self, disk: &Disk) -> Result<String, Error> {
        drives::serial(disk)
    }

    async fn reap(&self, record: &VmRecord) -> Result<(), Error> {
        let reaped = process::reap(record).await;
        place::clear_dead(&record.run_dir);
        reaped
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn old_versions_are_refused_in_one_sentence() {
        let of = |text: &str| {
            let found = version(&json!({"firecracker_version": text}));
            found
                .map(|(_, version)| version)
                .map_err(|error| error.to_string())
        };
        assert_eq!(of("1.17.0-dev"), Ok(Version(1, 17)));
        assert_eq!(of("v1.7.0"), Ok(Version(1, 7)));
        assert_eq!(of("2.0"), Ok(Version(2, 0)));
        for old in ["1.6.9", "0.25.0", "", "1", "x.y"] {
            let error = of(old).unwrap_err();
            assert!(error.contains("1.7 or later") && error.contains(old), "{error}");
        }
    }
}
