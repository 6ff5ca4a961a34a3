//! A pod, as the kubelet makes one: its configuration, its directories, and its end.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::deadlines;
use k8s_cri::v1::{
    DnsConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
    PortMapping, Protocol, RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::container::{Container, ContainerSpec, Ended};
use crate::suite::Runtime;
use crate::world::World;

/// The namespace of all pods.
const NAMESPACE: &str = "e2e";

/// What a pod is to be.
#[derive(Debug, Clone)]
pub struct PodSpec(PodSandboxConfig);

impl PodSpec {
    /// A pod as the kubelet makes it of a specification that asks for nothing: a process namespace for each container.
    pub fn new(name: &str) -> Self {
        Self(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                namespace: NAMESPACE.into(),
                ..Default::default()
            }),
            hostname: name.into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// Changes anything.
    pub fn with(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.0);
        self
    }

    /// Changes what is particular to Linux.
    pub fn linux(self, change: impl FnOnce(&mut LinuxPodSandboxConfig)) -> Self {
        self.with(|config| change(config.linux.get_or_insert_default()))
    }

    /// Sets an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.with(|config| {
            config.annotations.insert(key.into(), value.into());
        })
    }

    /// All containers in one process namespace: `shareProcessNamespace` of a pod's specification.
    pub fn shared_processes(self) -> Self {
        self.linux(|linux| {
            let security = linux.security_context.get_or_insert_default();
            let namespaces = security.namespace_options.get_or_insert_default();
            namespaces.pid = NamespaceMode::Pod.into();
        })
    }

    /// Makes a port of the pod one of the host.
    pub fn port(self, port: u16, host: u16) -> Self {
        self.with(|config| {
            config.port_mappings.push(PortMapping {
                protocol: Protocol::Tcp.into(),
                container_port: port.into(),
                host_port: host.into(),
                ..Default::default()
            });
        })
    }

    /// Sets the DNS configuration.
    pub fn dns(self, servers: &[&str], searches: &[&str], options: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        self.with(|config| {
            config.dns_config = Some(DnsConfig {
                servers: owned(servers),
                searches: owned(searches),
                options: owned(options),
            });
        })
    }
}

/// A pod that was started. Removed when dropped.
pub struct Pod {
    world: Arc<World>,
    id: String,
    config: PodSandboxConfig,
    directory: PathBuf,
    created: AtomicU32,
    removed: AtomicBool,
    mounts: Mutex<Vec<PathBuf>>,
    kept: Mutex<HashMap<&'static str, Arc<Container>>>,
}

impl Pod {
    /// Starts one.
    pub fn run(world: &Arc<World>, runtime: Runtime, PodSpec(mut config): PodSpec) -> Result<Self> {
        let uid = world.unique();
        let directory = world.inside.directory.join("pods").join(&uid);
        let logs = directory.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        config.log_directory = logs.display().to_string();
        // Of our own, so that the census finds it.
        config.linux.get_or_insert_default().cgroup_parent = format!("/{}/{uid}", world.inside.tag);
        let metadata = config.metadata.get_or_insert_default();
        if metadata.uid.is_empty() {
            metadata.uid = uid;
        }
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: runtime.name().into(),
        };
        let answer = world
            .cri
            .call_within(deadlines::POD, "RunPodSandbox", async move |mut client| {
                client.run_pod_sandbox(request).await
            });
        let answer = answer.inspect_err(|_| {
            // What a pod that never was had is ours alone.
            let _ = fs::remove_dir_all(&directory);
        })?;
        Ok(Self {
            world: Arc::clone(world),
            id: answer.pod_sandbox_id,
            config,
            directory,
            created: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            mounts: Mutex::default(),
            kept: Mutex::default(),
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its world.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Its configuration, as it was sent.
    pub fn config(&self) -> &PodSandboxConfig {
        &self.config
    }

    /// Where its containers log to.
    pub fn logs(&self) -> PathBuf {
        self.config.log_directory.clone().into()
    }

    /// What containerd says of it.
    pub fn status(&self) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        };
        let answer = self.world.cri.call("PodSandboxStatus", async move |mut client| {
            client.pod_sandbox_status(request).await
        })?;
        answer.status.context("a pod has a status")
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.status()?.state() == PodSandboxState::SandboxReady)
    }

    /// Its first address.
    pub fn address(&self) -> Result<String> {
        let network = self.status()?.network.context("a pod has a network")?;
        ensure!(!network.ip.is_empty(), "a pod without an address");
        Ok(network.ip)
    }

    /// Its address of the other family.
    pub fn address_v6(&self) -> Result<String> {
        let network = self.status()?.network.context("a pod has a network")?;
        let second = network.additional_ips.into_iter().next();
        Ok(second.context("a pod has an address of each family")?.ip)
    }

    /// Creates a container.
    pub fn create(&self, spec: ContainerSpec) -> Result<Container> {
        let number = self.created.fetch_add(1, Ordering::Relaxed);
        Container::create(self, spec, number)
    }

    /// Creates a container and starts it.
    pub fn start(&self, spec: ContainerSpec) -> Result<Container> {
        let container = self.create(spec)?;
        container.start()?;
        Ok(container)
    }

    /// Runs a container to its end and removes it.
    pub fn ends(&self, spec: ContainerSpec) -> Result<Ended> {
        let container = self.start(spec)?;
        let ended = container.wait()?;
        container.remove()?;
        Ok(ended)
    }

    /// What a container that succeeds writes to standard output, without the line's end.
    pub fn output(&self, spec: ContainerSpec) -> Result<String> {
        self.ends(spec)?.success()
    }

    /// The container called `name`, which is started at first and then serves all cases of this pod.
    pub fn kept(
        &self,
        name: &'static str,
        spec: impl FnOnce() -> Result<ContainerSpec>,
    ) -> Result<Arc<Container>> {
        let known = lock(&self.kept).get(name).cloned();
        if let Some(container) = known {
            return Ok(container);
        }
        let container = Arc::new(self.start(spec()?)?);
        lock(&self.kept).insert(name, Arc::clone(&container));
        Ok(container)
    }

    /// A container of which nothing is asked, to look about in.
    pub fn shell(&self) -> Result<Arc<Container>> {
        self.kept("shell", || Ok(ContainerSpec::idle()))
    }

    /// A directory of an `emptyDir` volume, at the path that the kubelet uses.
    pub fn empty_dir(&self, name: &str) -> Result<PathBuf> {
        self.volume("kubernetes.io~empty-dir", name)
    }

    /// A directory of a volume of this kind, at the path that the kubelet uses.
    pub fn volume(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let path = self.directory.join("volumes").join(kind).join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// An `emptyDir` volume of memory: a tmpfs, or another file system.
    pub fn mounted_empty_dir(
        &self,
        name: &str,
        file_system: &str,
        options: &std::ffi::CStr,
    ) -> Result<PathBuf> {
        let path = self.empty_dir(name)?;
        mount(
            file_system,
            &path,
            file_system,
            MountFlags::empty(),
            Some(options),
        )
        .with_context(|| format!("mount a {file_system} on {}", path.display()))?;
        lock(&self.mounts).push(path.clone());
        Ok(path)
    }

    /// Stops it.
    pub fn stop(&self) -> Result<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.world
            .cri
            .call_within(deadlines::RUN, "StopPodSandbox", async move |mut client| {
                client.stop_pod_sandbox(request).await
            })?;
        Ok(())
    }

    /// Stops and removes it.
    pub fn remove(&self) -> Result<()> {
        self.removed.store(true, Ordering::Relaxed);
        self.stop()?;
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        self.world
            .cri
            .call_within(deadlines::RUN, "RemovePodSandbox", async move |mut client| {
                client.remove_pod_sandbox(request).await
            })?;
        for path in lock(&self.mounts).drain(..) {
            unmount(&path, UnmountFlags::empty()).with_context(|| format!("unmount {}", path.display()))?;
        }
        remove(&self.directory)?;
        self.remove_cgroup()
    }

    /// The pod's own cgroup is the kubelet's, so here it is ours to remove. One that is still in use can't be.
    fn remove_cgroup(&self) -> Result<()> {
        let Some(linux) = &self.config.linux else {
            return Ok(());
        };
        e2e::wait::until("the pod's cgroup is empty", deadlines::GONE, || {
            let left: Vec<_> = e2e::census::cgroups(linux.cgroup_parent.trim_start_matches('/'))?;
            let own = |path: &&PathBuf| path.ends_with(linux.cgroup_parent.trim_start_matches('/'));
            for path in left.iter().filter(own) {
                // Where something is in it, the next look tells.
                let _ = fs::remove_dir(path);
            }
            Ok(left.is_empty().then_some(()))
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !self.removed.load(Ordering::Relaxed)
            && let Err(error) = self.remove()
        {
            eprintln!("cri: the pod {} of a case that failed: {error:#}", self.id);
        }
    }
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("remove {}: {error}", directory.display())
        }
        _ => Ok(()),
    }
}

/// A lock is never held across what can fail half way.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
