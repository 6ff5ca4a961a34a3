//! What a sandbox's workload may use, as far as its first specification tells: it sizes the virtual machine. Pure.

use std::path::Path;
use std::str::FromStr;

use oci_spec::runtime::{LinuxResources, Spec};

use super::container_type::Annotations;
use super::{invalid, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ContainerType, PodLimits, Resources};

/// Annotations of containerd's CRI plugin with the sums of a pod's limits, as the kubelet counted them. The others write
/// none.
const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The kernel's period of CPU bandwidth where none is given, microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// Shares of one CPU.
const CPU_SHARES: u64 = 1024;

/// From here on a limit of memory means that there is none: cgroup v1's "unlimited" is just under 2^63.
const UNLIMITED: u64 = 1 << 62;

/// CPUs that a list may name; more than Linux has.
const MAX_CPUS: u64 = 8192;

/// The limits that count. A pod's are in annotations, a lone container's in its own specification (those of the first
/// container of a pod are that container's only).
pub(super) fn of_sandbox(spec: &Spec, kind: ContainerType, annotations: &Annotations) -> Result<Resources> {
    match kind {
        ContainerType::SingleContainer => of_container(spec),
        ContainerType::PodSandbox | ContainerType::PodContainer => of_annotations(annotations),
    }
}

fn of_annotations(annotations: &Annotations) -> Result<Resources> {
    Ok(of_limits(PodLimits {
        cpu_quota: number(annotations, QUOTA)?.unwrap_or(0),
        cpu_period: number(annotations, PERIOD)?.unwrap_or(0),
        cpu_shares: number(annotations, SHARES)?.unwrap_or(0),
        memory: number(annotations, MEMORY)?.unwrap_or(0),
    }))
}

/// The limits that count of a pod that no container stands for: those that it tells, else those in its annotations.
pub(super) fn of_pod(limits: PodLimits, annotations: &Annotations) -> Result<Resources> {
    let (told, annotated) = (of_limits(limits), of_annotations(annotations)?);
    Ok(Resources {
        cpu_millis: told.cpu_millis.or(annotated.cpu_millis),
        memory_bytes: told.memory_bytes.or(annotated.memory_bytes),
    })
}

fn of_limits(limits: PodLimits) -> Resources {
    // A request is no limit, but a pod that asks for CPUs must find them. Less than one CPU is there anyway.
    let requested =
        (limits.cpu_shares > CPU_SHARES).then(|| limits.cpu_shares.saturating_mul(1000) / CPU_SHARES);
    Resources {
        cpu_millis: bandwidth(limits.cpu_quota, limits.cpu_period).or(requested),
        memory_bytes: bytes(limits.memory),
    }
}

fn of_container(spec: &Spec) -> Result<Resources> {
    Ok(Limits::of(spec)?.workload())
}

/// The limits of one container that size a virtual machine, as they were set last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Microseconds of a period.
    quota: Option<i64>,
    /// Microseconds.
    period: Option<u64>,
    /// How many CPUs it may run on.
    cpus: Option<u64>,
    /// Bytes.
    memory: Option<i64>,
    /// Bytes, of all sizes.
    hugepages: Option<u64>,
}

impl Limits {
    /// Those of a specification.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], naming the field.
    pub(crate) fn of(spec: &Spec) -> Result<Self> {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        match resources {
            Some(resources) => Self::default().changed(resources),
            None => Ok(Self::default()),
        }
    }

    /// The same after an update: what it does not name stays.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], naming the field.
    pub(crate) fn changed(self, change: &LinuxResources) -> Result<Self> {
        let cpu = change.cpu().as_ref();
        let cpus = match cpu.and_then(|cpu| cpu.cpus().as_deref()) {
            Some(list) => count(list)?,
            None => None,
        };
        let memory = change.memory().as_ref().and_then(|memory| memory.limit());
        let hugepages = change.hugepage_limits().as_ref().and_then(|limits| {
            let bytes = limits.iter().filter_map(|limit| bytes(limit.limit()));
            bytes.reduce(u64::saturating_add)
        });
        Ok(Self {
            quota: cpu.and_then(|cpu| cpu.quota()).or(self.quota),
            period: cpu.and_then(|cpu| cpu.period()).or(self.period),
            cpus: cpus.or(self.cpus),
            memory: memory.or(self.memory),
            hugepages: hugepages.or(self.hugepages),
        })
    }

    /// What it may use.
    pub(crate) fn workload(self) -> Resources {
        let cpus = self.cpus.map(|cpus| cpus.saturating_mul(1000));
        let memory = bytes(self.memory.unwrap_or(0));
        Resources {
            cpu_millis: bandwidth(self.quota.unwrap_or(0), self.period.unwrap_or(0)).or(cpus),
            memory_bytes: match (memory, self.hugepages) {
                // Pages that a limit allows come on top of ordinary memory.
                (Some(memory), Some(pages)) => Some(memory.saturating_add(pages)),
                (memory, pages) => memory.or(pages),
            },
        }
    }
}

fn number<T: FromStr>(annotations: &Annotations, key: &str) -> Result<Option<T>> {
    let Some(text) = annotations.get(key) else {
        return Ok(None);
    };
    text.trim().parse().map(Some).map_err(|_| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("annotation {key}: {} is not a number in range", shown(text)),
        )
    })
}

/// Thousandths of a CPU, rounded up; a quota that is not positive limits nothing.
fn bandwidth(quota: i64, period: u64) -> Option<u64> {
    let quota = u64::try_from(quota).ok().filter(|&quota| quota > 0)?;
    let period = if period == 0 { DEFAULT_PERIOD } else { period };
    let millis = (u128::from(quota) * 1000).div_ceil(u128::from(period));
    Some(u64::try_from(millis).unwrap_or(u64::MAX))
}

fn bytes(limit: i64) -> Option<u64> {
    u64::try_from(limit)
        .ok()
        .filter(|limit| (1..UNLIMITED).contains(limit))
}

/// CPUs of a list like `0-3,7`; `None` for an empty one.
fn count(list: &str) -> Result<Option<u64>> {
    let wrong = || {
        invalid(
            "linux.resources.cpu.cpus",
            format!("{} is not a list of CPUs", shown(list)),
        )
    };
    let list = list.trim();
    if list.is_empty() {
        return Ok(None);
    }
    let mut seen = std::collections::BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u64>().ok().filter(|cpu| *cpu < MAX_CPUS);
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong());
        }
        seen.extend(first..=last);
    }
    Ok(Some(seen.len() as u64))
}

/// Size of the tmpfs at `/dev/shm`, bytes; 0 where there is none, or its size is the kernel's choice.
pub(super) fn shm_size(spec: &Spec) -> Result<u64> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    let shm = mounts.filter(|(_, mount)| mount.destination() == Path::new("/dev/shm"));
    let Some((index, mount)) = shm
        .last()
        .filter(|(_, mount)| mount.typ().as_deref() == Some("tmpfs"))
    else {
        return Ok(0);
    };
    let options = mount.options().iter().flatten();
    let Some(text) = options
        .filter_map(|option| option.strip_prefix("size="))
        .next_back()
    else {
        return Ok(0);
    };
    size(text).ok_or_else(|| {
        invalid(
            format_args!("mounts[{index}].options"),
            format!("size={} is no size", shown(text)),
        )
    })
}

/// A size as tmpfs reads it; a share of the memory, which is not known here, is 0.
fn size(text: &str) -> Option<u64> {
    if let Some(percent) = text.strip_suffix('%') {
        return percent.parse::<u64>().ok().map(|_| 0);
    }
    let (digits, shift) = match text.chars().next_back()?.to_ascii_lowercase() {
        'k' => (text.get(..text.len() - 1)?, 10),
        'm' => (text.get(..text.len() - 1)?, 20),
        'g' => (text.get(..text.len() - 1)?, 30),
        't' => (text.get(..text.len() - 1)?, 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn single(resources: serde_json::Value) -> Result<Resources> {
        let spec = json!({"ociVersion": "1.0.2", "linux": {"resources": resources}});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        of_sandbox(&spec, ContainerType::SingleContainer, &Annotations::new())
    }

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn pod(annotations: Pairs<'_>) -> Result<Resources> {
        let own =
            |(key, value): &(&str, &str)| (format!("io.kubernetes.cri.sandbox-{key}"), (*value).to_owned());
        // What the specification of the pause container says is not about the pod.
        let spec = json!({"ociVersion": "1.0.2", "linux": {"resources": {"memory": {"limit": 4096}}}});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        of_sandbox(
            &spec,
            ContainerType::PodSandbox,
            &annotations.iter().map(own).collect(),
        )
    }

    #[test]
    fn a_lone_container_is_sized_by_its_own_limits() {
        let mib = 1 << 20;
        let table = [
            (json!({}), None, None),
            (
                json!({"cpu": {"shares": 1024, "quota": -1, "period": 100000}, "memory": {"limit": -1}}),
                None,
                None,
            ),
            (
                json!({"cpu": {"quota": 150000, "period": 100000}}),
                Some(1500),
                None,
            ),
            (json!({"cpu": {"quota": 50000}}), Some(500), None),
            (json!({"cpu": {"quota": 1, "period": 1000000}}), Some(1), None),
            (json!({"cpu": {"cpus": "0-2,2,7"}}), Some(4000), None),
            (
                json!({"cpu": {"cpus": "0-3", "quota": 100000, "period": 100000}}),
                Some(1000),
                None,
            ),
            (json!({"memory": {"limit": 134217728}}), None, Some(128 * mib)),
            (json!({"memory": {"limit": 9223372036854771712i64}}), None, None),
            (
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}, {"pageSize": "1GB", "limit": 0}]}),
                None,
                Some(4 * mib),
            ),
        ];
        for (resources, cpu_millis, memory_bytes) in table {
            let expected = Resources {
                cpu_millis,
                memory_bytes,
            };
            assert_eq!(single(resources.clone()).unwrap(), expected, "{resources}");
        }
        for list in ["x", "3-1", "0-", "0-99999999999", "-1"] {
            let error = single(json!({"cpu": {"cpus": list}})).unwrap_err();
            assert!(
                error.context.contains("linux.resources.cpu.cpus"),
                "{list}: {}",
                error.context
            );
        }
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let limits =
            |resources: serde_json::Value| -> LinuxResources { serde_json::from_value(resources).unwrap() };
        let mut now = Limits::default();
        let table = [
            (
                json!({"cpu": {"quota": 150000, "period": 100000}}),
                Some(1500),
                None,
            ),
            (json!({"memory": {"limit": 1048576}}), Some(1500), Some(1 << 20)),
            (json!({"cpu": {"shares": 7}}), Some(1500), Some(1 << 20)),
            (json!({"cpu": {"quota": 300000}}), Some(3000), Some(1 << 20)),
            (
                json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}]}),
                Some(3000),
                Some(3 << 20),
            ),
            (
                json!({"cpu": {"quota": -1}, "memory": {"limit": -1}, "hugepageLimits": []}),
                None,
                Some(2 << 20),
            ),
            (json!({"cpu": {"cpus": "0-1"}}), Some(2000), Some(2 << 20)),
            (json!({"cpu": {"cpus": ""}}), Some(2000), Some(2 << 20)),
        ];
        for (change, cpu_millis, memory_bytes) in table {
            now = now.changed(&limits(change.clone())).unwrap();
            let expected = Resources {
                cpu_millis,
                memory_bytes,
            };
            assert_eq!(now.workload(), expected, "{change}");
        }
        let error = now.changed(&limits(json!({"cpu": {"cpus": "x"}}))).unwrap_err();
        assert!(
            error.context.contains("linux.resources.cpu.cpus"),
            "{}",
            error.context
        );
    }

    #[test]
    fn a_pod_is_sized_by_the_annotations() {
        let table: [(Pairs<'_>, Option<u64>, Option<u64>); 5] = [
            (&[], None, None),
            (
                &[
                    ("cpu-quota", "0"),
                    ("cpu-period", "100000"),
                    ("cpu-shares", "2"),
                    ("memory", "0"),
                ],
                None,
                None,
            ),
            (
                &[
                    ("cpu-quota", "250000"),
                    ("cpu-period", "100000"),
                    ("cpu-shares", "2560"),
                    ("memory", "1073741824"),
                ],
                Some(2500),
                Some(1 << 30),
            ),
            (&[("cpu-quota", "-1"), ("cpu-shares", "4096")], Some(4000), None),
            (&[("cpu-quota", "-1"), ("cpu-shares", "1024")], None, None),
        ];
        for (annotations, cpu_millis, memory_bytes) in table {
            let expected = Resources {
                cpu_millis,
                memory_bytes,
            };
            assert_eq!(pod(annotations).unwrap(), expected, "{annotations:?}");
        }
        for (key, value) in [
            ("cpu-quota", "much"),
            ("cpu-period", "-1"),
            ("memory", "1Gi"),
            ("cpu-shares", ""),
        ] {
            let error = pod(&[(key, value)]).unwrap_err();
            assert!(
                error
                    .context
                    .contains(&format!("io.kubernetes.cri.sandbox-{key}")),
                "{}",
                error.context
            );
        }
    }

    #[test]
    fn the_size_of_shared_memory_is_its_mounts() {
        let shm = |mounts: serde_json::Value| {
            let spec: Spec =
                serde_json::from_value(json!({"ociVersion": "1.0.2", "mounts": mounts})).unwrap();
            shm_size(&spec)
        };
        let tmpfs = |options: &[&str]| json!([{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options}]);
        assert_eq!(shm(json!([])).unwrap(), 0);
        assert_eq!(shm(tmpfs(&["mode=1777", "size=65536k"])).unwrap(), 64 << 20);
        assert_eq!(shm(tmpfs(&["size=1", "size=2G"])).unwrap(), 2 << 30);
        assert_eq!(shm(tmpfs(&["size=50%"])).unwrap(), 0);
        assert_eq!(shm(tmpfs(&["nosuid"])).unwrap(), 0);
        assert_eq!(
            shm(json!([{"destination": "/dev/shm", "type": "bind", "source": "/x", "options": ["size=1"]}]))
                .unwrap(),
            0
        );
        for bad in ["size=", "size=k", "size=-1", "size=99999999999g", "size=ü"] {
            let error = shm(tmpfs(&[bad])).unwrap_err();
            assert!(error.context.contains("mounts[0].options"), "{bad}");
        }
    }
}
