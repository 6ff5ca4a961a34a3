//! An administrator's questions to sandboxes that a shim has started: each verb of `kata-runtime`, on real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::configuration::Configuration;
use e2e::parts::Part;
use e2e::program::Program;
use e2e::terminal::Size;
use e2e::{deadlines, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Listed;
use crate::bed::{Case, Container, Own};

const WINDOW: Size = Size {
    rows: 31,
    columns: 97,
};

const PROGRAM: &[Part] = &[Part::OciRuntime];

pub const CASES: &[Listed] = &[
    Listed::ours("every_verb", every_verb).needing(PROGRAM),
    Listed::ours("what_a_sandbox_refuses", what_a_sandbox_refuses).needing(PROGRAM),
    Listed::ours("the_dead_are_collected", the_dead_are_collected).needing(PROGRAM),
];

/// `kata-runtime`, with the configuration that the containers of this case have.
fn kata(case: &Case<'_>, configuration: &Path, words: &[&str]) -> Program {
    Program::new(case.target().programs().join("kata-runtime"))
        .args(["--config".as_ref(), configuration.as_os_str()])
        .args(words)
        .within(deadlines::CALL)
}

/// Where a case's traces are.
fn traces(case: &Case<'_>) -> PathBuf {
    case.path("traces")
}

/// A configuration in which consoles are allowed, and traces are written.
fn with_console(case: &Case<'_>) -> Result<Own> {
    let mut configuration = Configuration::new(case.target());
    configuration
        .agent
        .push(("debug_console_enabled".into(), "true".into()));
    configuration.runtime.extend([
        ("enable_tracing".into(), "true".into()),
        ("trace_directory".into(), format!("{:?}", traces(case))),
    ]);
    case.configure("console", configuration)
}

fn start<'a>(case: &'a Case<'a>, configuration: &Path, command: &[&str]) -> Result<Container<'a>> {
    let id = case.id();
    case.run_configured(configuration, &["--detach", "--null-io"], &id, command)
        .read()?;
    Ok(case.container(&id))
}

fn end(container: &Container<'_>) -> Result<()> {
    container.kill("KILL")?;
    container.wait_for_status("STOPPED")?;
    container.delete_task()?;
    container.delete()
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("understand {text}"))
}

/// The verbs about the host, on one where a container runs.
fn of_this_host(kata: &dyn Fn(&[&str]) -> Program) -> Result<()> {
    let checked = json(&kata(&["check", "--json"]).read()?)?;
    let lines = checked["checks"].as_array().context("checks")?;
    ensure!(
        checked["can_create"] == true && lines.len() > 10,
        "a container runs: {checked}"
    );
    for line in lines {
        let has_remedy = line["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty());
        ensure!((line["verdict"] == "pass") != has_remedy, "{line}");
    }
    let strict = kata(&["check", "--strict"]).output()?.code();
    ensure!(
        (strict == Some(0)) == (checked["hardware_virtualization"] == true),
        "{strict:?}: {checked}"
    );
    let told = json(&kata(&["env", "--json"]).read()?)?;
    for part in ["runtime", "hypervisor", "agent", "guest", "host"] {
        ensure!(told[part].is_object(), "{part}: {told}");
    }
    let explained = kata(&["config", "--explain", "debug_console_enabled"]).read()?;
    ensure!(explained.contains("default false"), "{explained}");
    let in_force = kata(&["config"]).read()?;
    let line = in_force
        .lines()
        .find(|line| line.starts_with("debug_console_enabled"));
    ensure!(
        line.is_some_and(|line| line.contains("= true") && line.contains("console.toml")),
        "{in_force}"
    );
    Ok(())
}

/// Each verb, by a shortened id, on one sandbox.
fn every_verb(case: &mut Case<'_>) -> Result<()> {
    let configuration = with_console(case)?;
    let container = start(case, &configuration, &["sh", "-c", "sleep 1000 & sleep 1001"])?;
    let id = container.id.clone();
    let kata = |words: &[&str]| kata(case, &configuration, words);

    of_this_host(&kata)?;
    let inspected = json(&kata(&["inspect", &id]).read()?)?;
    assert_eq!(inspected["id"], id.as_str());
    assert_eq!(inspected["state"], "running");
    assert_eq!(inspected["containers"][0]["status"], "running");
    assert_eq!(inspected["machine"]["type"], "q35");
    ensure!(
        inspected["phases"].as_array().is_some_and(|list| list.len() > 4),
        "{inspected}"
    );
    let processes = inspected["processes"].as_array().context("it has processes")?;
    let vmm = processes
        .iter()
        .find(|process| process["name"] == "vmm")
        .context("it has a VMM")?;
    ensure!(vmm["pid"] == container.pid()?, "{inspected}");
    ensure!(
        vmm["argv"][0].as_str().is_some_and(|name| name.contains("qemu")),
        "{vmm}"
    );

    let metrics = kata(&["metrics", &id]).read()?;
    for beginning in [
        "kata_sandbox_info{id=",
        "kata_shim_threads ",
        "kata_shim_pod_overhead_memory_in_bytes ",
        "kata_hypervisor_proc_stat{item=\"utime\"} ",
        "kata_hypervisor_proc_status{item=\"vmrss\"} ",
        "kata_hypervisor_io_stat{item=\"rchar\"} ",
        "kata_shim_agent_rpc_durations_histogram_milliseconds_bucket{action=\"create_container\",le=\"+Inf\"} 1",
        "kata_virtiofsd_fds ",
        "kata_container_memory_usage_bytes{container=",
        "kata_guest_load{item=\"load1\"} ",
        "kata_guest_meminfo{item=\"memtotal\"} ",
        "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} ",
        "kata_guest_tasks{item=\"cur\"} ",
    ] {
        ensure!(
            metrics.lines().any(|line| line.starts_with(beginning)),
            "{beginning}: {metrics}"
        );
    }
    let of_all = kata(&["metrics"]).read()?;
    ensure!(of_all.contains(&format!("sandbox_id=\"{id}\"")), "{of_all}");

    let stats = json(&kata(&["stats", "--no-stream", "--format", "json", &id]).read()?)?;
    assert_eq!(stats[0]["sandbox"], id.as_str());
    assert_eq!(stats[1]["container"], id.as_str());
    ensure!(
        stats[0]["memory_bytes"].as_u64() > Some(16 << 20),
        "a guest has memory: {stats}"
    );
    ensure!(stats[1]["pids"].as_u64() >= Some(2), "{stats}");
    let table = kata(&["stats", "--no-stream"]).read()?;
    ensure!(table.starts_with("SANDBOX") && !table.contains('\x1b'), "{table}");

    let ps = kata(&["ps", &id]).read()?;
    for command in ["sleep 1000", "sleep 1001"] {
        ensure!(ps.lines().any(|line| line.ends_with(command)), "{ps}");
    }
    let ps = json(&kata(&["ps", "--format", "json", &id]).read()?)?;
    assert_eq!(ps[0]["container"], id.as_str());

    console(case, &configuration, &id)?;

    let log = case.containerd().log_path();
    let kata = |words: &[&str]| self::kata(case, &configuration, words);
    let log = log.display().to_string();
    let logged = kata(&["logs", "--file", &log, &id]).read()?;
    ensure!(logged.contains("the sandbox is ready"), "{logged}");
    ensure!(
        logged.contains("a console is opened"),
        "an opened door is told: {logged}"
    );

    let collected = json(&kata(&["gc", "--force", "--format", "json"]).read()?)?;
    let collected = collected.as_array().context("it is a list")?;
    ensure!(
        !collected
            .iter()
            .any(|left| left["sandbox"].as_str().is_some_and(|name| name.ends_with(&id))),
        "what lives is not collected: {collected:?}"
    );
    let container = case.container(&id);
    assert_eq!(container.shell("echo alive")?, "alive\n");
    end(&container)?;
    trace(&traces(case), &id)?;
    configuration.finish()
}

/// The trace of a sandbox that has ended: no more than a twentieth of a container's life is in none of its stages.
fn trace(directory: &Path, id: &str) -> Result<()> {
    let files: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    let [file] = files.as_slice() else {
        bail!("one file: {files:?}");
    };
    let mode = file.metadata()?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    let text = fs::read_to_string(file.path())?;
    let mut spans = Vec::new();
    for line in text.lines() {
        let line = json(line)?;
        let all = line.pointer("/resourceSpans/0/scopeSpans/0/spans");
        spans.extend(all.and_then(Value::as_array).cloned().unwrap_or_default());
    }
    let time = |span: &Value, key: &str| -> Result<u64> {
        let text = span[key].as_str().with_context(|| format!("{key} of {span}"))?;
        Ok(text.parse()?)
    };
    let took = |span: &Value| -> Result<u64> {
        Ok(time(span, "endTimeUnixNano")? - time(span, "startTimeUnixNano")?)
    };
    ensure!(text.contains(id), "it is this sandbox's: {text}");
    for name in ["sandbox", "container", "process"] {
        let span = spans.iter().find(|span| span["name"] == name);
        let span = span.with_context(|| format!("no {name} in {text}"))?;
        let stages = spans
            .iter()
            .filter(|stage| stage["parentSpanId"] == span["spanId"] && stage["kind"] == 1);
        let mut attributed = 0;
        for stage in stages {
            attributed += took(stage)?;
        }
        let whole = took(span)?;
        ensure!(
            whole > 0 && whole.abs_diff(attributed) <= whole / 20,
            "{name}: {attributed} of {whole} ns: {text}"
        );
    }
    Ok(())
}

/// A shell in the guest, and not in the container.
fn console(case: &Case<'_>, configuration: &Path, id: &str) -> Result<()> {
    let kata = |words: &[&str]| kata(case, configuration, words);
    let listed = kata(&[
        "console",
        id,
        "--",
        "ls",
        "/run/kata;",
        "echo",
        "said",
        ">&2;",
        "exit",
        "7",
    ])
    .output()?;
    assert_eq!(listed.code(), Some(7), "{listed}");
    ensure!(
        String::from_utf8_lossy(&listed.stdout).contains("shared"),
        "{listed}"
    );
    ensure!(listed.stderr.contains("said"), "{listed}");
    let script = "cat /proc/1/comm\ncat /proc/self/mountinfo | grep -c virtiofs\n";
    let shell = kata(&["exec", id]).stdin(script).read()?;
    let lines: Vec<_> = shell.lines().collect();
    ensure!(
        lines
            .first()
            .is_some_and(|name| name.contains("init") || name.contains("agent")),
        "{shell}"
    );
    let mut terminal = kata(&["console", id])
        .within(deadlines::RUN)
        .start_on_terminal(WINDOW)?;
    terminal.type_in("tty; stty size; echo of $((40 + 2))\n")?;
    terminal.wait_for("of 42")?;
    let seen = terminal.text();
    ensure!(seen.contains("/dev/pts/") && seen.contains("31 97"), "{seen}");
    terminal.resize(Size {
        rows: 20,
        columns: 60,
    })?;
    // The news of it may be behind what is typed next.
    terminal.type_in("until stty size | grep -q '20 60'; do sleep 0.1; done; echo resized $((1 + 1))\n")?;
    terminal.wait_for("resized 2")?;
    // It is in front once it speaks: before that the key would mean the shell, which waits for whom it has not reached.
    terminal.type_in("sh -c 'echo asleep $((1 + 1)); exec sleep 1000'\n")?;
    terminal.wait_for("asleep 2")?;
    // A key that means a signal reaches the program in front, and the shell goes on.
    terminal.type_in("\u{3}")?;
    terminal.type_in("echo awake $((1 + 1)); exit 5\n")?;
    terminal.wait_for("awake 2")?;
    terminal.end()?.exits(5)?;
    // Much, through both ways, unchanged.
    let much = "0123456789abcdef".repeat(1 << 14);
    let echoed = kata(&["console", id, "cat"]).stdin(much.clone()).read()?;
    ensure!(
        echoed == much,
        "{} bytes came back of {}",
        echoed.len(),
        much.len()
    );
    Ok(())
}

/// Names that mean nothing or too much, consoles that are not enabled, and what a guest has not: one clear error each.
fn what_a_sandbox_refuses(case: &mut Case<'_>) -> Result<()> {
    let configuration = case.configure("plain", Configuration::new(case.target()))?;
    let one = start(case, &configuration, &["sleep", "1000"])?;
    let two = start(case, &configuration, &["sleep", "1000"])?;
    let kata = |words: &[&str]| kata(case, &configuration, words);
    // They differ in a number, and in what comes after it.
    let both = one.id.split("-1-").next().context("an id has a number")?;
    let policy = case.path("policy");
    fs::write(&policy, "package policy\n")?;
    let policy = policy.display().to_string();
    for (words, said) in [
        (&["inspect", "no-such-sandbox"][..], "there is no sandbox"),
        (&["inspect", both], "is ambiguous"),
        (&["stats", "--no-stream", both], "is ambiguous"),
        (&["ps", "no-such-sandbox"], "does not exist"),
        (&["console", &one.id], "debug_console_enabled"),
        (&["exec", &one.id], "debug_console_enabled"),
        // It is no file of rules.
        (
            &["iptables", "set", "--v6", "--sandbox-id", &one.id, &policy],
            "ip6tables-restore refuses",
        ),
        (
            &["policy", "set", "--sandbox-id", &one.id, &policy],
            "is of package \"policy\", not \"agent_policy\"",
        ),
    ] {
        let failure = kata(words).within(deadlines::RUN).output()?.failure()?;
        ensure!(failure.contains(said), "{words:?}: {failure}");
        ensure!(
            failure.trim().lines().count() == 1,
            "one error is one line: {failure}"
        );
    }
    let volumes = case.path("volumes");
    let volume = |order: &[&str]| {
        let place = volumes.display().to_string();
        kata(&[&["direct-volume", "--volumes", &place], order].concat())
    };
    let info = r#"{"volume-type":"block","device":"/dev/sdz","fstype":"ext4"}"#;
    volume(&["add", "--volume-path", "/vol", "--mount-info", info]).read()?;
    ensure!(
        volumes.join("L3ZvbA==/mountInfo.json").exists(),
        "it is where Kata has it"
    );
    let stats = volume(&["stats", "--volume-path", "/vol", "--sandbox", &one.id])
        .output()?
        .failure()?;
    ensure!(
        stats.contains("has no container with the direct volume /vol"),
        "{stats}"
    );
    let size = volume(&["resize", "--volume-path", "/vol", "--size", "1"])
        .output()?
        .failure()?;
    ensure!(
        size.contains("no sandbox that runs has the direct volume"),
        "{size}"
    );
    a_packet_filter(case, &kata, &one)?;
    a_policy_holds(case, &kata, &two)?;
    volume(&["remove", "--volume-path", "/vol"]).read()?;
    ensure!(!volumes.join("L3ZvbA==").exists(), "it is forgotten");
    end(&one)?;
    end(&two)?;
    configuration.finish()
}

/// The guest has none until somebody sets rules; then they are there, for each family, and hold.
fn a_packet_filter(
    case: &Case<'_>,
    kata: &dyn Fn(&[&str]) -> Program,
    container: &Container<'_>,
) -> Result<()> {
    let of = ["--sandbox-id", &container.id];
    // The guest is sent what it needs for it, and may be emulated.
    let ask = |words: &[&str]| kata(words).within(deadlines::RUN).read();
    let get = |v6: &[&str]| ask(&[&["iptables", "get"], &of[..], v6].concat());
    let ping = "ping -c 1 -W 1 127.0.0.1 > /dev/null; echo $?";
    ensure!(!get(&[])?.contains("-A INPUT"), "there are rules");
    ensure!(container.shell(ping)? == "0\n", "it has a loopback");
    let rules = case.path("rules");
    fs::write(
        &rules,
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p icmp -m comment --comment \"not this\" -j DROP\nCOMMIT\n\
         *nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n",
    )?;
    let rules = rules.display().to_string();
    ask(&[&["iptables", "set"], &of[..], &[&rules]].concat())?;
    let said = get(&[])?;
    for rule in [
        "--comment \"not this\" -j DROP",
        "-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE",
    ] {
        ensure!(said.contains(rule), "{rule}: {said}");
    }
    ensure!(!get(&["--v6"])?.contains("-A INPUT"), "of another family");
    ensure!(container.shell(ping)? == "1\n", "it holds");
    Ok(())
}

/// What a policy does not name is refused, another policy included, whoever asks; what it names goes on.
fn a_policy_holds(
    case: &Case<'_>,
    kata: &dyn Fn(&[&str]) -> Program,
    container: &Container<'_>,
) -> Result<()> {
    let names = [
        "DestroySandbox",
        "RemoveContainer",
        "SignalProcess",
        "WaitProcess",
        "ReadStream",
        "StatsContainer",
        "GetOOMEvent",
        "CopyFile",
    ];
    let mut text = String::from("# As Kata's agent takes it.\npackage agent_policy\n");
    for name in names {
        text += &format!("default {name}Request := true\n");
    }
    let file = case.path("policy.rego");
    fs::write(&file, text + "default ExecProcessRequest := false\n")?;
    assert_eq!(container.shell("echo before")?, "before\n");
    let file = file.display().to_string();
    let set = ["policy", "set", "--sandbox-id", &container.id, &file];
    kata(&set).read()?;
    let refused = container.exec(&[], &["true"]).output()?.failure()?;
    ensure!(
        refused.contains("the policy of this sandbox does not allow ExecProcessRequest"),
        "{refused}"
    );
    let refused = kata(&set).output()?.failure()?;
    ensure!(refused.contains("does not allow SetPolicyRequest"), "{refused}");
    let ps = kata(&["ps", &container.id]).read()?;
    ensure!(ps.contains("sleep 1000"), "{ps}");
    Ok(())
}

/// What a sandbox leaves whose shim is killed while containerd is away: shown, removed, and not missed afterwards.
fn the_dead_are_collected(case: &mut Case<'_>) -> Result<()> {
    let configuration = case.configure("plain", Configuration::new(case.target()))?;
    let container = start(case, &configuration, &["sleep", "1000"])?;
    let id = container.id.clone();
    let shim = case.shim(&container)?;
    case.containerd().kill();
    let pid = Pid::from_raw(shim.pid).context("a pid")?;
    kill_process(pid, Signal::KILL)?;
    // Its memory goes before its sockets: until it is a zombie one may still connect to it.
    let stat = Path::new("/proc").join(shim.pid.to_string()).join("stat");
    wait::until("the shim ends", deadlines::PROGRESS, || {
        let runs = fs::read_to_string(&stat).is_ok_and(|stat| {
            let state = stat.rsplit(')').next().unwrap_or_default();
            !state.trim_start().starts_with(['Z', 'X'])
        });
        Ok((!runs).then_some(()))
    })?;
    let gc = |words: &[&str]| -> Result<Option<Value>> {
        let words = [&["gc", "--format", "json"], words].concat();
        let list = json(&kata(case, &configuration, &words).read()?)?;
        let list = list.as_array().context("it is a list")?.clone();
        let is_ours = |left: &Value| left["sandbox"].as_str().is_some_and(|name| name.ends_with(&id));
        Ok(list.into_iter().find(is_ours))
    };
    let inspected = json(&kata(case, &configuration, &["inspect", &id]).read()?)?;
    assert_eq!(inspected["state"], "dead");
    let dead = kata(case, &configuration, &["stats", "--no-stream", &id])
        .output()?
        .failure()?;
    ensure!(dead.contains("kata-runtime gc"), "{dead}");
    let shown = gc(&[])?.context("it is shown")?;
    let dir = PathBuf::from(shown["directory"].as_str().context("a directory")?);
    ensure!(dir.exists() && shown["removed"] == false, "shown only: {shown}");
    let removed = gc(&["--force"])?.context("it is removed")?;
    ensure!(removed["removed"] == true && !dir.exists(), "{removed}");
    ensure!(gc(&[])?.is_none(), "nothing is left");
    case.containerd().start_again()?;
    let container = case.container(&id);
    container
        .wait_for_status("STOPPED")
        .or_else(|_| wait_gone(&container))?;
    // containerd may have forgotten the task by itself.
    let _ = container.delete_task();
    container.delete()?;
    configuration.finish()
}

fn wait_gone(container: &Container<'_>) -> Result<()> {
    ensure!(
        container.status()?.is_none(),
        "the task is neither stopped nor gone"
    );
    Ok(())
}
