//! What a case stands on: podman with a storage of its own, the runtime under test, and words for what every case does.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cell::Inside;
use e2e::census::{self, Census};
use e2e::configuration::Configuration;
use e2e::containerd::Containerd;
use e2e::parts::Target;
use e2e::program::{Output, Program, search_path};
use e2e::{deadlines, factory, image, wait};

use crate::suite::Runtime;

/// Our runtime's name there: one that podman takes for a runtime that writes its errors as JSON.
const KATA: &str = "kata";

/// Name of our runtime's configuration.
const CONFIGURATION: &str = "configuration.toml";

/// See the module's documentation.
pub struct Bed {
    inside: Inside,
    runtime: Runtime,
    census: Census,
    backend: Cell<Backend>,
    next: Cell<u32>,
}

/// What makes podman's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Podman's own.
    Netavark,
    /// The plugins of the Container Network Interface.
    Cni,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Netavark => "netavark",
            Self::Cni => "cni",
        }
    }

    /// The file that tells podman of it.
    fn configuration(self) -> String {
        format!("{}.conf", self.name())
    }
}

impl Bed {
    /// Furnishes the cell, and runs a first container, whose traces stay.
    pub fn new(inside: Inside) -> Result<Self> {
        let target = Target::here();
        let configuration = inside.directory.join(CONFIGURATION);
        let wanted = factory::wanted(None)?;
        let mut settings = Configuration::new(&target);
        if let Some(kind) = wanted {
            settings = factory::configured(&inside, settings, kind);
        }
        settings.write(&configuration)?;
        if wanted.is_some() {
            factory::prepare(&target, &configuration)?;
        }
        let wrapper = inside.directory.join(KATA);
        // Podman calls a runtime without its options at times, and without a PATH.
        fs::write(
            &wrapper,
            format!(
                "#!/bin/sh\nexec {} --config {} \"$@\"\n",
                target.programs().join("kata-runtime").display(),
                configuration.display()
            ),
        )?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        for backend in [Backend::Netavark, Backend::Cni] {
            // What podman asks for by itself may be more than a container of the machine's own may have.
            let text = format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
                 [network]\nnetwork_backend = {:?}\n",
                backend.name()
            );
            fs::write(inside.directory.join(backend.configuration()), text)?;
        }
        // A namespace is made with it down.
        Program::new("ip")
            .env("PATH", search_path())
            .args(["link", "set", "dev", "lo", "up"])
            .read()?;
        let mut bed = Self {
            census: taken(&inside)?,
            inside,
            runtime: Runtime::Runc,
            backend: Cell::new(Backend::Netavark),
            next: Cell::new(0),
        };
        let archive = bed.image();
        image::write_busybox(&archive)?;
        bed.podman(["load", "--quiet", "--input"], [archive])
            .within(deadlines::RUN)
            .output()?
            .success()?;
        bed.run(&["--rm"], &["true"])?.success()?;
        for backend in [Backend::Netavark, Backend::Cni] {
            let used = bed.with_backend(backend, || {
                let network = bed.network()?;
                bed.run(&["--rm", &format!("--network={network}")], &["true"])?
                    .success()?;
                bed.call(&["network", "rm", &network]).map(drop)
            });
            match used {
                // podman 5 has no other one any more; the case that needs it says so by itself.
                Err(error) if error.to_string().contains("only netavark") => {}
                used => used?,
            }
        }
        let first = bed.pod("first")?;
        bed.in_pod(&first, "first-member", &["sleep", "1000"])?;
        bed.call(&["pod", "rm", "--force", "--time", "0", &first])?;
        bed.census = taken(&bed.inside)?;
        Ok(bed)
    }

    /// Takes away what was made for machines to be copies.
    pub fn close(&self) -> Result<()> {
        match factory::wanted(None)? {
            Some(kind) => factory::finish(&Target::here(), &self.configuration(), kind, 0),
            None => Ok(()),
        }
    }

    /// Prepares for a case of this runtime.
    pub fn turn_to(&mut self, runtime: Runtime) {
        self.runtime = runtime;
    }

    /// The runtime under test.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// Does something while podman's networks are made by another backend.
    pub fn with_backend(&self, backend: Backend, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let usual = self.backend.replace(backend);
        let result = work();
        self.backend.set(usual);
        result
    }

    /// A name that no other container has.
    pub fn name(&self) -> String {
        self.next.set(self.next.get() + 1);
        format!("c{}", self.next.get())
    }

    /// A directory of the cell.
    pub fn directory(&self) -> &Path {
        &self.inside.directory
    }

    /// The file of the image of busybox.
    pub fn image(&self) -> PathBuf {
        self.inside.directory.join("busybox.tar")
    }

    /// The cgroup that those of all containers are below.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.inside.tag)
    }

    /// The file of our runtime's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.inside.directory.join(CONFIGURATION)
    }

    /// A containerd in the cell. It is to be stopped before the case ends.
    pub fn containerd(&self, programs: &Path) -> Result<Containerd> {
        Containerd::start(&self.inside, programs, Vec::new())
    }

    /// The command line of the runtime under test.
    pub fn runtime_path(&self) -> PathBuf {
        match self.runtime {
            Runtime::Runc => {
                let path = search_path();
                let mut places = std::env::split_paths(&path).map(|directory| directory.join("runc"));
                places
                    .find(|place| place.is_file())
                    .unwrap_or_else(|| "runc".into())
            }
            Runtime::Kata => self.inside.directory.join(KATA),
        }
    }

    /// A call of podman.
    pub fn podman<A: AsRef<std::ffi::OsStr>, B: AsRef<std::ffi::OsStr>>(
        &self,
        words: impl IntoIterator<Item = A>,
        more: impl IntoIterator<Item = B>,
    ) -> Program {
        let directory = &self.inside.directory;
        let place = |option: &str, name: &str| format!("--{option}={}", directory.join(name).display());
        Program::new("podman")
            .env(
                "CONTAINERS_CONF",
                directory.join(self.backend.get().configuration()),
            )
            .env("PATH", search_path())
            // Where conmon leaves a mark when memory has run out.
            .directory(directory)
            .args([
                place("root", "storage"),
                place("runroot", "storage-run"),
                place("tmpdir", "podman"),
                place("network-config-dir", self.backend.get().name()),
                "--storage-driver=overlay".into(),
                "--cgroup-manager=cgroupfs".into(),
                "--events-backend=file".into(),
                format!("--runtime={}", self.runtime_path().display()),
            ])
            .args(words)
            .args(more)
            .within(deadlines::RUN)
    }

    /// Makes a call that succeeds. Answers what it prints, without the last line's end.
    pub fn call(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?.success()?;
        Ok(output.trim_end().to_owned())
    }

    /// Makes a call.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        self.podman(words, [] as [&str; 0]).output()
    }

    /// A call of `podman run` or `create` with these options, an image, and a command.
    pub fn run_program(&self, options: &[&str], command: &[&str]) -> Program {
        let (verb, options) = options.split_first().unwrap_or((&"run", &[]));
        self.podman([*verb], options)
            .args([format!("--cgroup-parent={}", self.cgroup())])
            .args([image::BUSYBOX])
            .args(command)
    }

    /// `podman run`, without a network unless an option names one.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Result<Output> {
        let mut words = vec!["run"];
        if !options.iter().any(|option| option.starts_with("--network")) {
            words.push("--network=none");
        }
        words.extend(options);
        self.run_program(&words, command).output()
    }

    /// Starts a container that runs in the background, and answers its name.
    pub fn background(&self, options: &[&str], command: &[&str]) -> Result<String> {
        let name = self.name();
        let mut words = vec!["--detach", "--name", &name];
        words.extend(options);
        self.run(&words, command)?.success()?;
        Ok(name)
    }

    /// One that waits to be killed.
    pub fn sleeper(&self, options: &[&str]) -> Result<String> {
        // The first process of a container heeds no signal that it does not ask for.
        let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        self.background(options, &["sh", "-c", script])
    }

    /// Runs a script in a container, and answers what it prints.
    pub fn sh(&self, name: &str, script: &str) -> Result<String> {
        self.call(&["exec", name, "sh", "-c", script])
    }

    /// Makes a pod without a network.
    pub fn pod(&self, name: &str) -> Result<String> {
        self.pod_with(name, &["--network=none"])?;
        Ok(name.to_owned())
    }

    /// Makes a pod.
    pub fn pod_with(&self, name: &str, options: &[&str]) -> Result<()> {
        let parent = format!("--cgroup-parent={}", self.cgroup());
        let words = [&["pod", "create", &parent, "--name", name], options].concat();
        self.call(&words).map(drop)
    }

    /// Makes a network, and answers its name.
    pub fn network(&self) -> Result<String> {
        let name = self.name();
        self.call(&["network", "create", &name])?;
        Ok(name)
    }

    /// Starts a container in a pod.
    pub fn in_pod(&self, pod: &str, name: &str, command: &[&str]) -> Result<()> {
        self.podman(
            ["run", "--detach", "--pod", pod, "--name", name, image::BUSYBOX],
            command,
        )
        .output()?
        .success()?;
        Ok(())
    }

    /// A field of a container.
    pub fn inspect(&self, name: &str, field: &str) -> Result<String> {
        let format = format!("--format={{{{{field}}}}}");
        self.call(&["inspect", "--type=container", &format, name])
    }

    /// Waits until a field of a container is this.
    pub fn wait_for(&self, name: &str, field: &str, wanted: &str) -> Result<()> {
        let mut last = String::new();
        let found = wait::until("a container's field changes", deadlines::RUN, || {
            last = self.inspect(name, field)?;
            Ok((last == wanted).then_some(()))
        });
        found.with_context(|| format!("{field} of {name} is {last:?}, not {wanted:?}"))
    }

    /// Waits until a container has written this.
    pub fn wait_for_log(&self, name: &str, text: &str) -> Result<()> {
        wait::until("a container writes", deadlines::RUN, || {
            Ok(self.call(&["logs", name])?.contains(text).then_some(()))
        })
    }

    /// The process of the host that stands for a container.
    pub fn pid(&self, name: &str) -> Result<u32> {
        Ok(self.inspect(name, ".State.Pid")?.parse()?)
    }

    /// Removes a container by force.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.call(&["rm", "--force", "--time=0", name]).map(drop)
    }

    /// How many virtual machines run; not those that are kept ready.
    pub fn machines(&self) -> Result<usize> {
        let kept = kept_ready(&self.inside)?;
        let processes = census::processes()?;
        Ok(processes
            .iter()
            .filter(|process| {
                process.name.starts_with("qemu") && !kept.contains(&process.pid.cast_unsigned())
            })
            .count())
    }

    /// Waits until there is nothing that was not there before the first case.
    pub fn nothing_left(&self) -> Result<()> {
        for words in [
            &["ps", "--all", "--quiet"][..],
            &["pod", "ps", "--quiet"],
            &["volume", "ls", "--quiet"],
            &["network", "ls", "--quiet", "--filter=name=^c[0-9]"],
        ] {
            let left = self.call(words)?;
            ensure!(left.is_empty(), "podman still has, says {words:?}: {left}");
        }
        let mut left = Vec::new();
        let gone = wait::until("nothing is left", deadlines::GONE, || {
            left = taken(&self.inside)?.beyond(&self.census);
            left.retain(|thing| !self.is_podmans(thing));
            Ok(left.is_empty().then_some(()))
        });
        if gone.is_err() {
            bail!("{} things are left:\n  {}", left.len(), left.join("\n  "));
        }
        Ok(())
    }

    /// Podman does not remove the cgroups of its pods from the hierarchies that have no controllers.
    fn is_podmans(&self, thing: &str) -> bool {
        let parent =
            ["systemd", "unified"].map(|name| format!("cgroup /sys/fs/cgroup/{name}/{}/", self.inside.tag));
        parent
            .iter()
            .filter_map(|parent| thing.strip_prefix(parent.as_str()))
            .any(|pod| pod.len() == 64 && pod.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    /// After a failure: what a case has left must not fail the next one.
    pub fn give_up(&mut self) {
        for words in [
            &["pod", "rm", "--all", "--force", "--time=0"][..],
            &["rm", "--all", "--force", "--time=0"],
            &["volume", "rm", "--all", "--force"],
            &["network", "prune", "--force"],
        ] {
            if let Err(error) = self.call(words) {
                eprintln!("after the failure: {error:#}");
            }
        }
        // Those that podman knows nothing of.
        let listed = Program::new(self.runtime_path()).args(["list", "--quiet"]).read();
        for id in listed.unwrap_or_default().lines() {
            let delete = Program::new(self.runtime_path()).args(["delete", "--force", id]);
            if let Err(error) = delete.read() {
                eprintln!("after the failure: {error:#}");
            }
        }
        if let Err(error) = self.nothing_left() {
            eprintln!("after the failure: {error:#}");
            if let Ok(census) = taken(&self.inside) {
                self.census = census;
            }
        }
    }
}

/// Everything that exists in the cell, but for the processes of machines that are kept ready, which come while others go.
fn taken(inside: &Inside) -> Result<Census> {
    Census::take(inside, &kept_ready(inside)?)
}

/// Processes of machines that are kept ready, and of who keeps them.
fn kept_ready(inside: &Inside) -> Result<Vec<u32>> {
    match factory::wanted(None)? {
        Some(factory::Kind::Cache) => {
            factory::settled(&Target::here(), &inside.directory.join(CONFIGURATION))
        }
        _ => Ok(Vec::new()),
    }
}
