//! Containers in copies of a virtual machine that was booted once: that they are, that they have nothing in common that they
//! should not, and that a template that cannot be trusted is not used.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::configuration::Configuration;
use e2e::deadlines;
use e2e::parts::Part;
use e2e::program::{Program, Running};
use e2e::wait;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::Listed;
use crate::bed::{Case, Container};

const TOOL: &[Part] = &[Part::OciRuntime];

pub const CASES: &[Listed] = &[
    Listed::ours(
        "copies_have_no_identity_in_common",
        copies_have_no_identity_in_common,
    )
    .needing(TOOL),
    Listed::ours(
        "a_copy_has_the_size_of_its_limits",
        a_copy_has_the_size_of_its_limits,
    )
    .needing(TOOL),
    Listed::ours(
        "a_template_that_was_touched_is_not_used",
        a_template_that_was_touched_is_not_used,
    )
    .needing(TOOL),
    Listed::ours("a_copy_is_killed_before_it_runs", a_copy_is_killed_before_it_runs).needing(TOOL),
    Listed::ours(
        "two_that_make_a_template_make_one",
        two_that_make_a_template_make_one,
    )
    .needing(TOOL),
    Listed::ours(
        "many_start_while_a_template_is_made",
        many_start_while_a_template_is_made,
    )
    .needing(TOOL),
    Listed::ours(
        "a_template_goes_while_copies_start",
        a_template_goes_while_copies_start,
    )
    .needing(TOOL),
    Listed::ours(
        "a_template_of_something_else_is_not_used",
        a_template_of_something_else_is_not_used,
    )
    .needing(TOOL),
    Listed::ours("there_is_no_room_for_a_template", there_is_no_room_for_a_template).needing(TOOL),
];

/// Templates of a case, and not those of its cell, which has a `/run` of its own.
const TEMPLATES: &str = "/run/templates-of-a-case";

/// The templates of a case; nothing is left of them.
struct Factory {
    tool: PathBuf,
    configuration: PathBuf,
}

impl Drop for Factory {
    fn drop(&mut self) {
        // After a failure; otherwise it is gone already.
        let _ = fs::remove_dir_all(TEMPLATES);
    }
}

impl Factory {
    fn new(case: &Case<'_>) -> Result<Self> {
        let configuration = case.path("configuration.toml");
        let mut settings = Configuration::new(case.target());
        settings
            .agent
            .push(("debug_console_enabled".into(), "true".into()));
        settings
            .hypervisor_number("default_memory", 256)
            // Many boot at once in some cases, on processors that others want as well.
            .agent_number("dial_timeout", AT_ONCE_DEADLINE.as_secs())
            .template(TEMPLATES)
            .write(&configuration)?;
        Ok(Self {
            tool: case.target().programs().join("kata-runtime"),
            configuration,
        })
    }

    fn call(&self, verb: &str) -> Program {
        self.tool(&["factory", verb])
    }

    fn tool(&self, words: &[&str]) -> Program {
        Program::new(&self.tool)
            .args(["--config".as_ref(), self.configuration.as_os_str()])
            .args(words)
            .within(deadlines::RUN)
    }

    /// A container that goes on by itself. Says whether its machine is a copy.
    fn start<'a>(&self, case: &'a Case<'a>) -> Result<(Container<'a>, bool)> {
        self.start_with(case, &[])
    }

    fn start_with<'a>(&self, case: &'a Case<'a>, flags: &[&str]) -> Result<(Container<'a>, bool)> {
        let id = case.id();
        let flags = [&["--detach", "--null-io"], flags].concat();
        case.run_configured(&self.configuration, &flags, &id, &["sleep", "1000"])
            .read()?;
        let vmm = case.process(&["qemu-system", &id])?;
        let is_copy = vmm.command.iter().any(|argument| argument == "-incoming");
        Ok((case.container(&id), is_copy))
    }

    /// The file of the one template that is there.
    fn file(name: &str) -> Result<PathBuf> {
        let entries = fs::read_dir(TEMPLATES)?.flatten().map(|entry| entry.path());
        let mut templates = entries.filter(|path| path.is_dir());
        Ok(templates.next().context("there is a template")?.join(name))
    }
}

/// What two containers print, line by line, and what nobody who was not there can know.
const IDENTITY: &str = "cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | \
                        md5sum; /host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /host/lib/x86_64-linux-gnu \
                        /host/bin/openssl genpkey -algorithm ed25519 -outform DER | tail -c 32 | md5sum; date +%s";

/// The host's programs, of which one makes keys for TLS as a server does at its first start.
const PROGRAMS: [&str; 2] = ["--mount", "type=bind,src=/usr,dst=/host,options=rbind:ro"];

fn copies_have_no_identity_in_common(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    let log = case.containerd().log_since(0)?.len();
    ensure!(factory.call("status").read()?.contains("is off"));
    let made = factory.call("init").read()?;
    ensure!(made.contains("vm factory initialized"), "{made}");

    let case = &*case;
    let (first, is_copy) = factory.start_with(case, &PROGRAMS)?;
    ensure!(is_copy, "the first machine was booted");
    let (second, is_copy) = factory.start_with(case, &PROGRAMS)?;
    ensure!(is_copy, "the second machine was booted");
    let (one, other) = (first.shell(IDENTITY)?, second.shell(IDENTITY)?);
    let (one, other): (Vec<_>, Vec<_>) = (one.lines().collect(), other.lines().collect());
    ensure!(one.len() == 5 && other.len() == 5, "{one:?} {other:?}");
    for (line, what) in ["boot id", "random uuid", "random bytes", "key for TLS"]
        .iter()
        .enumerate()
    {
        ensure!(
            one[line] != other[line],
            "two copies have the same {what}: {one:?}"
        );
    }
    for told in [&one, &other] {
        let clock: u64 = told[4].parse()?;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs();
        ensure!(
            now.abs_diff(clock) < 30,
            "the clock of a copy says {clock} at {now}"
        );
    }
    let machine = |container: &Container<'_>| {
        let words = ["exec", &container.id];
        factory.tool(&words).stdin("cat /etc/machine-id\n").read()
    };
    let (one, other) = (machine(&first)?, machine(&second)?);
    // Its share was there before it was a copy: by this event a guest is told of devices that come, which takes it longest of all. A
    // root on a disk is one.
    let disks = first.shell("ls /sys/block | grep ^vd | wc -l")?;
    let words = ["exec", &first.id];
    let told = factory
        .tool(&words)
        .stdin("cat /sys/firmware/acpi/interrupts/gpe01\n")
        .read()?;
    ensure!(
        told.split_whitespace().next() == Some(disks.trim()),
        "a copy with {disks} disks was told of devices: {told:?}"
    );
    ensure!(
        one.trim().len() == 32 && other.trim().len() == 32 && one != other,
        "two copies have the machine ids {one:?} and {other:?}"
    );
    let output = case
        .run_configured(
            &factory.configuration,
            &["--rm"],
            &case.id(),
            &["sh", "-c", "echo done; exit 7"],
        )
        .output()?;
    ensure!(output.exits(7)? == "done\n");
    let status = factory.call("status").read()?;
    ensure!(
        status.contains("is on") && status.contains("3 copied, 0 booted"),
        "{status}"
    );

    // Whoever runs does not need it any more; whoever comes next boots.
    factory.call("destroy").read()?;
    ensure!(
        !Path::new(TEMPLATES).exists(),
        "something is left of the templates"
    );
    ensure!(first.shell("echo $((6 * 7))")? == "42\n");
    first.remove()?;
    let (third, is_copy) = factory.start(case)?;
    ensure!(!is_copy, "a machine is a copy of what is not there");
    second.remove()?;
    third.remove()?;
    let logged = case.log_since(log)?;
    let told = |text: &str| logged.lines().filter(|line| line.contains(text)).count();
    ensure!(told(r#""origin":"clone""#) == 3 && told(r#""origin":"boot""#) == 1);
    ensure!(
        told("the virtual machine is booted, and not copied") == 1,
        "a miss is told once"
    );
    Ok(())
}

fn a_copy_has_the_size_of_its_limits(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    factory.call("init").read()?;
    let limit = 512_u64 << 20;
    let script = "nproc; grep MemTotal /proc/meminfo | tr -dc 0-9";
    let flags = ["--rm", "--memory-limit", &limit.to_string(), "--cpus", "1"];
    let output = case
        .run_configured(&factory.configuration, &flags, &case.id(), &["sh", "-c", script])
        .output()?
        .success()?;
    let mut lines = output.lines();
    let cpus: usize = lines.next().context("nproc says something")?.parse()?;
    let memory: u64 = lines.next().context("MemTotal is there")?.parse()?;
    ensure!(
        cpus == 2,
        "one CPU for the guest and one for the container are {cpus}"
    );
    ensure!(
        memory * 1024 >= limit,
        "a limit of {limit} bytes, and a machine with {memory} KiB"
    );
    let status = factory.call("status").read()?;
    ensure!(status.contains("1 copied, 0 booted"), "{status}");
    factory.call("destroy").read().map(drop)
}

fn a_template_that_was_touched_is_not_used(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    factory.call("init").read()?;
    let memory = fs::File::options().append(true).open(Factory::file("memory")?)?;
    memory.set_len(255 << 20)?;
    let case = &*case;
    let (container, is_copy) = factory.start(case)?;
    container.remove()?;
    ensure!(!is_copy, "a machine is a copy of half a template");
    let status = factory.call("status").read()?;
    ensure!(
        status.contains("is off")
            && status.contains("was sealed with 268435456")
            && status.contains("1 booted"),
        "{status}"
    );
    // It is made anew, and used again.
    let made = factory.call("init").read()?;
    ensure!(made.contains("vm factory initialized"), "{made}");
    let (container, is_copy) = factory.start(case)?;
    container.remove()?;
    ensure!(is_copy, "the new template is not used");
    factory.call("destroy").read().map(drop)
}

/// A copy that comes to nothing is booted instead, or the start fails with a reason; either way nothing is left of it.
fn a_copy_is_killed_before_it_runs(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    factory.call("init").read()?;
    let id = case.id();
    let run = case
        .run_configured(&factory.configuration, &["--rm"], &id, &["echo", "done"])
        .start()?;
    let vmm = wait::until("the virtual machine starts", deadlines::RUN, || {
        Ok(case.processes(&["qemu-system", &id])?.first().cloned())
    })?;
    let pid = Pid::from_raw(vmm.pid).context("it has an id")?;
    kill_process(pid, Signal::KILL)?;
    let output = run.end()?;
    match output.code() {
        Some(0) => ensure!(output.success()? == "done\n"),
        _ => ensure!(!output.failure()?.trim().is_empty(), "there is no reason"),
    }
    factory.call("destroy").read().map(drop)
}

fn two_that_make_a_template_make_one(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    let both = [factory.call("init").start()?, factory.call("init").start()?];
    let mut said = both
        .into_iter()
        .map(|one| one.end()?.success())
        .collect::<Result<Vec<_>>>()?;
    said.sort();
    ensure!(
        said[0].starts_with("vm factory initialized:")
            && said[1].starts_with("vm factory is initialized already:"),
        "{said:?}"
    );
    factory.call("destroy").read().map(drop)
}

/// Containers that start at the same time.
const AT_ONCE: usize = 16;

/// So many boots at once share two processors, and others want them as well.
const AT_ONCE_DEADLINE: Duration = deadlines::RUN.saturating_mul(5);

/// The same container so often, at once: each says a word of its own. Answers when the last one has ended.
fn run_at_once(case: &Case<'_>, factory: &Factory, count: usize) -> Result<Vec<(String, Running)>> {
    (0..count)
        .map(|_| {
            let id = case.id();
            let script = format!("echo {id}; exit 7");
            let run = case.run_configured(&factory.configuration, &["--rm"], &id, &["sh", "-c", &script]);
            Ok((id, run.within(AT_ONCE_DEADLINE).start()?))
        })
        .collect()
}

fn all_said_their_word(runs: Vec<(String, Running)>) -> Result<()> {
    for (id, run) in runs {
        let said = run.end()?.exits(7)?;
        ensure!(said == format!("{id}\n"), "{id} said {said:?}");
    }
    Ok(())
}

/// How many machines were copies and how many were booted.
fn starts(factory: &Factory) -> Result<(usize, usize)> {
    let status = factory.call("status").read()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("starts: "))
        .context("the starts are told")?;
    let numbers: Vec<usize> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    match numbers[..] {
        [copied, booted, ..] => Ok((copied, booted)),
        _ => bail!("{line:?} does not tell how many were copied and booted"),
    }
}

fn many_start_while_a_template_is_made(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    let case = &*case;
    let init = factory.call("init").start()?;
    // From here on each start is counted.
    wait::until("the template is begun", deadlines::RUN, || {
        Ok(Path::new(TEMPLATES).join("uses.json").exists().then_some(()))
    })?;
    let runs = run_at_once(case, &factory, AT_ONCE)?;
    init.end()?.success()?;
    all_said_their_word(runs)?;
    let (copied, booted) = starts(&factory)?;
    ensure!(copied + booted == AT_ONCE, "{copied} copied, {booted} booted");
    let (container, is_copy) = factory.start(case)?;
    container.remove()?;
    ensure!(is_copy, "the template that was made is not used");
    factory.call("destroy").read().map(drop)
}

/// Whoever has found it goes on with it, whoever comes later boots, and nobody notices.
fn a_template_goes_while_copies_start(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    factory.call("init").read()?;
    let case = &*case;
    let before = run_at_once(case, &factory, 4)?;
    wait::until("a copy starts", AT_ONCE_DEADLINE, || {
        Ok(case.processes(&["qemu-system", "-incoming"])?.first().map(drop))
    })?;
    let end = factory.call("destroy").start()?;
    let meanwhile = run_at_once(case, &factory, 2)?;
    end.end()?.success()?;
    all_said_their_word(before)?;
    all_said_their_word(meanwhile)?;
    ensure!(
        !Path::new(TEMPLATES).exists(),
        "something is left of the templates"
    );
    Ok(())
}

fn a_template_of_something_else_is_not_used(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    factory.call("init").read()?;
    let log = case.containerd().log_since(0)?.len();
    let other = Factory {
        tool: factory.tool.clone(),
        configuration: case.path("other.toml"),
    };
    Configuration::new(case.target())
        .hypervisor_number("default_memory", 256)
        .hypervisor("kernel_params", "another.guest=1")
        .template(TEMPLATES)
        .write(&other.configuration)?;
    let case = &*case;
    let (container, is_copy) = other.start(case)?;
    container.remove()?;
    ensure!(!is_copy, "a machine is a copy of another one's template");
    let logged = case.log_since(log)?;
    let told = logged
        .lines()
        .filter(|line| line.contains("booted, and not copied") && line.contains("factory init"))
        .count();
    ensure!(told == 1, "it is told {told} times what to do");
    // The other one's is there as before.
    let (container, is_copy) = factory.start(case)?;
    container.remove()?;
    ensure!(is_copy, "the template is not used any more");
    factory.call("destroy").read().map(drop)
}

/// A template that cannot be written is an error of whoever makes it, and of nobody else.
fn there_is_no_room_for_a_template(case: &mut Case<'_>) -> Result<()> {
    let factory = Factory::new(case)?;
    fs::create_dir(TEMPLATES)?;
    mount(
        "tmpfs",
        TEMPLATES,
        "tmpfs",
        MountFlags::empty(),
        c"size=8m,mode=0700",
    )?;
    let checked = (|| {
        let said = factory.call("init").output()?.failure()?;
        ensure!(said.contains("No space left on device"), "{said}");
        let left: Vec<_> = fs::read_dir(TEMPLATES)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        ensure!(left.iter().all(|path| path.is_file()), "{left:?} are left");
        let (container, is_copy) = factory.start(case)?;
        container.remove()?;
        ensure!(!is_copy, "a machine is a copy of what was never finished");
        factory.call("destroy").read()
    })();
    let unmounted = unmount(TEMPLATES, UnmountFlags::DETACH);
    checked?;
    unmounted?;
    Ok(())
}
