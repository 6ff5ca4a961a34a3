//! A driver without virtual machine: the guest's agent runs as an ordinary process of the host. It isolates nothing; it
//! lets everything above this crate be tested in milliseconds, against the real agent.
//!
//! It knows the agent's command line (`--connect`, `--root`, `--share`, `--network`) and nothing of its protocol.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use slog::Logger;
use tokio::sync::watch;

use crate::rest::Litter;
use crate::supervisor::{Sources, Supervised};
use crate::{
    Boot, Capabilities, Device, Error, ErrorKind, Exit, Hotplug, Hypervisor, Origin, Resize, SaveTo,
    SerialPort, Size, VirtioFs, Vm, VmRecord, VmReport, VmSpec, deadlines, process,
};

const NAME: &str = "fake";

/// Starts agents as processes.
#[derive(Debug)]
pub struct Fake {
    agent: PathBuf,
    log: Logger,
}

impl Fake {
    /// `agent` is the agent's program.
    pub fn new(agent: PathBuf, log: Logger) -> Self {
        Self { agent, log }
    }
}

#[async_trait]
impl Hypervisor for Fake {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            vsock_kernel: false,
            vhost_user: false,
            vsock_hybrid: false,
            serial_port: true,
            fs_sharing: true,
            block: false,
            hotplug: false,
            block_hotplug: false,
            multiqueue: false,
            // Nothing of it is real: its containers have what the host has.
            resize: true,
            snapshots: false,
            saves_shares: false,
            transfer: false,
            emulated: false,
            guest_is_process: true,
        }
    }

    fn check_host(&self) -> Result<(), Error> {
        match fs::metadata(&self.agent) {
            Ok(metadata) if metadata.is_file() => Ok(()),
            Ok(_) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("the agent {} is not a file", self.agent.display()),
            )),
            Err(source) => Err(Error::caused(
                ErrorKind::NotFound,
                format!("the agent {} cannot be used: {source}", self.agent.display()),
                source,
            )),
        }
    }

    async fn launch(&self, spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, Error> {
        if !matches!(boot, Boot::Cold) {
            return Err(no_snapshots());
        }
        let root = spec.run_dir.join("root");
        let mut args = args(&spec.devices, &root)?;
        if spec.network_namespace.is_some() {
            // Whoever forwards a port means the pod's localhost, and never the host's.
            args.extend(["--network".into(), "own".into()]);
        }
        fs::create_dir_all(&root).map_err(|source| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot create {}: {source}", root.display()),
                source,
            )
        })?;
        let program = process::Program {
            path: self.agent.clone(),
            args,
            fds: Vec::new(),
            // Its containers have the pod's network without any device.
            network_namespace: spec.network_namespace,
            cgroups: spec.cgroups,
            labels: spec.labels,
            litter: Litter::default(),
        };
        let (process, output) = process::start(program).await?;
        let sources = Sources {
            output,
            console: None,
            announcement: None,
            verdict: None,
        };
        let log = self.log.new(slog::o!("vm" => spec.id.clone()));
        Ok(Box::new(FakeVm {
            supervised: Supervised::start(process, sources, log),
            run_dir: spec.run_dir,
            books: Books {
                size: Size {
                    vcpus: spec.vcpus,
                    memory_mib: spec.memory.size_mib,
                },
                most: Size {
                    vcpus: spec.max_vcpus.max(spec.vcpus),
                    memory_mib: spec.memory.max_mib.max(spec.memory.size_mib),
                },
            },
        }))
    }

    fn fingerprint(&self, _: &VmSpec) -> Result<String, Error> {
        Err(no_snapshots())
    }

    async fn reap(&self, record: &VmRecord) -> Result<(), Error> {
        process::reap(record).await
    }
}

/// The agent's arguments for these devices. Pure.
fn args(devices: &[Device], root: &Path) -> Result<Vec<OsString>, Error> {
    let mut args = vec!["--root".into(), root.into()];
    let mut ports = 0;
    for device in devices {
        match device {
            Device::SerialPort(SerialPort { socket, .. }) => {
                ports += 1;
                args.push("--connect".into());
                args.push(joined("unix:", socket));
            }
            Device::VirtioFs(VirtioFs { tag, directory, .. }) => {
                args.push("--share".into());
                args.push(joined(&format!("{tag}="), directory));
            }
            Device::Vsock(_) | Device::Net { .. } | Device::Block(_) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the fake hypervisor has no vsock, network or block devices",
                ));
            }
        }
    }
    if ports == 1 {
        Ok(args)
    } else {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the fake hypervisor needs one serial port to the agent, not {ports}"),
        ))
    }
}

fn no_snapshots() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the fake hypervisor cannot save or copy a VM",
    )
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

#[derive(Debug)]
struct FakeVm {
    supervised: Supervised,
    run_dir: PathBuf,
    books: Books,
}

/// What a machine in its place would have, and could.
#[derive(Debug)]
struct Books {
    size: Size,
    most: Size,
}

#[async_trait]
impl Resize for Books {
    fn size(&self) -> Size {
        self.size
    }

    async fn grow_vcpus(&mut self, vcpus: u32) -> Result<(), Error> {
        within(vcpus.into(), self.most.vcpus.into(), "vCPUs")?;
        self.size.vcpus = self.size.vcpus.max(vcpus);
        Ok(())
    }

    async fn grow_memory(&mut self, mib: u64) -> Result<(), Error> {
        within(mib, self.most.memory_mib, "MiB of memory")?;
        self.size.memory_mib = self.size.memory_mib.max(mib);
        Ok(())
    }
}

fn within(asked: u64, most: u64, what: &str) -> Result<(), Error> {
    if asked <= most {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("the VM cannot have {asked} {what}: it was started with room for {most}"),
    ))
}

#[async_trait]
impl Vm for FakeVm {
    fn pid(&self) -> u32 {
        self.supervised.pid()
    }

    fn record(&self) -> VmRecord {
        self.supervised.record(NAME, &self.run_dir)
    }

    fn report(&self) -> VmReport {
        VmReport {
            vmm: NAME.into(),
            machine: "process".into(),
            accelerator: "none".into(),
            reason: "the agent runs as a process of the host, without a virtual machine".into(),
            origin: Origin::Boot,
        }
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.supervised.exited()
    }

    async fn stop(&mut self) -> Result<(), Error> {
        // Its containers are processes of the host: unlike those in a VM they outlive an agent that is killed.
        self.supervised.terminate();
        match self.supervised.end_within(deadlines::QUIT).await {
            Some(_) => Ok(()),
            None => self.supervised.kill().await.map(drop),
        }
    }

    fn hotplug(&mut self) -> Option<&mut dyn Hotplug> {
        None
    }

    fn resize(&mut self) -> Option<&mut dyn Resize> {
        Some(&mut self.books)
    }

    async fn save(&mut self, _: SaveTo) -> Result<(), Error> {
        Err(no_snapshots())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_become_the_agents_arguments() {
        let port = Device::SerialPort(SerialPort {
            name: "p".into(),
            socket: "/r/a.sock".into(),
        });
        let share = Device::VirtioFs(VirtioFs {
            tag: "shared".into(),
            socket: "/r/fs.sock".into(),
            directory: "/r/shared".into(),
        });
        let made = args(&[port.clone(), share.clone()], Path::new("/r/root")).unwrap();
        let expected = [
            "--root",
            "/r/root",
            "--connect",
            "unix:/r/a.sock",
            "--share",
            "shared=/r/shared",
        ];
        assert_eq!(made, expected);

        let kind = |devices: &[Device]| args(devices, Path::new("/r/root")).map_err(|error| error.kind);
        assert_eq!(kind(&[share]), Err(ErrorKind::InvalidArgument));
        assert_eq!(kind(&[port.clone(), port]), Err(ErrorKind::InvalidArgument));
    }
}
