//! A host in a directory of its own, with plans made by hand.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_protocol as p;
use hypervisor::{Memory, MemoryBacking, registry};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::super::{Host, cgroup, mountinfo};
use crate::guest::{GUEST_SHARE, SHARE_TAG};
use crate::model::{
    BindPlan, CgroupPlan, ChannelPlan, ContainerPlan, DisksPlan, HostLabels, RootPlan, SandboxPlan, SharePlan,
};
use crate::sandbox::SandboxRequest;
use crate::sandbox::tests::config;
use crate::{ContainerId, Event, SandboxId};

/// A path from the environment, else below `target`.
fn found(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(default),
        PathBuf::from,
    )
}

pub(super) fn virtiofsd() -> PathBuf {
    found("KATA_VIRTIOFSD", "tools/bin/virtiofsd")
}

pub(super) fn vsock_daemon() -> PathBuf {
    found("KATA_VHOST_VSOCK", "tools/bin/vhost-device-vsock")
}

/// Whether the daemons are here. One that is not fails the test, unless `KATA_TEST_SKIP`, a comma list, names it.
pub(super) fn daemons_are_here() -> bool {
    let skipped = std::env::var("KATA_TEST_SKIP").unwrap_or_default();
    [("virtiofsd", virtiofsd()), ("vhost-device-vsock", vsock_daemon())]
        .iter()
        .all(|(part, path)| {
            assert!(
                path.is_file() || skipped.split(',').any(|name| name.trim() == *part),
                "this test needs {}: run `cargo xtask deps`, or name {part:?} in KATA_TEST_SKIP to go without",
                path.display()
            );
            path.is_file()
        })
}

/// A directory in which everything of a test happens.
pub(super) struct Stand {
    pub(super) dir: TempDir,
}

/// A test that fails must not leave mounts, least of all to whoever removes its directory.
impl Drop for Stand {
    fn drop(&mut self) {
        super::super::mount::clear_below(self.dir.path()).unwrap();
        for dir in self.cgroups().iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

impl Stand {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        Self { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// A request whose guest is a process, which is never started.
    pub(super) fn request(&self, id: &str) -> (SandboxRequest, mpsc::Receiver<Event>) {
        let mut config = config();
        config.runtime.run_dir = self.run_dir();
        let log = Logger::root(Discard, o!());
        let hypervisor = registry::driver(&config.hypervisor, &self.run_dir(), log.clone()).unwrap();
        let (events, received) = mpsc::channel(4);
        let request = SandboxRequest {
            id: SandboxId::new(id).unwrap(),
            scope: SandboxId::new("test").unwrap(),
            bundle: PathBuf::new(),
            rootfs: Vec::new(),
            config: Arc::new(config),
            hypervisor,
            events,
            log,
        };
        (request, received)
    }

    /// A host whose guest is a process.
    pub(super) fn host(&self, id: &str) -> Host {
        let (request, _) = self.request(id);
        Host::new(&request, plan(id, ChannelPlan::Serial, SharePlan::Process)).unwrap()
    }

    /// Fails if anything is left: below the run directory, mounted, or running with a path of ours in its arguments.
    pub(super) fn assert_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.run_dir())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        assert!(left.is_empty(), "directories are left: {left:?}");
        assert_eq!(self.mounts(), Vec::<PathBuf>::new(), "mounts are left");
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are left");
    }

    /// A cgroup that no other test has, with directories above that none has either.
    pub(super) fn cgroup(&self) -> CgroupPlan {
        let name = self.dir.path().file_name().unwrap();
        CgroupPlan {
            path: Path::new(&format!("kata-test{}", name.display())).join("pod/s"),
            name: "kata_s".into(),
            is_apart: false,
        }
    }

    /// Cgroups of this test that are there, in all hierarchies, each before those below it.
    pub(super) fn cgroups(&self) -> Vec<PathBuf> {
        let deepest = self.cgroup().path.join("kata_s");
        let mut paths: Vec<_> = deepest.ancestors().take(4).collect();
        paths.reverse();
        let roots = cgroup::roots();
        assert!(!roots.is_empty(), "this test needs a hierarchy of cgroups");
        roots
            .iter()
            .flat_map(|root| paths.iter().map(|path| root.join(path)))
            .filter(|path| path.exists())
            .collect()
    }

    pub(super) fn mounts(&self) -> Vec<PathBuf> {
        mountinfo::below(&fs::read("/proc/self/mountinfo").unwrap(), &self.run_dir())
    }

    /// Command lines that name the run directory. Ones that are being killed end by themselves, and soon.
    pub(super) fn processes(&self) -> Vec<String> {
        let begun = std::time::Instant::now();
        loop {
            let found = command_lines(&self.run_dir());
            if found.is_empty() || begun.elapsed() > Duration::from_secs(5) {
                return found;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(super) fn command_lines(naming: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(naming.to_str().unwrap()))
        .collect()
}

/// A sandbox's plan. Its kernel is that of the test's guest.
pub(super) fn plan(id: &str, channel: ChannelPlan, share: SharePlan) -> SandboxPlan {
    SandboxPlan {
        id: SandboxId::new(id).unwrap(),
        kernel: PathBuf::new(),
        initrd: PathBuf::new(),
        kernel_params: Vec::new(),
        vcpus: 1,
        max_vcpus: 1,
        memory: Memory {
            size_mib: 256,
            max_mib: 256,
            backing: match share {
                SharePlan::VirtioFs { .. } => MemoryBacking::Shared,
                SharePlan::Process | SharePlan::Nothing => MemoryBacking::Private,
            },
        },
        growth: None,
        template: None,
        channel,
        share,
        disks: DisksPlan::Mounted,
        network: None,
        cgroup: None,
        labels: HostLabels::default(),
        is_alone: false,
        guest: p::CreateSandboxRequest {
            sandbox_id: id.into(),
            storages: vec![p::Storage {
                driver: "virtio-fs".into(),
                source: SHARE_TAG.into(),
                mount_point: GUEST_SHARE.into(),
                ..Default::default()
            }],
            ..Default::default()
        },
    }
}

/// A container's plan with no guest's part.
pub(super) fn container(id: &str, root: RootPlan, binds: Vec<BindPlan>) -> ContainerPlan {
    ContainerPlan {
        id: ContainerId::new(id).unwrap(),
        directory: id.into(),
        root,
        binds,
        copies: Vec::new(),
        disks: Vec::new(),
        has_agents_pids: false,
        hooks: Default::default(),
        stage: None,
        guest: p::CreateContainerRequest {
            container_id: id.into(),
            ..Default::default()
        },
    }
}

/// A root file system with busybox in it.
pub(super) fn busybox(root: &Path) {
    for name in ["bin", "dev", "proc", "tmp", "mnt"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .unwrap_or_else(|e| panic!("this test needs busybox-static: /bin/busybox: {e}"));
    for tool in [
        "sh", "cat", "sleep", "echo", "ls", "mkdir", "ln", "touch", "rm", "test", "stat", "grep",
    ] {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
}

impl Host {
    /// Makes a planned container's files visible.
    pub(super) fn carry_out(&mut self, plan: &ContainerPlan) -> crate::error::Result<()> {
        let (share, steps) = self.shared()?;
        share.add(|_| Ok(plan.clone()), &steps).map(drop)
    }
}
