//! Device nodes and the rules about devices. Pure.
//!
//! The numbers in a specification are the host's. Only those of the kernel's virtual devices, which are the same on every
//! Linux, mean the same in the guest; under any other number the guest has another device or none.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType as Type};

use super::disks::{self, Disks};
use super::unsupported;
use crate::error::Result;
use crate::model::DisksPlan;

/// Major and minor numbers of character devices (Documentation/admin-guide/devices.txt of Linux); `None` is every minor.
const VIRTUAL: [(i64, Option<i64>); 12] = [
    (1, Some(3)),    // null
    (1, Some(5)),    // zero
    (1, Some(7)),    // full
    (1, Some(8)),    // random
    (1, Some(9)),    // urandom
    (1, Some(11)),   // kmsg
    (5, Some(0)),    // tty
    (5, Some(1)),    // console
    (5, Some(2)),    // ptmx
    (10, Some(200)), // net/tun
    (10, Some(229)), // fuse
    (136, None),     // pts
];

fn is_virtual(kind: Type, major: i64, minor: Option<i64>) -> bool {
    matches!(kind, Type::C | Type::U)
        && VIRTUAL
            .iter()
            .any(|&(known, minors)| known == major && (minors.is_none() || minors == minor))
}

/// The devices that can be had in the guest. A privileged container asks for all that the host has, and gets those of the
/// guest that are the same; for any other container, a block device becomes a disk, and another device that it cannot have is an error.
pub(super) fn nodes(
    asked: &[LinuxDevice],
    rules: &[LinuxDeviceCgroup],
    disks: &mut Disks,
) -> Result<Vec<LinuxDevice>> {
    let is_privileged = rules.iter().any(allows_all);
    let mut nodes = Vec::new();
    for (index, device) in asked.iter().enumerate() {
        if device.typ() == Type::P || is_virtual(device.typ(), device.major(), Some(device.minor())) {
            nodes.push(device.clone());
        } else if let Some(numbers) =
            block(device).filter(|_| !is_privileged && disks.how == DisksPlan::Plugged)
        {
            let access = access(numbers, rules);
            if access.is_empty() {
                return Err(unsupported(
                    format_args!("linux.devices[{index}]"),
                    format!(
                        "{} (b {}:{}) is a device that linux.resources.devices allows nothing with; allow it, or leave it out",
                        device.path().display(),
                        numbers.0,
                        numbers.1
                    ),
                ));
            }
            disks.device(numbers, device.path().clone(), &access);
            let mode = device.file_mode().unwrap_or(0o660) & 0o7777;
            let (uid, gid) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
            nodes.push(disks::node(device.path().clone(), mode, uid, gid)?);
        } else if !is_privileged {
            return Err(unsupported(
                format_args!("linux.devices[{index}]"),
                format!(
                    "{} ({} {}:{}) is a device of the host, which the guest does not have",
                    device.path().display(),
                    device.typ().as_str(),
                    device.major(),
                    device.minor()
                ),
            ));
        }
    }
    Ok(nodes)
}

fn block(device: &LinuxDevice) -> Option<(u32, u32)> {
    match device.typ() {
        Type::B => Some((
            u32::try_from(device.major()).ok()?,
            u32::try_from(device.minor()).ok()?,
        )),
        _ => None,
    }
}

/// What the rules allow with this block device: the kernel goes through them in order, and a later one is added to what the earlier
/// ones have left. Everything where there are none.
fn access((major, minor): (u32, u32), rules: &[LinuxDeviceCgroup]) -> String {
    const ALL: &str = "rwm";
    let is = |number: u32, asked: Option<i64>| is_any(asked) || asked == Some(number.into());
    let is_about = |rule: &&LinuxDeviceCgroup| {
        matches!(rule.typ(), None | Some(Type::A | Type::B))
            && is(major, rule.major())
            && is(minor, rule.minor())
    };
    let mut allowed = match rules {
        [] => ALL,
        _ => "",
    }
    .to_owned();
    for rule in rules.iter().filter(is_about) {
        let named = rule.access().as_deref().unwrap_or(ALL);
        allowed = ALL
            .chars()
            .filter(|&c| match named.contains(c) {
                true => rule.allow(),
                false => allowed.contains(c),
            })
            .collect();
    }
    allowed
}

fn allows_all(rule: &LinuxDeviceCgroup) -> bool {
    rule.allow() && matches!(rule.typ(), None | Some(Type::A)) && is_any(rule.major()) && is_any(rule.minor())
}

/// Whether a number in a rule stands for every one.
fn is_any(number: Option<i64>) -> bool {
    matches!(number, None | Some(-1))
}

/// The rules without those that allow a device of the host by its number: under it, the guest may have one of its own.
pub(super) fn rules(asked: &[LinuxDeviceCgroup]) -> Vec<LinuxDeviceCgroup> {
    let keep = |rule: &&LinuxDeviceCgroup| {
        let named = rule.major().filter(|&major| major != -1);
        match named {
            Some(major) if rule.allow() => is_virtual(
                rule.typ().unwrap_or(Type::A),
                major,
                rule.minor().filter(|&minor| minor != -1),
            ),
            _ => true,
        }
    };
    asked.iter().filter(keep).cloned().collect()
}
