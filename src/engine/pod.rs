//! A handle to a pod.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::options::ContainerOptions;
use super::state::{ContainerInfo, ContainerState, PodInfo};
use super::wire::{Answer, Request, mistaken};
use super::{Container, Runtime, visible};
use crate::error::Result;

/// Handle to a pod: one virtual machine, and the containers in it. It may be another process's; see the [module](super).
#[derive(Debug, Clone)]
pub struct Pod {
    runtime: Runtime,
    id: String,
}

impl Pod {
    pub(super) fn new(runtime: Runtime, id: String) -> Self {
        Self { runtime, id }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is known of it, now.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`]: it was removed.
    pub async fn status(&self) -> Result<PodInfo> {
        Ok(visible(self.runtime.pod_info(&self.id).await?.0))
    }

    /// Creates a container in it, from an OCI bundle.
    ///
    /// # Errors
    /// [`crate::ErrorKind::AlreadyExists`]: its id or name is taken. The container's.
    pub async fn create_container(&self, options: ContainerOptions) -> Result<Container> {
        let options = Box::new(options);
        match self.ask(Request::Create { options }, Vec::new()).await? {
            Answer::Named { id } => Ok(Container::new(self.runtime.clone(), self.id.clone(), id)),
            _ => Err(mistaken()),
        }
    }

    /// Its containers.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn containers(&self) -> Result<Vec<Container>> {
        let info = self.status().await?;
        let handle = |id: &String| Container::new(self.runtime.clone(), self.id.clone(), id.clone());
        Ok(info.containers.keys().map(handle).collect())
    }

    /// Starts every container that was not started yet.
    ///
    /// # Errors
    /// The first one; the others are started all the same.
    pub async fn start(&self) -> Result<()> {
        let created = |one: &ContainerInfo| one.state == ContainerState::Created;
        self.each(created, async |container| container.start().await)
            .await
    }

    /// Stops every container that runs, all at once; each has until its own timeout, or `allowed`. The virtual machine stays.
    ///
    /// # Errors
    /// The first one; the others are stopped all the same.
    pub async fn stop(&self, allowed: Option<Duration>) -> Result<()> {
        let info = self.status().await?;
        let timeouts = info.containers.values().map(|one| one.stop_timeout);
        let request = Request::StopPod {
            timeout: allowed,
            longest: timeouts.max().unwrap_or_default(),
        };
        self.ask(request, Vec::new()).await.map(drop)
    }

    /// Freezes every container that runs.
    ///
    /// # Errors
    /// The first one; the others are frozen all the same.
    pub async fn pause(&self) -> Result<()> {
        let runs = |one: &ContainerInfo| one.state == ContainerState::Running;
        self.each(runs, async |container| container.pause().await).await
    }

    /// Thaws every container that is frozen.
    ///
    /// # Errors
    /// The first one; the others are thawed all the same.
    pub async fn resume(&self) -> Result<()> {
        let paused = |one: &ContainerInfo| one.state == ContainerState::Paused;
        self.each(paused, async |container| container.resume().await)
            .await
    }

    /// Carries a connection to a port of the pod's localhost, until both ends have said all or nobody waits for this any more. Where
    /// the connection is another one (TCP, a stream of HTTP/2), the other end of a pair of sockets is what is carried to it.
    ///
    /// # Errors
    /// Nobody listens there; the connection breaks.
    pub async fn port_forward(&self, port: u16, stream: UnixStream) -> Result<()> {
        let fds = vec![OwnedFd::from(stream)];
        self.ask(Request::PortForward { port }, fds).await.map(drop)
    }

    /// Removes it and all that is in it, or nothing: containers that run are an error, unless `force` ends them; then the virtual
    /// machine is stopped and everything of the host's given back; then pod and containers go from the disk at once.
    ///
    /// # Errors
    /// [`crate::ErrorKind::FailedPrecondition`]: containers run, or another removal is under way. What could not be given back: then
    /// the pod is still there, ended, and can be removed again.
    pub async fn remove(&self, force: bool) -> Result<()> {
        self.ask(Request::RemovePod { force }, Vec::new()).await.map(drop)
    }

    async fn ask(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Answer> {
        self.runtime.ask(&self.id, request, fds).await
    }

    async fn each(
        &self,
        wanted: impl Fn(&ContainerInfo) -> bool,
        act: impl AsyncFn(Container) -> Result<()>,
    ) -> Result<()> {
        let info = self.status().await?;
        let mut first = Ok(());
        for one in info.containers.values().filter(|one| wanted(one)) {
            let container = Container::new(self.runtime.clone(), self.id.clone(), one.id.clone());
            let acted = act(container).await;
            first = first.and(acted);
        }
        first
    }
}
