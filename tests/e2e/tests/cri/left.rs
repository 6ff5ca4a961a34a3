//! What is left when no pod is: the cell's census, and what only the CRI and CNI make.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use e2e::census::Census;
use e2e::program::{Program, search_path};
use e2e::{deadlines, wait};

use crate::world::World;

/// Everything that a pod may leave.
pub struct Left {
    census: Census,
    more: BTreeSet<String>,
}

impl Left {
    /// Lists what there is.
    pub fn take(world: &World) -> Result<Self> {
        let mut known = world.kept_ready()?;
        known.extend(world.containerd().pid());
        Ok(Self {
            census: Census::take(&world.inside, &known)?,
            more: more(&world.inside.directory)?,
        })
    }

    /// Waits until there is nothing beyond this, but for what has one of these words. That counts as known from then on.
    pub fn wait(&mut self, world: &World, but: &[&str]) -> Result<()> {
        let mut left = Vec::new();
        let gone = wait::until("nothing is left", deadlines::GONE, || {
            let now = Self::take(world)?;
            left = now.census.beyond(&self.census);
            left.extend(now.more.difference(&self.more).cloned());
            left.retain(|thing| !but.iter().any(|word| thing.contains(word)));
            Ok(left.is_empty().then_some(now))
        });
        match gone {
            Ok(now) => *self = now,
            Err(_) if !left.is_empty() => bail!("{} things are left:\n  {}", left.len(), left.join("\n  ")),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Rules of the packet filter, and what containerd keeps of pods and containers.
fn more(directory: &Path) -> Result<BTreeSet<String>> {
    let mut things = BTreeSet::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let rules = Program::new(program).env("PATH", search_path()).read()?;
        // Comments have the time, and chains have counters.
        let lines = rules.lines().filter(|line| !line.starts_with('#'));
        things.extend(lines.map(|line| {
            let line = line.split_once(" [").map_or(line, |(rule, _)| rule);
            format!("{program}: {line}")
        }));
    }
    let root = directory.join("root/io.containerd.grpc.v1.cri");
    let state = Path::new(e2e::containerd::STATE).join("state/io.containerd.grpc.v1.cri");
    let tasks = Path::new(e2e::containerd::STATE).join("state/io.containerd.runtime.v2.task/k8s.io");
    let places = [&root, &state].map(|place| ["sandboxes", "containers"].map(|kind| place.join(kind)));
    for place in places
        .into_iter()
        .flatten()
        .chain([tasks, "/var/lib/cni/results".into()])
    {
        let Ok(entries) = fs::read_dir(&place) else {
            continue;
        };
        for entry in entries {
            things.insert(format!("file {}", entry?.path().display()));
        }
    }
    Ok(things)
}
