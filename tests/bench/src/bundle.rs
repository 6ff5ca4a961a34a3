//! B4: `run` of a bundle by an OCI runtime's command line, from nothing to the end: ours against gVisor's `runsc` where there is one,
//! and against runc.

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
use crate::bed::{Bed, CODE, Runtime};
use crate::report::{Figure, Results};
use crate::split::milliseconds;
use crate::statistics::Ratio;

/// An OCI runtime of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Kata,
    Runsc,
    Runc,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Kata => "kata-runtime",
            Self::Runsc => "runsc",
            Self::Runc => "runc",
        }
    }
}

/// Takes the samples.
///
/// # Errors
/// A container does not do its work.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    Part::OciRuntime.check(&Target::here())?;
    let bundle = Bundle::make(bed)?;
    let mut tools = vec![(Tool::Kata, Vec::new()), (Tool::Runc, Vec::new())];
    if program::exists(Path::new(Tool::Runsc.name())) {
        tools.push((Tool::Runsc, Vec::new()));
    } else {
        results.condition("runsc", "there is none here: B4 is ours against runc alone");
    }
    // The first round warms caches.
    for round in 0..=amount.cold {
        for (tool, samples) in &mut tools {
            let took = bundle.sample(*tool)?;
            if round > 0 {
                samples.push(took);
            }
        }
    }
    for (tool, samples) in &tools {
        results.measured(&format!("run of a bundle, {}", tool.name()), "ms", samples);
    }
    let Some(((_, ours), others)) = tools.split_first() else {
        return Ok(());
    };
    for (place, (tool, other)) in others.iter().rev().enumerate() {
        let figure = |id: &str| {
            let what = format!("run of a bundle of a cold start, ours / {}", tool.name());
            Figure::new(id, &what, "ms", ours, other, Ratio::of(ours, other))
        };
        // The last one is the one to be compared with; the others are for orientation.
        match place {
            0 => results.figures.push(figure("B4")),
            _ => results.details.push(figure(&format!("B4.{}", tool.name()))),
        }
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
    fn sample(&self, tool: Tool) -> Result<f64> {
        let proof = self.bed.proof();
        let mut specification = self.specification.clone();
        specification["process"]["args"] = json!(["/bin/sh", "-c", proof.script]);
        fs::write(self.path.join("config.json"), specification.to_string())
            .context("write the bundle's specification")?;
        let mut program = match tool {
            Tool::Kata => {
                let path = Target::here().programs().join(tool.name());
                Program::new(path).args(["--config".as_ref(), self.bed.configuration().as_os_str()])
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
            Tool::Kata => self.bed.check(Runtime::Kata, &proof, output, true)?,
            Tool::Runc => self.bed.check(Runtime::Runc, &proof, output, true)?,
            // Its kernel is a program, and which boot it says it is need not be one.
            Tool::Runsc => drop(output.exits(CODE)?),
        }
        Ok(took)
    }
}
