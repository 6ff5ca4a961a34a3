//! B12 and B16: what a container that runs does: further processes in it, and 64 MiB of output.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::bed::{Bed, Runtime};
use crate::host::memory_of;
use crate::report::{Figure, Results};
use crate::split::milliseconds;
use crate::statistics::Ratio;
use crate::{Amount, deadlines};

/// Bytes of output.
const BYTES: usize = 64 << 20;

/// B12: `ctr task exec` of a shell, from its start to its end.
///
/// # Errors
/// It does not do its work.
pub fn latency(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let ids = start_both(bed)?;
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..=amount.warm {
        for ((runtime, id), took) in Runtime::BOTH.into_iter().zip(&ids).zip(&mut took) {
            let proof = bed.proof();
            let exec = bed.exec(id, &["sh", "-c", &proof.script]);
            let begin = Instant::now();
            let output = exec.output()?;
            let time = begin.elapsed();
            bed.check(runtime, &proof, output, round == 0)?;
            if round > 0 {
                took.push(milliseconds(time));
            }
        }
    }
    let [ours, runc] = &took;
    results.measured("ctr task exec, ours", "ms", ours);
    results.measured("ctr task exec, runc", "ms", runc);
    results.figures.push(Figure::new(
        "B12",
        "ctr task exec of a shell, ours / runc",
        "ms",
        ours,
        runc,
        Ratio::of(ours, runc),
    ));
    ids.iter().try_for_each(|id| bed.remove(id))
}

/// B16: 64 MiB from a process in the container to a client, from the first byte to the last.
///
/// # Errors
/// They do not arrive as they were written.
pub fn throughput(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let ids = start_both(bed)?;
    let mut rates = [Vec::new(), Vec::new()];
    let mut growths = [Vec::new(), Vec::new()];
    for round in 0..=amount.output {
        for (place, (runtime, id)) in Runtime::BOTH.into_iter().zip(&ids).enumerate() {
            let shim = bed.shim(runtime, id)?;
            let before = memory_of(shim, "Rss")?;
            let rate = rate(bed, id)?;
            let growth = memory_of(shim, "Rss")? - before;
            if round > 0
                && let (Some(rates), Some(growths)) = (rates.get_mut(place), growths.get_mut(place))
            {
                rates.push(rate);
                growths.push(growth);
            }
        }
    }
    let [ours, runc] = &rates;
    results.measured("64 MiB of output, ours", "MiB/s", ours);
    results.measured("64 MiB of output, runc", "MiB/s", runc);
    results.figures.push(Figure::new(
        "B16",
        "64 MiB of output by ctr task exec, ours / runc (more is better)",
        "MiB/s",
        ours,
        runc,
        Ratio::of(ours, runc),
    ));
    let [ours, go] = &growths;
    results.details.push(Figure::new(
        "B16.growth",
        "by how much 64 MiB of output make the shim grow, ours and Go's",
        "KiB",
        ours,
        go,
        None,
    ));
    ids.iter().try_for_each(|id| bed.remove(id))
}

/// A container of each, in the order of [`Runtime::BOTH`].
fn start_both(bed: &Bed) -> Result<Vec<String>> {
    Runtime::BOTH
        .into_iter()
        .map(|runtime| {
            let id = bed.name("warm");
            bed.start(runtime, &[], &id)?;
            Ok(id)
        })
        .collect()
}

/// MiB per second.
fn rate(bed: &Bed, id: &str) -> Result<f64> {
    let count = (BYTES >> 16).to_string();
    let command = ["dd", "if=/dev/zero", "bs=65536", &format!("count={count}")];
    let running = bed.exec(id, &command).within(deadlines::OUTPUT).start()?;
    running.wait_for_bytes(1)?;
    let begin = Instant::now();
    running.wait_for_bytes(BYTES)?;
    let took = begin.elapsed();
    let output = running.end()?;
    ensure!(
        output.stdout.len() == BYTES && output.stdout.iter().all(|&byte| byte == 0),
        "{} bytes came, and not the right ones",
        output.stdout.len()
    );
    output.success()?;
    Ok(BYTES as f64 / (1 << 20) as f64 / took.as_secs_f64())
}
