//! What a case stands on: containerd in this cell, the runtime under test, and words for what every case does.

mod own;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cell::Inside;
use e2e::census::{self, Census, Process};
use e2e::configuration::Configuration;
use e2e::containerd::Containerd;
use e2e::parts::Target;
use e2e::program::{Output, Program, Running};
use e2e::{deadlines, debian, factory, image, wait};

use crate::pool;
pub use own::Own;

/// A runtime under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The reference: a case that fails with it is wrong itself.
    Runc,
    /// Ours.
    Kata,
}

impl Runtime {
    /// containerd's name of it.
    pub fn id(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Kata => "io.containerd.kata.v2",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runc => "runc",
            Self::Kata => "kata",
        })
    }
}

/// containerd in this cell, and what there is when no case runs.
pub struct Bed {
    cell: Inside,
    containerd: Containerd,
    target: Target,
    census: Census,
    /// The process that keeps machines ready, if they are to be.
    keeper: Option<u32>,
    /// What the case that runs may leave: beginnings of a census's lines.
    forgiven: Vec<&'static str>,
    has_debian: bool,
    /// Others that have the image of busybox.
    snapshotters: BTreeSet<&'static str>,
}

impl Bed {
    /// Starts containerd and imports the image of busybox.
    pub fn new(cell: Inside) -> Result<Self> {
        let target = Target::here();
        let wanted = factory::wanted(None)?;
        let mut settings = Configuration::new(&target);
        if let Some(kind) = wanted {
            settings = factory::configured(&cell, settings, kind);
        }
        settings.write(&configuration(&cell))?;
        if wanted.is_some() {
            factory::prepare(&target, &configuration(&cell))?;
        }
        let keeper = match wanted {
            Some(factory::Kind::Cache) => Some(factory::keeper(&target, &configuration(&cell))?),
            _ => None,
        };
        let containerd = Containerd::start(&cell, &target.programs(), Vec::new())?;
        containerd.import(&busybox()?)?;
        let census = Census::take(&cell, &known(&containerd, &target, &cell)?)?;
        Ok(Self {
            cell,
            containerd,
            target,
            census,
            keeper,
            forgiven: Vec::new(),
            has_debian: false,
            snapshotters: BTreeSet::new(),
        })
    }

    /// Stops containerd.
    pub fn close(mut self) -> Result<()> {
        if let Some(kind) = factory::wanted(None)? {
            factory::finish(&self.target, &configuration(&self.cell), kind, 0)?;
        }
        self.containerd.stop()
    }

    /// How long containerd's log is.
    pub fn log_length(&self) -> Result<usize> {
        Ok(self.containerd.log_since(0)?.len())
    }

    /// What exists beyond what was there before the first case.
    fn left(&self) -> Result<Vec<String>> {
        let known = known(&self.containerd, &self.target, &self.cell)?;
        Ok(Census::take(&self.cell, &known)?.beyond(&self.census))
    }

    /// Waits until nothing exists beyond what was there before the first case, but for what is forgiven.
    pub fn nothing_left(&mut self) -> Result<()> {
        if let Some(keeper) = self.keeper {
            let now = factory::keeper(&self.target, &configuration(&self.cell))?;
            ensure!(
                now == keeper,
                "who keeps machines ready is {now}, and was {keeper}"
            );
        }
        for (what, list) in [
            ("tasks", &["tasks", "list", "--quiet"][..]),
            ("containers", &["containers", "list", "--quiet"]),
            ("leases", &["leases", "list", "--quiet"]),
        ] {
            let left = self.containerd.ctr(list).read()?;
            ensure!(left.is_empty(), "containerd still has {what}: {left}");
        }
        let snapshots = self.containerd.ctr(["snapshots", "list"]).read()?;
        let active: Vec<_> = snapshots
            .lines()
            .filter(|line| line.ends_with("Active"))
            .collect();
        ensure!(active.is_empty(), "containerd still has snapshots: {active:?}");
        let forgiven = std::mem::take(&mut self.forgiven);
        let is_forgiven = |thing: &String| forgiven.iter().any(|beginning| thing.starts_with(beginning));
        let mut left = Vec::new();
        let gone = wait::until("nothing is left", deadlines::GONE, || {
            left = self.left()?;
            Ok(left.iter().all(is_forgiven).then_some(()))
        });
        ensure!(
            gone.is_ok(),
            "{} things are left:\n  {}",
            left.len(),
            left.join("\n  ")
        );
        if !left.is_empty() {
            let known = known(&self.containerd, &self.target, &self.cell)?;
            self.census = Census::take(&self.cell, &known)?;
        }
        Ok(())
    }

    /// For whoever has to find out why a case failed: processes, and what was logged since then.
    pub fn situation(&self, log: usize) -> String {
        let mut text = String::from("processes:\n");
        for process in census::processes().unwrap_or_default() {
            text.push_str(&format!("  {:.300}\n", process.to_string()));
        }
        text.push_str("log of containerd and shims:\n");
        let logged = self.containerd.log_since(log).unwrap_or_default();
        // Whoever asks for a container before it is there is told so, again and again.
        let lines: Vec<_> = logged
            .lines()
            .filter(|line| !line.contains(r#""call":"State""#))
            .collect();
        for line in lines.iter().skip(lines.len().saturating_sub(60)) {
            text.push_str(&format!("  {line:.600}\n"));
        }
        text
    }
}

/// The memory of a process that is its own and in use, bytes: its heap, its stacks, and what it shares. Not the pages of its program,
/// which come from the page cache when they are first used, after the shim has given back those that only its start has used:
/// that is some MiB of a program that was built for debugging.
pub fn resident(process: &Process) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid))
        .with_context(|| format!("read the status of {process}"))?;
    ["RssAnon:", "RssShmem:"]
        .iter()
        .map(|name| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .with_context(|| format!("a process has {name}"))?;
            let kib: u64 = line
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .with_context(|| format!("understand {line:?}"))?;
            Ok(kib * 1024)
        })
        .sum()
}

/// The file with the image of busybox.
fn busybox() -> Result<PathBuf> {
    Ok(std::env::var_os(pool::IMAGE).context(pool::IMAGE)?.into())
}

/// Processes that do not count: containerd, and machines that are kept ready, which come while others go.
fn known(containerd: &Containerd, target: &Target, cell: &Inside) -> Result<Vec<u32>> {
    let mut known: Vec<u32> = containerd.pid().into_iter().collect();
    if factory::wanted(None)? == Some(factory::Kind::Cache) {
        known.extend(factory::settled(target, &configuration(cell))?);
    }
    Ok(known)
}

/// The file of the configuration that is used where a case names no other.
fn configuration(cell: &Inside) -> PathBuf {
    cell.directory.join("configuration.toml")
}

/// One run of a case.
pub struct Case<'a> {
    bed: &'a mut Bed,
    runtime: Runtime,
    name: &'static str,
    ids: Cell<u32>,
}

impl<'a> Case<'a> {
    pub fn new(bed: &'a mut Bed, runtime: Runtime, name: &'static str) -> Self {
        Self {
            bed,
            runtime,
            name,
            ids: Cell::new(0),
        }
    }

    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    pub fn target(&self) -> &Target {
        &self.bed.target
    }

    pub fn containerd(&mut self) -> &mut Containerd {
        &mut self.bed.containerd
    }

    /// What containerd and shims have logged since its log was so long.
    pub fn log_since(&self, from: usize) -> Result<String> {
        self.bed.containerd.log_since(from)
    }

    /// How long containerd's log is.
    pub fn log_length(&self) -> Result<usize> {
        self.bed.log_length()
    }

    /// Lets this case leave what begins so in a census. Needs a reason beside it.
    pub fn forgive(&mut self, beginning: &'static str) {
        self.bed.forgiven.push(beginning);
    }

    /// What exists beyond what was there before the first case.
    pub fn left(&self) -> Result<Vec<String>> {
        self.bed.left()
    }

    /// An id that no container on this machine has.
    pub fn id(&self) -> String {
        self.ids.set(self.ids.get() + 1);
        format!(
            "{}-{}-{}",
            self.name.replace('_', "-"),
            self.ids.get(),
            self.bed.cell.tag
        )
    }

    /// A path on disk for a file or directory of this case's; the same case of the other runtime has another.
    pub fn path(&self, name: &str) -> PathBuf {
        let path = format!("{}-{}-{name}", self.runtime, self.name);
        self.bed.cell.directory.join(path)
    }

    /// A call of `ctr`.
    pub fn ctr(&self, arguments: &[&str]) -> Program {
        self.bed.containerd.ctr(arguments)
    }

    /// `ctr run`, up to the image. Our configuration is named as a user would.
    fn ctr_run(&self, configuration: &Path, flags: &[&str]) -> Program {
        let mut program = self
            .ctr(&["run", "--runtime", self.runtime.id()])
            .within(deadlines::RUN);
        if self.runtime == Runtime::Kata {
            program = program.args(["--runtime-config-path".as_ref(), configuration.as_os_str()]);
        }
        program.args(flags)
    }

    /// `ctr run` of a command in a container of busybox.
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Program {
        self.run_configured(&configuration(&self.bed.cell), flags, id, command)
    }

    /// The same with another configuration.
    pub fn run_configured(
        &self,
        configuration: &Path,
        flags: &[&str],
        id: &str,
        command: &[&str],
    ) -> Program {
        self.ctr_run(configuration, flags)
            .args([image::BUSYBOX, id])
            .args(command)
    }

    /// A container of a specification of its own, which names its root file system and its command.
    pub fn run_specification(&self, flags: &[&str], id: &str) -> Program {
        self.ctr_run(&configuration(&self.bed.cell), flags).args([id])
    }

    /// The same with Debian's image.
    pub fn run_debian(&mut self, flags: &[&str], id: &str, command: &[&str]) -> Result<Program> {
        if !self.bed.has_debian {
            self.bed.containerd.import(&debian::image(&self.bed.target)?)?;
            self.bed.has_debian = true;
        }
        let configuration = configuration(&self.bed.cell);
        Ok(self
            .ctr_run(&configuration, flags)
            .args([debian::NAME, id])
            .args(command))
    }

    /// The beginning of flags for a container in this snapshotter, whichever the tests' own is. The image is unpacked there when
    /// the first one needs it.
    pub fn on(&mut self, snapshotter: &'static str) -> Result<[&'static str; 2]> {
        if self.bed.snapshotters.insert(snapshotter) {
            self.bed.containerd.import_for(snapshotter, &busybox()?)?;
        }
        Ok(["--snapshotter", snapshotter])
    }

    /// Runs a shell's script in a container that is removed afterwards.
    pub fn shell(&self, flags: &[&str], script: &str) -> Result<Output> {
        let flags = [&["--rm"], flags].concat();
        self.run(&flags, &self.id(), &["sh", "-c", script]).output()
    }

    /// Starts a container of busybox that goes on by itself.
    pub fn start(&self, flags: &[&str], command: &[&str]) -> Result<Container<'_>> {
        let container = Container {
            case: self,
            id: self.id(),
        };
        let flags = [&["--detach", "--null-io"], flags].concat();
        self.run(&flags, &container.id, command).read()?;
        Ok(container)
    }

    /// The container with this id.
    pub fn container(&self, id: &str) -> Container<'_> {
        Container {
            case: self,
            id: id.into(),
        }
    }

    /// Follows containerd's events, from now on.
    pub fn events(&self) -> Result<Events> {
        let running = self.ctr(&["events"]).within(deadlines::RUN * 2).start()?;
        // Nothing says when the subscription holds: changes are made until one is seen.
        let mut count = 0;
        wait::until("containerd's events are followed", deadlines::CALL, || {
            count += 1;
            let label = format!("e2e={count}");
            self.ctr(&["namespaces", "label", self.bed.containerd.namespace(), &label])
                .read()?;
            Ok((!running.stdout().is_empty()).then_some(()))
        })?;
        Ok(Events { running })
    }

    /// The processes whose command lines have all `words`.
    pub fn processes(&self, words: &[&str]) -> Result<Vec<Process>> {
        let has = |process: &Process, word: &str| process.command.iter().any(|part| part.contains(word));
        let mut all = census::processes()?;
        // Clients have the name of a container as well.
        all.retain(|process| process.name != "ctr" && words.iter().all(|word| has(process, word)));
        Ok(all)
    }

    /// The one process whose command line has all `words`.
    pub fn process(&self, words: &[&str]) -> Result<Process> {
        match self.processes(words)?.as_slice() {
            [one] => Ok(one.clone()),
            [] => bail!("no process has {words:?}; there are {:#?}", census::processes()?),
            more => bail!("more than one process has {words:?}: {more:#?}"),
        }
    }

    /// The shim of a container.
    pub fn shim(&self, container: &Container<'_>) -> Result<Process> {
        let program = match self.runtime {
            Runtime::Runc => "containerd-shim-runc-v2",
            Runtime::Kata => "containerd-shim-kata-v2",
        };
        self.process(&[program, &container.id])
    }
}

/// A container that goes on by itself.
pub struct Container<'a> {
    case: &'a Case<'a>,
    pub id: String,
}

impl Container<'_> {
    /// `ctr task exec`.
    pub fn exec(&self, flags: &[&str], command: &[&str]) -> Program {
        self.exec_named(&format!("exec-{}", self.case.id()), flags, command)
    }

    /// The same with an id for the process.
    pub fn exec_named(&self, exec: &str, flags: &[&str], command: &[&str]) -> Program {
        self.case
            .ctr(&["task", "exec", "--exec-id", exec])
            .args(flags)
            .args([&self.id])
            .args(command)
    }

    /// Runs a shell's script in it, and answers its output.
    pub fn shell(&self, script: &str) -> Result<String> {
        self.exec(&[], &["sh", "-c", script]).read()
    }

    /// `ctr task kill`.
    pub fn kill(&self, signal: &str) -> Result<()> {
        self.case
            .ctr(&["task", "kill", "--signal", signal, &self.id])
            .read()
            .map(drop)
    }

    /// Sends a signal to a further process. Says whether there is one.
    pub fn signal_exec(&self, exec: &str, signal: &str) -> Result<bool> {
        let kill = ["task", "kill", "--exec-id", exec, "--signal", signal, &self.id];
        let output = self.case.ctr(&kill).output()?;
        // Not known yet; known to runc, and to us, and not started.
        // containerd 2 leaves the kind of an error out: the rest is ours.
        let early = ["not found", "has no process", "not created", "not started yet"];
        if output.code() != Some(0) && early.iter().any(|text| output.stderr.contains(text)) {
            return Ok(false);
        }
        output.success().map(|_| true)
    }

    /// What `ctr task list` says: `RUNNING`, `STOPPED` and so on; nothing if the task is not there.
    pub fn status(&self) -> Result<Option<String>> {
        let list = self.case.ctr(&["task", "list"]).read()?;
        let fields = list
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let status = fields.into_iter().find_map(|fields| match *fields {
            [id, _, status] if id == self.id => Some(status.to_owned()),
            _ => None,
        });
        Ok(status)
    }

    /// The pid that `ctr task list` says.
    pub fn pid(&self) -> Result<u32> {
        let list = self.case.ctr(&["task", "list"]).read()?;
        let line = list
            .lines()
            .find(|line| line.starts_with(&self.id))
            .context("the task is listed")?;
        let pid = line.split_whitespace().nth(1).context("a task has a pid")?;
        Ok(pid.parse()?)
    }

    /// Waits until its task has this status.
    pub fn wait_for_status(&self, wanted: &str) -> Result<()> {
        let limit = match wanted {
            "RUNNING" => deadlines::RUN,
            _ => deadlines::PROGRESS,
        };
        let mut last = None;
        wait::until(&format!("{} is {wanted}", self.id), limit, || {
            last = self.status()?;
            Ok((last.as_deref() == Some(wanted)).then_some(()))
        })
        .with_context(|| format!("its last status is {last:?}"))
    }

    /// Deletes its task, which has ended, and answers the exit code.
    pub fn delete_task(&self) -> Result<i32> {
        let output = self.case.ctr(&["task", "delete", &self.id]).output()?;
        // `ctr` warns of a code that is not zero, and itself succeeds.
        let code = output.stderr.split_once("non-zero exit code ").map(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits
                .parse()
                .with_context(|| format!("understand {:?}", output.stderr))
        });
        let code = code.transpose()?;
        output.success()?;
        Ok(code.unwrap_or(0))
    }

    /// Deletes the container, whose task is gone.
    pub fn delete(&self) -> Result<()> {
        self.case.ctr(&["container", "delete", &self.id]).read().map(drop)
    }

    /// Kills it and takes everything away. The exit code is that of a SIGKILL.
    pub fn remove(self) -> Result<()> {
        self.kill("KILL")?;
        self.wait_for_status("STOPPED")?;
        let code = self.delete_task()?;
        ensure!(code == 137, "{} was killed, and its exit code is {code}", self.id);
        self.delete()
    }
}

/// containerd's events, as `ctr events` prints them.
pub struct Events {
    running: Running,
}

impl Events {
    /// Those of a container so far, in their order: topic and content.
    pub fn of(&self, id: &str) -> Vec<(String, serde_json::Value)> {
        let text = String::from_utf8_lossy(&self.running.stdout()).into_owned();
        // Date, time, zone, zone's name, namespace, topic, JSON.
        let event = |line: &str| {
            let fields: Vec<_> = line.splitn(7, ' ').collect();
            let &[_, _, _, _, _, topic, json] = &fields[..] else {
                return None;
            };
            let content: serde_json::Value = serde_json::from_str(json).ok()?;
            let is_about = |key| content.get(key).is_some_and(|value| value == id);
            (topic.starts_with("/tasks/") && (is_about("container_id") || is_about("id")))
                .then(|| (topic.to_owned(), content.clone()))
        };
        text.lines().filter_map(event).collect()
    }

    /// Waits for an event of a container.
    pub fn wait_for(&self, id: &str, topic: &str) -> Result<serde_json::Value> {
        let found = wait::until(&format!("the event {topic} of {id}"), deadlines::PROGRESS, || {
            Ok(self.of(id).into_iter().find(|(name, _)| name == topic))
        });
        match found {
            Ok((_, content)) => Ok(content),
            Err(error) => Err(error.context(format!("its events are {:#?}", self.of(id)))),
        }
    }
}
