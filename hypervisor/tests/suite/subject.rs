//! The drivers under test, and a place for one VM of theirs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use configuration::{Accelerator, HypervisorConfig, HypervisorKind, MachineType, SharedFs, VirtioFsCache};
use hypervisor::{Boot, Device, Hypervisor, Memory, MemoryBacking, SerialPort, Vm, VmSpec, registry};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// A boot under TCG takes 2 to 4 s on an idle machine.
pub const BOOT: Duration = Duration::from_secs(60);

/// For what should happen at once.
pub const SOON: Duration = Duration::from_secs(5);

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// The agent's first bytes. They are repeated here because this crate must not depend on the agent's.
const GREETING: &[u8; 16] = b"KATA-AGENT/0001\n";

/// A driver under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The agent as a process.
    Fake,
    /// QEMU's q35.
    Q35,
    /// QEMU's microvm.
    Microvm,
}

impl Subject {
    /// The subject with this name.
    pub const fn named(name: &str) -> Self {
        match name.as_bytes() {
            b"fake" => Self::Fake,
            b"q35" => Self::Q35,
            b"microvm" => Self::Microvm,
            _ => panic!("no such subject"),
        }
    }

    /// The name again.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        }
    }

    /// Whether the parts that its VMs need are here. Missing ones fail the test, unless `KATA_TEST_SKIP` names them.
    pub fn present(self) -> bool {
        match self {
            Self::Fake => here("agent", &agent(), "cargo build -p agent"),
            Self::Q35 | Self::Microvm => {
                let image = ["vmlinux", "initrd.img"].map(|file| guest().join(file));
                here("qemu", Path::new(QEMU), "apt-get install qemu-system-x86")
                    && image
                        .iter()
                        .all(|file| here("guest-image", file, "cargo xtask guest"))
            }
        }
    }

    /// A configuration with which its VMs start.
    pub fn config(self) -> HypervisorConfig {
        let guest = guest();
        let (kind, path) = match self {
            Self::Fake => (HypervisorKind::Fake, agent()),
            Self::Q35 | Self::Microvm => (HypervisorKind::Qemu, QEMU.into()),
        };
        HypervisorConfig {
            kind,
            path,
            kernel: guest.join("vmlinux"),
            initrd: guest.join("initrd.img"),
            kernel_params: vec![],
            machine_type: if self == Self::Microvm {
                MachineType::Microvm
            } else {
                MachineType::Q35
            },
            accelerator: Accelerator::Auto,
            cpu_features: vec![],
            default_vcpus: 1,
            default_maxvcpus: 1,
            default_memory_mib: 256,
            default_maxmemory_mib: 256,
            shared_fs: SharedFs::None,
            virtio_fs_daemon: PathBuf::new(),
            virtio_fs_cache: VirtioFsCache::Auto,
            disable_block_device_use: false,
            vhost_user_vsock_daemon: PathBuf::new(),
            seccomp_sandbox: true,
            enable_debug: false,
            enable_annotations: vec![],
            valid_hypervisor_paths: vec![],
            valid_virtio_fs_daemon_paths: vec![],
        }
    }
}

/// Where a VM lives: its run directory and the socket on which its agent is awaited.
pub struct Place {
    /// The driver.
    pub driver: Arc<dyn Hypervisor>,
    run_dir: TempDir,
    listener: UnixListener,
    kernel: PathBuf,
    initrd: PathBuf,
    kernel_params: Vec<String>,
}

impl Place {
    /// A place for a VM of `subject`.
    pub fn new(subject: Subject) -> Self {
        Self::with(subject.config())
    }

    /// A place for a VM with this configuration.
    pub fn with(config: HypervisorConfig) -> Self {
        let run_dir = tempfile::tempdir().expect("a temporary directory");
        let log = Logger::root(Discard, o!());
        let driver = registry::driver(&config, run_dir.path(), log).expect("a driver");
        let listener = UnixListener::bind(run_dir.path().join("agent.sock")).expect("a socket");
        let kernel_params = vec!["kata.agent=serial".into()];
        Self {
            driver,
            run_dir,
            listener,
            kernel: config.kernel,
            initrd: config.initrd,
            kernel_params,
        }
    }

    /// The same with another kernel parameter.
    pub fn with_param(mut self, param: &str) -> Self {
        self.kernel_params.push(param.into());
        self
    }

    /// The VM's private directory.
    pub fn run_dir(&self) -> &Path {
        self.run_dir.path()
    }

    /// A small VM.
    pub fn spec(&self) -> VmSpec {
        VmSpec {
            id: "conformance".into(),
            run_dir: self.run_dir.path().into(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            kernel_params: self.kernel_params.clone(),
            vcpus: 1,
            max_vcpus: 1,
            memory: Memory {
                size_mib: 256,
                max_mib: 256,
                backing: MemoryBacking::Private,
            },
            devices: vec![Device::SerialPort(SerialPort {
                name: "kata.agent.0".into(),
                socket: self.run_dir.path().join("agent.sock"),
            })],
            network_namespace: None,
            cgroups: Vec::new(),
        }
    }

    /// Starts it.
    pub async fn launch(&self) -> Box<dyn Vm> {
        self.driver.launch(self.spec(), Boot::Cold).await.expect("a VM")
    }

    /// The connection of an agent that has greeted on the serial port.
    pub async fn greeted(&self) -> UnixStream {
        greeted_on(&self.listener).await
    }

    /// A program of the test's own, in the run directory.
    pub fn script(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .expect("an executable script");
        path
    }
}

/// The connection of an agent that has greeted on this socket.
pub async fn greeted_on(listener: &UnixListener) -> UnixStream {
    let greeting = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut bytes = [0; GREETING.len()];
        stream.read_exact(&mut bytes).await.expect("a greeting");
        assert_eq!(&bytes, GREETING);
        stream
    };
    timeout(BOOT, greeting)
        .await
        .expect("the agent greets before the deadline")
}

fn guest() -> PathBuf {
    found("KATA_GUEST_DIR", "guest")
}

fn agent() -> PathBuf {
    found("KATA_AGENT_BIN", "debug/kata-agent")
}

/// A path from the environment, else one below `target`.
pub fn found(variable: &str, default: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target")
            .join(default),
    }
}

/// Whether a part is there. A part that is not fails the test, unless `KATA_TEST_SKIP`, a comma list, names it.
pub fn here(part: &str, path: &Path, remedy: &str) -> bool {
    if path.is_file() {
        return true;
    }
    let skipped =
        std::env::var("KATA_TEST_SKIP").is_ok_and(|list| list.split(',').any(|name| name.trim() == part));
    assert!(
        skipped,
        "this test needs {}: run `{remedy}`, or name {part:?} in KATA_TEST_SKIP to go without",
        path.display()
    );
    println!(
        "skipped, because KATA_TEST_SKIP says so: {} is missing",
        path.display()
    );
    false
}
