//! Limits of a container that its cgroup in the guest keeps. Pure.
//!
//! What names CPUs, memory nodes or devices of the host, or what a guest has no counterpart of, does not go there.

use oci_spec::runtime::{LinuxBlockIo, LinuxResources};

use super::devices;

/// Controllers whose files mean the same in any guest.
const UNIFIED: [&str; 4] = ["cpu.", "memory.", "pids.", "hugetlb."];

/// The limits for the guest.
pub(super) fn for_guest(asked: &LinuxResources) -> LinuxResources {
    let mut limits = asked.clone();
    if let Some(rules) = asked.devices() {
        limits.set_devices(Some(devices::rules(rules)));
    }
    if let Some(cpu) = asked.cpu() {
        let mut cpu = cpu.clone();
        // Numbers of the host's CPUs and nodes.
        cpu.set_cpus(None);
        cpu.set_mems(None);
        limits.set_cpu(Some(cpu));
    }
    // The files of a container come by virtio-fs, which is no block device.
    limits.set_block_io(None::<LinuxBlockIo>);
    // Marks for the host's packet filters, and adapters of the host.
    limits.set_network(None);
    limits.set_rdma(None);
    if let Some(pages) = asked.hugepage_limits() {
        // None allowed is what a guest without huge pages does anyway, and its kernel may know fewer sizes than the host's.
        let pages: Vec<_> = pages
            .iter()
            .filter(|pages| pages.limit() > 0 && pages.limit() != i64::MAX)
            .cloned()
            .collect();
        limits.set_hugepage_limits(Some(pages).filter(|pages| !pages.is_empty()));
    }
    if let Some(unified) = asked.unified() {
        let known = |file: &str| UNIFIED.iter().any(|controller| file.starts_with(controller));
        let kept = unified.iter().filter(|(file, _)| known(file));
        limits.set_unified(Some(
            kept.map(|(file, value)| (file.clone(), value.clone())).collect(),
        ));
    }
    limits
}
