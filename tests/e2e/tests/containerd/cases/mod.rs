//! The cases, by what they are about. Each module has a list of its own.

mod admin;
mod cache;
mod debian;
mod disks;
mod events;
mod faults;
mod files;
mod hooks;
mod inside;
mod machine;
mod proof;
mod refusals;
mod restart;
mod run;
mod streams;
mod task;
mod templates;
mod terminal;

use e2e::parts::Part;

use crate::bed::{Bed, Case, Runtime};

/// A case as its module lists it.
#[derive(Clone, Copy)]
pub struct Listed {
    name: &'static str,
    run: fn(&mut Case<'_>) -> anyhow::Result<()>,
    runtimes: &'static [Runtime],
    needs: &'static [Part],
}

impl Listed {
    /// A case that holds for every runtime.
    const fn both(name: &'static str, run: fn(&mut Case<'_>) -> anyhow::Result<()>) -> Self {
        Self {
            name,
            run,
            runtimes: &[Runtime::Runc, Runtime::Kata],
            needs: &[],
        }
    }

    /// A case about what only our runtime has.
    const fn ours(name: &'static str, run: fn(&mut Case<'_>) -> anyhow::Result<()>) -> Self {
        Self {
            name,
            run,
            runtimes: &[Runtime::Kata],
            needs: &[],
        }
    }

    /// The same, on a machine that has these parts besides what all need.
    const fn needing(self, needs: &'static [Part]) -> Self {
        Self { needs, ..self }
    }
}

/// A case for one runtime.
#[derive(Clone, Copy)]
pub struct Entry {
    module: &'static str,
    listed: Listed,
    runtime: Runtime,
}

impl Entry {
    /// `kata::run::exit_codes`.
    pub fn full_name(&self) -> String {
        format!("{}::{}::{}", self.runtime, self.module, self.listed.name)
    }

    /// `exit_codes`.
    pub fn name(&self) -> &'static str {
        self.listed.name
    }

    /// What a machine must have for it.
    pub fn needs(&self) -> impl Iterator<Item = Part> {
        let runtimes: &[Part] = match self.runtime {
            Runtime::Runc => &[Part::Runc],
            Runtime::Kata => &[Part::Shim, Part::GuestImage, Part::Qemu, Part::Virtiofsd],
        };
        [Part::Containerd, Part::Busybox]
            .iter()
            .chain(runtimes)
            .chain(self.listed.needs)
            .copied()
    }

    /// Runs it.
    pub fn run(&self, bed: &mut Bed) -> anyhow::Result<()> {
        (self.listed.run)(&mut Case::new(bed, self.runtime, self.listed.name))
    }
}

/// All of them. The reference comes first.
pub fn all() -> Vec<Entry> {
    let modules = [
        ("proof", proof::CASES),
        ("run", run::CASES),
        ("task", task::CASES),
        ("streams", streams::CASES),
        ("terminal", terminal::CASES),
        ("inside", inside::CASES),
        ("files", files::CASES),
        ("hooks", hooks::CASES),
        ("events", events::CASES),
        ("restart", restart::CASES),
        ("debian", debian::CASES),
        ("disks", disks::CASES),
        ("machine", machine::CASES),
        ("templates", templates::CASES),
        ("cache", cache::CASES),
        ("faults", faults::CASES),
        ("refusals", refusals::CASES),
        ("admin", admin::CASES),
    ];
    let of = |runtime| {
        modules.iter().flat_map(move |&(module, cases)| {
            cases
                .iter()
                .filter(move |listed| listed.runtimes.contains(&runtime))
                .map(move |&listed| Entry {
                    module,
                    listed,
                    runtime,
                })
        })
    };
    of(Runtime::Runc).chain(of(Runtime::Kata)).collect()
}
