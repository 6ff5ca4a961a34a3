//! The benchmarks: our runtime against runc, our virtual machines against bare ones, our shim against the Go shim, all in one
//! run, by turns. What is told is ratios with the interval that chance leaves them; milliseconds are of this machine alone.
//!
//! Stands on the harness of the end-to-end tests and sees our programs as that does, from outside.

mod alive;
pub mod bare;
pub mod bed;
pub mod bounds;
mod bundle;
mod cold;
mod copies;
pub mod deadlines;
mod disk;
mod exec;
pub mod host;
mod network;
mod overhead;
pub mod report;
mod shims;
pub mod split;
pub mod statistics;

use std::path::Path;

use anyhow::{Result, ensure};
use e2e::cell::Inside;
use e2e::configuration::Configuration;

use bed::Bed;
use bounds::FEWEST;
use host::Host;
use report::{Missing, Results};

/// How many samples are kept; one more is taken first, and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// Of what starts virtual machines.
    pub cold: usize,
    /// Of what is done in a container that runs.
    pub warm: usize,
    /// Of 64 MiB of output.
    pub output: usize,
    /// Containers of each runtime that are alive when memory is measured.
    pub alive: usize,
    /// Pods whose shim's threads are counted.
    pub pods: usize,
    /// Rounds in which many copies are started.
    pub rounds: usize,
}

impl Amount {
    /// For figures to be published.
    pub const FULL: Self = Self {
        cold: 15,
        warm: 30,
        output: 15,
        alive: 6,
        pods: 3,
        rounds: FEWEST,
    };

    /// To see that everything works: the figures mean little.
    pub const QUICK: Self = Self {
        cold: 2,
        warm: 3,
        output: 1,
        alive: 2,
        pods: 1,
        rounds: 1,
    };
}

/// Figures that are measured together, and how.
struct Benchmark {
    ids: &'static [&'static str],
    what: &'static str,
    run: fn(&Bed, &Amount, &mut Results) -> Result<()>,
}

const ALL: &[Benchmark] = &[
    Benchmark {
        ids: &["B3", "B6"],
        what: "cold starts, ours and runc's",
        run: cold::run,
    },
    Benchmark {
        ids: &["B1", "B2", "B3.cache", "B3.copy", "B3.saved"],
        what: "copies of a template, cold starts, and runc's",
        run: copies::run,
    },
    Benchmark {
        ids: &["B9"],
        what: "memory of copies, and of cold starts",
        run: alive::memory,
    },
    Benchmark {
        ids: &["B10"],
        what: "copies of a large machine and of a small one",
        run: alive::size,
    },
    Benchmark {
        ids: &["B11", "B14"],
        what: "copies at once, and one after the other",
        run: alive::number,
    },
    Benchmark {
        ids: &["B4", "B4.copy", "B4.cache"],
        what: "a bundle, by OCI runtimes",
        run: bundle::run,
    },
    Benchmark {
        ids: &["B5", "B15"],
        what: "cold starts, ours and bare QEMU's, and ends",
        run: overhead::run,
    },
    Benchmark {
        ids: &["B7"],
        what: "memory of shims",
        run: shims::memory,
    },
    Benchmark {
        ids: &["B8"],
        what: "threads of shims",
        run: shims::threads,
    },
    Benchmark {
        ids: &["B12"],
        what: "further processes in a container",
        run: exec::latency,
    },
    Benchmark {
        ids: &["B16"],
        what: "64 MiB of output",
        run: exec::throughput,
    },
    Benchmark {
        ids: &["B17"],
        what: "files on a disk and by virtio-fs",
        run: disk::run,
    },
    Benchmark {
        ids: &["N1"],
        what: "two pods on a bridge",
        run: network::run,
    },
];

/// The ids of all figures.
pub fn ids() -> impl Iterator<Item = &'static str> {
    ALL.iter().flat_map(|benchmark| benchmark.ids).copied()
}

/// Runs the benchmarks for these ids, all without any, of our runtime with this configuration. `tell` is told what is
/// being done.
///
/// What can't be measured is in the results as such; the rest is measured all the same.
///
/// # Errors
/// An id is unknown, or nothing can be measured at all.
pub fn run(
    cell: Inside,
    mut configuration: Configuration,
    amount: &Amount,
    wanted: &[String],
    tell: impl Fn(&str),
) -> Result<Results> {
    for id in wanted {
        let all: Vec<_> = ids().collect();
        ensure!(
            all.contains(&id.as_str()),
            "there is no figure {id}; there are {}",
            all.join(", ")
        );
    }
    let mut results = Results {
        host: Host::here()?,
        ..Default::default()
    };
    let channel = channel(&mut configuration);
    results.condition("channel", channel);
    let bed = Bed::new(cell, &configuration)?;
    results.condition(
        "order",
        "by turns in one process, the first of each dropped; page cache warm",
    );
    for benchmark in ALL {
        let is_wanted = |id: &&str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == id);
        if !benchmark.ids.iter().any(is_wanted) {
            continue;
        }
        tell(&format!("{}: {}", benchmark.ids.join(", "), benchmark.what));
        if let Err(error) = (benchmark.run)(&bed, amount, &mut results) {
            tell(&format!("{}: {error:#}", benchmark.ids.join(", ")));
            results.missing.push(Missing {
                ids: benchmark.ids.iter().map(|&id| id.into()).collect(),
                why: format!("{error:#}"),
            });
        }
    }
    results.host.finish()?;
    bed.close()?;
    Ok(results)
}

/// Says which channel to the agent is measured. That of the kernel's vsock is none of a bare virtual machine's: where it
/// would be chosen, the next best is.
fn channel(configuration: &mut Configuration) -> String {
    const KEY: &str = "channel";
    if let Some((_, value)) = configuration.agent.iter().find(|(key, _)| key == KEY) {
        return value.trim_matches('"').to_owned();
    }
    if !Path::new("/dev/vhost-vsock").exists() {
        return "as the runtime chooses".into();
    }
    let next_best = "vhost-user-vsock";
    *configuration = configuration.clone().agent(KEY, next_best);
    format!("{next_best}, which bare QEMU can have as well, instead of the kernel's vsock")
}

#[cfg(test)]
mod tests {
    use e2e::parts::Target;

    use super::*;

    #[test]
    fn an_id_stands_for_one_figure() {
        let mut sorted: Vec<_> = ids().collect();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), ids().count());
    }

    #[test]
    fn an_unknown_id_is_refused_before_anything_is_started() {
        let nowhere = Inside {
            directory: "/nonexistent".into(),
            tag: "none".into(),
        };
        let configuration = Configuration::new(&Target::here());
        let wanted = ["B5".into(), "B99".into()];
        let error = run(nowhere, configuration, &Amount::QUICK, &wanted, |_| ()).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("B99") && said.contains("B12"), "{said}");
    }

    #[test]
    fn a_channel_that_is_asked_for_is_measured() {
        let mut configuration = Configuration::new(&Target::here()).agent("channel", "virtio-serial");
        assert_eq!(channel(&mut configuration), "virtio-serial");
    }
}
