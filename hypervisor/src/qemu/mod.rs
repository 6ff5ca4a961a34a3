//! The QEMU driver: machines `q35` (hotplug) and `microvm` (boots faster).

mod argv;
#[cfg(test)]
mod argv_tests;
mod device;
mod dormant;
mod hotplug;
mod registers;
mod resize;
mod snapshot;
mod transfer;
mod vhost;
mod vm;

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use configuration::{HypervisorConfig, MachineType};
use slog::{Logger, debug, info};
use tokio::net::UnixStream;

use self::argv::{Channels, Life, Settings};
use self::hotplug::{Inherited, Slots};
use self::resize::Grown;
use self::snapshot::Revival;
use self::transfer::Hand;
use self::vm::QemuVm;
use crate::between;
use crate::probe::{self, Choice};
use crate::rest::Litter;
use crate::saved::failed;
use crate::supervisor::{Sources, Supervised};
use crate::{
    Boot, Capabilities, Device, Error, ErrorKind, Hypervisor, MemoryBacking, Offer, Origin, Vm, VmRecord,
    VmSpec, files, process, qmp,
};

const NAME: &str = "qemu";

/// What people call it.
const VMM: &str = "QEMU";

/// Starts QEMU.
#[derive(Debug)]
pub struct Qemu {
    settings: Settings,
    kernel: PathBuf,
    initrd: PathBuf,
    reason: String,
    log: Logger,
}

/// What a VM says of itself.
#[derive(Debug, Clone)]
struct Reported {
    version: String,
    machine: MachineType,
    accelerator: &'static str,
    reason: String,
    origin: Origin,
}

impl Qemu {
    /// A driver with these settings. Fails if the accelerator that they ask for cannot be used.
    pub fn new(config: &HypervisorConfig, run_dir: &Path, log: Logger) -> Result<Self, Error> {
        let Choice { kvm, reason } = probe::choose(config.accelerator, run_dir, &log)?;
        let tsc_khz = match (config.machine_type, kvm) {
            // Under TCG this machine's clock calibration fails once in ten boots, and the guest hangs.
            (MachineType::Microvm, false) => host_tsc_khz(),
            _ => None,
        };
        let settings = Settings {
            program: config.path.clone(),
            machine: config.machine_type,
            kvm,
            cpu_features: config.cpu_features.clone(),
            sandbox: config.seccomp_sandbox,
            tsc_khz,
        };
        Ok(Self {
            settings,
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
            reason,
            log,
        })
    }
}

impl Qemu {
    /// vhost-net's descriptors for these devices, if it is to be had. An emulated guest has none: it needs most of the time
    /// itself, so that it would hardly be faster.
    fn vhost_net(&self, devices: &[Device], log: &Logger) -> Vec<Arc<OwnedFd>> {
        if !self.settings.kvm {
            return Vec::new();
        }
        vhost::open(Path::new(vhost::NODE), devices).unwrap_or_else(|error| {
            info!(log, "no vhost-net: QEMU moves the network's frames itself"; "node" => vhost::NODE, "error" => %error);
            Vec::new()
        })
    }

    /// Starts QEMU, and waits until it takes commands.
    async fn start(&self, spec: VmSpec, life: Life, whose: Whose, log: Logger) -> Result<QemuVm, Error> {
        let (control, control_theirs) = socket_pair()?;
        let (console, console_theirs) = socket_pair()?;
        let (transfer, transfer_theirs) = match whose {
            Whose::Ours => (None, None),
            Whose::Anybodys => {
                let (ours, theirs) = socket_pair()?;
                (Some(ours), Some(Arc::new(theirs)))
            }
        };
        let channels = Channels {
            control: Arc::new(control_theirs),
            transfer: transfer_theirs,
            console: Arc::new(console_theirs),
            vacant: match life {
                Life::ToSave(_) => nobodys(&spec.devices, &log)?,
                Life::Cold | Life::Clone(_) => Vec::new(),
            },
            vhost_net: self.vhost_net(&spec.devices, &log),
        };
        let line = argv::build(&self.settings, &spec, &channels, &life)?;
        debug!(log, "starting QEMU"; "arguments" => ?line.args);
        let machine = self.settings.machine;
        let ports = snapshot::ports(&spec);
        let program = process::Program {
            path: self.settings.program.clone(),
            args: line.args,
            fds: line.fds,
            network_namespace: spec.network_namespace,
            cgroups: spec.cgroups,
            labels: spec.labels,
            litter: Litter::default(),
        };
        let (process, output, hand) = match transfer {
            None => {
                let (process, output) = process::start(program).await?;
                (process, output, None)
            }
            Some(control) => {
                let (process, output, lifeline) = process::start_for_another(program).await?;
                let hand = Hand::new(lifeline, control, &console, &output)?;
                (process, output, Some(hand))
            }
        };
        // Ours must be closed, or their end would never be seen.
        drop(channels);

        let (negotiation, events) = qmp::open(control, log.clone());
        let news = vm::listen(events);
        let sources = Sources {
            output,
            console: Some(console),
            announcement: Some(news.announcement),
            verdict: None,
        };
        let mut supervised = Supervised::start(process, sources, log.clone());
        let (client, version) = match negotiation.finish().await {
            Ok(negotiated) => negotiated,
            Err(error) => return Err(supervised.failed_early(VMM, error).await),
        };
        let is_q35 = machine == MachineType::Q35;
        let slots = match is_q35.then(|| {
            self.slots(
                supervised.pid(),
                &life,
                (&spec.devices, spec.memory.backing),
                whose,
                log,
            )
        }) {
            None => None,
            Some(Ok(slots)) => Some(slots),
            Some(Err(error)) => return Err(supervised.failed_early(VMM, error).await),
        };
        Ok(QemuVm {
            supervised,
            run_dir: spec.run_dir,
            reported: Reported {
                version,
                machine,
                accelerator: if self.settings.kvm { "kvm" } else { "tcg" },
                reason: self.reason.clone(),
                origin: match life {
                    Life::Cold | Life::ToSave(_) => Origin::Boot,
                    Life::Clone(_) => Origin::Clone,
                },
            },
            slots,
            grown: is_q35.then(|| Grown::new(client.clone(), spec.vcpus, spec.max_vcpus, spec.memory)),
            client,
            ports,
            openings: news.openings,
            hand,
            _lifeline: None,
            saveable: match life {
                Life::ToSave(memory) => Some(memory),
                Life::Cold | Life::Clone(_) => None,
            },
        })
    }
}

impl Qemu {
    /// Where devices can be plugged into the machine of this process.
    fn slots(
        &self,
        pid: u32,
        life: &Life,
        (devices, backing): (&[Device], MemoryBacking),
        whose: Whose,
        log: Logger,
    ) -> Result<Slots, Error> {
        let is_private = matches!(life, Life::Clone(_)) && backing == MemoryBacking::Private;
        let is_seen = is_private || whose == Whose::Anybodys && between::is_permitted();
        let memory = is_seen.then(|| between::memory_of(pid)).transpose();
        let inherited = Inherited {
            memory: memory.map_err(failed("cannot open the memory of QEMU's process"))?,
            is_private,
            ..Inherited::default()
        };
        let ports = argv::empty_ports(self.settings.machine, life);
        let mut slots = Slots::new(ports, self.settings.kvm, inherited, log);
        if let Life::ToSave(_) = life {
            slots.vacate(devices)?;
        }
        Ok(slots)
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // The node may be there without the module behind it; opening it tells.
            vsock_kernel: fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/vhost-vsock")
                .is_ok(),
            vhost_user: true,
            vsock_hybrid: false,
            serial_port: true,
            fs_sharing: true,
            block: true,
            hotplug: self.settings.machine == MachineType::Q35,
            block_hotplug: self.settings.machine == MachineType::Q35,
            multiqueue: true,
            resize: self.settings.machine == MachineType::Q35,
            snapshots: snapshot::is_possible(self.settings.machine),
            saves_shares: snapshot::is_possible(self.settings.machine) && between::is_permitted(),
            transfer: snapshot::is_possible(self.settings.machine),
            emulated: !self.settings.kvm,
            guest_is_process: false,
        }
    }

    fn check_host(&self) -> Result<(), Error> {
        files::usable(&[
            (
                "QEMU",
                &self.settings.program,
                "install qemu-system-x86 or set `path`",
            ),
            files::kernel(&self.kernel),
            files::initrd(&self.initrd),
        ])
    }

    async fn launch(&self, spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, Error> {
        self.live(spec, boot, Whose::Ours).await
    }

    async fn launch_for_another(&self, spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, Error> {
        self.live(spec, boot, Whose::Anybodys).await
    }

    async fn take_over(
        &self,
        offer: Offer,
        spec: VmSpec,
        devices: Vec<Device>,
    ) -> Result<Box<dyn Vm>, Error> {
        let log = self.log.new(slog::o!("vm" => spec.id.clone()));
        transfer::take_over(&self.settings, &self.reason, offer, spec, devices, log).await
    }

    fn fingerprint(&self, spec: &VmSpec) -> Result<String, Error> {
        snapshot::fingerprint(&self.settings, spec)
    }

    async fn reap(&self, record: &VmRecord) -> Result<(), Error> {
        process::reap(record).await
    }
}

/// Who is to have a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This process, to its end.
    Ours,
    /// Whoever it is handed over to.
    Anybodys,
}

impl Qemu {
    async fn live(&self, mut spec: VmSpec, boot: Boot, whose: Whose) -> Result<Box<dyn Vm>, Error> {
        let log = self.log.new(slog::o!("vm" => spec.id.clone()));
        let (life, revival) = match boot {
            Boot::Cold => (Life::Cold, None),
            Boot::ToSave => (Life::ToSave(snapshot::new_memory(&spec)?), None),
            Boot::Clone(saved) => {
                // Nobody else must map the memory then.
                if snapshot::can_be_common(&saved) && between::is_permitted() && spec.labels.is_empty() {
                    spec.memory.backing = MemoryBacking::Private;
                }
                let (memory, revival) = Revival::begin(&spec, saved)?;
                (Life::Clone(memory), Some(revival))
            }
        };
        let mut vm = self.start(spec, life, whose, log).await?;
        if let Some(revival) = revival
            && let Err(error) = revival.finish(&mut vm).await
        {
            return Err(vm.supervised.failed_early(VMM, error).await);
        }
        Ok(Box::new(vm))
    }
}

/// For each device that has nobody at its other end yet, who stands for that.
fn nobodys(devices: &[Device], log: &Logger) -> Result<Vec<Arc<OwnedFd>>, Error> {
    hotplug::vacant(devices)
        .map(|_| between::nobody(log.clone()).map(Arc::new))
        .collect::<io::Result<_>>()
        .map_err(failed("cannot stand for the process of a device"))
}

/// Two connected sockets: ours, in the runtime, and QEMU's.
fn socket_pair() -> Result<(UnixStream, OwnedFd), Error> {
    let pair = || -> io::Result<_> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    pair().map_err(|source| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot make a socket pair for QEMU: {source}"),
            source,
        )
    })
}

/// The frequency of this machine's time stamp counter. Linux derives `bogomips` from it, twice the frequency in MHz;
/// `cpu MHz` beside it follows power management and will not do.
fn host_tsc_khz() -> Option<u64> {
    // The first processor's lines are enough; a large host has a hundred of them.
    let mut cpuinfo = String::new();
    fs::File::open("/proc/cpuinfo")
        .ok()?
        .take(4096)
        .read_to_string(&mut cpuinfo)
        .ok()?;
    parse_tsc_khz(&cpuinfo)
}

fn parse_tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|line| line.starts_with("bogomips"))?;
    let bogomips: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    let khz = (bogomips * 500.0).round();
    // A value outside this range is no frequency.
    (1e5..1e8).contains(&khz).then_some(khz as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_frequency_is_half_the_bogomips() {
        let table = [
            ("cpu MHz\t\t: 1200.000\nbogomips\t: 5192.26\n", Some(2_596_130)),
            ("bogomips\t: 4800.00\nbogomips\t: 1.0\n", Some(2_400_000)),
            ("BogoMIPS\t: 50.0\n", None),
            ("bogomips\t: x\n", None),
            ("bogomips\t: -1\n", None),
        ];
        for (cpuinfo, expected) in table {
            assert_eq!(parse_tsc_khz(cpuinfo), expected, "{cpuinfo}");
        }
    }
}
