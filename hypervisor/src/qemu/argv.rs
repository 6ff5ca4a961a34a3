//! From a specification to QEMU's command line. Pure: nothing is opened or started here.
//!
//! Devices are given as JSON (QEMU 6.2 and later), which needs no quoting and is what hotplug speaks as well.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use configuration::MachineType;
use serde_json::json;

use super::device::{self, Backend};
use super::{hotplug, resize, vhost};
use crate::{Device, Error, ErrorKind, Memory, MemoryBacking, VmSpec, Vsock};

/// Root ports of a q35 that wait for a device to be plugged.
const EMPTY_PORTS: usize = 4;

/// The same of one that is saved: all that its copies do not have in common takes a port.
pub const EMPTY_PORTS_OF_COPIES: usize = 8;

/// What the administrator decided, once for all VMs of a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// QEMU's program.
    pub program: PathBuf,
    /// Which machine.
    pub machine: MachineType,
    /// Hardware virtualization, else QEMU's translator.
    pub kvm: bool,
    /// Appended to the CPU model.
    pub cpu_features: Vec<String>,
    /// QEMU restricts its own system calls.
    pub sandbox: bool,
    /// Frequency of the time stamp counter, where the guest must be told.
    pub tsc_khz: Option<u64>,
}

/// The ends of our sockets that QEMU holds, and what it finds open.
#[derive(Debug, Clone)]
pub struct Channels {
    /// Its control protocol.
    pub control: Arc<OwnedFd>,
    /// The same once more, for whoever takes the VM over: nothing was said on it then.
    pub transfer: Option<Arc<OwnedFd>>,
    /// The guest's console.
    pub console: Arc<OwnedFd>,
    /// Of the devices at whose other end nobody is yet: see [`hotplug::vacant`].
    pub vacant: Vec<Arc<OwnedFd>>,
    /// vhost-net's, of all network cards, as [`vhost::open`] gives them; or none.
    pub vhost_net: Vec<Arc<OwnedFd>>,
}

/// What a VM's memory is at its start.
#[derive(Debug, Clone)]
pub enum Life {
    /// New, and QEMU's.
    Cold,
    /// New, on this file, from which it can be saved.
    ToSave(Arc<OwnedFd>),
    /// What is in this file. The state of the devices is still to come.
    Clone(Arc<OwnedFd>),
}

impl Life {
    /// Whether it is that of a VM that is saved, or a copy of one.
    fn is_of_templates(&self) -> bool {
        match self {
            Self::Cold => false,
            Self::ToSave(_) | Self::Clone(_) => true,
        }
    }
}

/// A command line and the descriptors it speaks of.
#[derive(Debug)]
pub struct CommandLine {
    /// Arguments, without the program.
    pub args: Vec<OsString>,
    /// To be inherited at their present numbers.
    pub fds: Vec<Arc<OwnedFd>>,
}

impl CommandLine {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.args.push(format!("-{name}").into());
        self.args.push(value.into());
    }

    fn flags(&mut self, names: &[&str]) {
        self.args
            .extend(names.iter().map(|name| OsString::from(format!("-{name}"))));
    }

    /// The number under which QEMU finds `fd`.
    fn inherit(&mut self, fd: &Arc<OwnedFd>) -> i32 {
        self.fds.push(Arc::clone(fd));
        fd.as_raw_fd()
    }

    /// The numbers of several, in QEMU's form.
    fn inherit_all(&mut self, fds: &[Arc<OwnedFd>]) -> String {
        let numbers: Vec<String> = fds.iter().map(|fd| self.inherit(fd).to_string()).collect();
        numbers.join(":")
    }
}

/// QEMU's command line for `spec`.
pub fn build(
    settings: &Settings,
    spec: &VmSpec,
    channels: &Channels,
    life: &Life,
) -> Result<CommandLine, Error> {
    check(settings.machine, spec, life)?;
    let mut line = CommandLine {
        args: Vec::new(),
        fds: Vec::new(),
    };
    line.option("name", format!("guest={},debug-threads=on", escaped(&spec.id)));
    line.flags(&["nodefaults", "no-user-config", "no-reboot"]);
    line.option("display", "none");
    if settings.sandbox {
        line.option(
            "sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
    }
    machine(settings, spec, life, &mut line);
    match life {
        Life::Cold | Life::ToSave(_) => {
            line.option("kernel", spec.kernel.as_os_str());
            line.option("initrd", spec.initrd.as_os_str());
            line.option("append", kernel_command_line(settings, spec, life));
        }
        // Its kernel runs. To read the file of one would take a quarter of QEMU's start.
        Life::Clone(_) => {}
    }

    let control = line.inherit(&channels.control);
    line.option("chardev", format!("socket,id=control,fd={control}"));
    line.option("mon", "chardev=control,mode=control");
    if let Some(transfer) = &channels.transfer {
        let transfer = line.inherit(transfer);
        line.option("chardev", format!("socket,id=transfer,fd={transfer}"));
        line.option("mon", "chardev=transfer,mode=control");
    }
    let console = line.inherit(&channels.console);
    line.option("chardev", format!("socket,id=console,fd={console}"));
    line.option("serial", "chardev:console");

    line.option(
        "object",
        json!({"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"}).to_string(),
    );
    line.option("device", device::rng(settings.machine).to_string());
    let (vacant, others): (Vec<_>, Vec<_>) = match life {
        // Such a device takes a port, as it does in the copies.
        Life::ToSave(_) => spec.devices.iter().cloned().partition(hotplug::is_vacant),
        Life::Cold | Life::Clone(_) => (Vec::new(), spec.devices.clone()),
    };
    devices(settings, &others, &channels.vhost_net, &mut line)?;
    for port in 0..empty_ports(settings.machine, life) {
        let chassis = port + 1;
        line.option(
            "device",
            json!({"driver": "pcie-root-port", "id": port_id(port), "chassis": chassis}).to_string(),
        );
    }
    for ((port, device), fd) in vacant.iter().enumerate().zip(&channels.vacant) {
        let mut described = device::describe(device, settings.machine, settings.kvm)?;
        if let Backend::Socket { id, .. } = &described.backend {
            let fd = line.inherit(fd);
            line.option("chardev", format!("socket,id={id},fd={fd}"));
            described.properties["bus"] = json!(port_id(port));
            line.option("device", described.properties.to_string());
        }
    }
    if settings.machine == MachineType::Q35 {
        line.option("device", device::disk_bus().to_string());
    }
    match life {
        Life::Cold => {}
        // The guest's kernel learns from it that it is another one now, and takes a new seed.
        Life::ToSave(_) | Life::Clone(_) => line.option("device", device::generation().to_string()),
    }
    if let Life::Clone(_) = life {
        line.option("incoming", "defer");
        line.flags(&["S"]);
    }
    Ok(line)
}

fn machine(settings: &Settings, spec: &VmSpec, life: &Life, line: &mut CommandLine) {
    let model = match settings.machine {
        // Without what no guest of ours uses.
        MachineType::Q35 => "q35,sata=off,smbus=off,usb=off,vmport=off,hpet=off,smm=off",
        MachineType::Microvm => "microvm",
    };
    line.option("machine", format!("{model},memory-backend=ram"));
    if settings.machine == MachineType::Microvm {
        // virtio-fs and vsock exist only in virtio 1.
        line.option("global", "virtio-mmio.force-legacy=false");
    }
    line.option("accel", if settings.kvm { "kvm" } else { "tcg,thread=multi" });
    // TCG executes `rep movsb` and `rep stosb` byte by byte, and a kernel that sees these features clears and copies pages
    // with them: without them it is twice to five times as fast.
    let mut cpu = if settings.kvm {
        vec!["host"]
    } else {
        vec!["max", "erms=off", "fsrm=off"]
    };
    cpu.extend(settings.cpu_features.iter().map(String::as_str));
    line.option("cpu", cpu.join(","));
    let (mut smp, mut memory) = (spec.vcpus.to_string(), format!("{}M", spec.memory.size_mib));
    if spec.max_vcpus > spec.vcpus {
        smp.push_str(&format!(",maxcpus={}", spec.max_vcpus));
    }
    // What is not shared when it is saved is written to the state of the devices, and would be all of it.
    let backing = match life {
        Life::ToSave(_) => MemoryBacking::Shared,
        Life::Cold | Life::Clone(_) => spec.memory.backing,
    };
    let growth = resize::growth(&Memory {
        backing: match life {
            Life::Cold => backing,
            // Of memory without a descriptor no device learns that has a process behind it, and a private one of a file in memory would
            // be there twice.
            Life::ToSave(_) | Life::Clone(_) => MemoryBacking::Shared,
        },
        ..spec.memory.clone()
    });
    if let Some(growth) = &growth {
        memory.push_str(&format!(",maxmem={}M", growth.most_mib));
    }
    line.option("smp", smp);
    line.option("m", memory);
    let size_mib = spec.memory.size_mib;
    let backend = match life {
        Life::Cold => resize::backend("ram", size_mib, backing),
        Life::ToSave(file) | Life::Clone(file) => {
            let path = format!("/proc/self/fd/{}", line.inherit(file));
            resize::backend_on("ram", size_mib, &path, backing == MemoryBacking::Shared)
        }
    };
    line.option("object", backend.to_string());
    if let Some(growth) = growth {
        line.option("object", growth.backend.to_string());
        line.option("device", growth.device.to_string());
    }
}

/// Our kernel parameters, then the specification's: of two that contradict each other the kernel takes the later.
fn kernel_command_line(settings: &Settings, spec: &VmSpec, life: &Life) -> String {
    // A panic ends in a reset at once (panic=-1), a reset in a triple fault (reboot=t), which every machine has, and
    // that ends QEMU (-no-reboot).
    let mut params: Vec<String> = ["console=ttyS0", "quiet", "panic=-1", "reboot=t"]
        .map(String::from)
        .into();
    if !settings.kvm {
        // A kernel that boots counts ticks to see whether its timer works, and panics if there are too few, as there are
        // when its processor waits for the host's. With KVM it does not look.
        params.push("no_timer_check".into());
        // Code that is executed for the first time is translated first, which is most of what a short container costs. What keeps
        // a processor from speculating means nothing to translated code; nobody reads what the audit and the pressure of
        // resources are about, nor loads a policy for the security modules that are left out.
        let unused = ["mitigations=off", "lsm=landlock,yama", "audit=0", "psi=0"];
        params.extend(unused.map(String::from));
    }
    if life.is_of_templates() {
        // The links on which a copy that is given its devices would begin to save power are none.
        params.push("pcie_aspm=off".into());
    }
    if let Some(khz) = settings.tsc_khz {
        params.push(format!("tsc_early_khz={khz}"));
    }
    params.extend_from_slice(&spec.kernel_params);
    params.join(" ")
}

fn devices(
    settings: &Settings,
    devices: &[Device],
    vhost_net: &[Arc<OwnedFd>],
    line: &mut CommandLine,
) -> Result<(), Error> {
    let (machine, mut vhost_net) = (settings.machine, vhost_net);
    let ports = devices
        .iter()
        .filter(|device| matches!(device, Device::SerialPort(_)))
        .count();
    if ports > 0 {
        line.option("device", device::serial_controller(ports, machine).to_string());
    }
    for (index, device) in devices.iter().enumerate() {
        let described = device::describe(device, machine, settings.kvm)?;
        match (&described.backend, device) {
            (Backend::Socket { id, path }, _) => {
                line.option("chardev", format!("socket,id={id},path={}", escaped(path)));
            }
            (Backend::Taps { id }, Device::Net { taps, .. }) => {
                let mut netdev = format!("tap,id={id},fds={}", line.inherit_all(taps));
                if let Some((ours, others)) = vhost_net.split_at_checked(vhost::queues(device)) {
                    vhost_net = others;
                    netdev.push_str(&format!(",vhost=on,vhostfds={}", line.inherit_all(ours)));
                }
                line.option("netdev", netdev);
            }
            (
                Backend::Node {
                    name,
                    driver,
                    readonly,
                },
                Device::Block(disk),
            ) => {
                let fd = line.inherit(&disk.file);
                line.option("add-fd", format!("fd={fd},set={index}"));
                line.option(
                    "blockdev",
                    device::block_node(name, driver, *readonly, index as u64).to_string(),
                );
            }
            _ => {}
        }
        line.option("device", described.properties.to_string());
    }
    Ok(())
}

/// How many devices a machine can be given while it runs.
pub fn empty_ports(machine: MachineType, life: &Life) -> usize {
    match (machine, life) {
        (MachineType::Microvm, _) => 0,
        (MachineType::Q35, Life::Cold) => EMPTY_PORTS,
        (MachineType::Q35, Life::ToSave(_) | Life::Clone(_)) => EMPTY_PORTS_OF_COPIES,
    }
}

/// Id of the empty root port number `port`.
pub fn port_id(port: usize) -> String {
    format!("port{port}")
}

fn check(machine: MachineType, spec: &VmSpec, life: &Life) -> Result<(), Error> {
    spec.check()?;
    let refuse = |problem: String| Err(Error::new(ErrorKind::InvalidArgument, problem));
    let grows = spec.max_vcpus > spec.vcpus || spec.memory.max_mib > spec.memory.size_mib;
    if grows && machine == MachineType::Microvm {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a microvm keeps the vCPUs and the memory it starts with; one that is to grow needs machine_type = \"q35\"",
        ));
    }
    if spec.memory.backing == MemoryBacking::Private {
        for device in &spec.devices {
            if let Device::VirtioFs(_) | Device::Vsock(Vsock::VhostUser { .. }) = device {
                return refuse(format!(
                    "the device {:?} is served by another process and needs shared guest memory",
                    device.name()
                ));
            }
        }
    }
    match life {
        Life::Cold => Ok(()),
        Life::ToSave(_) | Life::Clone(_) => check_saveable(machine, spec, life),
    }
}

/// A saved machine has only what can be saved of it; the rest is plugged into its copies, which takes ports.
fn check_saveable(machine: MachineType, spec: &VmSpec, life: &Life) -> Result<(), Error> {
    if machine == MachineType::Microvm {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a microvm cannot be saved and copied: its copies could be given no devices; that needs machine_type = \"q35\"",
        ));
    }
    let other = |device: &&Device| match device {
        Device::SerialPort(_) => false,
        Device::VirtioFs(_) => matches!(life, Life::Clone(_)),
        _ => true,
    };
    match spec.devices.iter().find(other) {
        None => Ok(()),
        Some(device) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "the device {:?} cannot be part of a saved VM: it is to be plugged into the copies",
                device.name()
            ),
        )),
    }
}

/// A value inside one of QEMU's comma-separated options.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}
