//! The five capability sets of a process: from the specification to bit masks, and from those to the kernel.
//!
//! A process without `capabilities` in its specification gets none, as with `runc`. A capability that the kernel does
//! not know is dropped from every set: it could not protect anything.

use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::thread::{self, CapabilitySet};

use super::error::{Error, Result, Step};

/// The sets, one bit for each capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sets {
    pub(super) bounding: u64,
    pub(super) effective: u64,
    pub(super) permitted: u64,
    pub(super) inheritable: u64,
    pub(super) ambient: u64,
}

impl Sets {
    /// Reads the specification's sets and refuses what the kernel would refuse, but for ambient ones, which it passes over.
    pub(super) fn from_spec(spec: Option<&LinuxCapabilities>) -> Result<Self> {
        let Some(spec) = spec else {
            return Ok(Self::default());
        };
        let mut sets = Self {
            bounding: mask("bounding", spec.bounding().as_ref())?,
            effective: mask("effective", spec.effective().as_ref())?,
            permitted: mask("permitted", spec.permitted().as_ref())?,
            inheritable: mask("inheritable", spec.inheritable().as_ref())?,
            ambient: mask("ambient", spec.ambient().as_ref())?,
        };
        if sets.effective & !sets.permitted != 0 {
            return Err(Error::spec(
                "process.capabilities.effective",
                "names a capability that is not in permitted",
            ));
        }
        // `runc spec` writes ambient capabilities that are not inheritable, and runc passes over what the kernel would refuse.
        sets.ambient &= sets.permitted & sets.inheritable;
        Ok(sets)
    }

    /// Lowers the bounding set; answers the sets without what the kernel does not know.
    ///
    /// The caller has CAP_SETPCAP still.
    pub(super) fn limit_bounding(self) -> Result<Self> {
        let mut known = 0u64;
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            // The kernel answers EINVAL for the first number that it does not know.
            let Ok(present) = thread::capability_is_in_bounding_set(capability) else {
                break;
            };
            known |= 1 << number;
            if present && self.bounding & (1 << number) == 0 {
                thread::remove_capability_from_bounding_set(capability)
                    .step(|| format!("drop capability {number} from the bounding set"))?;
            }
        }
        Ok(Self {
            bounding: self.bounding & known,
            effective: self.effective & known,
            permitted: self.permitted & known,
            inheritable: self.inheritable & known,
            ambient: self.ambient & known,
        })
    }

    /// Sets the other four sets. After this, the process has no more than the specification gives it.
    pub(super) fn apply(self) -> Result<()> {
        thread::set_capabilities(
            None,
            thread::CapabilitySets {
                effective: CapabilitySet::from_bits_retain(self.effective),
                permitted: CapabilitySet::from_bits_retain(self.permitted),
                inheritable: CapabilitySet::from_bits_retain(self.inheritable),
            },
        )
        .step(|| "set the capabilities")?;
        for number in (0..u64::BITS).filter(|number| self.ambient & (1 << number) != 0) {
            thread::configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)
                .step(|| format!("raise ambient capability {number}"))?;
        }
        Ok(())
    }
}

fn mask(set: &str, capabilities: Option<&Capabilities>) -> Result<u64> {
    let mut mask = 0;
    for capability in capabilities.into_iter().flatten() {
        let name = format!("CAP_{capability}");
        let known: caps::Capability = name
            .parse()
            .map_err(|_| Error::spec(format!("process.capabilities.{set}"), format!("unknown {name}")))?;
        mask |= known.bitmask();
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Capability, LinuxCapabilitiesBuilder};
    use proptest::prelude::*;
    use std::collections::HashSet;

    const ALL: [Capability; 41] = {
        use Capability::*;
        [
            Chown,
            DacOverride,
            DacReadSearch,
            Fowner,
            Fsetid,
            Kill,
            Setgid,
            Setuid,
            Setpcap,
            LinuxImmutable,
            NetBindService,
            NetBroadcast,
            NetAdmin,
            NetRaw,
            IpcLock,
            IpcOwner,
            SysModule,
            SysRawio,
            SysChroot,
            SysPtrace,
            SysPacct,
            SysAdmin,
            SysBoot,
            SysNice,
            SysResource,
            SysTime,
            SysTtyConfig,
            Mknod,
            Lease,
            AuditWrite,
            AuditControl,
            Setfcap,
            MacOverride,
            MacAdmin,
            Syslog,
            WakeAlarm,
            BlockSuspend,
            AuditRead,
            Perfmon,
            Bpf,
            CheckpointRestore,
        ]
    };

    #[test]
    fn every_capability_of_the_specification_has_the_kernels_number() {
        for (number, capability) in ALL.into_iter().enumerate() {
            let set = HashSet::from([capability]);
            assert_eq!(mask("bounding", Some(&set)).unwrap(), 1 << number, "{capability}");
        }
    }

    #[test]
    fn none_means_none() {
        assert_eq!(Sets::from_spec(None).unwrap(), Sets::default());
    }

    proptest! {
        #[test]
        fn only_sets_that_the_kernel_takes_are_accepted(
            effective in proptest::sample::subsequence(ALL.to_vec(), 0..5),
            permitted in proptest::sample::subsequence(ALL.to_vec(), 0..41),
            inheritable in proptest::sample::subsequence(ALL.to_vec(), 0..41),
            ambient in proptest::sample::subsequence(ALL.to_vec(), 0..4),
        ) {
            let set = |from: &[Capability]| from.iter().copied().collect::<HashSet<_>>();
            let (e, p, i, a) = (set(&effective), set(&permitted), set(&inheritable), set(&ambient));
            let spec = LinuxCapabilitiesBuilder::default()
                .bounding(HashSet::new()).effective(e.clone()).permitted(p.clone()).inheritable(i.clone())
                .ambient(a.clone()).build().unwrap();
            let sets = Sets::from_spec(Some(&spec));
            prop_assert_eq!(sets.is_ok(), e.is_subset(&p));
            if let Ok(sets) = sets {
                prop_assert_eq!(sets.permitted.count_ones() as usize, p.len());
                prop_assert_eq!(sets.bounding, 0);
                let possible: HashSet<_> = p.intersection(&i).copied().collect();
                prop_assert_eq!(sets.ambient.count_ones() as usize, a.intersection(&possible).count());
            }
        }
    }
}
