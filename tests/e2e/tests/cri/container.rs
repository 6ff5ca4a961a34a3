//! A container of a pod: what it is to be, and what can be done with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{deadlines, image, wait};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, NamespaceOption, RemoveContainerRequest, StartContainerRequest,
    StopContainerRequest,
};

use crate::log::{self, Line};
use crate::pod::Pod;
use crate::world::World;

/// What a container is to be.
#[derive(Debug, Clone)]
pub struct ContainerSpec(ContainerConfig);

impl ContainerSpec {
    /// A container of busybox that runs this program.
    pub fn new(command: &[&str]) -> Self {
        Self(ContainerConfig {
            image: Some(ImageSpec {
                image: image::BUSYBOX.into(),
                ..Default::default()
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext::default()),
            }),
            ..Default::default()
        })
    }

    /// A container whose shell runs this script.
    pub fn script(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// A container that does nothing until it is stopped.
    pub fn idle() -> Self {
        Self::new(&["sleep", "100000"])
    }

    /// Changes anything.
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.0);
        self
    }

    /// Changes its security context.
    pub fn security(self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        self.with(|config| {
            let linux = config.linux.get_or_insert_default();
            change(linux.security_context.get_or_insert_default());
        })
    }

    /// Changes its limits.
    pub fn resources(self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        self.with(|config| {
            let linux = config.linux.get_or_insert_default();
            change(linux.resources.get_or_insert_default());
        })
    }

    /// Mounts what is at `host` on `path`.
    pub fn mount(self, host: &Path, path: &str) -> Self {
        self.mount_with(host, path, |_| {})
    }

    /// Mounts what is at `host` on `path`, for reading only.
    pub fn mount_read_only(self, host: &Path, path: &str) -> Self {
        self.mount_with(host, path, |mount| mount.readonly = true)
    }

    /// Mounts what is at `host` on `path` as `change` says.
    pub fn mount_with(self, host: &Path, path: &str, change: impl FnOnce(&mut Mount)) -> Self {
        let mut mount = Mount {
            container_path: path.into(),
            host_path: host.display().to_string(),
            ..Default::default()
        };
        change(&mut mount);
        self.with(|config| config.mounts.push(mount))
    }
}

/// A container that was created. It ends with its pod.
pub struct Container {
    world: Arc<World>,
    id: String,
    log: PathBuf,
}

impl Container {
    /// Creates one, the `number`th of its pod.
    pub fn create(pod: &Pod, ContainerSpec(mut config): ContainerSpec, number: u32) -> Result<Self> {
        let metadata = config.metadata.get_or_insert_with(|| ContainerMetadata {
            name: format!("c{number}"),
            attempt: 0,
        });
        let log = format!("{}-{}.log", metadata.name, metadata.attempt);
        config.log_path = log.clone();
        // A container's namespaces are what its pod says, as the kubelet has it, unless it says otherwise.
        let options = namespace_options(pod);
        let security = config
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default();
        security.namespace_options.get_or_insert(options);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id().into(),
            config: Some(config),
            sandbox_config: Some(pod.config().clone()),
        };
        let answer =
            pod.world()
                .cri
                .call_within(deadlines::RUN, "CreateContainer", async move |mut client| {
                    client.create_container(request).await
                })?;
        Ok(Self {
            world: Arc::clone(pod.world()),
            id: answer.container_id,
            log: pod.logs().join(log),
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its log's path.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        let request = StartContainerRequest {
            container_id: self.id.clone(),
        };
        self.world
            .cri
            .call_within(deadlines::RUN, "StartContainer", async move |mut client| {
                client.start_container(request).await
            })?;
        Ok(())
    }

    /// What containerd says of it.
    pub fn status(&self) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        };
        let answer = self.world.cri.call("ContainerStatus", async move |mut client| {
            client.container_status(request).await
        })?;
        answer.status.context("a container has a status")
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<Ended> {
        let status = self.wait_for(ContainerState::ContainerExited, deadlines::RUN)?;
        let lines = self.log_lines()?;
        Ok(Ended {
            stdout: log::text(&lines, "stdout"),
            stderr: log::text(&lines, "stderr"),
            status,
        })
    }

    /// Waits until it is in this state.
    pub fn wait_for(&self, state: ContainerState, limit: Duration) -> Result<ContainerStatus> {
        let what = format!("the container is {}", state.as_str_name());
        wait::until(&what, limit, || {
            let status = self.status()?;
            Ok((status.state() == state).then_some(status))
        })
        .with_context(|| format!("its log:\n{}", fs::read_to_string(&self.log).unwrap_or_default()))
    }

    /// Its log.
    pub fn log_lines(&self) -> Result<Vec<Line>> {
        let text = fs::read(&self.log).with_context(|| format!("read the log {}", self.log.display()))?;
        log::parse(&String::from_utf8_lossy(&text))
    }

    /// Waits until its standard output has this text.
    pub fn wait_for_output(&self, text: &str) -> Result<String> {
        wait::until(&format!("the container writes {text:?}"), deadlines::RUN, || {
            let written = log::text(&self.log_lines()?, "stdout");
            Ok(written.contains(text).then_some(written))
        })
    }

    /// Runs a program in it to its end.
    pub fn exec(&self, command: &[&str]) -> Result<Exec> {
        self.exec_within(command, deadlines::CALL)
    }

    /// Runs a program in it for at most as long as this, which containerd is told.
    pub fn exec_within(&self, command: &[&str], limit: Duration) -> Result<Exec> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: limit.as_secs().try_into()?,
        };
        let limit = limit + deadlines::CALL;
        let answer = self
            .world
            .cri
            .call_within(limit, "ExecSync", async move |mut client| {
                client.exec_sync(request).await
            })
            .with_context(|| format!("run {command:?}"))?;
        Ok(Exec {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// What a script that succeeds writes to standard output, without the line's end.
    pub fn sh(&self, script: &str) -> Result<String> {
        let Exec { code, stdout, stderr } = self.exec(&["sh", "-c", script])?;
        ensure!(code == 0, "`{script}` ended with {code}:\n{stdout}\n{stderr}");
        Ok(stdout.trim_end().to_owned())
    }

    /// Stops it: its signal first, and a kill after this time, at once if there is none.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        let request = StopContainerRequest {
            container_id: self.id.clone(),
            timeout: grace.as_secs().try_into()?,
        };
        self.world.cri.call_within(
            grace + deadlines::CALL,
            "StopContainer",
            async move |mut client| client.stop_container(request).await,
        )?;
        Ok(())
    }

    /// Removes it.
    pub fn remove(&self) -> Result<()> {
        let request = RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        self.world
            .cri
            .call_within(deadlines::RUN, "RemoveContainer", async move |mut client| {
                client.remove_container(request).await
            })?;
        Ok(())
    }
}

fn namespace_options(pod: &Pod) -> NamespaceOption {
    pod.config()
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}

/// What a program in a container did.
#[derive(Debug)]
pub struct Exec {
    /// Its exit code.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it wrote of its errors.
    pub stderr: String,
}

/// How a container ended.
#[derive(Debug)]
pub struct Ended {
    /// containerd's word.
    pub status: ContainerStatus,
    /// What it wrote.
    pub stdout: String,
    /// What it wrote of its errors.
    pub stderr: String,
}

impl Ended {
    /// Its exit code.
    pub fn code(&self) -> i32 {
        self.status.exit_code
    }

    /// What it wrote to standard output, without the line's end. It must have succeeded.
    pub fn success(self) -> Result<String> {
        if self.code() != 0 {
            bail!(
                "the container ended with {} ({}: {})\nstdout:\n{}\nstderr:\n{}",
                self.code(),
                self.status.reason,
                self.status.message,
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stdout.trim_end().to_owned())
    }
}
