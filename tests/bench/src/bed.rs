//! What the benchmarks stand on: containerd in this cell, both runtimes, and proofs that a container did its work where it
//! should.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::cell::Inside;
use e2e::census::{self, Census};
use e2e::configuration::Configuration;
use e2e::containerd::Containerd;
use e2e::parts::Target;
use e2e::program::Program;
use e2e::trace::Trace;
use e2e::{deadlines as limits, factory, image, wait};
use serde_json::Value;

use crate::deadlines;

/// A container that does its work ends with this: no accident does.
pub(crate) const CODE: i32 = 42;

/// Where a kernel says which boot of it this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Whose shim, and whose containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// Ours.
    Kata,
    /// What we are compared with.
    Runc,
}

impl Runtime {
    /// In the order in which they take turns.
    pub const BOTH: [Self; 2] = [Self::Kata, Self::Runc];

    fn id(self) -> &'static str {
        match self {
            Self::Kata => "io.containerd.kata.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }

    fn shim(self) -> &'static str {
        match self {
            Self::Kata => "containerd-shim-kata-v2",
            Self::Runc => "containerd-shim-runc-v2",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kata => "kata",
            Self::Runc => "runc",
        })
    }
}

/// A template, and what says that machines are copies of it, or that they were kept ready as such.
pub struct Copies {
    configuration: PathBuf,
    kind: factory::Kind,
}

impl Copies {
    /// The configuration of who takes one.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Takes it away.
    ///
    /// # Errors
    /// A machine was no copy, or it does not go.
    pub fn end(&self) -> Result<()> {
        factory::finish(&Target::here(), &self.configuration, self.kind, 0)
    }

    /// Waits until as many are ready as there are to be. Answers with their processes.
    ///
    /// # Errors
    /// They can't be made.
    pub fn settled(&self) -> Result<Vec<u32>> {
        factory::settled(&Target::here(), &self.configuration)
    }
}

/// containerd in this cell.
pub struct Bed {
    cell: Inside,
    containerd: Containerd,
    settings: Configuration,
    configuration: PathBuf,
    host_boot: String,
    /// Boots that were seen in guests: each container has one of its own.
    boots: RefCell<HashSet<String>>,
    ids: Cell<u32>,
}

impl Bed {
    /// Starts containerd and imports the image of busybox.
    ///
    /// # Errors
    /// Something of it fails.
    pub fn new(cell: Inside, configuration: &Configuration) -> Result<Self> {
        let path = cell.directory.join("configuration.toml");
        configuration.write(&path)?;
        let containerd = Containerd::start(&cell, &Target::here().programs(), Vec::new())?;
        let image = cell.directory.join("busybox.tar");
        image::write_busybox(&image)?;
        containerd.import(&image)?;
        Ok(Self {
            host_boot: fs::read_to_string(BOOT_ID).context("read the host's boot id")?,
            cell,
            containerd,
            settings: configuration.clone(),
            configuration: path,
            boots: RefCell::default(),
            ids: Cell::new(0),
        })
    }

    /// Stops containerd.
    ///
    /// # Errors
    /// It does not end.
    pub fn close(mut self) -> Result<()> {
        self.containerd.stop()
    }

    /// A name that nothing else on this machine has.
    pub fn name(&self, what: &str) -> String {
        self.ids.set(self.ids.get() + 1);
        format!("{what}-{}-{}", self.ids.get(), self.cell.tag)
    }

    /// `ctr run` of a command in a container of busybox.
    pub fn run(&self, runtime: Runtime, flags: &[&str], id: &str, command: &[&str]) -> Program {
        self.run_configured(runtime, &self.configuration, flags, id, command)
    }

    /// The same with ours, in a machine that is a copy.
    pub fn run_copied(&self, copies: &Copies, flags: &[&str], id: &str, command: &[&str]) -> Program {
        self.run_configured(Runtime::Kata, &copies.configuration, flags, id, command)
    }

    /// Makes a template for copies.
    ///
    /// # Errors
    /// It can't be made.
    pub fn copies(&self) -> Result<Copies> {
        self.made(factory::Kind::Template, None)
    }

    /// The same, and has some be kept ready.
    ///
    /// # Errors
    /// They can't be made.
    pub fn cache(&self) -> Result<Copies> {
        self.made(factory::Kind::Cache, None)
    }

    /// The same of machines with so much memory, MiB; without it, the configuration's.
    ///
    /// # Errors
    /// It can't be made.
    pub fn copies_of(&self, memory_mib: Option<u64>) -> Result<Copies> {
        self.made(factory::Kind::Template, memory_mib)
    }

    fn made(&self, kind: factory::Kind, memory_mib: Option<u64>) -> Result<Copies> {
        let word = match kind {
            factory::Kind::Template => "copies",
            factory::Kind::Cache => "cache",
        };
        let (settings, name) = match memory_mib {
            Some(mib) => (
                self.settings.clone().hypervisor_number("default_memory", mib),
                format!("{word}-{mib}"),
            ),
            None => (self.settings.clone(), word.to_owned()),
        };
        let configuration = self.cell.directory.join(format!("{name}.toml"));
        // One that is destroyed takes all of its directory along.
        let settings = factory::configured_below(&self.cell, settings, kind, &name);
        settings.write(&configuration)?;
        factory::prepare(&Target::here(), &configuration)?;
        Ok(Copies { configuration, kind })
    }

    fn run_configured(
        &self,
        runtime: Runtime,
        configuration: &Path,
        flags: &[&str],
        id: &str,
        command: &[&str],
    ) -> Program {
        let mut program = self
            .containerd
            .ctr(["run", "--runtime", runtime.id()])
            .within(limits::RUN);
        if runtime == Runtime::Kata {
            program = program.args(["--runtime-config-path".as_ref(), configuration.as_os_str()]);
        }
        program.args(flags).args([image::BUSYBOX, id]).args(command)
    }

    /// Starts a container that goes on by itself, and answers how long `ctr` took.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, runtime: Runtime, flags: &[&str], id: &str) -> Result<Duration> {
        let flags = [&["--detach", "--null-io"], flags].concat();
        let run = self.run(runtime, &flags, id, &["sleep", "1000000"]);
        let begin = Instant::now();
        run.read()?;
        Ok(begin.elapsed())
    }

    /// The same with ours and another image.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_image(&self, image: &str, flags: &[&str], id: &str) -> Result<()> {
        self.containerd
            .ctr(["run", "--runtime", Runtime::Kata.id(), "--detach", "--null-io"])
            .within(limits::RUN)
            .args(["--runtime-config-path".as_ref(), self.configuration.as_os_str()])
            .args(flags)
            .args([image, id, "sleep", "1000000"])
            .read()
            .map(drop)
    }

    /// Imports an image into a snapshotter.
    ///
    /// # Errors
    /// It can't be imported.
    pub fn import_for(&self, snapshotter: &str, file: &Path) -> Result<()> {
        self.containerd.import_for(snapshotter, file)
    }

    /// `ctr task exec`.
    pub fn exec(&self, id: &str, command: &[&str]) -> Program {
        self.containerd
            .ctr(["task", "exec", "--exec-id", &self.name("exec"), id])
            .args(command)
            .within(limits::RUN)
    }

    /// Kills a container and takes it away.
    ///
    /// # Errors
    /// It does not go.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.containerd
            .ctr(["task", "delete", "--force", id])
            .within(limits::RUN)
            .read()?;
        self.containerd.ctr(["container", "delete", id]).read().map(drop)
    }

    /// What exists now.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn census(&self) -> Result<Census> {
        Census::take(&self.cell, &self.known())
    }

    /// Waits until nothing exists beyond a census.
    ///
    /// # Errors
    /// Something is left.
    pub fn nothing_beyond(&self, census: &Census) -> Result<()> {
        census.wait(&self.cell, &self.known())
    }

    fn known(&self) -> Vec<u32> {
        self.containerd.pid().into_iter().collect()
    }

    /// The process that a container's task has on the host: with ours, the virtual machine monitor.
    ///
    /// # Errors
    /// There is no such task.
    pub fn process(&self, id: &str) -> Result<u32> {
        let list = self.containerd.ctr(["task", "list"]).read()?;
        let mut lines = list
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|line| line.first() == Some(&id));
        let pid = line.as_ref().and_then(|line| line.get(1));
        Ok(pid.with_context(|| format!("there is no task {id}"))?.parse()?)
    }

    /// The shim of a container, or of the pod that has this id.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn shim(&self, runtime: Runtime, id: &str) -> Result<u32> {
        let all = census::processes()?;
        let mut shims = all.iter().filter(|process| {
            let is_shim = process
                .command
                .first()
                .is_some_and(|program| program.ends_with(runtime.shim()));
            is_shim && process.command.iter().any(|word| word == id)
        });
        let shim = shims.next().with_context(|| format!("{id} has no shim"))?;
        ensure!(shims.next().is_none(), "{id} has two shims");
        Ok(shim.pid.try_into()?)
    }

    /// The directory that containerd hands to the shim of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.containerd.bundle(id)
    }

    /// A directory on disk, that ends with the cell.
    pub fn directory(&self) -> &Path {
        &self.cell.directory
    }

    /// The file of our runtime's configuration.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Where a bare virtual machine may have its files.
    pub fn bare_directory(&self) -> PathBuf {
        PathBuf::from("/run").join(self.name("bare"))
    }

    /// What our runtime logs of a start. `complete` says when all of it is there.
    ///
    /// # Errors
    /// It does not come.
    pub fn trace(&self, id: &str, complete: impl Fn(&Trace) -> bool) -> Result<Trace> {
        wait::until(&format!("the records of {id}"), deadlines::RECORDS, || {
            Ok(Trace::of_sandbox(&self.containerd.log_since(0)?, id).filter(&complete))
        })
    }

    /// All records of a sandbox.
    ///
    /// # Errors
    /// The log can't be read.
    pub fn records(&self, id: &str) -> Result<Vec<Value>> {
        let mut records = e2e::trace::records(&self.containerd.log_since(0)?);
        records.retain(|record| record["sandbox"] == id);
        Ok(records)
    }

    /// A token that nobody has seen, and the script that brings it back together with the kernel's boot.
    pub fn proof(&self) -> Proof {
        let token = self.name("token");
        Proof {
            script: format!("read -r boot <{BOOT_ID}; echo {token} $boot; exit {CODE}"),
            token,
        }
    }

    /// Checks what a container did: its exit code, the token, and which kernel it ran on. `fresh`: no container before has
    /// run on that boot.
    ///
    /// # Errors
    /// It did something else.
    pub fn check(
        &self,
        runtime: Runtime,
        proof: &Proof,
        output: e2e::program::Output,
        fresh: bool,
    ) -> Result<()> {
        let said = output.exits(CODE)?;
        let words: Vec<_> = said.split_whitespace().collect();
        let [token, boot] = words[..] else {
            anyhow::bail!("the container did not say a token and a boot: {said:?}");
        };
        ensure!(
            token == proof.token,
            "the token {} came back as {said:?}",
            proof.token
        );
        let on_host = boot == self.host_boot.trim();
        match runtime {
            Runtime::Runc => ensure!(
                on_host,
                "runc's container did not run on the host's kernel: {boot}"
            ),
            Runtime::Kata => {
                ensure!(!on_host, "our container ran on the host's kernel");
                let is_new = self.boots.borrow_mut().insert(boot.to_owned());
                ensure!(
                    is_new == fresh,
                    "a container's guest is {}",
                    if is_new {
                        "not the one that it had"
                    } else {
                        "not fresh"
                    }
                );
            }
        }
        Ok(())
    }
}

/// See [`Bed::proof`].
#[derive(Debug)]
pub struct Proof {
    token: String,
    /// For a shell in the container.
    pub script: String,
}
