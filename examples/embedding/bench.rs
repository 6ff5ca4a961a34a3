//! What the examples stand on: a configuration, bundles, and a place of their own that is removed with everything in it.

use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
#[cfg(test)]
use std::time::Duration;

use configuration::Config;
use hypervisor::registry;
use runtime::engine::{Container, ContainerOptions, Runtime, RuntimeOptions};
use runtime::{ContainerId, Output, SandboxId, Stdio};
use serde_json::{Value, json};
use slog::{Discard, Logger, o};
use tempfile::TempDir;

use super::Result;

/// Longer than any example takes on a busy machine.
#[cfg(test)]
const SOON: Duration = Duration::from_secs(120);

/// Ends an example that hangs.
#[cfg(test)]
pub async fn within(example: impl Future<Output = Result>) -> Result {
    tokio::time::timeout(SOON, example).await?
}

/// A place.
pub struct Bench {
    /// Removed by whoever made it.
    _ours: Option<TempDir>,
    dir: PathBuf,
}

impl Bench {
    pub fn new() -> Result<Self> {
        let ours = tempfile::tempdir()?;
        Ok(Self {
            dir: ours.path().to_owned(),
            _ours: Some(ours),
        })
    }

    /// That of another process.
    pub fn at(dir: PathBuf) -> Self {
        Self { _ours: None, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens the runtime, as an engine does when it begins.
    pub fn runtime(&self) -> Result<Runtime> {
        let config = Arc::new(self.config()?);
        let log = Logger::root(Discard, o!());
        Ok(Runtime::open(RuntimeOptions {
            state_dir: self.path("state"),
            hypervisor: registry::driver(&config.hypervisor, &config.runtime.run_dir, log.clone())?,
            config,
            log,
        })?)
    }

    /// The configuration is a file, as everywhere.
    fn config(&self) -> Result<Config> {
        let agent = std::env::var_os("KATA_AGENT_BIN").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debug/kata-agent"),
            PathBuf::from,
        );
        let text = format!(
            "[hypervisor.fake]\npath = {agent:?}\n[runtime]\nrun_dir = {:?}\n",
            self.path("run")
        );
        let path = self.path("configuration.toml");
        fs::write(&path, text)?;
        Ok(Config::load(Some(&path), None)?)
    }

    /// A container that runs a script. Guests of the driver `fake` share the host's cgroups, so that ids have to be unique on it.
    pub fn container(&self, name: &str, script: &str) -> Result<ContainerOptions> {
        Ok(ContainerOptions::new(
            ContainerId::new(self.id(name))?,
            self.bundle(name, script)?,
        ))
    }

    pub fn pod_id(&self, name: &str) -> Result<SandboxId> {
        Ok(SandboxId::new(self.id(name))?)
    }

    /// An id that begins with `name`.
    pub fn id(&self, name: &str) -> String {
        let place = self.dir.file_name().unwrap_or_default().to_string_lossy();
        format!("{name}{}", place.trim_start_matches(".tmp"))
    }

    /// An OCI bundle: a specification, and a root file system that is busybox.
    fn bundle(&self, name: &str, script: &str) -> Result<PathBuf> {
        let bundle = self.path("bundles").join(name);
        let root = bundle.join("rootfs");
        for part in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(part))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for tool in ["sh", "cat", "echo", "sleep", "httpd", "hostname", "kill"] {
            symlink("busybox", root.join("bin").join(tool))?;
        }
        let mut spec: Value = serde_json::from_str(include_str!("../../tests/golden/ctr.json"))?;
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        fs::write(bundle.join("config.json"), spec.to_string())?;
        Ok(bundle)
    }
}

/// A pod's network namespace, with nothing but localhost in it.
pub struct Network(String);

impl Network {
    pub fn new(bench: &Bench) -> Result<Self> {
        let network = Self(bench.id("kata-example-"));
        network.ip(&["netns", "add", &network.0])?;
        network.ip(&["-n", &network.0, "link", "set", "lo", "up"])?;
        Ok(network)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Has the specification of a bundle name it, as engines do.
    pub fn name_in(&self, bundle: &Path) -> Result {
        let path = bundle.join("config.json");
        let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let namespaces = spec["linux"]["namespaces"]
            .as_array_mut()
            .ok_or("no namespaces")?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "network", "path": self.path()}));
        Ok(fs::write(path, spec.to_string())?)
    }

    fn ip(&self, arguments: &[&str]) -> Result {
        match Command::new("ip").args(arguments).status()?.success() {
            true => Ok(()),
            false => Err(format!("ip {arguments:?} fails").into()),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.ip(&["netns", "del", &self.0]);
    }
}

/// Streams that lead to this one for standard output.
pub fn heard_by(output: PipeWriter) -> Stdio {
    Stdio {
        stdout: Output::Descriptor(output.into()),
        ..Stdio::default()
    }
}

/// Reads to the first line with `text` in it, on a thread that may wait for it.
pub async fn line(from: impl Read + Send + 'static, text: &'static str) -> Result {
    let reading = tokio::task::spawn_blocking(move || -> std::io::Result<bool> {
        for line in BufReader::new(from).lines() {
            if line?.contains(text) {
                return Ok(true);
            }
        }
        Ok(false)
    });
    match reading.await?? {
        true => Ok(()),
        false => Err(format!("the end comes before {text:?}").into()),
    }
}

/// Starts a container that says `ready` when it is.
pub async fn start(container: &Container) -> Result {
    let (said, output) = std::io::pipe()?;
    let attached = container.attach(heard_by(output)).await?;
    container.start().await?;
    line(said, "ready").await?;
    drop(attached);
    Ok(())
}
