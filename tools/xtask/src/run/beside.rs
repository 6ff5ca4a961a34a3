//! The same container in a machine that boots, in a copy of one that was saved, and in one that was kept ready, side by side; each with
//! the proof that it is what it is called.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::cell::Inside;
use e2e::configuration::Configuration;
use e2e::containerd::Containerd;
use e2e::factory::{self, Kind};
use e2e::parts::Target;
use e2e::trace::{self, Trace};
use e2e::{image, wait};

/// Prints the kernel's boot, which no two machines have in common.
const BOOT: &str = "read -r boot </proc/sys/kernel/random/boot_id; echo $boot";

/// For the shim's last words to come through containerd's log.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// The phases that end when the guest is the sandbox.
const TO_READY: [&str; 3] = ["VMM start", "boot", "agent ready"];

/// What is said of one.
struct Shown {
    name: &'static str,
    /// Until its guest is the sandbox.
    ready: Duration,
    whole: Duration,
    boot: String,
    proof: String,
}

/// Runs them, and prints a table.
///
/// # Errors
/// One does not run, or is not what it is called.
pub fn show(cell: &Inside, containerd: &Containerd, settings: &Configuration) -> Result<()> {
    let mut shown = vec![one(cell, containerd, settings.clone(), None)?];
    for kind in [Kind::Template, Kind::Cache] {
        shown.push(one(cell, containerd, settings.clone(), Some(kind))?);
    }
    let boots: BTreeSet<&str> = shown.iter().map(|one| one.boot.as_str()).collect();
    ensure!(boots.len() == shown.len(), "two machines are one: {boots:?}");
    eprint!("\n{}", table(&shown));
    Ok(())
}

fn one(cell: &Inside, containerd: &Containerd, settings: Configuration, kind: Option<Kind>) -> Result<Shown> {
    let (name, origin) = match kind {
        None => ("booted", "boot"),
        Some(Kind::Template) => ("copied", "clone"),
        Some(Kind::Cache) => ("kept ready", "cache"),
    };
    let target = Target::here();
    let configuration = cell.directory.join(format!("{origin}.toml"));
    let settings = match kind {
        Some(kind) => factory::configured_below(cell, settings, kind, origin),
        None => settings,
    };
    settings.write(&configuration)?;
    let kept = match kind {
        Some(_) => factory::settled(&target, &configuration)?,
        None => Vec::new(),
    };
    let id = format!("run-{origin}");
    let begin = Instant::now();
    let boot = containerd
        .ctr(["run", "--rm", "--runtime", "io.containerd.kata.v2"])
        .args(["--runtime-config-path".as_ref(), configuration.as_os_str()])
        .args([image::BUSYBOX, &id, "sh", "-c", BOOT])
        .read()?;
    let whole = begin.elapsed();
    let (trace, pid) = wait::until("the shim's report", LAST_WORDS, || {
        let log = containerd.log_since(0)?;
        Ok(Trace::of_sandbox(&log, &id).zip(ended(&log, &id)))
    })?;
    ensure!(
        trace.origin == origin,
        "the machine of {id} is a {}, and not a {origin}",
        trace.origin
    );
    let mut proof = format!("the runtime says {:?}, QEMU was process {pid}", trace.origin);
    if kind == Some(Kind::Cache) {
        ensure!(
            kept.contains(&pid),
            "{pid} is none of those that were ready: {kept:?}"
        );
        proof.push_str(", as `kata-runtime factory status` had told");
    }
    if let Some(kind) = kind {
        factory::finish(&target, &configuration, kind, 0)?;
    }
    let parts = trace.phases.iter().filter(|(name, _)| TO_READY.contains(name));
    Ok(Shown {
        name,
        ready: parts.map(|(_, took)| *took).sum(),
        whole,
        boot: boot.trim().to_owned(),
        proof,
    })
}

/// The process of a sandbox's machine, as its end is logged.
fn ended(log: &str, id: &str) -> Option<u32> {
    let records = trace::records(log);
    let ended = records
        .iter()
        .find(|record| record["vm"] == id && record["pid"].is_u64())?;
    ended["pid"].as_u64()?.try_into().ok()
}

/// For a person.
fn table(shown: &[Shown]) -> String {
    let mut text = format!("  {:12}{:>14}{:>16}\n", "", "agent ready", "ctr run --rm");
    for one in shown {
        let _ = writeln!(
            text,
            "  {:12}{:>11.1} ms{:>13.1} ms  boot {:.8}; {}",
            one.name,
            one.ready.as_secs_f64() * 1e3,
            one.whole.as_secs_f64() * 1e3,
            one.boot,
            one.proof
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_line_with_its_proof() {
        let text = table(&[Shown {
            name: "kept ready",
            ready: Duration::from_micros(26_400),
            whole: Duration::from_millis(200),
            boot: "780aefe4-f134".into(),
            proof: "the runtime says \"cache\"".into(),
        }]);
        assert!(
            text.ends_with(
                "  kept ready         26.4 ms        200.0 ms  boot 780aefe4; the runtime says \"cache\"\n"
            ),
            "{text}"
        );
        let log = "{\"msg\":\"the VM was stopped\",\"vm\":\"a\",\"pid\":7}\nplain\n";
        assert_eq!((ended(log, "a"), ended(log, "b")), (Some(7), None));
    }
}
