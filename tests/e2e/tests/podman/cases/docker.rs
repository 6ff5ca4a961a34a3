//! Docker, as Debian packages it: through its own containerd, and that one's shim for OCI runtimes. Its library of networks has a hook
//! (prestart) make a container's network, after the runtime has made the namespace and before it looks for interfaces.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::program::{Program, Running, search_path};
use e2e::terminal::Size;
use e2e::{deadlines, image, wait};
use rustix::process::Signal;
use serde_json::json;

use super::networks::{CLIENT, SERVER, page, port};
use super::{cases, has, same};
use crate::bed::Bed;

cases! {
    docker_publishes_a_port_of_a_server,
    docker_has_a_container_join_anothers_network,
    docker_runs_in_the_foreground_and_adds_processes,
    docker_pauses_stops_and_starts_again,
}

/// What Docker keeps while it runs. Its sockets are below, whose paths must be short.
const STATE: &str = "/run/docker-e2e";

struct Docker<'a> {
    bed: &'a Bed,
    daemon: Running,
}

impl<'a> Docker<'a> {
    fn start(bed: &'a Bed) -> Result<Self> {
        let directory = bed.directory().join(bed.name());
        let state = Path::new(STATE);
        fs::create_dir_all(&directory)?;
        fs::create_dir_all(state)?;
        let configuration = directory.join("daemon.json");
        let settings = json!({
            "runtimes": { "tested": { "path": bed.runtime_path() } },
            "data-root": directory.join("data"),
            "exec-root": state.join("exec"),
            "pidfile": state.join("pid"),
            "hosts": [socket()],
            "cgroup-parent": bed.cgroup(),
        });
        fs::write(&configuration, settings.to_string())?;
        let log = directory.join("log");
        let mut daemon = Program::new("dockerd")
            .env("PATH", search_path())
            .args([format!("--config-file={}", configuration.display())])
            .within(deadlines::RUN)
            .start_logging_to(fs::File::create(&log)?)?;
        wait::until("dockerd answers", deadlines::CONTAINERD, || {
            ensure!(
                !daemon.has_ended()?,
                "dockerd ended: {}",
                fs::read_to_string(&log)?
            );
            Ok(client(&["version"]).output()?.success().ok())
        })?;
        let docker = Self { bed, daemon };
        // Docker 20.10 does not read the layout of an OCI image.
        let archive = directory.join("busybox.tar").display().to_string();
        bed.call(&[
            "save",
            "--quiet",
            "--format=docker-archive",
            "--output",
            &archive,
            image::BUSYBOX,
        ])?;
        docker.call(&["load", "--quiet", "--input", &archive])?;
        Ok(docker)
    }

    fn call(&self, words: &[&str]) -> Result<String> {
        Ok(client(words).read()?.trim_end().to_owned())
    }

    /// `docker run` by the runtime under test.
    fn run(&self, options: &[&str], command: &[&str]) -> Program {
        client(&["run", "--runtime=tested"])
            .args(options)
            .args([image::BUSYBOX])
            .args(command)
    }

    fn background(&self, options: &[&str], command: &[&str]) -> Result<String> {
        let name = format!("docker-{}", self.bed.name());
        let options = [&["--detach", "--name", &name], options].concat();
        self.run(&options, command).read()?;
        Ok(name)
    }

    fn inspect(&self, name: &str, field: &str) -> Result<String> {
        self.call(&["inspect", &format!("--format={{{{{field}}}}}"), name])
    }

    /// Ends it, and takes away what it leaves.
    fn stop(mut self, containers: &[&str]) -> Result<()> {
        for name in containers {
            self.call(&["rm", "--force", name])?;
        }
        self.daemon.signal(Signal::TERM)?;
        self.daemon.wait_at_most(deadlines::CONTAINERD)?;
        for namespace in fs::read_dir(Path::new(STATE).join("exec/netns"))
            .into_iter()
            .flatten()
        {
            // It holds one for itself.
            let _ = rustix::mount::unmount(namespace?.path(), rustix::mount::UnmountFlags::DETACH);
        }
        fs::remove_dir_all(STATE).with_context(|| format!("remove {STATE}"))?;
        Program::new("ip")
            .env("PATH", search_path())
            .args(["link", "delete", "docker0"])
            .read()
            .map(drop)
    }
}

fn socket() -> String {
    format!("unix://{STATE}/docker.sock")
}

fn client(words: &[&str]) -> Program {
    Program::new("docker")
        .env("PATH", search_path())
        // Whatever the user of this machine has set up.
        .env("DOCKER_CONFIG", PathBuf::from(STATE).join("client"))
        .args([format!("--host={}", socket())])
        .args(words)
        .within(deadlines::RUN)
}

fn docker_publishes_a_port_of_a_server(bed: &Bed) -> Result<()> {
    let docker = Docker::start(bed)?;
    let port = port(bed)?;
    let publish = format!("--publish=127.0.0.1:{port}:80");
    let name = docker.background(&[&publish], &["sh", "-c", SERVER, "docked"])?;
    same(&page(port)?, "docked\n")?;
    let address = docker.inspect(&name, ".NetworkSettings.IPAddress")?;
    let addresses = docker.call(&["exec", &name, "ip", "-4", "address", "show", "dev", "eth0"])?;
    has(&addresses, &format!("inet {address}/"))?;
    has(&docker.call(&["top", &name])?, "httpd")?;
    let figures = docker.call(&["stats", "--no-stream", "--format={{.Name}} {{.PIDs}}", &name])?;
    ensure!(
        figures.starts_with(&name) && !figures.ends_with(" 0"),
        "figures of nothing: {figures}"
    );
    docker.stop(&[&name])
}

fn docker_has_a_container_join_anothers_network(bed: &Bed) -> Result<()> {
    let docker = Docker::start(bed)?;
    let server = docker.background(&[], &["sh", "-c", SERVER, "beside"])?;
    let network = format!("--network=container:{server}");
    let said = docker.run(&["--rm", &network], &["sh", "-c", CLIENT, "127.0.0.1"]);
    same(&said.read()?, "beside\n")?;
    docker.stop(&[&server])
}

fn docker_runs_in_the_foreground_and_adds_processes(bed: &Bed) -> Result<()> {
    let docker = Docker::start(bed)?;
    let output = docker
        .run(
            &["--rm", "--interactive"],
            &["sh", "-c", "cat; echo err >&2; exit 7"],
        )
        .stdin("input\n")
        .output()?;
    same(&output.stderr, "err\n")?;
    same(&output.exits(7)?, "input\n")?;
    let size = Size {
        rows: 33,
        columns: 77,
    };
    let script = "until stty size | grep '33 77'; do sleep 0.1; done; exit 3";
    let shown = docker
        .run(&["--rm", "--interactive", "--tty"], &["sh", "-c", script])
        .start_on_terminal(size)?
        .end()?;
    has(&shown.exits(3)?, "33 77")?;
    let name = docker.background(&[], &["sleep", "1000"])?;
    let more = client(&["exec", "--env=A=b", &name, "sh", "-c", "echo $A; exit 5"]).output()?;
    same(&more.exits(5)?, "b\n")?;
    docker.stop(&[&name])
}

fn docker_pauses_stops_and_starts_again(bed: &Bed) -> Result<()> {
    let docker = Docker::start(bed)?;
    let script = "trap 'exit 4' TERM; while :; do sleep 0.1; done";
    let name = docker.background(&["--memory=128m"], &["sh", "-c", script])?;
    docker.call(&["pause", &name])?;
    same(&docker.inspect(&name, ".State.Status")?, "paused")?;
    docker.call(&["unpause", &name])?;
    docker.call(&["update", "--memory=64m", "--memory-swap=64m", &name])?;
    docker.call(&["stop", &name])?;
    same(&docker.inspect(&name, ".State.ExitCode")?, "4")?;
    docker.call(&["start", &name])?;
    docker.call(&["kill", &name])?;
    same(&docker.call(&["wait", &name])?, "137")?;
    docker.stop(&[&name])
}
