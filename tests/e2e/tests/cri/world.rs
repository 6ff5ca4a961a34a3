//! What all cases live in: containerd with the CRI's plugin, its images and its network, in one cell.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use e2e::cell::Inside;
use e2e::configuration::Configuration;
use e2e::containerd::Containerd;
use e2e::parts::{Part, Target};
use e2e::{deadlines, factory, image, wait};
use k8s_cri::v1::{ImageSpec, ImageStatusRequest, StatusRequest};
use rustix::mount::{MountFlags, mount, mount_bind};

use crate::cri::Cri;
use crate::network;
use crate::suite::Runtime;

/// Lines of its log that a failure shows.
const MOST_WARNINGS: usize = 20;

/// What all cases live in.
pub struct World {
    /// The cell.
    pub inside: Inside,
    /// The way in.
    pub cri: Cri,
    containerd: Mutex<Containerd>,
    uniques: AtomicU32,
}

/// What a pod may say about its machine: the default, and that it is to grow.
const ALLOWED_ANNOTATIONS: [&str; 3] = [
    "default_memory",
    "default_vcpus",
    "runtime.static_sandbox_resource_mgmt",
];

/// Machines are copies unless somebody wants others: nothing here is about how they start, which costs most where the guest is
/// emulated. The suite of containerd boots them.
const FACTORY: Option<factory::Kind> = Some(factory::Kind::Template);

/// Pods that are no copies all the same: their annotations want another machine than the template is of.
const OTHERS: u64 = 4;

impl World {
    /// Furnishes the cell.
    pub fn new(inside: Inside) -> Result<Arc<Self>> {
        let target = Target::here();
        for part in [Part::Containerd, Part::Runc, Part::Busybox, Part::CniPlugins] {
            part.check(&target)?;
        }
        // Where CNI's library, and no configuration of it, keeps what it knows of each pod.
        mount("cell", "/var/lib", "tmpfs", MountFlags::empty(), None).context("mount a tmpfs on /var/lib")?;
        // By which containerd finds out what to connect a port-forward to.
        let hosts = inside.directory.join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n::1 localhost\n")?;
        mount_bind(&hosts, "/etc/hosts").context("bind a file on /etc/hosts")?;
        let cni = network::configure(&inside.directory)?;
        let configuration = inside.directory.join("configuration.toml");
        let mut ours = Configuration::new(&target);
        let allowed = format!("{ALLOWED_ANNOTATIONS:?}");
        ours.hypervisor.push(("enable_annotations".into(), allowed));
        let wanted = factory::wanted(FACTORY)?;
        if let Some(kind) = wanted {
            ours = factory::configured(&inside, ours, kind);
        }
        ours.write(&configuration)?;
        if wanted.is_some() {
            factory::prepare(&target, &configuration)?;
        }
        let settings = settings(&cni, &target.programs(), &configuration);
        let environment = vec![("KATA_CONF_FILE".to_owned(), configuration.display().to_string())];
        let containerd = Containerd::start_with_cri(&inside, &target.programs(), &settings, environment)?;
        let cri = Cri::new(&containerd.socket())?;
        let world = Self {
            inside,
            cri,
            containerd: Mutex::new(containerd),
            uniques: AtomicU32::new(0),
        };
        world.import()?;
        world.wait_until_ready()?;
        Ok(Arc::new(world))
    }

    /// Takes away what was made for machines to be copies.
    pub fn close(&self) -> Result<()> {
        match factory::wanted(FACTORY)? {
            Some(kind) => factory::finish(&Target::here(), &self.configuration(), kind, OTHERS),
            None => Ok(()),
        }
    }

    /// The file of the configuration.
    fn configuration(&self) -> PathBuf {
        self.inside.directory.join("configuration.toml")
    }

    /// Processes of machines that are kept ready, and of who keeps them: they come while others go.
    pub fn kept_ready(&self) -> Result<Vec<u32>> {
        match factory::wanted(FACTORY)? {
            Some(factory::Kind::Cache) => factory::settled(&Target::here(), &self.configuration()),
            _ => Ok(Vec::new()),
        }
    }

    /// containerd, for what is not the CRI's.
    pub fn containerd(&self) -> std::sync::MutexGuard<'_, Containerd> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A word that no other call has answered.
    pub fn unique(&self) -> String {
        format!("u{}", self.uniques.fetch_add(1, Ordering::Relaxed))
    }

    /// Length of containerd's log.
    pub fn log_length(&self) -> Result<usize> {
        Ok(self.containerd().log_since(0)?.len())
    }

    /// The last warnings and errors in containerd's log, from this byte on.
    pub fn warnings_since(&self, from: usize) -> String {
        let log = self.containerd().log_since(from).unwrap_or_default();
        let told: Vec<_> = log
            .lines()
            .filter(|line| !line.contains("level=info") && !line.contains("level=debug"))
            .collect();
        told.get(told.len().saturating_sub(MOST_WARNINGS)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Waits until containerd says that pods can be run.
    pub fn wait_until_ready(&self) -> Result<()> {
        let mut last = String::new();
        wait::until("the CRI is ready", deadlines::CONTAINERD, || {
            let answer = self.cri.call("Status", async |mut client| {
                client.status(StatusRequest::default()).await
            });
            let ready = match answer {
                Ok(answer) => {
                    let conditions = answer.status.unwrap_or_default().conditions;
                    last = format!("{conditions:?}");
                    !conditions.is_empty() && conditions.iter().all(|condition| condition.status)
                }
                Err(error) => {
                    last = format!("{error:#}");
                    false
                }
            };
            Ok(ready.then_some(()))
        })
        .context(last)
    }

    /// Puts the images where the CRI looks for them. It notices new ones by events.
    fn import(&self) -> Result<()> {
        let directory = self.inside.directory.join("images");
        fs::create_dir_all(&directory)?;
        for (name, write) in [
            (image::BUSYBOX, image::write_busybox as fn(&Path) -> Result<()>),
            (image::PAUSE, image::write_pause),
        ] {
            let file = directory.join("image.tar");
            write(&file)?;
            self.containerd().import(&file)?;
            let request = ImageStatusRequest {
                image: Some(ImageSpec {
                    image: name.into(),
                    ..Default::default()
                }),
                verbose: false,
            };
            wait::until(&format!("the CRI knows {name}"), deadlines::CALL, || {
                let request = request.clone();
                let answer = self.cri.images("ImageStatus", async move |mut client| {
                    client.image_status(request).await
                })?;
                Ok(answer.image.map(drop))
            })?;
        }
        Ok(())
    }
}

/// Names the controller of our sandboxes, for containerd 2.x: `shim`, which asks us for them by the sandbox API, where without it
/// a pod is its pause container. containerd up to 2.2 cannot start a container in one when the runtime has options
/// (its pull request 12986), so that the configuration is named in the environment then.
pub const SANDBOXER: &str = "KATA_TEST_SANDBOXER";

/// The CRI's part of containerd's configuration.
fn settings(cni: &Path, programs: &Path, configuration: &Path) -> String {
    let (sandboxer, options) = match env::var(SANDBOXER) {
        Ok(name) => (format!("sandboxer = {name:?}\n"), false),
        Err(_) => (String::new(), true),
    };
    let runtimes = [Runtime::Runc, Runtime::Kata].map(|runtime| {
        let table = format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{}",
            runtime.name()
        );
        match runtime {
            Runtime::Runc => format!("{table}]\nruntime_type = \"io.containerd.runc.v2\"\n"),
            Runtime::Kata => format!(
                "{table}]\n\
                 {sandboxer}\
                 runtime_type = \"io.containerd.kata.v2\"\n\
                 runtime_path = {:?}\n\
                 privileged_without_host_devices = true\n\
                 pod_annotations = [\"io.katacontainers.*\"]\n\
                 container_annotations = [\"io.katacontainers.*\"]\n\
                 {}",
                programs.join("containerd-shim-kata-v2"),
                if options {
                    format!("{table}.options]\nConfigPath = {configuration:?}\n")
                } else {
                    String::new()
                },
            ),
        }
    });
    // Without CAP_SYS_RESOURCE, which a machine of tests may lack, no process may be made safer from the OOM killer.
    format!(
        "[plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{}\"\n\
         stream_server_address = \"127.0.0.1\"\n\
         stream_server_port = \"0\"\n\
         restrict_oom_score_adj = true\n\
         stats_collect_period = 1\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"{}\"\n\
         conf_dir = {cni:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
         default_runtime_name = \"runc\"\n\
         {}",
        image::PAUSE,
        network::PLUGINS,
        runtimes.concat(),
    )
}
