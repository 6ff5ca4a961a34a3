//! B1, B2 and B3: machines that were kept ready beside those that are copies of a template, those that boot, and runc. That they are
//! what they are called is seen in what the runtime says of each, and in the boot id that no two of them have.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::Amount;
use crate::bed::{Bed, Copies, Runtime};
use crate::report::{Figure, Measured, Results};
use crate::split::milliseconds;
use crate::statistics::Ratio;

/// The phases that end with the agent's greeting.
const TO_GREETING: [&str; 2] = ["VMM start", "boot"];

/// The phases that end when the guest is the sandbox.
const TO_READY: [&str; 3] = ["VMM start", "boot", "agent ready"];

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hit,
    Copy,
    Boot,
    Runc,
}

/// Of one container, milliseconds.
struct Sample {
    whole: f64,
    /// From QEMU's start to the agent's greeting; 0 without either.
    greeting: f64,
    /// From the wish for a machine to the guest's being this sandbox; 0 without either.
    ready: f64,
    phases: Vec<(&'static str, f64)>,
}

/// Takes the samples.
///
/// # Errors
/// A container does not do its work, or its machine is not what it should be.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let copies = bed.copies()?;
    let measured = bed.cache().and_then(|cache| {
        let measured = measure(bed, &copies, &cache, amount, results);
        cache.end().and(measured)
    });
    copies.end().and(measured)
}

fn measure(bed: &Bed, copies: &Copies, cache: &Copies, amount: &Amount, results: &mut Results) -> Result<()> {
    let (mut hits, mut copied, mut booted, mut runc) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // The first round warms caches.
    for round in 0..=amount.cold {
        for kind in [Kind::Hit, Kind::Copy, Kind::Boot, Kind::Runc] {
            // What is made anew in the background takes time of what is measured.
            cache.settled()?;
            let taken = sample(bed, copies, cache, kind)?;
            if round > 0 {
                match kind {
                    Kind::Hit => hits.push(taken),
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
        "B2",
        "a machine until its guest is the sandbox, kept ready / copy",
        &of(&hits, |one| one.ready),
        &of(&copied, |one| one.ready),
    );
    figure(
        "B3.cache",
        "ctr run --rm, kept ready / runc",
        &whole(&hits),
        &whole(&runc),
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
    for (samples, what) in [(&copied, "a copy"), (&hits, "kept ready")] {
        let names = samples.first().map_or(&[][..], |one| &one.phases);
        for (place, &(name, _)) in names.iter().enumerate() {
            let part: Vec<f64> = samples
                .iter()
                .filter_map(|one| one.phases.get(place).map(|(_, took)| *took))
                .collect();
            results
                .phases
                .extend(Measured::new(&format!("{what}: {name}"), "ms", &part));
        }
    }
    Ok(())
}

fn sample(bed: &Bed, copies: &Copies, cache: &Copies, kind: Kind) -> Result<Sample> {
    let proof = bed.proof();
    let id = bed.name("copies");
    let command = ["sh", "-c", &proof.script];
    let (runtime, run) = match kind {
        Kind::Hit => (Runtime::Kata, bed.run_copied(cache, &["--rm"], &id, &command)),
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
            ready: 0.0,
            phases: Vec::new(),
        });
    }
    let trace = bed.trace(&id, |_| true)?;
    let wanted = match kind {
        Kind::Hit => "cache",
        Kind::Copy => "clone",
        Kind::Boot | Kind::Runc => "boot",
    };
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
    let sum = |names: &[&str]| {
        let wanted = phases.iter().filter(|(name, _)| names.contains(name));
        wanted.map(|(_, took)| took).sum()
    };
    Ok(Sample {
        whole,
        greeting: sum(&TO_GREETING),
        ready: sum(&TO_READY),
        phases,
    })
}
