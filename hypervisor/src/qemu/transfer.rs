//! A VM changes hands: one process has started it, and another one takes it over while its guest stands still.
//!
//! What is handed over are descriptors: the process, its lifeline, a control connection on which nothing was said yet, the
//! guest's console and QEMU's output. QEMU does not notice.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use async_trait::async_trait;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use serde::{Deserialize, Serialize};
use serde_json::json;
use slog::{Logger, warn};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::argv::{self, Settings};
use super::dormant::Dormant;
use super::hotplug::{Inherited, Slots};
use super::registers::Registers;
use super::resize::Grown;
use super::snapshot;
use super::vm::{self, QemuVm};
use super::{Reported, VMM};
use crate::between;
use crate::process::{self, Process, Ward};
use crate::qmp;
use crate::saved::failed;
use crate::supervisor::{Sources, Supervised};
use crate::{Deed, Device, Error, ErrorKind, Offer, Origin, Transfer, Vm, VmSpec};

/// What is handed over besides the process itself.
#[derive(Debug)]
pub struct Hand {
    /// The VM is killed when nobody has it.
    lifeline: OwnedFd,
    /// Nothing was said on it.
    control: OwnedFd,
    console: OwnedFd,
    output: OwnedFd,
}

/// What is said of a VM that is offered.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    pid: u32,
    start_time: u64,
    /// Nobody else maps the guest's memory.
    is_private: bool,
    /// What the guest has and QEMU has not.
    dormant: Vec<Dormant>,
    /// There is a descriptor more: a connection to the machine's registers.
    has_registers: bool,
}

impl Hand {
    pub fn new(
        lifeline: OwnedFd,
        control: UnixStream,
        console: &UnixStream,
        output: &pipe::Receiver,
    ) -> Result<Self, Error> {
        let made = || -> io::Result<Self> {
            Ok(Self {
                lifeline,
                control: control.into_std()?.into(),
                console: console.as_fd().try_clone_to_owned()?,
                output: output.as_fd().try_clone_to_owned()?,
            })
        };
        made().map_err(failed("cannot prepare to hand a VM over"))
    }
}

#[async_trait]
impl Transfer for QemuVm {
    async fn pause(&mut self) -> Result<(), Error> {
        self.client.execute("stop", json!({})).await.map(drop)
    }

    fn offer(&self) -> Result<(Offer, Deed), Error> {
        let Some(hand) = &self.hand else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this VM was not started for another process",
            ));
        };
        let made = || -> io::Result<(Offer, Deed)> {
            let (ward, owner) = self.supervised.offer()?;
            let slots = self.slots.as_ref();
            let registers = slots.and_then(Slots::registers).map(Registers::share);
            let registers = registers.transpose()?;
            let about = About {
                pid: ward.pid,
                start_time: ward.start_time,
                is_private: slots.is_some_and(Slots::is_private),
                dormant: slots.map(Slots::dormant).unwrap_or_default().to_vec(),
                has_registers: registers.is_some(),
            };
            let mut fds = vec![
                ward.pidfd,
                ward.news,
                hand.lifeline.try_clone()?,
                hand.control.try_clone()?,
                hand.console.try_clone()?,
                hand.output.try_clone()?,
            ];
            fds.extend(registers);
            let offer = Offer {
                about: serde_json::to_string(&about)?,
                fds,
            };
            Ok((offer, Deed(owner)))
        };
        made().map_err(failed("cannot offer a VM"))
    }

    fn give_away(&mut self, deed: Deed) {
        self.supervised.give_away(deed.0);
        self.hand = None;
    }
}

/// See [`crate::Hypervisor::take_over`].
pub async fn take_over(
    settings: &Settings,
    reason: &str,
    offer: Offer,
    spec: VmSpec,
    mut devices: Vec<Device>,
    log: Logger,
) -> Result<Box<dyn Vm>, Error> {
    let about: About = serde_json::from_str(&offer.about)
        .map_err(|cause| not_understood(&format!("what is said of it: {cause}")))?;
    let mut fds = offer.fds;
    let registers = match about.has_registers {
        true => fds.pop(),
        false => None,
    };
    let fds: Result<[OwnedFd; 6], _> = fds.try_into();
    let [pidfd, news, lifeline, control, console, output] =
        fds.map_err(|fds: Vec<_>| not_understood(&format!("{} descriptors", fds.len())))?;
    let opened = || -> io::Result<_> {
        let process = Process::adopt(Ward {
            pid: about.pid,
            start_time: about.start_time,
            pidfd,
            news,
        })?;
        Ok((
            process,
            stream(control)?,
            stream(console)?,
            pipe::Receiver::from_owned_fd(output)?,
            registers.map(Registers::adopt).transpose()?,
        ))
    };
    let (process, control, console, output, registers) = opened().map_err(failed("cannot take a VM over"))?;
    take_along(about.pid, &spec).map_err(failed("cannot take a VM over into its cgroups"))?;
    if let Err(error) = equal_priority(about.pid) {
        warn!(log, "the virtual machine keeps the low priority of one that nobody needs"; "error" => %error);
    }
    let (negotiation, events) = qmp::open(control, log.clone());
    let heard = vm::listen(events);
    let sources = Sources {
        output,
        console: Some(console),
        announcement: Some(heard.announcement),
        verdict: None,
    };
    let mut supervised = Supervised::start(process, sources, log.clone());
    let (client, version) = match negotiation.finish().await {
        Ok(negotiated) => negotiated,
        Err(error) => return Err(supervised.failed_early(VMM, error).await),
    };
    let inherited = match inherited(about, registers) {
        Ok(inherited) => inherited,
        Err(error) => return Err(supervised.failed_early(VMM, error).await),
    };
    let mut slots = Slots::new(argv::EMPTY_PORTS_OF_COPIES, settings.kvm, inherited, log);
    snapshot::sort(&mut devices);
    let mut lived = Ok(());
    for device in devices {
        lived = match lived {
            Ok(()) => slots.plug(&client, device).await,
            error => error,
        };
    }
    slots.hang_up();
    if lived.is_ok() {
        lived = client.execute("cont", json!({})).await.map(drop);
    }
    if let Err(error) = lived {
        return Err(supervised.failed_early(VMM, error).await);
    }
    Ok(Box::new(QemuVm {
        supervised,
        run_dir: spec.run_dir,
        reported: Reported {
            version,
            machine: settings.machine,
            accelerator: if settings.kvm { "kvm" } else { "tcg" },
            reason: reason.to_owned(),
            origin: Origin::Cache,
        },
        slots: Some(slots),
        grown: Some(Grown::new(
            client.clone(),
            spec.vcpus,
            spec.max_vcpus,
            spec.memory,
        )),
        client,
        ports: 0,
        openings: heard.openings,
        hand: None,
        _lifeline: Some(lifeline),
        saveable: None,
    }))
}

/// What is learned of the VM that is offered.
fn inherited(about: About, registers: Option<Registers>) -> Result<Inherited, Error> {
    let is_seen = about.is_private || !about.dormant.is_empty();
    let memory = is_seen.then(|| memory_of(&about)).transpose();
    Ok(Inherited {
        memory: memory.map_err(failed("cannot open the memory of QEMU's process"))?,
        is_private: about.is_private,
        dormant: about.dormant,
        registers,
    })
}

/// The memory of the process that is offered, and of no other one that has its number since.
fn memory_of(about: &About) -> io::Result<fs::File> {
    let pid = i32::try_from(about.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let memory = between::memory_of(about.pid)?;
    match process::start_time(pid)? == about.start_time {
        true => Ok(memory),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdUnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Moves a process to where the VM's are to be: what it has used so far stays where it was counted.
fn take_along(pid: u32, spec: &VmSpec) -> io::Result<()> {
    for procs in &spec.cgroups {
        rustix::io::write(procs, pid.to_string().as_bytes())?;
    }
    Ok(())
}

/// Gives a process's threads the priority of this one's.
fn equal_priority(pid: u32) -> io::Result<()> {
    let ours = getpriority_process(None)?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let number = thread?
            .file_name()
            .into_string()
            .ok()
            .and_then(|name| name.parse().ok());
        setpriority_process(number.and_then(Pid::from_raw), ours)?;
    }
    Ok(())
}

fn not_understood(what: &str) -> Error {
    Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "a VM that is offered cannot be understood ({what}): it is another version's; start the cache anew"
        ),
    )
}
