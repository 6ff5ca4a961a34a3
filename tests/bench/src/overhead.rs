//! B5 and B15: what our runtime adds to a bare virtual machine until its agent is ready, and how fast a container is gone.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::census::Census;

use crate::Amount;
use crate::bare::{self, Sandbox};
use crate::bed::{Bed, Runtime};
use crate::report::{Figure, Results};
use crate::split::{CREATING, between, milliseconds, time_of};
use crate::statistics::Ratio;

/// The phases between the VMM's start and the agent's greeting.
const MACHINE: [&str; 2] = ["VMM start", "boot"];

/// One start of ours, in milliseconds.
struct Ours {
    /// From the request to create to the agent's readiness.
    ready: f64,
    /// From the start of the shim's first process to the agent's readiness.
    from_shim_start: f64,
    /// Of `ready`, from the VMM's start to the agent's greeting: what a bare virtual machine takes as well.
    machine: f64,
    /// The processes that it was made of.
    sandbox: Sandbox,
    removal: Removal,
}

/// How long a container took to start, and then to be gone, in milliseconds.
struct Removal {
    create: f64,
    delete: f64,
}

/// Takes the samples.
///
/// # Errors
/// A container or a bare virtual machine does not start, or something is left.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let (mut ready, mut from_shim_start, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    let (mut machine, mut outside) = (Vec::new(), Vec::new());
    let (mut ours_gone, mut runc_gone) = (Vec::new(), Vec::new());
    // The first round warms caches, and makes what programs make once and keep.
    for round in 0..=amount.cold {
        let before = (round > 0).then(|| bed.census()).transpose()?;
        let ours = ours(bed, before.as_ref(), results)?;
        let alone = milliseconds(bare::boot(&ours.sandbox, &bed.bare_directory())?);
        let runc = runc(bed, before.as_ref())?;
        if round > 0 {
            ready.push(ours.ready);
            machine.push(ours.machine);
            outside.push(ours.ready - ours.machine);
            from_shim_start.push(ours.from_shim_start);
            bare.push(alone);
            ours_gone.push((ours.removal.delete, ours.removal.create));
            runc_gone.push((runc.delete, runc.create));
        }
    }
    results.measured("agent ready, from the request to create", "ms", &ready);
    results.measured("agent ready, from the shim's start", "ms", &from_shim_start);
    results.measured("agent greets, bare QEMU", "ms", &bare);
    results.figures.push(Figure::new(
        "B5",
        "(ours from the request to create to the agent's readiness - bare QEMU of the same arguments) / bare QEMU",
        "ms",
        &ready,
        &bare,
        Ratio::of(&ready, &bare).map(Ratio::excess),
    ));
    // An emulated boot varies by more than the runtime adds, and hides it unless there are thousands of samples. What the two
    // have in common is one thing, what only ours does is another, and each has an interval of its own.
    results.figures.push(Figure::new(
        "B5.outside",
        "of ours, what is not between the VMM's start and the agent's greeting / bare QEMU",
        "ms",
        &outside,
        &bare,
        Ratio::of(&outside, &bare),
    ));
    results.figures.push(Figure::new(
        "B5.machine",
        "(ours from the VMM's start to the agent's greeting - bare QEMU of the same arguments) / bare QEMU",
        "ms",
        &machine,
        &bare,
        Ratio::of(&machine, &bare).map(Ratio::excess),
    ));
    results.details.push(Figure::new(
        "B5.from_shim_start",
        "the same from the start of the shim's first process, containerd's part in between included",
        "ms",
        &from_shim_start,
        &bare,
        Ratio::of(&from_shim_start, &bare).map(Ratio::excess),
    ));
    for (runtime, gone) in [("ours", &ours_gone), ("runc", &runc_gone)] {
        let (delete, create): (Vec<f64>, Vec<f64>) = gone.iter().copied().unzip();
        results.measured(&format!("ctr run --detach, {runtime}"), "ms", &create);
        results.measured(
            &format!("killed, deleted, nothing left, {runtime}"),
            "ms",
            &delete,
        );
        let figure = |id, what| Figure::new(id, what, "ms", &delete, &create, Ratio::of_pairs(gone));
        match runtime {
            "ours" => results.figures.push(figure(
                "B15",
                "kill and delete until nothing is left / create, both ours",
            )),
            _ => results.details.push(figure(
                "B15.runc",
                "kill and delete until nothing is left / create, both runc's",
            )),
        }
    }
    Ok(())
}

fn ours(bed: &Bed, before: Option<&Census>, results: &mut Results) -> Result<Ours> {
    let id = bed.name("ready");
    let create = milliseconds(bed.start(Runtime::Kata, &[], &id)?);
    let trace = bed.trace(&id, |_| true)?;
    results.describe(&trace);
    let common: Vec<_> = trace
        .phases
        .iter()
        .filter(|(name, _)| MACHINE.contains(name))
        .map(|(_, took)| *took)
        .collect();
    ensure!(
        common.len() == MACHINE.len(),
        "the trace has not all phases of {MACHINE:?}: {:?}",
        trace.phases
    );
    let machine: Duration = common.iter().sum();
    // containerd makes the log's pipe just before it starts the shim.
    let log = bed.bundle(&id).join("log");
    let shim_start = fs::metadata(&log)
        .and_then(|log| log.created().or_else(|_| log.modified()))
        .with_context(|| format!("find out when {} was made", log.display()))?;
    let records = bed.records(&id)?;
    let ready = time_of(&records, "the sandbox is ready")?;
    let sandbox = Sandbox::of(bed.process(&id)?)?;
    Ok(Ours {
        ready: between(time_of(&records, CREATING)?, ready),
        from_shim_start: between(shim_start, ready),
        machine: milliseconds(machine),
        sandbox,
        removal: removed(bed, &id, create, before)?,
    })
}

fn runc(bed: &Bed, before: Option<&Census>) -> Result<Removal> {
    let id = bed.name("gone");
    let create = milliseconds(bed.start(Runtime::Runc, &[], &id)?);
    removed(bed, &id, create, before)
}

/// Takes a container away and waits until nothing is left of it.
fn removed(bed: &Bed, id: &str, create: f64, before: Option<&Census>) -> Result<Removal> {
    let begin = Instant::now();
    bed.remove(id)?;
    if let Some(before) = before {
        bed.nothing_beyond(before)?;
    }
    Ok(Removal {
        create,
        delete: milliseconds(begin.elapsed()),
    })
}
