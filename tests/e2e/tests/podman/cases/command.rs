//! The runtime's own command line, as conmon and podman use it and as a person does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e::configuration::Configuration;
use e2e::parts::Target;
use e2e::program::Program;
use e2e::{deadlines, wait};
use serde_json::Value;

use super::{cases, has, same};
use crate::bed::Bed;
use crate::suite::Runtime;

cases! {
    an_unknown_container_is_refused_in_words_that_callers_know,
    a_failure_is_one_object_in_the_log,
    it_says_its_version_and_what_it_can_do,
    a_bundle_is_created_started_killed_and_deleted,
    a_bundle_runs_in_the_foreground,
    a_container_that_has_ended_is_refused_what_it_cannot_do,
    a_broken_bundle_is_refused_and_leaves_its_name_free,
    what_is_being_created_is_refused_what_it_cannot_do_and_goes_with_its_creator (Kata: "of runc's it is not known yet"),
    a_stand_in_is_small_and_where_its_process_seems_to_be (Kata: "runc's process is the container's own"),
    descriptors_more_are_the_processs,
    descriptors_that_are_no_streams_are_refused_before_anything_is_started (Kata: "runc passes on whatever it is"),
    an_administrator_asks_what_a_daemon_has_started (Kata: "runc has no administrator's verbs"),
    a_dead_daemon_leaves_what_delete_removes (Kata: "runc has no daemon"),
}

/// A call of the runtime.
pub fn runtime(bed: &Bed) -> Program {
    Program::new(bed.runtime_path()).within(deadlines::RUN)
}

fn an_unknown_container_is_refused_in_words_that_callers_know(bed: &Bed) -> Result<()> {
    for words in [
        &["state", "nothing"][..],
        &["start", "nothing"],
        &["kill", "nothing", "9"],
        &["delete", "nothing"],
        &["pause", "nothing"],
        &["resume", "nothing"],
        &["exec", "nothing", "true"],
        &["ps", "nothing"],
        &["update", "--memory=67108864", "nothing"],
        &["events", "--stats", "nothing"],
    ] {
        let said = runtime(bed).args(words).output()?.failure()?;
        has(&said, "does not exist").with_context(|| format!("{words:?}"))?;
        ensure!(said.lines().count() == 1, "{words:?} says {said}");
    }
    runtime(bed)
        .args(["delete", "--force", "nothing"])
        .output()?
        .success()?;
    Ok(())
}

fn a_failure_is_one_object_in_the_log(bed: &Bed) -> Result<()> {
    let log = bed.directory().join(bed.name());
    runtime(bed)
        .args(["--log-format=json", "--log"])
        .args([&log])
        .args(["start", "nothing"])
        .output()?
        .failure()?;
    let said: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    has(said["msg"].as_str().unwrap_or_default(), "does not exist")?;
    same(said["level"].as_str().unwrap_or_default(), "error")
}

fn it_says_its_version_and_what_it_can_do(bed: &Bed) -> Result<()> {
    let said = runtime(bed).args(["--version"]).read()?;
    has(said.lines().next().unwrap_or_default(), "version")?;
    same(&runtime(bed).args(["-v"]).read()?, &said)?;
    if bed.runtime() == Runtime::Kata {
        let features: Value = serde_json::from_str(&runtime(bed).args(["features"]).read()?)?;
        ensure!(features["ociVersionMax"].is_string(), "{features}");
    }
    let bundle = bed.directory().join(bed.name());
    fs::create_dir_all(&bundle)?;
    let spec = || runtime(bed).args(["spec", "--bundle"]).args([&bundle]).output();
    spec()?.success()?;
    let written: Value = serde_json::from_str(&fs::read_to_string(bundle.join("config.json"))?)?;
    same(written["root"]["path"].as_str().unwrap_or_default(), "rootfs")?;
    ensure!(written["process"]["args"].is_array(), "{written}");
    // One that is there is not written over.
    spec()?.failure().map(drop)
}

/// A bundle with busybox, which runs a script.
pub fn bundle(bed: &Bed, script: &str) -> Result<PathBuf> {
    let bundle = bed.directory().join(bed.name());
    fs::create_dir_all(bundle.join("rootfs/bin"))?;
    for directory in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir(bundle.join("rootfs").join(directory))?;
    }
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox"))?;
    for name in ["sh", "sleep", "echo", "cat"] {
        std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin").join(name))?;
    }
    Program::new("runc")
        .args(["spec", "--bundle"])
        .args([&bundle])
        .output()?
        .success()?;
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["sh", "-c", script]);
    spec["process"]["rlimits"] = serde_json::json!([]);
    spec["process"]["capabilities"]["ambient"] = serde_json::json!([]);
    spec["root"]["readonly"] = false.into();
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    fs::write(&path, spec.to_string())?;
    Ok(bundle)
}

/// What it says of a container.
pub fn state(bed: &Bed, id: &str) -> Result<Value> {
    let output = runtime(bed).args(["state", id]).output()?;
    // CRI-O reads both outputs as one.
    same(&output.stderr, "")?;
    Ok(serde_json::from_str(&output.success()?)?)
}

fn a_bundle_is_created_started_killed_and_deleted(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "while :; do sleep 0.1; done")?;
    let (id, pid_file) = (bed.name(), bundle.join("pid"));
    let output = fs::File::create(bundle.join("output"))?;
    // What callers pass, whether or not it says anything here.
    let ours = [
        "--systemd-cgroup",
        "--cgroup-manager=disabled",
        "--rootless=false",
        "--log-level=debug",
    ];
    let global = match bed.runtime() {
        Runtime::Kata => &ours[..],
        Runtime::Runc => &[],
    };
    let mut created = runtime(bed)
        .args(global)
        .args(["create", "--no-new-keyring", "--bundle"])
        .args([&bundle])
        .args(["--pid-file"])
        .args([&pid_file])
        .args([&id])
        .start_logging_to(output)?;
    ensure!(
        created.wait()?.success(),
        "{}",
        fs::read_to_string(bundle.join("output"))?
    );
    let made = state(bed, &id)?;
    same(made["status"].as_str().unwrap_or_default(), "created")?;
    same(&made["pid"].to_string(), fs::read_to_string(&pid_file)?.trim())?;
    runtime(bed).args(["start", &id]).output()?.success()?;
    runtime(bed).args(["start", &id]).output()?.failure()?;
    same(state(bed, &id)?["status"].as_str().unwrap_or_default(), "running")?;
    runtime(bed).args(["delete", &id]).output()?.failure()?;
    runtime(bed).args(["kill", &id, "KILL"]).output()?.success()?;
    wait::until("the container has ended", deadlines::RUN, || {
        Ok((state(bed, &id)?["status"] == "stopped").then_some(()))
    })?;
    runtime(bed).args(["delete", &id]).output()?.success()?;
    runtime(bed).args(["state", &id]).output()?.failure().map(drop)
}

fn a_bundle_runs_in_the_foreground(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "cat; echo err >&2; exit 7")?;
    let output = runtime(bed)
        .args(["run", "--bundle"])
        .args([&bundle])
        .args([bed.name()])
        .stdin("input\n")
        .output()?;
    same(&output.stderr, "err\n")?;
    same(&output.exits(7)?, "input\n")
}

fn a_container_that_has_ended_is_refused_what_it_cannot_do(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "true")?;
    let id = bed.name();
    let output = fs::File::create(bundle.join("output"))?;
    let mut created = runtime(bed)
        .args(["create", "--bundle"])
        .args([&bundle])
        .args([&id])
        .start_logging_to(output)?;
    ensure!(created.wait()?.success(), "it is not created");
    // Not even started: what needs a process that executes is refused.
    for words in [&["exec", &id, "true"][..], &["delete", "--no-such-option", &id]] {
        runtime(bed).args(words).output()?.failure()?;
    }
    runtime(bed).args(["start", &id]).output()?.success()?;
    wait::until("the container has ended", deadlines::RUN, || {
        Ok((state(bed, &id)?["status"] == "stopped").then_some(()))
    })?;
    let mut refused = vec![
        vec!["start", &id],
        vec!["exec", &id, "true"],
        vec!["pause", &id],
        vec!["resume", &id],
    ];
    if bed.runtime() == Runtime::Kata {
        // runc sets limits of what is not there.
        refused.push(vec!["update", "--memory=67108864", &id]);
        // The pid of one that has ended is nobody's.
        same(
            runtime(bed).args(["ps", "--format=json", &id]).read()?.trim(),
            "[]",
        )?;
    }
    for words in refused {
        let said = runtime(bed).args(&words).output()?.failure()?;
        ensure!(said.lines().count() == 1, "{words:?} says {said}");
    }
    // It is the exit status of no process.
    runtime(bed).args(["exec", &id, "true"]).output()?.exits(255)?;
    // All of none.
    runtime(bed)
        .args(["kill", "--all", &id, "9"])
        .output()?
        .success()?;
    // Callers look for these words.
    let said = runtime(bed).args(["kill", &id, "9"]).output()?.failure()?;
    has(&said, "container not running")?;
    same(&state(bed, &id)?["pid"].to_string(), "0")?;
    runtime(bed).args(["delete", &id]).output()?.success()?;
    runtime(bed).args(["delete", &id]).output()?.failure().map(drop)
}

fn a_broken_bundle_is_refused_and_leaves_its_name_free(bed: &Bed) -> Result<()> {
    let whole = bundle(bed, "echo whole")?;
    let config = whole.join("config.json");
    let text = fs::read_to_string(&config)?;
    let id = bed.name();
    let run = || {
        runtime(bed)
            .args(["run", "--bundle"])
            .args([&whole])
            .args([&id])
            .output()
    };
    let mut rootless: Value = serde_json::from_str(&text)?;
    rootless["root"]["path"] = "nowhere".into();
    let mut empty: Value = serde_json::from_str(&text)?;
    empty["process"]["args"] = serde_json::json!([]);
    for broken in ["", "{", "[]", &rootless.to_string(), &empty.to_string()] {
        fs::write(&config, broken)?;
        let said = run()?.failure()?;
        if bed.runtime() == Runtime::Kata {
            ensure!(said.lines().count() == 1, "{broken:.40}: {said}");
        }
        runtime(bed).args(["state", &id]).output()?.failure()?;
    }
    fs::remove_file(&config)?;
    has(&run()?.failure()?, "config.json")?;
    fs::write(&config, text)?;
    same(&run()?.success()?, "whole\n")
}

fn what_is_being_created_is_refused_what_it_cannot_do_and_goes_with_its_creator(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "true")?;
    let id = bed.name();
    // Nobody ever writes to it: no container before somebody gives up.
    let fifo = bundle.join("fifo");
    Program::new("mkfifo").args([&fifo]).read()?;
    let waits = format!("read line <{}", fifo.display());
    let path = bundle.join("config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    spec["hooks"] = serde_json::json!({
        "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", waits], "timeout": 600 }],
    });
    fs::write(&path, spec.to_string())?;
    let output = fs::File::create(bundle.join("output"))?;
    let creating = runtime(bed)
        .args(["create", "--bundle"])
        .args([&bundle])
        .args([&id])
        .start_logging_to(output)?;
    let is = |wanted: &str| {
        let output = runtime(bed).args(["state", &id]).output()?;
        let status = match output.code() {
            Some(0) => serde_json::from_slice::<Value>(&output.stdout)?["status"].clone(),
            _ => "none".into(),
        };
        Ok((status == wanted).then_some(()))
    };
    wait::until("it is being created", deadlines::RUN, || is("creating"))?;
    for words in [
        &["start", &id][..],
        &["kill", &id, "9"],
        &["exec", &id, "true"],
        &["pause", &id],
        &["resume", &id],
        &["ps", &id],
        &["update", "--memory=67108864", &id],
        &["events", "--stats", &id],
        &["delete", &id],
        &["delete", "--force", &id],
    ] {
        let said = runtime(bed).args(words).output()?.failure()?;
        has(&said, "is being created").with_context(|| format!("{words:?}"))?;
        ensure!(said.lines().count() == 1, "{words:?} says {said}");
    }
    has(
        &runtime(bed)
            .args(["create", "--bundle"])
            .args([&bundle])
            .args([&id])
            .output()?
            .failure()?,
        "exists already",
    )?;
    creating.signal(rustix::process::Signal::KILL)?;
    wait::until("nothing is left of it", deadlines::RUN, || is("none"))
}

fn a_stand_in_is_small_and_where_its_process_seems_to_be(bed: &Bed) -> Result<()> {
    const MOST: u64 = 2048;
    let name = bed.sleeper(&[])?;
    let pid = bed.pid(&name)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .context("VmRSS")?;
    ensure!(resident.parse::<u64>()? < MOST, "{resident} KiB are resident");
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    has(&cgroup, &format!("/libpod-{}", bed.inspect(&name, ".Id")?))?;
    let network = |place: &str| -> Result<PathBuf> { Ok(fs::read_link(format!("/proc/{place}/ns/net"))?) };
    ensure!(
        network(&pid.to_string())? != network("self")?,
        "it is in the host's network"
    );
    // Conmon reads until nobody has the other end: neither the virtual machine nor a daemon of its devices may.
    let processes = e2e::census::processes()?;
    let standin = processes
        .iter()
        .find(|process| process.pid.cast_unsigned() == pid);
    let conmon = standin.context("the stand-in is not listed")?.parent;
    let of_conmon = pipes(conmon)?;
    ensure!(!of_conmon.is_empty(), "conmon reads from nobody");
    let helpers: Vec<_> = processes
        .iter()
        .filter(|process| {
            let program = process.command.first().map_or("", String::as_str);
            ["qemu-system", "virtiofsd", "vhost-device"]
                .iter()
                .any(|helper| program.contains(helper))
        })
        .collect();
    ensure!(helpers.len() > 1, "no virtual machine runs");
    for helper in helpers {
        let held: Vec<_> = pipes(helper.pid)?.intersection(&of_conmon).cloned().collect();
        ensure!(held.is_empty(), "{:?} has {held:?}", helper.command);
    }
    bed.remove(&name)
}

/// The pipes of which a process has an end.
fn pipes(pid: i32) -> Result<BTreeSet<PathBuf>> {
    let mut pipes = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One may be closed meanwhile.
        pipes.extend(
            fs::read_link(entry?.path())
                .ok()
                .filter(|link| link.to_string_lossy().starts_with("pipe:[")),
        );
    }
    Ok(pipes)
}

/// A connection, the file as which a program can be given its other end, and what is said there until its end.
fn connection() -> Result<(fs::File, impl FnOnce(&str) -> Result<String>)> {
    let (mut ours, its) = UnixStream::pair()?;
    ours.set_read_timeout(Some(deadlines::RUN))?;
    let converse = move |question: &str| -> Result<String> {
        ours.write_all(question.as_bytes())?;
        let mut answer = String::new();
        ours.read_to_string(&mut answer)
            .context("the connection does not end")?;
        Ok(answer)
    };
    Ok((fs::File::from(OwnedFd::from(its)), converse))
}

fn descriptors_more_are_the_processs(bed: &Bed) -> Result<()> {
    let script =
        "read line <&3; echo got $line >&3; echo written >&4; exec 3<&- 4>&-; while :; do sleep 0.1; done";
    let bundle = bundle(bed, script)?;
    let (id, written) = (bed.name(), bundle.join("written"));
    let given = format!("3<&0 4>>{} </dev/null", written.display());
    let output = fs::File::create(bundle.join("output"))?;
    let (its, converse) = connection()?;
    let mut created = runtime(bed)
        .args(["create", "--preserve-fds=2", "--bundle"])
        .args([&bundle])
        .args([&id])
        .redirected(&given)
        .stdin_from(its)
        .start_logging_to(output)?;
    ensure!(
        created.wait()?.success(),
        "{}",
        fs::read_to_string(bundle.join("output"))?
    );
    // Ours of it goes with the program.
    drop(created);
    runtime(bed).args(["start", &id]).output()?.success()?;
    same(&converse("question\n")?, "got question\n")?;
    wait::until("what the container wrote has come", deadlines::RUN, || {
        Ok((fs::read_to_string(&written)? == "written\n").then_some(()))
    })?;

    let (its, converse) = connection()?;
    let exec = runtime(bed)
        .args([
            "exec",
            "--preserve-fds=2",
            &id,
            "sh",
            "-c",
            "read line <&3; echo also $line | cat - >&3; echo more >&4",
        ])
        .redirected(&given)
        .stdin_from(its)
        .start()?;
    same(&converse("this\n")?, "also this\n")?;
    exec.end()?.success()?;
    same(&fs::read_to_string(&written)?, "written\nmore\n")?;
    runtime(bed)
        .args(["delete", "--force", &id])
        .output()?
        .success()
        .map(drop)
}

fn descriptors_that_are_no_streams_are_refused_before_anything_is_started(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "true")?;
    let id = bed.name();
    let call = |verb: &str, redirections: &str| {
        let call = runtime(bed)
            .args([verb, "--preserve-fds=1", "--bundle"])
            .args([&bundle])
            .args([&id]);
        call.redirected(redirections).output()?.failure()
    };
    for (verb, redirections, told) in [
        ("create", "3</", "descriptor 3 is a directory"),
        ("run", "3</dev/zero", "descriptor 3 is a device"),
        ("run", "3<&-", "descriptor 3 is not open"),
    ] {
        let error = call(verb, redirections)?;
        has(&error, "--preserve-fds 1")?;
        has(&error, told)?;
        ensure!(error.lines().count() == 1, "{error}");
    }
    let activated = runtime(bed)
        .args(["run", "--bundle"])
        .args([&bundle])
        .args([&id])
        // The shell becomes the program, and has its pid.
        .redirected("3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1");
    has(&activated.output()?.failure()?, "LISTEN_FDS=1")?;
    has(
        &runtime(bed).args(["state", &id]).output()?.failure()?,
        "does not exist",
    )
}

fn a_dead_daemon_leaves_what_delete_removes(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let processes = e2e::census::processes()?;
    let daemon = processes
        .iter()
        .find(|process| process.command.iter().any(|word| word == "daemon"))
        .context("there is no daemon")?;
    let pid = rustix::process::Pid::from_raw(daemon.pid).context("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    same(&bed.inspect(&name, ".State.ExitCode")?, "137")?;
    bed.remove(&name)
}

/// Every verb of an administrator's, on a sandbox that no shim has started.
fn an_administrator_asks_what_a_daemon_has_started(bed: &Bed) -> Result<()> {
    let bundle = bundle(bed, "sleep 1000 & sleep 1001")?;
    let (id, configuration) = (bed.name(), bundle.join("console.toml"));
    let mut with_console = Configuration::new(&Target::here());
    with_console
        .agent
        .push(("debug_console_enabled".into(), "true".into()));
    with_console.write(&configuration)?;
    let kata = |words: &[&str]| {
        Program::new(Target::here().programs().join("kata-runtime"))
            .args(["--config".as_ref(), configuration.as_os_str()])
            .args(words)
            .within(deadlines::RUN)
    };
    let output = fs::File::create(bundle.join("output"))?;
    let path = bundle.display().to_string();
    let mut created = kata(&["create", "--bundle", &path, &id]).start_logging_to(output)?;
    ensure!(
        created.wait()?.success(),
        "{}",
        fs::read_to_string(bundle.join("output"))?
    );
    kata(&["start", &id]).output()?.success()?;

    let json = |words: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&kata(words).read()?)?) };
    let inspected = json(&["inspect", &id])?;
    ensure!(inspected["containers"][0]["status"] == "running", "{inspected}");
    ensure!(inspected["containers"][0]["id"] == id.as_str(), "{inspected}");
    // Of a container of its own root, `ps` is the runtime's verb, and tells pids.
    wait::until("both sleep", deadlines::RUN, || {
        let pids = kata(&["ps", &id]).read()?;
        Ok((pids.lines().count() > 2).then_some(()))
    })?;
    let stats = json(&["stats", "--no-stream", "--format", "json", &id])?;
    ensure!(
        stats[1]["container"] == id.as_str() && stats[1]["pids"].as_u64() >= Some(2),
        "{stats}"
    );
    let metrics = kata(&["metrics", &id]).read()?;
    has(&metrics, "kata_sandbox_info{id=")?;
    has(
        &metrics,
        "kata_shim_agent_rpc_durations_histogram_milliseconds_count{action=\"create_container\"} 1",
    )?;
    let console = kata(&["console", &id, "--", "cat", "/proc/1/comm;", "exit", "7"]).output()?;
    ensure!(
        !console.exits(7)?.is_empty(),
        "a console has the guest's processes"
    );
    // A daemon has a file of its own, which is found without being named.
    let logged = kata(&["logs", &id]).read()?;
    has(&logged, "the sandbox is ready")?;
    has(&logged, "a console is opened")?;

    kata(&["delete", "--force", &id]).output()?.success()?;
    kata(&["inspect", &id]).output()?.failure().map(drop)
}
