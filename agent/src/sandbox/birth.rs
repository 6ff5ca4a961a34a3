//! How the guest becomes a sandbox: begun by its task, done beside it (a device of the network may have to appear yet),
//! finished by it.

use std::path::{Path, PathBuf};

use agent_protocol::{GUEST_HOSTNAME, GUEST_RESOLV_CONF, GUEST_SHM};
use slog::{Logger, warn};

use super::shares::Shares;
use super::workshop::Workshop;
use super::{Phase, Sandbox, SandboxRequest, spec};
use crate::error::{Error, Result};
use crate::growth::Growth;
use crate::identity::{self, Identity};
use crate::network;
use crate::storage::{Mounted, Storage};

/// Stands for the sandbox itself among the ids that are worked on; no container's id is empty.
const ITSELF: &str = "";

/// Size of /dev/shm when the host names none, in bytes (Docker's and Kubernetes' default).
const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// What it takes to make the guest a sandbox.
#[derive(Debug)]
pub(super) struct Birth {
    workshop: Workshop,
    owns_kernel: bool,
    files: PodFiles,
    log: Logger,
}

/// What of it the sandbox keeps.
#[derive(Debug)]
pub(super) struct Born {
    /// What was mounted, and shares in it.
    mounts: Vec<Mounted>,
    shares: Shares,
    /// How the guest grows, if it does.
    growth: Option<Growth>,
}

/// What the pod's containers find of it in files.
#[derive(Debug)]
pub(super) struct PodFiles {
    resolv_conf: PathBuf,
    hostname: PathBuf,
}

impl PodFiles {
    /// The files of an agent whose directory this is.
    pub(super) fn below(dir: &Path) -> Self {
        Self {
            resolv_conf: spec::locate(Path::new(GUEST_RESOLV_CONF), dir),
            hostname: spec::locate(Path::new(GUEST_HOSTNAME), dir),
        }
    }

    fn write(&self, identity: &Identity) -> Result<()> {
        let hostname = Some(&identity.hostname).filter(|name| !name.is_empty());
        let files = [
            (&self.resolv_conf, identity.dns.resolv_conf()),
            (&self.hostname, hostname.map(|name| format!("{name}\n"))),
        ];
        for (path, text) in files {
            if let Some(text) = text {
                std::fs::write(path, text).map_err(Error::file("write", path))?;
            }
        }
        Ok(())
    }

    /// Those that are not there were not asked for.
    pub(super) fn remove(&self) {
        for path in [&self.resolv_conf, &self.hostname] {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Sandbox {
    /// Credits randomness to the kernel's pool, where the kernel is ours.
    pub(super) fn seed(&self, entropy: &[u8]) -> Result<()> {
        identity::check_entropy(entropy)?;
        match self.owns_kernel {
            true => identity::credit_entropy(entropy),
            false => Ok(()),
        }
    }

    /// Checks a request; nobody else can make the guest a sandbox from now on.
    pub(super) fn begin_create_sandbox(&self, request: &SandboxRequest) -> Result<Birth> {
        match *self.phase.borrow() {
            Phase::Blank => {}
            Phase::Ready | Phase::Making => {
                return Err(Error::Exists {
                    what: "sandbox",
                    id: request.id.clone(),
                });
            }
            Phase::Ending | Phase::Destroyed => return Err(Error::State("the sandbox is destroyed")),
        }
        spec::check_id("sandbox_id", &request.id)?;
        request.identity.check()?;
        self.check_network(&request.network)?;
        self.phase.send_replace(Phase::Making);
        self.reserve(ITSELF);
        Ok(Birth {
            workshop: self.workshop.clone(),
            owns_kernel: self.owns_kernel,
            files: self.files(),
            log: self.log.clone(),
        })
    }

    /// Takes over what was mounted. A destruction that has begun meanwhile waits for this, and undoes it.
    pub(super) fn finish_create_sandbox(&mut self, id: String, made: Result<Born>) -> Result<()> {
        self.settle(ITSELF);
        let is_wanted = *self.phase.borrow() == Phase::Making;
        match made {
            Ok(Born {
                mounts,
                shares,
                growth,
            }) => {
                self.shares = shares;
                self.id = id;
                self.mounts = mounts;
                self.growth = growth;
                if is_wanted {
                    self.phase.send_replace(Phase::Ready);
                }
                Ok(())
            }
            Err(error) => {
                if is_wanted {
                    self.phase.send_replace(Phase::Blank);
                }
                Err(error)
            }
        }
    }
}

impl Birth {
    /// Makes the guest this sandbox.
    pub(super) async fn make(self, request: SandboxRequest) -> Result<Born> {
        let mut growth = None;
        if self.owns_kernel {
            request.identity.apply_to_guest()?;
            growth = request.grows.then(Growth::prepare).transpose()?;
        }
        for refused in network::set_sysctls(&request.network) {
            warn!(
                self.log,
                "the guest's kernel does not take a sysctl of the pod's network namespace: {}", refused
            );
        }
        network::add(&request.network).await?;
        if self.owns_kernel {
            request.identity.apply_sysctls()?;
        }
        let shm_size = if request.shm_size == 0 {
            DEFAULT_SHM_SIZE
        } else {
            request.shm_size
        };
        let options = [
            "nosuid",
            "nodev",
            "noexec",
            "mode=1777",
            &format!("size={shm_size}"),
        ];
        let shm = Storage::parse("tmpfs", "", "", &options.map(str::to_owned), GUEST_SHM)?;
        let storages: Vec<Storage> = std::iter::once(shm).chain(request.storages).collect();
        let mounter = &self.workshop.mounter;
        let mounts = mounter.mount_all(&storages).await?;
        if let Err(error) = self.files.write(&request.identity) {
            self.files.remove();
            let _ = mounter.unmount_all(mounts);
            return Err(error);
        }
        let shares = storages.iter().filter_map(|storage| mounter.share(storage));
        Ok(Born {
            shares: Shares::new(shares.collect()),
            mounts,
            growth,
        })
    }
}
