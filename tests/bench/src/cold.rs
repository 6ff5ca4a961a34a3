//! B3 and B6: `ctr run --rm` from nothing to the end, ours and runc's, and the parts of ours.

use std::time::{Instant, SystemTime};

use anyhow::Result;

use crate::Amount;
use crate::bed::{Bed, Runtime};
use crate::report::{Figure, Measured, Results};
use crate::split::{Split, milliseconds};
use crate::statistics::Ratio;

/// Takes the samples.
///
/// # Errors
/// A container does not do its work.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let (mut ours, mut runc) = (Vec::new(), Vec::new());
    let mut splits: Vec<Split> = Vec::new();
    // The first round warms caches.
    for round in 0..=amount.cold {
        for runtime in Runtime::BOTH {
            let (took, split) = sample(bed, runtime, results)?;
            if round > 0 {
                match runtime {
                    Runtime::Kata => ours.push(took),
                    Runtime::Runc => runc.push(took),
                }
                splits.extend(split);
            }
        }
    }
    results.measured("ctr run --rm, ours", "ms", &ours);
    results.measured("ctr run --rm, runc", "ms", &runc);
    results.figures.push(Figure::new(
        "B3",
        "ctr run --rm of a cold start, ours / runc",
        "ms",
        &ours,
        &runc,
        Ratio::of(&ours, &runc),
    ));

    // Phases that overlap would hide time as well.
    let pairs: Vec<(f64, f64)> = splits
        .iter()
        .map(|split| (split.unattributed.abs(), split.total))
        .collect();
    let (unattributed, total): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    results.figures.push(Figure::new(
        "B6",
        "time in no phase / whole time from the request to create to the first output",
        "ms",
        &unattributed,
        &total,
        Ratio::of_pairs(&pairs),
    ));
    for (place, &(name, _)) in splits
        .first()
        .map_or(&[][..], |split| &split.parts)
        .iter()
        .enumerate()
    {
        let part: Vec<f64> = splits
            .iter()
            .filter_map(|split| split.parts.get(place).map(|(_, took)| *took))
            .collect();
        results.phases.extend(Measured::new(name, "ms", &part));
    }
    Ok(())
}

/// One container: how long it took, in milliseconds, and the parts of it where the runtime tells them.
fn sample(bed: &Bed, runtime: Runtime, results: &mut Results) -> Result<(f64, Option<Split>)> {
    let proof = bed.proof();
    let id = bed.name("cold");
    let run = bed.run(runtime, &["--rm"], &id, &["sh", "-c", &proof.script]);
    let (begin, began_at) = (Instant::now(), SystemTime::now());
    let output = run.output()?;
    let (took, ended_at) = (begin.elapsed(), SystemTime::now());
    bed.check(runtime, &proof, output, true)?;
    if runtime == Runtime::Runc {
        return Ok((milliseconds(took), None));
    }
    let trace = bed.trace(&id, |trace| trace.first_output.is_some())?;
    results.describe(&trace);
    let split = Split::of(&bed.records(&id)?, &trace, (began_at, ended_at))?;
    Ok((milliseconds(took), Some(split)))
}
