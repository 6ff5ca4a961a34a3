//! A containerd of our own: its root, state, socket and configuration are the cell's, and it ends with it.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::cell::Inside;
use crate::program::{Program, Running, search_path};
use crate::snapshotter::{self, Snapshotter};
use crate::{deadlines, wait};

/// Where containerd keeps what ends with it.
pub const STATE: &str = "/run/e2e";

/// The plugin that serves the CRI.
const CRI: &str = "io.containerd.grpc.v1.cri";

/// What an interactive user, or the CRI, would need and a test does not.
const DISABLED: &[&str] = &[
    CRI,
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
];

/// containerd, in a cell.
#[derive(Debug)]
pub struct Containerd {
    /// containerd's namespace, of which nothing else on this machine makes use.
    namespace: String,
    directory: PathBuf,
    /// Directory of our shim.
    programs: PathBuf,
    environment: Vec<(String, String)>,
    /// The CRI's part of the configuration; without it there is no CRI.
    cri: Option<String>,
    snapshotter: Snapshotter,
    /// Directory of the programs that it needs, and its part of the configuration.
    devmapper: Option<(PathBuf, String)>,
    /// The part of another one that block devices are made of.
    blockfile: Option<String>,
    running: Option<Running>,
}

impl Containerd {
    /// Starts it, with `programs` before all other directories of programs.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(cell: &Inside, programs: &Path, environment: Vec<(String, String)>) -> Result<Self> {
        Self {
            namespace: cell.tag.clone(),
            directory: cell.directory.clone(),
            programs: programs.to_owned(),
            environment,
            cri: None,
            snapshotter: Snapshotter::wanted()?,
            devmapper: None,
            blockfile: None,
            running: None,
        }
        .configured_and_started()
    }

    /// Starts it with the CRI, for which `settings` is a part of its configuration.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_with_cri(
        cell: &Inside,
        programs: &Path,
        settings: &str,
        environment: Vec<(String, String)>,
    ) -> Result<Self> {
        Self {
            // The one that the CRI knows.
            namespace: "k8s.io".into(),
            directory: cell.directory.clone(),
            programs: programs.to_owned(),
            environment,
            cri: Some(settings.to_owned()),
            snapshotter: Snapshotter::wanted()?,
            devmapper: None,
            blockfile: None,
            running: None,
        }
        .configured_and_started()
    }

    fn configured_and_started(mut self) -> Result<Self> {
        fs::create_dir_all(STATE).with_context(|| format!("create {STATE}"))?;
        if self.snapshotter == Snapshotter::Devmapper || snapshotter::is_possible() {
            self.devmapper = Some(snapshotter::prepare(&self.directory)?);
        }
        if self.snapshotter == Snapshotter::Blockfile {
            self.blockfile = Some(snapshotter::prepare_files(&self.directory)?);
        }
        let config = self.config();
        fs::write(&config, self.settings()).with_context(|| format!("write {}", config.display()))?;
        self.start_again()?;
        Ok(self)
    }

    /// Starts it after its end.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let mut path = self.programs.clone().into_os_string();
        path.push(":");
        if let Some((programs, _)) = &self.devmapper {
            path.push(programs);
            path.push(":");
        }
        path.push(search_path());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .with_context(|| format!("open {}", self.log_path().display()))?;
        let mut program = Program::new("containerd")
            .args(["--config".as_ref(), self.config().as_os_str()])
            .env("PATH", path)
            .within(deadlines::CONTAINERD);
        for (name, value) in &self.environment {
            program = program.env(name, value);
        }
        let mut running = program.start_logging_to(log)?;
        wait::until("containerd answers", deadlines::CONTAINERD, || {
            if running.has_ended()? {
                bail!("containerd ended at its start:\n{}", self.log_since(0)?);
            }
            Ok(UnixStream::connect(self.socket()).ok())
        })?;
        self.running = Some(running);
        Ok(())
    }

    /// Its process; nothing after its end.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// Kills it. What it has started goes on.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    /// It did not end in time; then it was killed.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        running.signal(Signal::TERM)?;
        running.wait_at_most(deadlines::CONTAINERD)?;
        Ok(())
    }

    /// A call of `ctr` in our namespace.
    pub fn ctr<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Program {
        Program::new("ctr")
            .env("PATH", search_path())
            .env("CONTAINERD_SNAPSHOTTER", self.snapshotter.name())
            .args(["--address".as_ref(), self.socket().as_os_str()])
            .args(["--namespace", &self.namespace])
            .args(arguments)
    }

    /// Imports an image from a file, and unpacks it.
    ///
    /// # Errors
    /// It can't be imported.
    pub fn import(&self, file: &Path) -> Result<()> {
        self.ctr(["images", "import"])
            .args([file])
            .within(deadlines::RUN)
            .read()
            .map(drop)
    }

    /// The same, into another snapshotter than the tests' own.
    ///
    /// # Errors
    /// It can't be imported.
    pub fn import_for(&self, snapshotter: &str, file: &Path) -> Result<()> {
        self.ctr(["images", "import", "--snapshotter", snapshotter])
            .args([file])
            .within(deadlines::RUN)
            .read()
            .map(drop)
    }

    /// containerd's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The directory that containerd hands to the shim of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        Path::new(STATE)
            .join("state/io.containerd.runtime.v2.task")
            .join(&self.namespace)
            .join(id)
    }

    /// What it and the shims have logged, from this byte on.
    ///
    /// # Errors
    /// The log can't be read.
    pub fn log_since(&self, from: usize) -> Result<String> {
        let bytes = fs::read(self.log_path()).context("read containerd's log")?;
        Ok(String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned())
    }

    /// Waits until the log has a line for which `wanted` has an answer.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn wait_for_log<T>(
        &self,
        what: &str,
        limit: Duration,
        from: usize,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        wait::until(what, limit, || {
            Ok(self.log_since(from)?.lines().find_map(&mut wanted))
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        Path::new(STATE).join("containerd.sock")
    }

    fn config(&self) -> PathBuf {
        Path::new(STATE).join("config.toml")
    }

    /// The file that it and its shims log to.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("containerd.log")
    }

    fn settings(&self) -> String {
        let socket = self.socket();
        let socket = socket.display();
        let root = self.directory.join("root");
        let disabled: Vec<_> = DISABLED
            .iter()
            .filter(|&&plugin| plugin != CRI || self.cri.is_none())
            .filter(|plugin| !plugin.ends_with(".devmapper") || self.devmapper.is_none())
            .collect();
        let devmapper = self.devmapper.as_ref().map_or("", |(_, settings)| settings);
        let blockfile = self.blockfile.as_deref().unwrap_or_default();
        // From containerd 2 on, what imports an image unpacks it for nobody else.
        let others = self.devmapper.iter().map(|_| Snapshotter::Devmapper);
        let others = others.chain(self.blockfile.iter().map(|_| Snapshotter::Blockfile));
        let unpacking: String = std::iter::once(Snapshotter::Overlayfs)
            .chain(others)
            .map(|snapshotter| {
                format!(
                    "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                     platform = \"linux\"\n\
                     snapshotter = \"{}\"\n",
                    snapshotter.name()
                )
            })
            .collect();
        let cri = self.cri.as_deref().unwrap_or_default();
        format!(
            "version = 2\n\
             root = {root:?}\n\
             state = \"{STATE}/state\"\n\
             disabled_plugins = {disabled:?}\n\
             [grpc]\n\
             address = \"{socket}\"\n\
             [ttrpc]\n\
             address = \"{socket}.ttrpc\"\n\
             {devmapper}\
             {blockfile}\
             {unpacking}\
             {cri}"
        )
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill();
    }
}
