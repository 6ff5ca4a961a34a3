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
    let reads = by_turns(bed, [disk, shared], &command, DEPTHS.len(), amount)?;
    let figure = compared(results, "B17", ALL, &totals(&reads));
    results.figures.push(figure);
    for ((depth, id, _), pairs) in DEPTHS.into_iter().zip(&reads) {
        let what = format!("1024 random reads of 4 KiB, {depth} at a time");
        let figure = compared(results, id, &what, pairs);
        results.details.push(figure);
    }
    let walks = by_turns(bed, [disk, shared], &["python3", "-c", WALK], 1, amount)?;
    let figure = compared(results, "B17.walk", "a walk through 1000 files", &totals(&walks));
    results.details.push(figure);
    ids.iter().try_for_each(|id| bed.remove(id))
}

/// Milliseconds on a disk, and by virtio-fs right after: they meet the same host.
type Pairs = Vec<(f64, f64)>;

/// Runs a command that says so many times in both containers by turns. Answers with the pairs of each.
///
/// # Errors
/// It says more or fewer.
fn by_turns(
    bed: &Bed,
    ids: [&String; 2],
    command: &[&str],
    count: usize,
    amount: &Amount,
) -> Result<Vec<Pairs>> {
    let mut pairs = vec![Pairs::new(); count];
    for round in 0..=amount.warm {
        let [ours, other] = ids.map(|id| times(bed.exec(id, command)));
        let (ours, other) = (ours?, other?);
        ensure!(
            ours.len() == count && other.len() == count,
            "not {count} times: {ours:?}, {other:?}"
        );
        if round > 0 {
            let said = ours.into_iter().zip(other);
            pairs
                .iter_mut()
                .zip(said)
                .for_each(|(pairs, pair)| pairs.push(pair));
        }
    }
    Ok(pairs)
}

/// Of each round, what all times are together.
fn totals(all: &[Pairs]) -> Pairs {
    let rounds = all.first().map_or(0, Vec::len);
    let of = |round: usize| {
        let said = all.iter().filter_map(|pairs| pairs.get(round));
        said.fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
    };
    (0..rounds).map(of).collect()
}

/// A figure of pairs of milliseconds, of which the single ones are in the results.
fn compared(results: &mut Results, id: &str, what: &str, pairs: &[(f64, f64)]) -> Figure {
    let (ours, other): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    results.measured(&format!("{what}, disk"), "ms", &ours);
    results.measured(&format!("{what}, virtio-fs"), "ms", &other);
    let what = format!("{what}, on a disk / by virtio-fs");
    Figure::new(id, &what, "ms", &ours, &other, Ratio::of_pairs(pairs))
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
