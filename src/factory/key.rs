//! Which template a sandbox is a copy of: a digest of everything that matters, so that what has changed is another template.

use std::fmt::Write as _;
use std::path::PathBuf;

use hypervisor::{Device, Hypervisor, Memory, MemoryBacking, SerialPort, VirtioFs, VmSpec, Vsock};
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::guest::SHARE_TAG;
use crate::model::TemplatePlan;

/// Raised when templates are saved in another way.
const VERSION: u32 = 2;

/// Hexadecimal digits of a key: enough that nobody finds two that are the same.
const DIGITS: usize = 32;

/// The key of a template.
///
/// # Errors
/// The hypervisor cannot save it, or its parts are not there.
pub(super) fn of(hypervisor: &dyn Hypervisor, template: &VmSpec) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(format!(
        "{VERSION} {} {} {}\n",
        env!("CARGO_PKG_VERSION"),
        agent_protocol::VERSION,
        hypervisor.name()
    ));
    hasher.update(hypervisor.fingerprint(template)?);
    let mut key = hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    key.truncate(DIGITS);
    Ok(key)
}

/// The template of a sandbox's virtual machine, without anything that is the sandbox's own. Pure.
pub(super) fn template(spec: &VmSpec, plan: &TemplatePlan) -> VmSpec {
    let ports = spec.devices.iter().filter_map(|device| match device {
        Device::SerialPort(port) => Some(Device::SerialPort(SerialPort {
            name: port.name.clone(),
            socket: PathBuf::from("/"),
        })),
        Device::Vsock(Vsock::Hybrid { cid, .. }) => Some(Device::Vsock(Vsock::Hybrid {
            cid: *cid,
            uds: PathBuf::from("/"),
        })),
        _ => None,
    });
    let share = plan.shares.then(|| {
        Device::VirtioFs(VirtioFs {
            tag: SHARE_TAG.to_owned(),
            socket: PathBuf::from("/"),
            directory: PathBuf::from("/"),
        })
    });
    VmSpec {
        id: "template".to_owned(),
        run_dir: PathBuf::from("/"),
        kernel: spec.kernel.clone(),
        initrd: spec.initrd.clone(),
        kernel_params: spec.kernel_params.clone(),
        vcpus: plan.size.vcpus,
        max_vcpus: plan.most.vcpus,
        memory: Memory {
            size_mib: plan.size.memory_mib,
            max_mib: plan.most.memory_mib,
            // Who maps a copy's memory is its own affair.
            backing: MemoryBacking::Shared,
        },
        devices: ports.chain(share).collect(),
        network_namespace: None,
        cgroups: Vec::new(),
        labels: Vec::new(),
    }
}

/// Whether a key has the form of one.
pub(super) fn is_key(name: &str) -> bool {
    name.len() == DIGITS
        && name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
