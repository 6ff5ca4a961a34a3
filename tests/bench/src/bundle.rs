//! B4: `run` of a bundle by an OCI runtime's command line, from nothing to the end: ours, whose machine boots, is a copy or was kept
//! ready, against gVisor's `runsc` where there is one, and against runc.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use e2e::parts::{Part, Target};
use e2e::program::{self, Program};
use e2e::{deadlines, image};
use serde_json::{Value, json};

use crate::Amount;
use crate::bed::{Bed, CODE, Copies, Runtime};
use crate::report::{Figure, Results};
use crate::split::milliseconds;
use crate::statistics::Ratio;

/// An OCI runtime of the host's; ours by where its machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Boot,
    Copy,
    Hit,
    Runsc,
    Runc,
}

/// Ours, with the figure of each, and what it is called there.
const OURS: [(Tool, &str, &str); 3] = [
    (Tool::Boot, "B4", "a cold start"),
    (Tool::Copy, "B4.copy", "a copy"),
    (Tool::Hit, "B4.cache", "kept ready"),
];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Boot | Self::Copy | Self::Hit => "kata-runtime",
            Self::Runsc => "runsc",
            Self::Runc => "runc",
        }
    }
}

/// Takes the samples.
///
/// # Errors
/// A container does not do its work, or its machine is not what it should be.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    Part::OciRuntime.check(&Target::here())?;
    let bundle = Bundle::make(bed)?;
    let copies = bed.copies()?;
    // Their ends tell whether all were what they are called.
    let measured = bed.cache().and_then(|cache| {
        let measured = measure(&bundle, &copies, &cache, amount, results);
        cache.end().and(measured)
    });
    copies.end().and(measured)
}

fn measure(
    bundle: &Bundle<'_>,
    copies: &Copies,
    cache: &Copies,
    amount: &Amount,
    results: &mut Results,
) -> Result<()> {
    let mut rivals = vec![(Tool::Runc, Vec::new())];
    if program::exists(Path::new(Tool::Runsc.name())) {
        rivals.insert(0, (Tool::Runsc, Vec::new()));
    } else {
        results.condition("runsc", "there is none here: B4 is ours against runc alone");
    }
    let mut ours = OURS.map(|(tool, ..)| (tool, Vec::new()));
    // The first round warms caches.
    for round in 0..=amount.cold {
        for (tool, samples) in ours.iter_mut().chain(&mut rivals) {
            // What is made anew in the background takes time of what is measured.
            cache.settled()?;
            let configuration = match tool {
                Tool::Copy => copies.configuration(),
                Tool::Hit => cache.configuration(),
                Tool::Boot | Tool::Runsc | Tool::Runc => bundle.bed.configuration(),
            };
            let took = bundle.sample(*tool, configuration)?;
            if round > 0 {
                samples.push(took);
            }
        }
    }
    for ((_, id, kind), (_, ours)) in OURS.iter().zip(&ours) {
        results.measured(&format!("run of a bundle, kata-runtime, {kind}"), "ms", ours);
        for (place, (tool, other)) in rivals.iter().enumerate() {
            let name = tool.name();
            let what = format!("run of a bundle, {kind}, ours / {name}");
            let figure = |id: &str| Figure::new(id, &what, "ms", ours, other, Ratio::of(ours, other));
            // Those of machines that did not boot have bounds, which are for the first of the rivals alone.
            match (place, tool, *id) {
                (0, Tool::Runsc, id) | (0, _, id @ "B4") => results.figures.push(figure(id)),
                (_, _, id) => results.details.push(figure(&format!("{id}.{name}"))),
            }
        }
    }
    for (tool, samples) in &rivals {
        results.measured(&format!("run of a bundle, {}", tool.name()), "ms", samples);
    }
    Ok(())
}

/// A bundle with busybox.
struct Bundle<'a> {
    bed: &'a Bed,
    path: PathBuf,
    specification: Value,
}

impl<'a> Bundle<'a> {
    fn make(bed: &'a Bed) -> Result<Self> {
        let path = bed.directory().join(bed.name("bundle"));
        let root = path.join("rootfs");
        for directory in ["bin", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(directory))
                .with_context(|| format!("create {directory} in {}", root.display()))?;
        }
        fs::copy(image::BUSYBOX_PROGRAM, root.join("bin/busybox")).context("copy busybox")?;
        symlink("busybox", root.join("bin/sh")).context("link busybox")?;
        Program::new(Tool::Runc.name())
            .args(["spec", "--bundle"])
            .args([&path])
            .read()?;
        let text = fs::read_to_string(path.join("config.json")).context("read what runc spec wrote")?;
        let mut specification: Value = serde_json::from_str(&text)?;
        specification["process"]["terminal"] = false.into();
        // Whoever measures may not be allowed to raise them.
        specification["process"]["rlimits"] = json!([]);
        Ok(Self {
            bed,
            path,
            specification,
        })
    }

    /// One container: how long it took, in milliseconds.
    fn sample(&self, tool: Tool, configuration: &Path) -> Result<f64> {
        let proof = self.bed.proof();
        let mut specification = self.specification.clone();
        specification["process"]["args"] = json!(["/bin/sh", "-c", proof.script]);
        fs::write(self.path.join("config.json"), specification.to_string())
            .context("write the bundle's specification")?;
        let mut program = match tool {
            Tool::Boot | Tool::Copy | Tool::Hit => {
                let path = Target::here().programs().join(tool.name());
                Program::new(path).args(["--config".as_ref(), configuration.as_os_str()])
            }
            Tool::Runsc | Tool::Runc => Program::new(tool.name()),
        };
        if tool == Tool::Runsc {
            // It takes every network namespace for the host's on kernels that show `dev_weight` in each. There is only a loopback
            // device in the bundle's, so that it has less to do and not more.
            program = program.args(["--network=none"]);
        }
        program = program
            .args(["run", "--bundle"])
            .args([&self.path])
            .args([self.bed.name(tool.name())])
            .within(deadlines::RUN);
        let begin = Instant::now();
        let output = program.output()?;
        let took = milliseconds(begin.elapsed());
        match tool {
            Tool::Boot | Tool::Copy | Tool::Hit => self.bed.check(Runtime::Kata, &proof, output, true)?,
            Tool::Runc => self.bed.check(Runtime::Runc, &proof, output, true)?,
            // Its kernel is a program, and which boot it says it is need not be one.
            Tool::Runsc => drop(output.exits(CODE)?),
        }
        Ok(took)
    }
}
