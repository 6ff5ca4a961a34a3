//! B1 and B3.copy: machines that are copies of a template beside those that boot, and beside runc. That they are what they are
//! called is seen in what the runtime says of each, and in the boot id that no two of them have.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::Amount;
use crate::bed::{Bed, Copies, Runtime};
use crate::report::{Figure, Measured, Results};
use crate::split::milliseconds;
use crate::statistics::Ratio;

/// The phases that end with the agent's greeting.
const TO_GREETING: [&str; 2] = ["VMM start", "boot"];

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Copy,
    Boot,
    Runc,
}

/// Of one container, milliseconds.
struct Sample {
    whole: f64,
    /// From QEMU's start to the agent's greeting; 0 without either.
    greeting: f64,
    phases: Vec<(&'static str, f64)>,
}

/// Takes the samples.
///
/// # Errors
/// A container does not do its work, or its machine is not what it should be.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let copies = bed.copies()?;
    let measured = measure(bed, &copies, amount, results);
    copies.end().and(measured)
}

fn measure(bed: &Bed, copies: &Copies, amount: &Amount, results: &mut Results) -> Result<()> {
    let (mut copied, mut booted, mut runc) = (Vec::new(), Vec::new(), Vec::new());
    // The first round warms caches.
    for round in 0..=amount.cold {
        for kind in [Kind::Copy, Kind::Boot, Kind::Runc] {
            let taken = sample(bed, copies, kind)?;
            if round > 0 {
                match kind {
                    Kind::Copy => copied.push(taken),
                    Kind::Boot => booted.push(taken),
                    Kind::Runc => runc.push(taken),
                }
            }
        }
    }
    let of = |samples: &[Sample], value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<_>>();
    let greeted = (of(&copied, |one| one.greeting), of(&booted, |one| one.greeting));
    let whole = |samples: &[Sample]| of(samples, |one| one.whole);
    let mut figure = |id, what, ours: &[f64], other: &[f64]| {
        let ratio = Ratio::of(ours, other);
        results
            .figures
            .push(Figure::new(id, what, "ms", ours, other, ratio));
    };
    figure(
        "B1",
        "QEMU's start to the agent's greeting, copy / boot",
        &greeted.0,
        &greeted.1,
    );
    figure(
        "B3.copy",
        "ctr run --rm, a copy / runc",
        &whole(&copied),
        &whole(&runc),
    );
    figure(
        "B3.saved",
        "ctr run --rm, a copy / a boot",
        &whole(&copied),
        &whole(&booted),
    );
    for (place, &(name, _)) in copied
        .first()
        .map_or(&[][..], |one| &one.phases)
        .iter()
        .enumerate()
    {
        let part: Vec<f64> = copied
            .iter()
            .filter_map(|one| one.phases.get(place).map(|(_, took)| *took))
            .collect();
        results
            .phases
            .extend(Measured::new(&format!("a copy: {name}"), "ms", &part));
    }
    Ok(())
}

fn sample(bed: &Bed, copies: &Copies, kind: Kind) -> Result<Sample> {
    let proof = bed.proof();
    let id = bed.name("copies");
    let command = ["sh", "-c", &proof.script];
    let (runtime, run) = match kind {
        Kind::Copy => (Runtime::Kata, bed.run_copied(copies, &["--rm"], &id, &command)),
        Kind::Boot => (Runtime::Kata, bed.run(Runtime::Kata, &["--rm"], &id, &command)),
        Kind::Runc => (Runtime::Runc, bed.run(Runtime::Runc, &["--rm"], &id, &command)),
    };
    let begin = Instant::now();
    let output = run.output()?;
    let whole = milliseconds(begin.elapsed());
    bed.check(runtime, &proof, output, true)?;
    if kind == Kind::Runc {
        return Ok(Sample {
            whole,
            greeting: 0.0,
            phases: Vec::new(),
        });
    }
    let trace = bed.trace(&id, |_| true)?;
    let wanted = if kind == Kind::Copy { "clone" } else { "boot" };
    ensure!(
        trace.origin == wanted,
        "the machine of {id} is a {}, not a {wanted}",
        trace.origin
    );
    let phases: Vec<_> = trace
        .phases
        .iter()
        .map(|&(name, took)| (name, milliseconds(took)))
        .collect();
    let greeting = phases
        .iter()
        .filter(|(name, _)| TO_GREETING.contains(name))
        .map(|(_, took)| took)
        .sum();
    Ok(Sample {
        whole,
        greeting,
        phases,
    })
}
