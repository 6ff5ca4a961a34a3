//! Makes containers and takes them apart, beside the sandbox's task: both may wait for storage or for the kernel, and the
//! other containers must not wait with them.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use slog::{Logger, warn};

use super::entry::Entry;
use super::{ContainerRequest, spec};
use crate::container::{self, Container, CreateRequest, Environment};
use crate::error::Result;
use crate::process::{Process, stdio};
use crate::reaper::Reaper;
use crate::storage::{self, Mounter, Storage};

/// What it takes to make a container. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workshop {
    /// Where to complain.
    pub log: Logger,
    /// Mounts what containers stand on.
    pub mounter: Arc<Mounter>,
    /// Where containers live.
    pub environment: Arc<Environment>,
    /// Knows how processes end.
    pub reaper: Reaper,
}

impl Workshop {
    /// Reads what the container is to be.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid).
    pub fn specification(&self, request: &ContainerRequest) -> Result<Spec> {
        spec::container(&request.spec, self.mounter.root().dir())
    }

    /// Mounts what the container needs (`mounted`: of the host's shares), and creates it up to the exec of its first process. Undone on failure.
    ///
    /// # Errors
    /// The first step that fails.
    pub async fn create(
        &self,
        request: &ContainerRequest,
        spec: &Spec,
        mounted: Vec<PathBuf>,
    ) -> Result<Entry> {
        storage::visit(mounted).await?;
        let own: Vec<Storage> = request
            .storages
            .iter()
            .filter(|storage| !storage.is_of_the_pod())
            .cloned()
            .collect();
        let mounts = self.mounter.mount_all(&own).await?;
        let created = match self.with_disks(request, spec).await {
            Ok(spec) => self.create_init(request, &spec).await,
            Err(error) => Err(error),
        };
        match created {
            Ok((container, init)) => Ok(Entry::new(container, init, mounts)),
            Err(error) => {
                if let Err(leftover) = self.mounter.unmount_all(mounts) {
                    warn!(self.log, "a mount of a failed container stays"; "cause" => %leftover);
                }
                Err(error)
            }
        }
    }

    /// The specification with the numbers of the disks that the container has as devices.
    async fn with_disks<'a>(&self, request: &ContainerRequest, spec: &'a Spec) -> Result<Cow<'a, Spec>> {
        let mut spec = Cow::Borrowed(spec);
        for disk in &request.devices {
            let numbers = disk.numbers().await?;
            spec::number_disk(spec.to_mut(), disk, numbers)?;
        }
        Ok(spec)
    }

    async fn create_init(&self, request: &ContainerRequest, spec: &Spec) -> Result<(Container, Process)> {
        let (pending, child) = stdio::prepare(&request.stdio)?;
        let expectation = self.reaper.expect();
        let create = CreateRequest {
            id: &request.id,
            spec,
            stdio: child,
            environment: &self.environment,
        };
        let (container, mut started) = container::create(create).await?;
        let pid = started.pid.as_raw();
        let exited = expectation.claim(pid);
        match pending.connect(&mut started) {
            Ok(streams) => Ok((container, Process { pid, exited, streams })),
            Err(error) => {
                container.delete().await?;
                Err(error)
            }
        }
    }

    /// Removes a container and unmounts what it stood on; the latter is tried even if the former fails.
    ///
    /// # Errors
    /// The first failure.
    pub async fn delete(&self, entry: Entry) -> Result<()> {
        let deleted = entry.container.delete().await;
        let flushed = self.mounter.flush(&entry.mounts).await;
        let unmounted = self.mounter.unmount_all(entry.mounts);
        deleted?;
        flushed.and(unmounted)
    }
}
