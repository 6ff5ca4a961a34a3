//! The runtime as CRI-O 1.0 calls it for a pod that is not trusted: through conmon, and itself. (CRI-O's own conmon of that time has
//! the same command line.)

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::program::Program;
use e2e::{deadlines, wait};
use serde_json::{Value, json};

use super::command::{bundle, runtime, state};
use super::{cases, has, same};
use crate::bed::Bed;
use crate::suite::Runtime;

cases! {
    a_container_of_crio_lives_as_it_expects,
    a_terminal_of_crio_is_written_to_the_log,
    a_process_more_and_a_container_more_of_crio_are_in_one_machine,
}

struct Container<'a> {
    bed: &'a Bed,
    id: String,
    bundle: PathBuf,
}

impl<'a> Container<'a> {
    /// Creates it, as `oci.CreateContainer` does.
    fn create(bed: &'a Bed, bundle: PathBuf, options: &[&str]) -> Result<Self> {
        let container = Self {
            bed,
            id: bed.name(),
            bundle,
        };
        fs::create_dir(container.exits())?;
        fs::create_dir(container.sockets())?;
        let exits = format!("--exit-dir={}", container.exits().display());
        let options: Vec<_> = options.iter().copied().chain([exits.as_str()]).collect();
        container.conmon(&container.bundle.join("pidfile"), &options)?;
        container.wait_for(&container.bundle.join("pidfile"))?;
        Ok(container)
    }

    fn conmon(&self, pid_file: &Path, options: &[&str]) -> Result<()> {
        // It goes into the background; what it has to say is in its files.
        Program::new("conmon")
            .directory(&self.bundle)
            .args(["-c", &self.id, "-u", &self.id, "-r"])
            .args([self.bed.runtime_path()])
            .args(["-b"])
            .args([&self.bundle])
            .args(["-p"])
            .args([pid_file])
            .args(["-l"])
            .args([self.log()])
            .args(["--socket-dir-path"])
            .args([self.sockets()])
            .args(options)
            .start_logging_to(fs::File::create(self.bundle.join("conmon-output"))?)?
            .wait()?;
        Ok(())
    }

    fn exits(&self) -> PathBuf {
        self.bundle.join("exits")
    }

    fn sockets(&self) -> PathBuf {
        self.bundle.join("sockets")
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("log")
    }

    /// Waits for a file with something in it.
    fn wait_for(&self, file: &Path) -> Result<String> {
        wait::until("conmon writes a file", deadlines::RUN, || {
            let text = fs::read_to_string(file).unwrap_or_default();
            Ok((!text.is_empty()).then_some(text))
        })
        .with_context(|| {
            let said = fs::read_to_string(self.bundle.join("conmon-output")).unwrap_or_default();
            format!("{}; conmon says {said:?}", file.display())
        })
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        runtime(self.bed).args(words).output()?.success()
    }

    /// Its end, as CRI-O finds it out.
    fn end(&self, code: &str) -> Result<()> {
        same(&self.wait_for(&self.exits().join(&self.id))?, code)?;
        let pid = fs::read_to_string(self.bundle.join("pidfile"))?;
        ensure!(
            !Path::new("/proc").join(pid.trim()).exists(),
            "its process is still there"
        );
        same(
            state(self.bed, &self.id)?["status"].as_str().unwrap_or_default(),
            "stopped",
        )?;
        self.call(&["delete", "--force", &self.id]).map(drop)
    }
}

fn a_container_of_crio_lives_as_it_expects(bed: &Bed) -> Result<()> {
    let script = "echo out; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done";
    let container = Container::create(bed, bundle(bed, script)?, &[])?;
    let id = container.id.as_str();
    same(state(bed, id)?["status"].as_str().unwrap_or_default(), "created")?;
    container.call(&["start", id])?;
    same(state(bed, id)?["status"].as_str().unwrap_or_default(), "running")?;
    wait::until("it writes", deadlines::RUN, || {
        Ok(fs::read_to_string(container.log())?
            .contains("stdout F out")
            .then_some(()))
    })?;
    container.call(&["pause", id])?;
    same(state(bed, id)?["status"].as_str().unwrap_or_default(), "paused")?;
    container.call(&["resume", id])?;
    container.call(&["kill", id, "TERM"])?;
    container.end("3")?;
    has(&fs::read_to_string(container.log())?, "stdout F bye")
}

fn a_terminal_of_crio_is_written_to_the_log(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "[ -t 0 ] && [ -t 1 ] && echo terminal; exit 4")?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    spec["process"]["terminal"] = true.into();
    fs::write(&path, spec.to_string())?;
    let container = Container::create(bed, bundle, &["-t"])?;
    container.call(&["start", &container.id])?;
    container.end("4")?;
    has(&fs::read_to_string(container.log())?, "terminal")
}

fn a_process_more_and_a_container_more_of_crio_are_in_one_machine(bed: &Bed) -> Result<()> {
    let container = Container::create(bed, of_pod(bed, "sandbox", None)?, &[])?;
    let id = container.id.as_str();
    container.call(&["start", id])?;
    let process = container.bundle.join("process.json");
    let spec = json!({
        "terminal": false,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh", "-c", "echo more; exit 9"],
        "env": ["PATH=/bin"],
        "cwd": "/",
    });
    fs::write(&process, spec.to_string())?;
    let process = process.display().to_string();
    // By itself, as for streams; and by conmon, as for a probe.
    let output = runtime(bed).args(["exec", "--process", &process, id]).output()?;
    same(&output.exits(9)?, "more\n")?;
    let log = fs::read_to_string(container.log())?;
    container.conmon(
        &container.bundle.join("exec-pidfile"),
        &["-e", "--exec-process-spec", &process],
    )?;
    wait::until("the process writes", deadlines::RUN, || {
        Ok((fs::read_to_string(container.log())? != log).then_some(()))
    })?;
    has(&fs::read_to_string(container.log())?, "stdout F more")?;
    a_member(bed, &container)?;
    container.call(&["kill", "--all", id, "KILL"])?;
    container.end("137")
}

/// One more container of the pod, as the first one lives.
fn a_member(bed: &Bed, sandbox: &Container<'_>) -> Result<()> {
    let member = Container::create(bed, of_pod(bed, "container", Some(sandbox))?, &[])?;
    member.call(&["start", &member.id])?;
    let machines = usize::from(bed.runtime() == Runtime::Kata);
    ensure!(bed.machines()? == machines, "it has a virtual machine of its own");
    let boot = |container: &Container<'_>| {
        container.call(&["exec", &container.id, "cat", "/proc/sys/kernel/random/boot_id"])
    };
    same(&boot(sandbox)?, &boot(&member)?)?;
    member.call(&["kill", &member.id, "KILL"])?;
    member.end("137")
}

/// What CRI-O says of a container's pod.
fn of_pod(bed: &Bed, kind: &str, sandbox: Option<&Container<'_>>) -> Result<PathBuf> {
    let bundle = bundle(bed, "while :; do sleep 0.1; done")?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    spec["annotations"] = json!({"io.kubernetes.cri-o.ContainerType": kind});
    if let Some(sandbox) = sandbox {
        spec["annotations"]["io.kubernetes.cri-o.SandboxID"] = sandbox.id.as_str().into();
        let pid = fs::read_to_string(sandbox.bundle.join("pidfile"))?;
        let namespaces = spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
        for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
            namespaces.retain(|namespace| namespace["type"] != kind);
            namespaces.push(json!({"type": kind, "path": format!("/proc/{}/ns/{file}", pid.trim())}));
        }
    }
    fs::write(&path, spec.to_string())?;
    Ok(bundle)
}
