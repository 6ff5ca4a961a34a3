//! The drivers under test, and a place for one VM of theirs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use configuration::{Accelerator, HypervisorConfig, HypervisorKind, MachineType, SharedFs, VirtioFsCache};
use hypervisor::{Boot, Device, Hypervisor, Memory, MemoryBacking, SerialPort, Vm, VmSpec, Vsock, registry};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// A boot under TCG takes 2 to 4 s on an idle machine; one under a KVM that emulates, half a minute.
pub const BOOT: Duration = Duration::from_secs(180);

/// For what should happen at once.
pub const SOON: Duration = Duration::from_secs(5);

/// Multiplies what is waited for: a KVM that emulates, on a machine that has other things to do, needs more.
const PATIENCE: &str = "KATA_TEST_PATIENCE";

/// So long, or longer where it was asked for.
pub fn patient(limit: Duration) -> Duration {
    limit * factor()
}

/// Whether the processor is too slow for several guests at once: the ticks of their clocks alone would keep it busy.
pub fn is_slow() -> bool {
    factor() > 1
}

fn factor() -> u32 {
    let factor = std::env::var(PATIENCE);
    factor.map_or(1, |text| text.parse().expect("KATA_TEST_PATIENCE: a number"))
}

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Names Firecracker's jailer.
const JAILER: &str = "KATA_TEST_JAILER";

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
    /// Cloud Hypervisor.
    Clh,
    /// Firecracker.
    Firecracker,
    /// Firecracker in a jail.
    Jailed,
}

impl Subject {
    /// The subject with this name.
    pub const fn named(name: &str) -> Self {
        match name.as_bytes() {
            b"fake" => Self::Fake,
            b"q35" => Self::Q35,
            b"microvm" => Self::Microvm,
            b"clh" => Self::Clh,
            b"firecracker" => Self::Firecracker,
            b"jailed" => Self::Jailed,
            _ => panic!("no such subject"),
        }
    }

    /// The name again.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fake => "fake",
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
            Self::Clh => "clh",
            Self::Firecracker => "firecracker",
            Self::Jailed => "jailed",
        }
    }

    /// Whether the parts that its VMs need are here. Missing ones fail the test, unless `KATA_TEST_SKIP` names them.
    pub fn present(self) -> bool {
        match self {
            Self::Fake => here("agent", &agent(), "cargo build -p agent"),
            Self::Clh | Self::Firecracker | Self::Jailed if self.is_real() => image(),
            Self::Clh | Self::Firecracker | Self::Jailed => {
                let description = match self {
                    Self::Clh => "cloud-hypervisor.yaml",
                    _ => "firecracker.yaml",
                };
                here("agent", &agent(), "cargo build -p agent")
                    && here(
                        "api-descriptions",
                        &descriptions().join(description),
                        "export KATA_API_DIR=<directory of the descriptions>",
                    )
            }
            Self::Q35 | Self::Microvm => {
                here("qemu", Path::new(QEMU), "apt-get install qemu-system-x86") && image()
            }
        }
    }

    /// Whether it is a real monitor, and not a double.
    pub fn is_real(self) -> bool {
        self.real_program().is_some()
    }

    /// Whether a double plays it.
    pub fn is_double(self) -> bool {
        self != Self::Fake && !self.is_real()
    }

    fn real_program(self) -> Option<PathBuf> {
        let named = |variable| std::env::var_os(variable).map(PathBuf::from);
        match self {
            Self::Fake => None,
            Self::Q35 | Self::Microvm => Some(QEMU.into()),
            Self::Clh => named("KATA_TEST_CLH"),
            Self::Firecracker => named("KATA_TEST_FIRECRACKER"),
            // Without a jailer it would be the subject before.
            Self::Jailed => named(JAILER).and(named("KATA_TEST_FIRECRACKER")),
        }
    }

    /// A configuration with which its VMs start.
    pub fn config(self) -> HypervisorConfig {
        match self.real_program() {
            Some(program) => self.config_of(program, std::env::var_os(JAILER).unwrap_or_default().into()),
            None if self == Self::Fake => self.config_of(agent(), PathBuf::new()),
            None => self.config_of_double(&doubles(), None, None),
        }
    }

    /// The same for a double in a directory of its own, which claims to be of this version, and reports on what it was asked.
    fn config_of_double(
        self,
        directory: &Path,
        version: Option<&str>,
        reports: Option<&Path>,
    ) -> HypervisorConfig {
        let told = serde_json::json!({
            "agent": agent(),
            "descriptions": descriptions(),
            "version": version.unwrap_or("54.0.0"),
            "reports": reports,
        });
        let this = std::env::current_exe().expect("the test's program");
        for name in ["cloud-hypervisor", "firecracker", "jailer"] {
            // One of an earlier run leads to this program as well.
            let _ = std::os::unix::fs::symlink(&this, directory.join(name));
        }
        // Others may be reading it.
        let file = tempfile::NamedTempFile::new_in(directory).expect("a file");
        std::fs::write(&file, told.to_string()).expect("what a double is told");
        file.persist(directory.join("double.json"))
            .expect("what a double is told");
        let program = match self {
            Self::Clh => "cloud-hypervisor",
            _ => "firecracker",
        };
        self.config_of(directory.join(program), directory.join("jailer"))
    }

    fn config_of(self, path: PathBuf, jailer: PathBuf) -> HypervisorConfig {
        let guest = guest();
        let kind = match self {
            Self::Fake => HypervisorKind::Fake,
            Self::Q35 | Self::Microvm => HypervisorKind::Qemu,
            Self::Clh => HypervisorKind::CloudHypervisor,
            Self::Firecracker | Self::Jailed => HypervisorKind::Firecracker,
        };
        // A double's guest has no use for them, but they are looked for.
        let (kernel, initrd) = match self.is_real() {
            true => (guest.join("vmlinux"), guest.join("initrd.img")),
            false => (agent(), agent()),
        };
        HypervisorConfig {
            kind,
            path,
            jailer_path: match self {
                Self::Jailed => jailer,
                _ => PathBuf::new(),
            },
            kernel,
            initrd,
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
            disable_selinux: false,
            vhost_user_vsock_daemon: PathBuf::new(),
            disk_rate_limiter_bw_max_rate: 0,
            disk_rate_limiter_bw_one_time_burst: 0,
            disk_rate_limiter_ops_max_rate: 0,
            disk_rate_limiter_ops_one_time_burst: 0,
            net_rate_limiter_bw_max_rate: 0,
            net_rate_limiter_bw_one_time_burst: 0,
            net_rate_limiter_ops_max_rate: 0,
            net_rate_limiter_ops_one_time_burst: 0,
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
    /// Of its double, where that is one of its own.
    _double: Option<TempDir>,
}

/// The port that the agent of a guest with hybrid vsock is told to dial.
const PORT: u32 = 1024;

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
        let (socket, param) = match driver.capabilities().vsock_hybrid {
            true => (format!("agent_{PORT}"), format!("kata.agent=vsock:{PORT}")),
            false => ("agent.sock".into(), "kata.agent=serial".into()),
        };
        let listener = UnixListener::bind(run_dir.path().join(socket)).expect("a socket");
        let mut kernel_params = vec![param];
        let more = std::env::var("KATA_TEST_KERNEL_PARAMS").unwrap_or_default();
        kernel_params.extend(more.split_whitespace().map(String::from));
        Self {
            _double: None,
            driver,
            run_dir,
            listener,
            kernel: config.kernel,
            initrd: config.initrd,
            kernel_params,
        }
    }

    /// A place for a double's VM, which claims to be of this version.
    pub fn of_version(subject: Subject, version: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = subject.config_of_double(directory.path(), Some(version), None);
        Self {
            _double: Some(directory),
            ..Self::with(config)
        }
    }

    /// A place for a double's VM, which reports on what it was asked, with another configuration.
    pub fn reporting(subject: Subject, reports: &Path, change: impl FnOnce(&mut HypervisorConfig)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = subject.config_of_double(directory.path(), None, Some(reports));
        change(&mut config);
        Self {
            _double: Some(directory),
            ..Self::with(config)
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
            devices: vec![match self.driver.capabilities().vsock_hybrid {
                true => Device::Vsock(Vsock::Hybrid {
                    cid: 3,
                    uds: self.run_dir.path().join("agent"),
                }),
                false => Device::SerialPort(SerialPort {
                    name: "kata.agent.0".into(),
                    socket: self.run_dir.path().join("agent.sock"),
                }),
            }],
            network_namespace: None,
            cgroups: Vec::new(),
            labels: Vec::new(),
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
    timeout(patient(BOOT), greeting)
        .await
        .expect("the agent greets before the deadline")
}

/// Whether the guest image is here.
fn image() -> bool {
    ["vmlinux", "initrd.img"]
        .iter()
        .all(|file| here("guest-image", &guest().join(file), "cargo xtask guest"))
}

/// Descriptions of the monitors' APIs: `$KATA_API_DIR`, else beside the repository.
fn descriptions() -> PathBuf {
    match std::env::var_os("KATA_API_DIR") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/api"),
    }
}

/// A directory for the doubles of this program.
fn doubles() -> PathBuf {
    let this = std::env::current_exe().expect("the test's program");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(this.file_name().expect("a name"));
    std::fs::create_dir_all(&directory).expect("a directory");
    directory
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
