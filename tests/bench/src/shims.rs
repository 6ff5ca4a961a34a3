//! B7 and B8: the memory and the threads of our shim, and of the Go shim for runc beside it.

use anyhow::{Context as _, Result};

use crate::Amount;
use crate::bed::{Bed, Runtime};
use crate::host::{memory_of, threads_of};
use crate::report::{Figure, Results};
use crate::statistics::{Ratio, slope};

/// Annotations by which containerd's CRI plugin groups containers into pods; shims go by them, whoever sets them.
const KIND: &str = "io.kubernetes.cri.container-type";
const POD: &str = "io.kubernetes.cri.sandbox-id";

/// Containers of the pod whose shim's threads are counted.
const CONTAINERS: u32 = 4;

/// Fields of `smaps_rollup`, with the ids of their figures.
const MEMORY: &[(&str, &str, &str)] = &[
    ("B7", "Rss", "resident memory of the shim, ours / Go's for runc"),
    (
        "B7.private_dirty",
        "Private_Dirty",
        "memory that is the shim's alone, ours / Go's",
    ),
    (
        "B7.pss",
        "Pss",
        "memory with its share of what several map, ours / Go's",
    ),
];

/// B7: containers of both runtimes are alive at the same time.
///
/// # Errors
/// One does not start or does not go.
pub fn memory(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let mut alive = Vec::new();
    for _ in 0..amount.alive {
        for runtime in Runtime::BOTH {
            let id = bed.name("alive");
            bed.start(runtime, &[], &id)?;
            alive.push((runtime, id));
        }
    }
    for &(figure, field, what) in MEMORY {
        let of = |wanted: Runtime| -> Result<Vec<f64>> {
            let shims = alive.iter().filter(|(runtime, _)| *runtime == wanted);
            shims
                .map(|(runtime, id)| memory_of(bed.shim(*runtime, id)?, field))
                .collect()
        };
        let (ours, go) = (of(Runtime::Kata)?, of(Runtime::Runc)?);
        results.measured(&format!("{field}, our shim"), "KiB", &ours);
        results.measured(&format!("{field}, Go shim for runc"), "KiB", &go);
        let figure = Figure::new(figure, what, "KiB", &ours, &go, Ratio::of(&ours, &go));
        match figure.id.contains('.') {
            false => results.figures.push(figure),
            true => results.details.push(figure),
        }
    }
    alive.iter().try_for_each(|(_, id)| bed.remove(id))
}

/// B8: threads of a pod's shim, container by container.
///
/// # Errors
/// A container does not start or does not go.
pub fn threads(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let mut totals = [Vec::new(), Vec::new()];
    let mut slopes = [Vec::new(), Vec::new()];
    for _ in 0..amount.pods {
        for (place, runtime) in Runtime::BOTH.into_iter().enumerate() {
            let counts = pod(bed, runtime)?;
            let (_, total) = *counts.last().context("a pod has containers")?;
            let slope = slope(&counts).context("a pod has several containers")?;
            if let (Some(totals), Some(slopes)) = (totals.get_mut(place), slopes.get_mut(place)) {
                totals.push(total);
                slopes.push(slope);
            }
        }
    }
    let [ours, go] = &totals;
    results.measured("threads, our shim", "", ours);
    results.measured("threads, Go shim for runc", "", go);
    results.figures.push(Figure::new(
        "B8",
        &format!("threads of the shim of a pod of {CONTAINERS} containers, ours / Go's for runc"),
        "",
        ours,
        go,
        Ratio::of(ours, go),
    ));
    let [ours, go] = &slopes;
    results.details.push(Figure::new(
        "B8.slope",
        "threads of the shim that each further container of a pod adds, ours / Go's",
        "",
        ours,
        go,
        Ratio::of(ours, go),
    ));
    Ok(())
}

/// Number of containers, and threads of the shim then.
fn pod(bed: &Bed, runtime: Runtime) -> Result<Vec<(f64, f64)>> {
    let sandbox = bed.name("pod");
    let annotation = |key: &str, value: &str| format!("{key}={value}");
    let pod = annotation(POD, &sandbox);
    let mut members = Vec::new();
    let mut counts = Vec::new();
    for count in 1..=CONTAINERS {
        let (id, kind) = match count {
            1 => (sandbox.clone(), annotation(KIND, "sandbox")),
            _ => (bed.name("member"), annotation(KIND, "container")),
        };
        bed.start(runtime, &["--annotation", &kind, "--annotation", &pod], &id)?;
        members.push(id);
        counts.push((f64::from(count), threads_of(bed.shim(runtime, &sandbox)?)?));
    }
    // The sandbox goes last.
    members.iter().rev().try_for_each(|id| bed.remove(id))?;
    Ok(counts)
}
