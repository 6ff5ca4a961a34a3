//! Containers in machines that were kept ready: that they are those, that nobody else has them, and what becomes of them and of
//! those who want one when who keeps them dies.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::configuration::Configuration;
use e2e::parts::Part;
use e2e::program::Program;
use e2e::{deadlines, wait};
use rustix::process::{Pid, Signal, kill_process};

use super::Listed;
use super::faults::dies;
use crate::bed::{Case, Container};

const TOOL: &[Part] = &[Part::OciRuntime];

pub const CASES: &[Listed] = &[
    Listed::ours(
        "what_is_kept_ready_is_taken_once",
        what_is_kept_ready_is_taken_once,
    )
    .needing(TOOL),
    Listed::ours(
        "who_keeps_them_dies_while_one_is_wanted",
        who_keeps_them_dies_while_one_is_wanted,
    )
    .needing(TOOL),
];

/// Of a case, and not those of its cell, which has a `/run` of its own.
const TEMPLATES: &str = "/run/templates-of-a-cache";
const CACHE: &str = "/run/cache-of-a-case";

/// Machines that are kept ready; nothing is left of them.
struct Cache {
    tool: PathBuf,
    configuration: PathBuf,
}

/// What is told of them.
#[derive(Debug)]
struct Told {
    server: i32,
    machines: BTreeSet<i32>,
    text: String,
}

impl Drop for Cache {
    fn drop(&mut self) {
        // After a failure; otherwise it is gone already.
        let _ = self.call("destroy").output();
    }
}

impl Cache {
    fn new(case: &Case<'_>, name: &str, memory: u64, number: u64) -> Result<Self> {
        let configuration = case.path(name);
        let settings = Configuration::new(case.target())
            .hypervisor_number("default_memory", memory)
            .template(TEMPLATES)
            .cache(&format!("{CACHE}/cache.sock"), number);
        settings.write(&configuration)?;
        Ok(Self {
            tool: case.target().programs().join("kata-runtime"),
            configuration,
        })
    }

    fn call(&self, verb: &str) -> Program {
        Program::new(&self.tool)
            .args(["--config".as_ref(), self.configuration.as_os_str()])
            .args(["factory", verb])
            .within(deadlines::RUN)
    }

    fn told(&self) -> Result<Told> {
        let text = self.call("status").read()?;
        let number = |line: &str, beginning: &str| -> Option<i32> {
            line.strip_prefix(beginning)?.split(' ').next()?.parse().ok()
        };
        let mut servers = text
            .lines()
            .filter_map(|line| number(line, "VM cache server pid = "));
        Ok(Told {
            server: servers
                .next()
                .with_context(|| format!("nobody keeps machines: {text}"))?,
            machines: text
                .lines()
                .filter_map(|line| number(line, "VM pid = "))
                .collect(),
            text,
        })
    }

    /// A container that goes on by itself, and the process of its machine.
    fn start<'a>(&self, case: &'a Case<'a>) -> Result<(Container<'a>, i32)> {
        let id = case.id();
        let run = case.run_configured(
            &self.configuration,
            &["--detach", "--null-io"],
            &id,
            &["sleep", "1000"],
        );
        run.read()?;
        let vmm = case.process(&["qemu-system", &id])?;
        Ok((case.container(&id), vmm.pid))
    }
}

fn kill(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("it has an id")?;
    kill_process(pid, signal).with_context(|| format!("send {signal:?} to {pid:?}"))
}

/// What two containers print, line by line, and what nobody who was not there can know.
const IDENTITY: &str = "cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | \
                        md5sum; hostname; date +%s; ls /run /tmp; cat /proc/self/cgroup";

fn what_is_kept_ready_is_taken_once(case: &mut Case<'_>) -> Result<()> {
    let cache = Cache::new(case, "configuration.toml", 256, 2)?;
    let log = case.containerd().log_since(0)?.len();
    ensure!(cache.call("status").read()?.contains("VM cache is off"));
    // Two at once have one begin.
    let both = [cache.call("init").start()?, cache.call("init").start()?];
    let said = both.map(|one| one.end().and_then(|output| output.success()));
    for said in said {
        let said = said?;
        ensure!(said.contains("VM cache server pid = "), "{said}");
    }
    let before = cache.told()?;
    ensure!(before.machines.len() == 2, "{}", before.text);

    let case = &*case;
    let (first, vmm) = cache.start(case)?;
    ensure!(
        before.machines.contains(&vmm),
        "{vmm} is not one of {}",
        before.text
    );
    let (second, other) = cache.start(case)?;
    ensure!(
        before.machines.contains(&other) && vmm != other,
        "{other} is not the other one of {}",
        before.text
    );
    let (one, another) = (first.shell(IDENTITY)?, second.shell(IDENTITY)?);
    let (one, another): (Vec<_>, Vec<_>) = (one.lines().collect(), another.lines().collect());
    for (line, what) in ["boot id", "random uuid", "random bytes"].iter().enumerate() {
        ensure!(
            one[line] != another[line],
            "two machines have the same {what}: {one:?}"
        );
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    let clock: u64 = one[4].parse()?;
    ensure!(now.abs_diff(clock) < 30, "the clock of one says {clock} at {now}");
    ensure!(
        !one.join(" ").contains("practice"),
        "it shows what it has practised: {one:?}"
    );

    // It is filled up again, and one of another configuration is not there.
    cache.call("init").read()?;
    let after = cache.told()?;
    ensure!(
        after.server == before.server && after.machines.len() == 2 && after.text.contains("2 hits, 0 misses"),
        "{}",
        after.text
    );
    let larger = Cache::new(case, "larger.toml", 320, 2)?;
    let refused = larger.call("init").output()?.failure()?;
    ensure!(refused.contains("of another configuration"), "{refused}");
    let (third, vmm) = larger.start(case)?;
    ensure!(
        !after.machines.contains(&vmm),
        "a machine of another configuration is taken"
    );
    ensure!(cache.told()?.text.contains("1 misses"));
    std::mem::forget(larger);

    // Who has one keeps it, and it needs nobody else.
    cache.call("destroy").read()?;
    for place in [CACHE, TEMPLATES] {
        ensure!(!Path::new(place).exists(), "something is left in {place}");
    }
    for pid in &after.machines {
        ensure!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "machine {pid} is left"
        );
    }
    ensure!(first.shell("echo $((6 * 7))")? == "42\n");
    for container in [first, second, third] {
        container.remove()?;
    }
    let logged = case.log_since(log)?;
    let told = |text: &str| logged.lines().filter(|line| line.contains(text)).count();
    ensure!(told(r#""origin":"cache""#) == 2, "{logged}");
    ensure!(told("is none that was kept ready") == 1, "a miss is told once");
    Ok(())
}

fn who_keeps_them_dies_while_one_is_wanted(case: &mut Case<'_>) -> Result<()> {
    let cache = Cache::new(case, "configuration.toml", 256, 1)?;
    cache.call("init").read()?;
    let log = case.containerd().log_since(0)?.len();
    let case = &*case;
    let (taken, _) = cache.start(case)?;
    cache.call("init").read()?;
    let before = cache.told()?;

    // Whoever asks now waits for an answer that does not come.
    kill(before.server, Signal::STOP)?;
    let id = case.id();
    let run = case
        .run_configured(
            &cache.configuration,
            &["--rm"],
            &id,
            &["sh", "-c", "echo done; exit 7"],
        )
        .start()?;
    wait::until("somebody asks", deadlines::RUN, || {
        let connections = fs::read_to_string("/proc/net/unix")?;
        let asked = connections.lines().filter(|line| line.contains(CACHE)).count();
        // The one that listens, and one that is not accepted yet.
        Ok((asked > 1).then_some(()))
    })?;
    kill(before.server, Signal::KILL)?;
    ensure!(run.end()?.exits(7)? == "done\n");
    // With who kept them they are gone, but for the one that is somebody's.
    wait::until("the machines that nobody has are gone", deadlines::GONE, || {
        let mut kept = before.machines.iter();
        Ok(kept
            .all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists())
            .then_some(()))
    })?;
    ensure!(taken.shell("echo $((6 * 7))")? == "42\n");
    let logged = case.log_since(log)?;
    let told = logged
        .lines()
        .filter(|line| line.contains("is none that was kept ready"))
        .count();
    ensure!(told == 1, "the reason is told {told} times");

    // Its owner learns of its end as of any other's.
    let vmm = case.process(&["qemu-system", &taken.id])?;
    dies(case, &taken, &vmm)?;
    // What a dead one has left is no hindrance.
    cache.call("init").read()?;
    let (container, vmm) = cache.start(case)?;
    ensure!(!before.machines.contains(&vmm));
    container.remove()?;
    cache.call("destroy").read()?;
    ensure!(!Path::new(CACHE).exists(), "something is left in {CACHE}");
    Ok(())
}
