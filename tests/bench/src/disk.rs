//! B17: files of a container's root, on a disk of its virtual machine against a directory of the host that is shared with it by
//! virtio-fs: 4 KiB reads at random places of one file, and a walk through many small files, none of which the guest has cached.
//!
//! A program in the container does both and says how long it took: nothing of what is measured is `ctr`'s or the shim's.

use anyhow::{Context as _, Result, ensure};
use e2e::debian;
use e2e::parts::Target;

use crate::bed::Bed;
use crate::report::{Figure, Results};
use crate::statistics::Ratio;
use crate::{Amount, deadlines};

/// How a root comes into the guest: as a disk, and by virtio-fs.
const SNAPSHOTTERS: [&str; 2] = ["devmapper", "overlayfs"];

/// Makes a file of 64 MiB and 1000 small ones.
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
"#;

/// Reads 4 KiB at 1024 places, past the guest's cache, with `DEPTH` of them on their way at a time, by the kernel's asynchronous
/// interface (io_submit(2), its `struct iocb` and numbers for x86-64). Says how long one of eight rounds took, after one in which an
/// emulated guest translates what it executes: a single round is a few hundredths of a second, in which another thing of the
/// host's doubles it.
const READ: &str = r#"
import ctypes, mmap, os, random, struct, time
setup, getevents, submit = 206, 208, 209
call = ctypes.CDLL(None, use_errno=True).syscall
fd = os.open("/bench/file", os.O_RDONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096 * DEPTH)
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
context = ctypes.c_ulong(0)
assert call(setup, DEPTH, ctypes.byref(context)) == 0
events = ctypes.create_string_buffer(32 * DEPTH)
places = [i * 4096 for i in random.sample(range(16384), 1024)]
def batch(places):
    orders = [ctypes.create_string_buffer(struct.pack("=QIiHhIQQqQII", n, 0, 0, 0, 0, fd, start + 4096 * n, 4096, place, 0, 0, 0), 64) for n, place in enumerate(places)]
    return (ctypes.c_void_p * len(orders))(*map(ctypes.addressof, orders)), orders
batches = [batch(places[n : n + DEPTH]) for n in range(0, 1024, DEPTH)]
def read():
    for orders, _ in batches:
        assert call(submit, context, DEPTH, orders) == DEPTH
        assert call(getevents, context, ctypes.c_long(DEPTH), ctypes.c_long(DEPTH), events, None) == DEPTH
    for n in range(DEPTH):
        assert struct.unpack_from("=q", events, 32 * n + 16)[0] == 4096
read()
begin = time.monotonic()
for _ in range(8):
    read()
print((time.monotonic() - begin) / 8)
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
    let mut ids = Vec::new();
    for snapshotter in SNAPSHOTTERS {
        bed.import_for(snapshotter, &image)?;
        let id = bed.name("disk");
        // Privileged, so that it can have its kernel forget what it has cached.
        bed.start_image(debian::NAME, &["--privileged", "--snapshotter", snapshotter], &id)?;
        python(bed, &id, PREPARE)?;
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
    for (id, what, script) in [
        (
            "B17",
            "1024 random reads of 4 KiB, 32 at a time",
            READ.replace("DEPTH", "32"),
        ),
        (
            "B17.one",
            "1024 random reads of 4 KiB, one at a time",
            READ.replace("DEPTH", "1"),
        ),
        ("B17.walk", "a walk through 1000 files", WALK.to_owned()),
    ] {
        let mut took = [Vec::new(), Vec::new()];
        for round in 0..=amount.warm {
            for (container, took) in ids.iter().zip(&mut took) {
                let seconds = python(bed, container, &script)?;
                if round > 0 {
                    took.push(seconds.context("a time")? * 1000.0);
                }
            }
        }
        let [ours, other] = &took;
        results.measured(&format!("{what}, disk"), "ms", ours);
        results.measured(&format!("{what}, virtio-fs"), "ms", other);
        let figure = Figure::new(
            id,
            &format!("{what}, on a disk / by virtio-fs"),
            "ms",
            ours,
            other,
            Ratio::of(ours, other),
        );
        match id {
            "B17" => results.figures.push(figure),
            _ => results.details.push(figure),
        }
    }
    ids.iter().try_for_each(|id| bed.remove(id))
}

/// Runs a script in a container. What it prints is a time, or nothing.
fn python(bed: &Bed, id: &str, script: &str) -> Result<Option<f64>> {
    let python = bed.exec(id, &["python3", "-c", script]);
    let printed = python.within(deadlines::OUTPUT).read()?;
    match printed.trim() {
        "" => Ok(None),
        time => Ok(Some(
            time.parse().with_context(|| format!("understand {time:?}"))?,
        )),
    }
}
