//! vCPUs and memory that the host adds while the guest runs. The kernel announces what it has found; memory it takes into use
//! by itself once it is told to, vCPUs are for us to bring up.
//!
//! Must not know how they are added, nor for whom.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::init::modules;
use crate::uevent;

/// Paths of the drivers' modules, as of those that every guest loads. A guest without it needs none.
const MODULES: &str = "/etc/kata/modules.growth";

/// What becomes of memory that appears; a kernel that can't take any has none.
const NEW_MEMORY: &str = "/sys/devices/system/memory/auto_online_blocks";

const CPUS: &str = "/sys/devices/system/cpu";

/// For the kernel to find what was added, and to take it into use. To bring up a vCPU takes milliseconds, and a GiB of memory
/// a tenth of a second, but far longer where they are translated and others want the processor.
const DEADLINE: Duration = Duration::from_secs(20);

/// What can be taken into use, or is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount {
    /// vCPUs, all of them.
    pub vcpus: u32,
    /// Memory in addition to what the guest has started with, MiB.
    pub added_mib: u64,
}

/// A guest that can grow.
#[derive(Debug, Clone, Copy)]
pub struct Growth {
    /// Memory before anything was added, MiB.
    started_mib: u64,
}

impl Growth {
    /// Makes the guest ready to take what will be added.
    ///
    /// # Errors
    /// A driver is refused; [`Error::Unsupported`] by a kernel that takes no memory while it runs.
    pub fn prepare() -> Result<Self> {
        if !Path::new(NEW_MEMORY).exists() {
            return Err(Error::Unsupported(
                "memory that is added while it runs".to_owned(),
            ));
        }
        fs::write(NEW_MEMORY, "online").map_err(Error::file("write", NEW_MEMORY))?;
        let started_mib = memory_mib()?;
        modules::load(MODULES)?;
        Ok(Self { started_mib })
    }

    /// Takes into use what was added, until it is this much. Answers with what is in use, which is less when the host, or the
    /// kernel, was too slow.
    ///
    /// # Errors
    /// What the kernel can't tell, or refuses.
    pub async fn take(self, wanted: Amount) -> Result<Amount> {
        let look = || match self.look() {
            Ok(there) => {
                (there.vcpus >= wanted.vcpus && there.added_mib >= wanted.added_mib).then_some(Ok(there))
            }
            Err(error) => Some(Err(error)),
        };
        match uevent::wait_for("added by the host", DEADLINE, look).await {
            Err(Error::NoDevice(_)) => self.look(),
            found => found?,
        }
    }

    fn look(self) -> Result<Amount> {
        bring_up_vcpus(Path::new(CPUS))?;
        let online = Path::new(CPUS).join("online");
        let list = fs::read_to_string(&online).map_err(Error::file("read", &online))?;
        Ok(Amount {
            vcpus: count(&list),
            added_mib: memory_mib()?.saturating_sub(self.started_mib),
        })
    }
}

/// Brings up every vCPU that is there and is not in use.
fn bring_up_vcpus(cpus: &Path) -> Result<()> {
    for entry in fs::read_dir(cpus).map_err(Error::file("list", cpus))? {
        let online = entry.map_err(Error::file("list", cpus))?.path().join("online");
        // Directories of other things have no such file, and neither has a vCPU that is always in use.
        if fs::read_to_string(&online).is_ok_and(|state| state.trim() == "0") {
            fs::write(&online, "1").map_err(Error::file("write", &online))?;
        }
    }
    Ok(())
}

/// How many a list like `0-3,5` names; what is not understood names none.
fn count(list: &str) -> u32 {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(count).sum()
}

/// The kernel's memory, without what it keeps for itself from the start.
fn memory_mib() -> Result<u64> {
    const MEMINFO: &str = "/proc/meminfo";
    let text = fs::read_to_string(MEMINFO).map_err(Error::file("read", MEMINFO))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|number| number.parse::<u64>().ok());
    kib.map(|kib| kib >> 10)
        .ok_or_else(|| Error::Unsupported(format!("a {MEMINFO} without MemTotal")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_of_a_list_are_counted() {
        for (list, expected) in [
            ("0\n", 1),
            ("0-3\n", 4),
            ("0-1,3,6-7\n", 5),
            ("\n", 0),
            ("x,2", 1),
            ("3-1", 0),
        ] {
            assert_eq!(count(list), expected, "{list:?}");
        }
        assert!(count(&fs::read_to_string("/sys/devices/system/cpu/online").unwrap()) >= 1);
        assert!(memory_mib().unwrap() > 0);
    }

    #[test]
    fn only_vcpus_that_are_down_are_brought_up() {
        let cpus = tempfile::tempdir().unwrap();
        for (cpu, online) in [
            ("cpu0", None),
            ("cpu1", Some("1\n")),
            ("cpu2", Some("0\n")),
            ("cpufreq", None),
        ] {
            let dir = cpus.path().join(cpu);
            fs::create_dir(&dir).unwrap();
            if let Some(state) = online {
                fs::write(dir.join("online"), state).unwrap();
            }
        }
        fs::write(cpus.path().join("online"), "0-1\n").unwrap();
        bring_up_vcpus(cpus.path()).unwrap();
        let state = |cpu: &str| fs::read_to_string(cpus.path().join(cpu).join("online"));
        assert_eq!(
            (state("cpu1").unwrap(), state("cpu2").unwrap()),
            ("1\n".into(), "1".into())
        );
        assert!(state("cpu0").is_err() && state("cpufreq").is_err());
        assert!(bring_up_vcpus(&cpus.path().join("none")).is_err());
    }
}
