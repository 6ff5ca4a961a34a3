//! A place for one sandbox: its run directory, bundles, snapshots; and the proof that nothing of it is left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use configuration::{
    Accelerator, AgentChannel, AgentConfig, Config, FactoryConfig, HypervisorConfig, HypervisorKind,
    MachineType, NetworkModel, RuntimeConfig, SharedFs, VirtioFsCache,
};
use hypervisor::registry;
use runtime::{
    Container, ContainerId, ContainerRequest, Event, Output, RootfsMount, Sandbox, SandboxId, SandboxRequest,
    Stdio,
};
use serde_json::{Value, json};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// What containerd's `ctr run` writes.
const SPEC: &str = include_str!("../golden/ctr.json");

/// Which guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// The agent as a process of the host.
    Process,
    /// QEMU's q35, with its agent on this channel.
    Vm(AgentChannel),
}

/// A place for a sandbox called `s`.
pub struct Stand {
    pub dir: Place,
    pub guest: Guest,
}

/// A directory.
pub enum Place {
    /// Removed with the test.
    Ours(TempDir),
    /// Removed by another one.
    Anothers(PathBuf),
}

impl Place {
    pub fn path(&self) -> &Path {
        match self {
            Self::Ours(dir) => dir.path(),
            Self::Anothers(dir) => dir,
        }
    }
}

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// A path from the environment, else below `target`.
fn found(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(default),
        PathBuf::from,
    )
}

fn agent() -> PathBuf {
    found("KATA_AGENT_BIN", "debug/kata-agent")
}

fn image(file: &str) -> PathBuf {
    found("KATA_GUEST_DIR", "guest").join(file)
}

fn virtiofsd() -> PathBuf {
    found("KATA_VIRTIOFSD", "tools/bin/virtiofsd")
}

fn vsock_daemon() -> PathBuf {
    found("KATA_VHOST_VSOCK", "tools/bin/vhost-device-vsock")
}

impl Guest {
    /// Whether its parts are here. A part that is not fails the test, unless `KATA_TEST_SKIP`, a comma list, names it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Process => here("agent", &agent(), "cargo build -p agent"),
            Self::Vm(_) => [
                ("qemu", PathBuf::from(QEMU), "cargo xtask deps"),
                ("guest-image", image("vmlinux"), "cargo xtask guest"),
                ("guest-image", image("initrd.img"), "cargo xtask guest"),
                ("virtiofsd", virtiofsd(), "cargo xtask deps"),
                ("vhost-device-vsock", vsock_daemon(), "cargo xtask deps"),
            ]
            .iter()
            .all(|(part, path, remedy)| here(part, path, remedy)),
        }
    }
}

fn here(part: &str, path: &Path, remedy: &str) -> bool {
    if path.is_file() {
        return true;
    }
    let skipped =
        std::env::var("KATA_TEST_SKIP").is_ok_and(|list| list.split(',').any(|name| name.trim() == part));
    let path = path.display();
    assert!(
        skipped,
        "this test needs {path}: run `{remedy}`, or name {part:?} in KATA_TEST_SKIP to go without"
    );
    println!("skipped, because KATA_TEST_SKIP says so: {path} is missing");
    false
}

pub fn id(text: &str) -> SandboxId {
    SandboxId::new(text).unwrap()
}

impl Stand {
    /// `None`: a part of the guest is missing, and may be.
    pub fn new(guest: Guest) -> Option<Self> {
        guest
            .is_here()
            .then(|| Self::at(Place::Ours(tempfile::tempdir().unwrap()), guest))
    }

    /// In a directory of another process's.
    pub fn within(dir: &Path, guest: Guest) -> Self {
        Self::at(Place::Anothers(dir.into()), guest)
    }

    fn at(dir: Place, guest: Guest) -> Self {
        fs::create_dir_all(dir.path().join("run")).unwrap();
        Self { dir, guest }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config(&self) -> Config {
        let (kind, path, kernel, initrd, channel, daemons) = match self.guest {
            Guest::Process => (
                HypervisorKind::Fake,
                agent(),
                PathBuf::new(),
                PathBuf::new(),
                AgentChannel::Auto,
                Default::default(),
            ),
            Guest::Vm(channel) => (
                HypervisorKind::Qemu,
                PathBuf::from(QEMU),
                image("vmlinux"),
                image("initrd.img"),
                channel,
                (virtiofsd(), vsock_daemon()),
            ),
        };
        Config {
            sources: vec![],
            hypervisor: HypervisorConfig {
                kind,
                path,
                jailer_path: Default::default(),
                kernel,
                initrd,
                kernel_params: vec![],
                machine_type: MachineType::Q35,
                accelerator: Accelerator::Auto,
                cpu_features: vec![],
                default_vcpus: 1,
                default_maxvcpus: 1,
                default_memory_mib: 256,
                default_maxmemory_mib: 256,
                shared_fs: SharedFs::VirtioFs,
                virtio_fs_daemon: daemons.0,
                virtio_fs_cache: VirtioFsCache::Auto,
                disable_block_device_use: false,
                disable_selinux: false,
                vhost_user_vsock_daemon: daemons.1,
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
            },
            agent: AgentConfig {
                channel,
                dial_timeout: Some(SOON),
                request_timeout: Duration::from_secs(20),
                create_container_timeout: SOON,
                debug_console_enabled: false,
                debug_console_program: "/bin/busybox".into(),
                enable_debug: false,
            },
            runtime: RuntimeConfig {
                enable_debug: false,
                internetworking_model: NetworkModel::None,
                disable_new_netns: false,
                disable_guest_seccomp: false,
                sandbox_cgroup_only: false,
                static_sandbox_resource_mgmt: false,
                enable_agent_pidns: false,
                experimental: Vec::new(),
                enable_tracing: false,
                trace_directory: Default::default(),
                trace_max_size_mib: 8,
                run_dir: self.path("run"),
            },
            factory: FactoryConfig {
                enable_template: false,
                template_path: self.path("template"),
                vm_cache_number: 0,
                vm_cache_endpoint: Default::default(),
            },
        }
    }

    /// A request for the sandbox of this bundle.
    pub fn request(&self, config: Config, bundle: &Path) -> (SandboxRequest, mpsc::Receiver<Event>) {
        let log = Logger::root(Discard, o!());
        let hypervisor = registry::driver(&config.hypervisor, &config.runtime.run_dir, log.clone()).unwrap();
        let (events, received) = mpsc::channel(4);
        let request = SandboxRequest {
            id: id("s"),
            scope: id("test"),
            bundle: bundle.into(),
            rootfs: Vec::new(),
            config: Arc::new(config),
            hypervisor,
            events,
            log,
        };
        (request, received)
    }

    pub async fn sandbox(&self, bundle: &Path) -> (Sandbox, mpsc::Receiver<Event>) {
        let (request, events) = self.request(self.config(), bundle);
        let created = timeout(SOON, Sandbox::create(request)).await.unwrap();
        (created.unwrap(), events)
    }

    /// A bundle as `ctr run` makes it, of a container that runs a script; `change` has the last word on its specification.
    pub fn bundle(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let mut spec: Value = serde_json::from_str(SPEC).unwrap();
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        change(&mut spec);
        let bundle = self.path(name);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    /// A directory with busybox in it.
    pub fn layer(&self) -> PathBuf {
        let layer = self.path("layer");
        if !layer.exists() {
            busybox(&layer);
        }
        layer
    }

    /// The mounts of a container's root file system, as the overlay snapshotter names them. Its layers have busybox.
    pub fn snapshot(&self, name: &str) -> Vec<RootfsMount> {
        let layer = self.layer();
        let dir = self.path("snapshots").join(name);
        fs::create_dir_all(dir.join("fs")).unwrap();
        fs::create_dir_all(dir.join("work")).unwrap();
        vec![RootfsMount {
            fs_type: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                "index=off".into(),
                format!("workdir={}", dir.join("work").display()),
                format!("upperdir={}", dir.join("fs").display()),
                format!("lowerdir={}", layer.display()),
            ],
        }]
    }

    /// A disk with that directory on it, made when it is first asked for.
    pub fn disk(&self, name: &str) -> PathBuf {
        let image = self.path(&format!("{name}.ext4"));
        if !image.exists() {
            let file = fs::File::create(&image).unwrap();
            file.set_len(64 << 20).unwrap();
            let mut made = Command::new("mkfs.ext4");
            made.arg("-qd").arg(self.layer()).arg(&image);
            let made = made
                .status()
                .unwrap_or_else(|error| panic!("this test needs mkfs.ext4 (e2fsprogs): {error}"));
            assert!(made.success());
        }
        image
    }

    /// The content of a file on that disk, when nobody has it any more.
    pub fn on_disk(&self, name: &str, path: &str) -> String {
        let mut read = Command::new("debugfs");
        read.arg("-R").arg(format!("cat {path}")).arg(self.disk(name));
        let read = read
            .output()
            .unwrap_or_else(|error| panic!("this test needs debugfs (e2fsprogs): {error}"));
        String::from_utf8(read.stdout).unwrap()
    }

    /// What a container has written, in its snapshot.
    pub fn written(&self, name: &str, path: &str) -> String {
        let path = self.path("snapshots").join(name).join("fs").join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn container(&self, name: &str, bundle: &Path, rootfs: Vec<RootfsMount>) -> ContainerRequest {
        let out = Output::File(self.out(name));
        // Guests that are processes share the host's cgroups, which are called like their containers.
        let place = self.dir.path().file_name().unwrap().to_string_lossy();
        ContainerRequest {
            id: ContainerId::new(format!("{name}{place}")).unwrap(),
            bundle: bundle.into(),
            rootfs,
            stdio: Stdio {
                stdout: out,
                stderr: Output::File(self.out(name)),
                ..Stdio::default()
            },
        }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.out"))
    }

    /// Runs a container to its end and deletes it: its exit code and its output.
    pub async fn run(&self, sandbox: &Sandbox, name: &str, bundle: &Path) -> (u32, String) {
        let _ = fs::remove_file(self.out(name));
        let container = self.started(sandbox, name, bundle).await;
        let code = code(&container).await;
        container.delete().await.unwrap();
        (code, fs::read_to_string(self.out(name)).unwrap_or_default())
    }

    pub async fn started(&self, sandbox: &Sandbox, name: &str, bundle: &Path) -> Container {
        let request = self.container(name, bundle, self.snapshot(name));
        let container = sandbox.create_container(request).await.unwrap();
        container.start().await.unwrap();
        container
    }

    /// Fails if anything is left: a sandbox's directory, a mount, a process.
    pub fn assert_clean(&self) {
        let entries = fs::read_dir(self.path("run")).unwrap();
        let left: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        assert!(left.is_empty(), "directories are left: {left:?}");
        let ours = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(ours)).collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:?}");
        let left = self.processes_left();
        assert!(left.is_empty(), "processes are left: {left:?}");
    }

    /// Command lines that name our directory. What was killed with its owner ends by itself, and soon.
    fn processes_left(&self) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let left: Vec<String> = processes(self.dir.path())
                .into_iter()
                .map(|(_, line)| line)
                .collect();
            if left.is_empty() || begun.elapsed() > Duration::from_secs(5) {
                return left;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A test that fails must not leave mounts, least of all to whoever removes its directory.
impl Drop for Stand {
    fn drop(&mut self) {
        use rustix::mount::{UnmountFlags, unmount};
        let ours = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| point.starts_with(ours)) {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

/// Processes whose command line names a path, but for this one.
pub fn processes(naming: &Path) -> Vec<(i32, String)> {
    let naming = naming.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(naming).then_some((pid, line))
        })
        .collect()
}

pub async fn code(container: &Container) -> u32 {
    timeout(SOON, container.wait(None)).await.unwrap().unwrap().code
}

/// A root file system that is busybox.
fn busybox(root: &Path) {
    for name in ["bin", "dev", "proc", "sys", "run", "tmp", "etc", "mnt"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .unwrap_or_else(|e| panic!("this test needs busybox-static: /bin/busybox: {e}"));
    for tool in [
        "sh", "cat", "sleep", "echo", "ls", "mkdir", "ln", "touch", "rm", "test", "stat", "uname", "ip",
        "nc", "httpd",
    ] {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
}
