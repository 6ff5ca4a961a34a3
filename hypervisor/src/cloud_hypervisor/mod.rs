//! The Cloud Hypervisor driver. Needs version 50.1 or later, and KVM.
//!
//! The monitor is given the listening end of its control socket, on which a connection of ours waits already, so that nobody
//! else ever finds it.

mod events;
mod hotplug;
mod request;
mod snapshot;
mod vm;

use std::fs;
use std::io::{self, PipeReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use configuration::HypervisorConfig;
use serde_json::Value;
use slog::{Logger, debug, info};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use self::hotplug::{Plugged, Removals};
use self::request::Settings;
use self::snapshot::Revival;
use self::vm::CloudHypervisorVm;
use crate::probe::{self, Choice};
use crate::rest::{Call, Client, Litter, RateLimit};
use crate::saved::check_saveable;
use crate::supervisor::{Sources, Supervised};
use crate::version::Version;
use crate::{
    Boot, Capabilities, Device, Error, ErrorKind, Hypervisor, Origin, Size, Vm, VmRecord, VmSpec, Vsock,
    files, process,
};

const NAME: &str = "clh";

/// What people call it.
const VMM: &str = "Cloud Hypervisor";

/// The oldest version that can be told of what type a disk's image is. Older ones look for it in what the guest has written, and
/// open whatever file of the host it names there as a backing file.
const OLDEST: Version = Version(50, 1);

/// Its control socket, for as long as nobody has connected to it.
const CONTROL: &str = "clh.sock";

/// Every request that the driver can send.
pub const CALLS: &[Call] = request::CALLS;

/// Starts Cloud Hypervisor.
#[derive(Debug)]
pub struct CloudHypervisor {
    program: PathBuf,
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

impl CloudHypervisor {
    /// A driver with these settings. Fails if the accelerator that they ask for cannot be used.
    pub fn new(config: &HypervisorConfig, run_dir: &Path, log: Logger) -> Result<Self, Error> {
        let choice = probe::only_kvm(VMM, config.accelerator, run_dir, &log)?;
        let landlock = process::landlock_abi() >= LANDLOCK;
        if !landlock {
            info!(
                log,
                "this kernel's Landlock cannot confine Cloud Hypervisor; that needs Linux 6.2"
            );
        }
        Ok(Self {
            program: config.path.clone(),
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
            settings: Settings {
                seccomp: config.seccomp_sandbox,
                landlock,
                disk_limit: RateLimit::of_disks(config),
                net_limit: RateLimit::of_nets(config),
            },
            choice,
            log,
        })
    }

    /// Starts the monitor, and asks it who it is.
    async fn start(
        &self,
        spec: &VmSpec,
        mut inherited: Vec<Arc<OwnedFd>>,
        litter: Litter,
        log: Logger,
    ) -> Result<Started, Error> {
        let failed = |what: &str, source: io::Error| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot make {what} for {VMM}: {source}"),
                source,
            )
        };
        let (control, listener) =
            control(&spec.run_dir.join(CONTROL)).map_err(|source| failed("a control socket", source))?;
        let (events, events_theirs) = events_pipe().map_err(|source| failed("a pipe", source))?;
        let (listener, events_theirs) = (Arc::new(OwnedFd::from(listener)), Arc::new(events_theirs));
        let args = [
            "--api-socket".to_owned(),
            format!("fd={}", listener.as_raw_fd()),
            "--event-monitor".to_owned(),
            format!("fd={}", events_theirs.as_raw_fd()),
            "--seccomp".to_owned(),
            self.settings.seccomp.to_string(),
        ];
        debug!(log, "starting Cloud Hypervisor"; "arguments" => ?args);
        inherited.extend([listener, events_theirs]);
        let program = process::Program {
            path: self.program.clone(),
            args: args.map(Into::into).into(),
            fds: inherited,
            network_namespace: spec.network_namespace.clone(),
            cgroups: spec.cgroups.clone(),
            labels: spec.labels.clone(),
            litter,
        };
        let (process, output) = process::start(program).await?;
        let (news, was_reset) = vm::listen(events, log.clone());
        let sources = Sources {
            output,
            console: None,
            announcement: Some(news.announcement),
            verdict: None,
        };
        let mut supervised = Supervised::start(process, sources, log.clone());
        vm::kill_after_reset(was_reset, supervised.killer());
        let client = Client::new(control, VMM, request::BASE, log.clone());
        let version = async { version(&client.greet(request::PING).await?) };
        match version.await {
            Ok(version) => Ok(Started {
                supervised,
                client,
                version,
                removals: news.removals,
            }),
            Err(error) => Err(supervised.failed_early(VMM, error).await),
        }
    }

    /// Makes the machine, and starts it.
    async fn bring_up(&self, started: &Started, spec: &VmSpec, machine: Value) -> Result<(), Error> {
        let client = &started.client;
        client.send(request::CREATE, Some(machine)).await?;
        for device in &spec.devices {
            if let Device::Net { id, taps, mac } = device {
                let body = request::net(&self.settings, id, taps.len(), mac)?;
                client.send_with_fds(request::ADD_NET, body, taps.clone()).await?;
            }
        }
        client.send(request::BOOT, None).await.map(drop)
    }
}

/// The first version of Landlock's interface that Cloud Hypervisor takes.
const LANDLOCK: u32 = 3;

/// A monitor that has said who it is.
struct Started {
    supervised: Supervised,
    client: Client,
    version: String,
    removals: Removals,
}

/// A connection to a socket that is listened on, and gone from the file system. The monitor has the listening end.
fn control(path: &Path) -> io::Result<(UnixStream, UnixListener)> {
    let listener = UnixListener::bind(path)?;
    let connected = StdUnixStream::connect(path);
    fs::remove_file(path)?;
    let connected = connected?;
    connected.set_nonblocking(true)?;
    Ok((UnixStream::from_std(connected)?, listener))
}

fn events_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs): (PipeReader, _) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(ours.into())?, theirs.into()))
}

/// The version of a monitor's answer, if it can be worked with.
fn version(answer: &Value) -> Result<String, Error> {
    let text = answer["version"].as_str().unwrap_or_default();
    if Version::leading(text).is_none_or(|version| version < OLDEST) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{VMM} {OLDEST} or later is needed, and this is {text:?}; install a newer one, or set `path`"
            ),
        ));
    }
    // Older ones do not tell them.
    let features = answer["features"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if !features.is_empty() && !features.iter().any(|feature| feature == "kvm") {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this Cloud Hypervisor was built without KVM (feature \"kvm\"); install another, or set `path`",
        ));
    }
    Ok(text.trim_start_matches('v').to_owned())
}

#[async_trait]
impl Hypervisor for CloudHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            vsock_kernel: false,
            vhost_user: true,
            vsock_hybrid: true,
            serial_port: false,
            fs_sharing: true,
            block: true,
            hotplug: true,
            block_hotplug: true,
            multiqueue: true,
            resize: true,
            snapshots: true,
            saves_shares: false,
            transfer: false,
            emulated: !self.choice.kvm,
            guest_is_process: false,
        }
    }

    fn check_host(&self) -> Result<(), Error> {
        files::usable(&[
            (VMM, &self.program, "install cloud-hypervisor or set `path`"),
            files::kernel(&self.kernel),
            files::initrd(&self.initrd),
        ])?;
        files::kvm(VMM)
    }

    async fn launch(&self, spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, Error> {
        let log = self.log.new(slog::o!("vm" => spec.id.clone()));
        let mut inherited = Vec::new();
        let machine = request::machine(&self.settings, &spec, &mut inherited)?;
        // The monitor would not say which of them it cannot open.
        files::usable(&[files::kernel(&spec.kernel), files::initrd(&spec.initrd)])?;
        let saveable = !matches!(boot, Boot::Cold);
        if saveable {
            check_saveable(&spec)?;
        }
        let revival = match boot {
            Boot::Cold | Boot::ToSave => None,
            Boot::Clone(saved) => Some(Revival::begin(&spec, saved, &machine, &mut inherited)?),
        };
        let litter = Litter::new(spec.devices.iter().filter_map(|device| match device {
            Device::Vsock(Vsock::Hybrid { uds, .. }) => Some(uds.clone()),
            _ => None,
        }));
        let mut started = self.start(&spec, inherited, litter, log.clone()).await?;
        let brought_up = match &revival {
            None => self.bring_up(&started, &spec, machine).await,
            Some(revival) => revival.restore(&started.client).await,
        };
        if let Err(error) = brought_up {
            return Err(started.supervised.failed_early(VMM, error).await);
        }
        let mut vm = CloudHypervisorVm {
            plugged: Plugged::new(&spec.run_dir, self.settings.clone(), started.removals, log),
            reported: Reported {
                version: started.version,
                reason: self.choice.reason.clone(),
                origin: match revival {
                    None => Origin::Boot,
                    Some(_) => Origin::Clone,
                },
            },
            size: Size {
                vcpus: spec.vcpus,
                memory_mib: spec.memory.size_mib,
            },
            max_vcpus: spec.max_vcpus,
            memory: spec.memory,
            saveable: saveable && revival.is_none(),
            run_dir: spec.run_dir,
            client: started.client,
            supervised: started.supervised,
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
        snapshot::fingerprint(&self.program, &self.settings, spec)
    }

    async fn reap(&self, record: &VmRecord) -> Result<(), Error> {
        let reaped = process::reap(record).await;
        hotplug::clear_dead(&record.run_dir);
        reaped
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn old_versions_and_those_without_kvm_are_refused_in_one_sentence() {
        let of = |version: &str| version_of(json!({"version": version}));
        fn version_of(answer: Value) -> Result<String, String> {
            version(&answer).map_err(|error| error.to_string())
        }
        assert_eq!(of("v50.1.0"), Ok("50.1.0".into()));
        assert_eq!(of("54.1"), Ok("54.1".into()));
        for old in ["v50.0.0", "v49.2.0", "0.3", "", "x"] {
            let error = of(old).unwrap_err();
            assert!(error.contains("50.1 or later") && error.contains(old), "{error}");
        }
        let with = |features: Value| version_of(json!({"version": "v54.0", "features": features}));
        assert_eq!(with(json!(["io_uring", "kvm"])), Ok("54.0".into()));
        assert!(with(json!(["mshv"])).unwrap_err().contains("without KVM"));
    }
}
