//! B17: files of a container's root, on a disk of its virtual machine against a directory of the host that is shared with it by
//! virtio-fs: 4 KiB reads at random places of one file, and a walk through many small files, none of which the guest has cached.
//!
//! A program in the container does both and says how long it took: nothing of what is measured is `ctr`'s or the shim's. The reads are
//! a static program's (the crate `random-reads`).

use std::fs;

use anyhow::{Context as _, Result, ensure};
use e2e::debian;
use e2e::parts::Target;
use e2e::program::Program;

use crate::bed::Bed;
use crate::report::{Figure, Results};
use crate::statistics::Ratio;
use crate::{Amount, deadlines};

/// How a root comes into the guest: as a disk, and by virtio-fs.
const SNAPSHOTTERS: [&str; 2] = ["devmapper", "overlayfs"];

/// Where the container has the program that reads.
const READS: &str = "/bench/random-reads";

/// How many reads are on their way at a time, the figure, and how many rounds are one sample. That is most of a second each: what else
/// the host does doubles a tenth of one.
const DEPTHS: [(u32, &str, u32); 3] = [(1, "B17.1", 10), (8, "B17.8", 30), (32, "B17.32", 40)];

/// What B17 is of: as many reads of each kind.
const ALL: &str = "1024 random reads of 4 KiB at each depth";

/// Makes a file of 64 MiB and 1000 small ones, none of which the guest's kernel knows any more.
const PREPARE: &str = r#"
import os
os.makedirs("/bench/many")
with open("/bench/file", "wb") as f:
    for i in range(64):
        f.write(bytes([i]) * (1 << 20))
for i in range(10):
    os.mkdir(f"/bench/many/{i}")
    for j in range(100):
        open(f"/bench/many/{i}/{j}", "w").write("x")
os.sync()
open("/proc/sys/vm/drop_caches", "w").write("3")
"#;

/// Looks at every file, none of which the guest's kernel knows any more.
const WALK: &str = r#"
import os, time
os.sync()
open("/proc/sys/vm/drop_caches", "w").write("3")
os.stat("/bench")
begin = time.monotonic()
found = sum(1 for top, dirs, files in os.walk("/bench/many") for f in files if os.stat(f"{top}/{f}").st_size == 1)
print(time.monotonic() - begin)
assert found == 1000, found
"#;

/// Measures both.
///
/// # Errors
/// There is no image, or a container does not do its work.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let image = debian::image(&Target::here())?;
    let program = Target::here().alone("random-reads");
    let program = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let mut ids = Vec::new();
    for snapshotter in SNAPSHOTTERS {
        bed.import_for(snapshotter, &image)?;
        let id = bed.name("disk");
        // Privileged, so that it can have its kernel forget what it has cached.
        bed.start_image(debian::NAME, &["--privileged", "--snapshotter", snapshotter], &id)?;
        times(bed.exec(&id, &["python3", "-c", PREPARE]))?;
        let save = format!("cat > {READS} && chmod +x {READS} && sync");
        times(bed.exec(&id, &["sh", "-c", &save]).stdin(program.clone()))?;
        ids.push(id);
    }
    let [disk, shared] = ids.as_slice() else {
        return Ok(());
    };
    let is_disk =
        |id: &str| Ok::<_, anyhow::Error>(bed.exec(id, &["cat", "/proc/mounts"]).read()?.contains("/dev/vd"));
    ensure!(
        is_disk(disk)? && !is_disk(shared)?,
        "the roots are not what they are to be"
    );
    let mut command = vec![READS.to_owned(), "/bench/file".to_owned()];
    command.extend(DEPTHS.map(|(depth, _, rounds)| format!("{depth}x{rounds}")));
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let reads = by_turns(bed, &ids, &command, amount)?;
    let all: Vec<_> = reads
        .iter()
        .map(|(ours, other)| (sum(ours), sum(other)))
        .collect();
    let figure = compared(results, "B17", ALL, &all);
    results.figures.push(figure);
    for (place, (depth, id, _)) in DEPTHS.into_iter().enumerate() {
        let of_depth: Vec<_> = reads
            .iter()
            .filter_map(|(ours, other)| Some((*ours.get(place)?, *other.get(place)?)))
            .collect();
        let what = format!("1024 random reads of 4 KiB, {depth} at a time");
        let figure = compared(results, id, &what, &of_depth);
        results.details.push(figure);
    }
    let walks = by_turns(bed, &ids, &["python3", "-c", WALK], amount)?;
    let walks: Vec<_> = walks
        .iter()
        .map(|(ours, other)| (sum(ours), sum(other)))
        .collect();
    let figure = compared(results, "B17.walk", "a walk through 1000 files", &walks);
    results.details.push(figure);
    ids.iter().try_for_each(|id| bed.remove(id))
}

/// Runs a command in both containers by turns. What it says in one belongs to what it says in the other right after: they meet the same
/// host.
fn by_turns(
    bed: &Bed,
    ids: &[String],
    command: &[&str],
    amount: &Amount,
) -> Result<Vec<(Vec<f64>, Vec<f64>)>> {
    let mut samples = Vec::new();
    for round in 0..=amount.warm {
        let mut said = ids.iter().map(|id| times(bed.exec(id, command)));
        if let (Some(ours), Some(other)) = (said.next(), said.next()) {
            let pair = (ours?, other?);
            if round > 0 {
                samples.push(pair);
            }
        }
    }
    Ok(samples)
}

/// A figure of pairs of milliseconds, of which the single ones are in the results.
fn compared(results: &mut Results, id: &str, what: &str, pairs: &[(f64, f64)]) -> Figure {
    let (ours, other): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    results.measured(&format!("{what}, disk"), "ms", &ours);
    results.measured(&format!("{what}, virtio-fs"), "ms", &other);
    let what = format!("{what}, on a disk / by virtio-fs");
    Figure::new(id, &what, "ms", &ours, &other, Ratio::of_pairs(pairs))
}

fn sum(times: &[f64]) -> f64 {
    times.iter().sum()
}

/// Runs a program in a container. What it prints is seconds; they are answered as milliseconds.
fn times(program: Program) -> Result<Vec<f64>> {
    let printed = program.within(deadlines::OUTPUT).read()?;
    printed
        .split_whitespace()
        .map(|time| {
            let seconds: f64 = time.parse().with_context(|| format!("understand {time:?}"))?;
            Ok(seconds * 1000.0)
        })
        .collect()
}
