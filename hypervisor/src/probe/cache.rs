//! What the probe found, remembered until the next boot or another KVM module, so that a start costs a small read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Finding;

/// The file in the run directory.
const FILE: &str = "accelerator.json";

/// Where and for what a finding is remembered.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    circumstances: Circumstances,
}

/// A finding holds while these are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Circumstances {
    boot_id: String,
    /// KVM's modules with their versions.
    modules: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    circumstances: Circumstances,
    finding: Finding,
}

impl Cache {
    /// The cache in `run_dir`, as things are now.
    pub fn new(run_dir: &Path) -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        let circumstances = Circumstances {
            boot_id,
            modules: modules()?,
        };
        Ok(Self {
            path: run_dir.join(FILE),
            circumstances,
        })
    }

    /// What was found under the same circumstances. A file that cannot be understood is as good as none.
    pub fn get(&self) -> Option<Finding> {
        let Remembered {
            circumstances,
            finding,
        } = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        (circumstances == self.circumstances).then_some(finding)
    }

    /// Remembers `finding`: all of it or nothing, also if several do so at once.
    pub fn put(&self, finding: &Finding) -> io::Result<()> {
        let remembered = Remembered {
            circumstances: self.circumstances.clone(),
            finding: finding.clone(),
        };
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let draft = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let written =
            fs::write(&draft, serde_json::to_vec(&remembered)?).and_then(|()| fs::rename(&draft, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }
}

/// `kvm` and its relatives, as "name version"; a module without a version has only a name.
fn modules() -> io::Result<Vec<String>> {
    let mut modules = Vec::new();
    for entry in fs::read_dir("/sys/module")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "kvm" || name.starts_with("kvm_") {
            let version = fs::read_to_string(entry.path().join("srcversion")).unwrap_or_default();
            modules.push(format!("{name} {}", version.trim()));
        }
    }
    modules.sort();
    Ok(modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_remembered_under_the_same_circumstances_only() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(&directory.path().join("made/on/demand")).unwrap();
        assert_eq!(cache.get(), None);
        let finding = Finding::Measured {
            instructions_per_second: 7,
        };
        cache.put(&finding).unwrap();
        assert_eq!(cache.get(), Some(finding.clone()));

        for change in [
            |c: &mut Circumstances| c.boot_id.push('x'),
            |c: &mut Circumstances| c.modules.push("kvm_new 1".into()),
        ] {
            let mut other = Cache {
                path: cache.path.clone(),
                circumstances: cache.circumstances.clone(),
            };
            change(&mut other.circumstances);
            assert_eq!(other.get(), None);
        }

        fs::write(&cache.path, "{\"circumstances\":").unwrap();
        assert_eq!(cache.get(), None, "half a file");
        cache.put(&finding).unwrap();
        assert_eq!(cache.get(), Some(finding));
        assert_eq!(
            fs::read_dir(cache.path.parent().unwrap()).unwrap().count(),
            1,
            "no draft is left"
        );
    }
}
