//! What a pod, a container or an additional process is created with: few things have to be said, the rest has a default.
//! Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::model::PodConfig;
use crate::{ContainerId, RootfsMount, SandboxId};

/// SIGTERM.
const TERM: u32 = 15;
/// The last real-time signal.
const MAX_SIGNAL: u32 = 64;
/// What libpod allows a container to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest name, in bytes.
const LONGEST_NAME: usize = 253;

/// What a pod is created with.
#[derive(Debug, Clone)]
pub struct PodOptions {
    pub(super) id: SandboxId,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) origin: Origin,
}

/// Where a pod's properties come from.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// They are told.
    Told(Box<PodConfig>),
    /// The specification of its first container says them.
    Bundle(PathBuf),
}

impl PodOptions {
    /// A pod of this id, with no network.
    pub fn new(id: SandboxId) -> Self {
        Self {
            id,
            name: String::new(),
            labels: BTreeMap::new(),
            origin: Origin::Told(Box::default()),
        }
    }

    /// Its name, which no other pod may have.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// A label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Host name, resolver, network namespace, sysctls, cgroup and limits.
    pub fn config(mut self, config: PodConfig) -> Self {
        self.origin = Origin::Told(Box::new(config));
        self
    }

    /// All that, as the specification of its first container has it: CRI-O's infra container, or podman's. The container is not
    /// created by this.
    pub fn bundle(mut self, bundle: impl Into<PathBuf>) -> Self {
        self.origin = Origin::Bundle(bundle.into());
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        check_name("pod", &self.name)
    }
}

/// What a container is created with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerOptions {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) rootfs: Vec<RootfsMount>,
    pub(super) log_path: Option<PathBuf>,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
    pub(super) stop_signal: u32,
    pub(super) stop_timeout: Duration,
}

impl ContainerOptions {
    /// A container of this id, from the OCI bundle in this directory.
    pub fn new(id: ContainerId, bundle: impl Into<PathBuf>) -> Self {
        Self {
            id: id.to_string(),
            bundle: bundle.into(),
            name: String::new(),
            labels: BTreeMap::new(),
            rootfs: Vec::new(),
            log_path: None,
            stdin: false,
            stdin_once: false,
            stop_signal: TERM,
            stop_timeout: STOP_TIMEOUT,
        }
    }

    /// Its name, which no other container may have.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// A label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Mounts that make its root file system, where the bundle has none.
    pub fn rootfs(mut self, mounts: Vec<RootfsMount>) -> Self {
        self.rootfs = mounts;
        self
    }

    /// The file that its output is logged to, in CRI's format, which is podman's `k8s-file` too. Made, with its directories, when
    /// it is missing.
    pub fn log_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.log_path = Some(path.into());
        self
    }

    /// Its standard input stays open, for whoever attaches.
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// The same, until the first one who attaches has ended his.
    pub fn stdin_once(mut self) -> Self {
        self.stdin = true;
        self.stdin_once = true;
        self
    }

    /// The signal that asks it to end. Default: SIGTERM.
    pub fn stop_signal(mut self, signal: u32) -> Self {
        self.stop_signal = signal;
        self
    }

    /// How long it has to end, where its caller does not say. Default: 10 s.
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.stop_timeout = timeout;
        self
    }

    /// Looks for what cannot be, before anything is done. It may have come from another process.
    pub(super) fn check(&self) -> Result<ContainerId> {
        let id = ContainerId::new(self.id.as_str())?;
        check_name("container", &self.name)?;
        if !(1..=MAX_SIGNAL).contains(&self.stop_signal) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("container {id}: stop signal {} is not a signal", self.stop_signal),
            ));
        }
        for path in [Some(&self.bundle), self.log_path.as_ref()].into_iter().flatten() {
            let why = if !path.is_absolute() {
                // What it means depends on the process.
                "is not absolute"
            } else if path.to_str().is_none() {
                // What is known of a container is written down as JSON.
                "is not UTF-8"
            } else {
                continue;
            };
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("container {id}: the path {} {why}", path.display()),
            ));
        }
        Ok(id)
    }
}

/// What an additional process is created with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecOptions {
    args: Vec<String>,
    env: Vec<String>,
    cwd: Option<PathBuf>,
    terminal: bool,
    process: Option<Box<Process>>,
}

impl ExecOptions {
    /// A process with these arguments. All else is as the container's first process has it, but for the terminal.
    pub fn new<T: Into<String>>(args: impl IntoIterator<Item = T>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            terminal: false,
            process: None,
        }
    }

    /// A process as the specification has it, whole.
    pub fn from_process(process: Process) -> Self {
        Self {
            terminal: process.terminal().unwrap_or(false),
            process: Some(Box::new(process)),
            ..Self::new(Vec::<String>::new())
        }
    }

    /// A variable of its environment, in place of the container's of that name.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Its working directory.
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.cwd = Some(cwd.into());
        self
    }

    /// It gets a terminal: one output, and a size.
    pub fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The process, in a container whose first one is `first`.
    pub(super) fn process(self, first: &Process) -> Result<Process> {
        if let Some(process) = self.process {
            return Ok(*process);
        }
        if self.args.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "a process without arguments cannot be executed",
            ));
        }
        let mut process = first.clone();
        process.set_args(Some(self.args));
        process.set_terminal(Some(self.terminal));
        process.set_console_size(None);
        if let Some(cwd) = self.cwd {
            process.set_cwd(cwd);
        }
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        let mut env = process.env().clone().unwrap_or_default();
        for variable in self.env {
            env.retain(|other| name(other) != name(&variable));
            env.push(variable);
        }
        process.set_env(Some(env));
        Ok(process)
    }
}

/// A name is shown in tables and may be what is looked up.
fn check_name(what: &str, name: &str) -> Result<()> {
    let bad = |why: &str| {
        let shown: String = name.chars().take(LONGEST_NAME).collect();
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("the {what}'s name {shown:?} {why}"),
        ))
    };
    if name.len() > LONGEST_NAME {
        return bad(&format!("has more than {LONGEST_NAME} bytes"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.chars().all(allowed) {
        return bad("has a character that is not a letter, a digit, '_', '-' or '.'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn options() -> ContainerOptions {
        ContainerOptions::new(ContainerId::new("c").unwrap(), "/bundle")
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_done() {
        assert_eq!(options().name("web.1").check().unwrap().as_str(), "c");
        for (options, said) in [
            (options().stop_signal(0), "0 is not a signal"),
            (options().stop_signal(65), "65 is not a signal"),
            (options().log_path("log"), "path log is not absolute"),
            (
                ContainerOptions::new(ContainerId::new("c").unwrap(), "b"),
                "path b is not absolute",
            ),
            (
                options().log_path(OsStr::from_bytes(b"/log/\xff")),
                "is not UTF-8",
            ),
            (options().name("a/b"), "character"),
            (options().name("ü"), "character"),
            (options().name("x".repeat(254)), "more than 253"),
        ] {
            let error = options.check().unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.context.contains(said), "{error}");
        }
        let mut forged = options();
        forged.id = "../x".into();
        assert!(forged.check().is_err());
        let pod = PodOptions::new(SandboxId::new("p").unwrap()).name("a b");
        assert!(pod.check().is_err());
    }

    #[test]
    fn a_process_is_as_the_first_one_but_for_what_is_said() {
        let mut first = Process::default();
        first.set_env(Some(vec!["PATH=/bin".into(), "A=1".into()]));
        first.set_terminal(Some(true));
        first.set_cwd("/first".into());
        let process = ExecOptions::new(["id"]).env("A", "2").process(&first).unwrap();
        assert_eq!(process.args().clone().unwrap(), ["id"]);
        assert_eq!(process.env().clone().unwrap(), ["PATH=/bin", "A=2"]);
        assert_eq!(process.terminal(), Some(false));
        assert_eq!(process.cwd().to_str(), Some("/first"));
        let process = ExecOptions::new(["id"])
            .cwd("/tmp")
            .terminal()
            .process(&first)
            .unwrap();
        assert_eq!(
            (process.cwd().to_str(), process.terminal()),
            (Some("/tmp"), Some(true))
        );
        let whole = ExecOptions::from_process(first.clone());
        assert!(whole.is_terminal());
        assert_eq!(whole.process(&Process::default()).unwrap(), first);
        let nothing = ExecOptions::new(Vec::<String>::new());
        assert_eq!(
            nothing.process(&first).unwrap_err().kind,
            ErrorKind::InvalidArgument
        );
    }
}
