//! containerd's own shim for OCI runtimes (`io.containerd.runc.v2`), told to call the runtime under test: `ctr run --runc-binary`.

use anyhow::{Context as _, Result, ensure};
use e2e::containerd::Containerd;
use e2e::parts::Target;
use e2e::program::Program;
use e2e::{deadlines, image, wait};
use serde_json::Value;

use super::command::{runtime, state};
use super::{cases, has, same};
use crate::bed::Bed;

cases! {
    a_task_lives_as_containerd_expects,
    a_task_runs_in_the_foreground,
    a_task_that_cannot_be_is_refused_in_the_runtimes_words,
    what_containerds_own_shim_for_us_has_started_is_shown (Kata: "it is our own list of both"),
}

struct Stand<'a> {
    bed: &'a Bed,
    containerd: Containerd,
}

impl<'a> Stand<'a> {
    fn new(bed: &'a Bed) -> Result<Self> {
        let containerd = bed.containerd(&Target::here().programs())?;
        containerd.import(&bed.image())?;
        Ok(Self { bed, containerd })
    }

    fn ctr(&self, words: &[&str]) -> Program {
        self.containerd.ctr(words).within(deadlines::RUN)
    }

    /// `ctr run` by the runtime under test.
    fn run(&self, options: &[&str], id: &str, script: &str) -> Program {
        self.ctr(&["run", "--runc-binary"])
            .args([self.bed.runtime_path()])
            .args(options)
            .args([image::BUSYBOX, id, "sh", "-c", script])
    }

    fn status(&self, id: &str) -> Result<String> {
        let listed = self.ctr(&["tasks", "list"]).read()?;
        let words = listed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words.first() == Some(&id))
            .with_context(|| format!("{id} is not listed: {listed}"))?;
        Ok((*words.get(2).context("a status")?).to_owned())
    }

    fn remove(mut self, id: &str) -> Result<()> {
        self.ctr(&["tasks", "delete", "--force", id]).read()?;
        self.ctr(&["containers", "delete", id]).read()?;
        self.containerd.stop()
    }
}

fn a_task_lives_as_containerd_expects(bed: &Bed) -> Result<()> {
    let (stand, id) = (Stand::new(bed)?, bed.name());
    let script = "while :; do sleep 0.1; done";
    stand.run(&["--detach"], &id, script).read()?;
    same(&stand.status(&id)?, "RUNNING")?;
    let more = stand
        .ctr(&[
            "tasks",
            "exec",
            "--exec-id=more",
            &id,
            "sh",
            "-c",
            "echo more; exit 5",
        ])
        .output()?;
    same(&more.exits(5)?, "more\n")?;
    stand.ctr(&["tasks", "pause", &id]).read()?;
    same(&stand.status(&id)?, "PAUSED")?;
    stand.ctr(&["tasks", "resume", &id]).read()?;
    same(&stand.status(&id)?, "RUNNING")?;
    let listed = stand.ctr(&["tasks", "ps", &id]).read()?;
    ensure!(listed.lines().count() >= 2, "no process is listed: {listed}");
    has(&stand.ctr(&["tasks", "metrics", &id]).read()?, &id)?;
    stand.ctr(&["tasks", "kill", "--signal=KILL", &id]).read()?;
    wait::until("the task has ended", deadlines::RUN, || {
        Ok((stand.status(&id)? == "STOPPED").then_some(()))
    })?;
    stand.remove(&id)
}

fn a_task_runs_in_the_foreground(bed: &Bed) -> Result<()> {
    let mut stand = Stand::new(bed)?;
    let output = stand
        .run(
            &["--rm"],
            &bed.name(),
            "read line; echo $line; echo err >&2; exit 7",
        )
        .stdin("input\n")
        .output()?;
    same(&output.stderr, "err\n")?;
    same(&output.exits(7)?, "input\n")?;
    // `ctr` sets the size when the process runs.
    let script = "until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; echo it is so; exit 3";
    let terminal = stand.run(&["--rm", "--tty"], &bed.name(), script);
    let shown = terminal
        .start_on_terminal(e2e::terminal::Size {
            rows: 33,
            columns: 77,
        })?
        .end()?;
    has(&shown.exits(3)?, "it is so")?;
    stand.containerd.stop()
}

fn a_task_that_cannot_be_is_refused_in_the_runtimes_words(bed: &Bed) -> Result<()> {
    let (mut stand, id) = (Stand::new(bed)?, bed.name());
    let error = stand
        .ctr(&["run", "--rm", "--runc-binary"])
        .args([bed.runtime_path()])
        .args([image::BUSYBOX, &id, "/no/such/program"])
        .output()?
        .failure()?;
    has(&error, "/no/such/program")?;
    stand.containerd.stop()
}

fn what_containerds_own_shim_for_us_has_started_is_shown(bed: &Bed) -> Result<()> {
    let (stand, id) = (Stand::new(bed)?, bed.name());
    stand
        .ctr(&[
            "run",
            "--detach",
            "--runtime=io.containerd.kata.v2",
            "--runtime-config-path",
        ])
        .args([bed.configuration()])
        .args([image::BUSYBOX, &id, "sleep", "1000"])
        .read()?;
    let name = bed.sleeper(&[])?;
    let own = bed.inspect(&name, ".Id")?;
    let listed: Vec<Value> = serde_json::from_str(&runtime(bed).args(["list", "--format=json"]).read()?)?;
    let row = |id: &str| {
        listed
            .iter()
            .find(|row| row["id"] == id)
            .context("it is not listed")
    };
    let (theirs, ours) = (row(&id)?, row(&own)?);
    same(
        theirs["scope"].as_str().unwrap_or_default(),
        stand.containerd.namespace(),
    )?;
    same(ours["scope"].as_str().unwrap_or_default(), "oci")?;
    let told = state(bed, &id)?;
    same(told["status"].as_str().unwrap_or_default(), "running")?;
    same(&told["pid"].to_string(), &theirs["pid"].to_string())?;
    let bundle = stand.containerd.bundle(&id).display().to_string();
    same(told["bundle"].as_str().unwrap_or_default(), &bundle)?;
    // It is looked at, and that is all.
    for words in [&["kill", &id, "9"][..], &["delete", &id], &["pause", &id]] {
        let refused = runtime(bed).args(words).output()?.failure()?;
        has(&refused, "does not exist")?;
    }
    runtime(bed)
        .args(["delete", "--force", &id])
        .output()?
        .success()?;
    same(&stand.status(&id)?, "RUNNING")?;
    bed.remove(&name)?;
    stand.remove(&id)
}
