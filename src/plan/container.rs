//! A container's specification as the guest is to see it, and what the host does for it. Pure.

use std::path::Path;

use configuration::Config;
use oci_spec::runtime::{
    Linux, LinuxPersonalityDomain, LinuxSeccompAction, Process, RootBuilder, Spec, SpecBuilder,
};
use serde_json::Value;

use super::disks::Disks;
use super::namespaces::Namespaces;
use super::volumes::Volumes;
use super::{copies, devices, hooks, limits, mounts, namespaces, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::guest;
use crate::model::{
    ContainerConfig, ContainerPlan, ContainerType, RootPlan, SandboxPlan, SharePlan, StagePlan,
};
use crate::sandbox::RootfsMount;

/// Plans a container.
pub(super) fn plan(
    config: &Config,
    sandbox: &SandboxPlan,
    container: &ContainerConfig,
    volumes: &Volumes,
) -> Result<ContainerPlan> {
    let spec = &container.spec;
    // A guest that is a process of the host has no kernel to itself.
    let own_kernel = sandbox.share != SharePlan::Process;
    let setting = namespaces::Setting {
        kind: container.container_type,
        own_kernel,
        agent_pidns: config.runtime.enable_agent_pidns,
    };
    let namespaces = namespaces::plan(spec, setting)?;
    let mut disks = Disks::new(sandbox.disks, container);
    let on_disk = disks.root(container)?;
    let given = mounts::given(sandbox);
    let shares = sandbox.share != SharePlan::Nothing;
    if !shares && on_disk.is_none() {
        return Err(copies::no_root(container));
    }
    let volumes = shares.then_some(volumes);
    let mut mounts = mounts::plan(container, &given, volumes, &mut disks, namespaces.own_user)?;
    let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
    let guest_root = RootBuilder::default()
        .path(match &on_disk {
            Some(storage) => storage.mount_point.clone(),
            None => guest::shared(&container.directory, guest::ROOTFS),
        })
        .readonly(root.readonly().unwrap_or(false))
        .build()
        .map_err(|cause| internal("root", cause))?;
    let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;

    let mut linux = linux(config, container, &mut disks)?;
    if !mounts.nodes.is_empty() {
        let mut nodes = linux.devices().clone().unwrap_or_default();
        nodes.append(&mut mounts.nodes);
        linux.set_devices(Some(nodes));
    }
    if own_kernel && container.container_type != ContainerType::PodContainer {
        // The sandbox has set them.
        linux.set_sysctl(None);
    }
    let mut for_guest = SpecBuilder::default()
        .version(spec.version().clone())
        .root(guest_root)
        .process(self::process(process)?)
        .mounts(mounts.guest)
        .build()
        .map_err(|cause| internal("the specification", cause))?;
    for_guest.set_hostname(spec.hostname().clone().filter(|_| namespaces.own_uts));
    for_guest.set_domainname(spec.domainname().clone().filter(|_| namespaces.own_uts));
    for_guest.set_annotations(None);
    for_guest.set_hooks(hooks::in_guest(spec)?);
    let Namespaces { list, with_agent, .. } = namespaces;
    linux.set_namespaces(Some(list));
    for_guest.set_linux(Some(linux));

    let copied = mounts.copies.iter().map(|copy| guest::copied(&copy.mount_point));
    let storages = on_disk
        .iter()
        .cloned()
        .chain(mounts.storages)
        .chain(copied)
        .collect();
    let hooks = hooks::on_host(container, on_disk.is_some())?;
    let stage = (!hooks.container.is_empty()).then(|| StagePlan {
        root: container.bundle.join(root.path()),
        mounts: mounts.staged,
    });
    Ok(ContainerPlan {
        id: container.id.clone(),
        directory: container.directory.clone(),
        root: match on_disk {
            Some(_) => RootPlan::Disk,
            None => self::root(container, root.path())?,
        },
        binds: mounts.binds,
        copies: mounts.copies,
        disks: disks.list,
        hooks,
        stage,
        has_agents_pids: with_agent,
        guest: guest::create_container(&container.id, json(&for_guest)?, storages, disks.devices),
    })
}

/// File systems that the host's kernel can mount by itself. Other kinds that snapshotters name are orders to a runtime
/// (to pull an image in the guest, to format a disk).
const SNAPSHOTS: [&str; 7] = ["overlay", "bind", "ext4", "xfs", "btrfs", "zfs", "erofs"];

fn root(container: &ContainerConfig, path: &Path) -> Result<RootPlan> {
    let unknown = |mount: &&RootfsMount| !SNAPSHOTS.contains(&mount.fs_type.as_str());
    if let Some(mount) = container.rootfs.iter().find(unknown) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the root file system of container {} is a mount of type {}, which is not supported; use another snapshotter, \
                 such as overlayfs",
                container.id,
                crate::oci::shown(&mount.fs_type)
            ),
        ));
    }
    Ok(match container.rootfs.as_slice() {
        [] => RootPlan::Directory(container.bundle.join(path)),
        mounts => RootPlan::Mounts(mounts.to_vec()),
    })
}

/// Labels of the host's security modules mean nothing in the guest, which has none of those.
fn process(asked: &Process) -> Result<Process> {
    let refused = [
        ("process.scheduler", asked.scheduler().is_some()),
        ("process.ioPriority", asked.io_priority().is_some()),
        ("process.execCPUAffinity", asked.exec_cpu_affinity().is_some()),
    ];
    refuse(&refused)?;
    let mut process = asked.clone();
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    Ok(process)
}

/// Without namespaces and sysctls, which depend on the sandbox.
fn linux(config: &Config, container: &ContainerConfig, disks: &mut Disks) -> Result<Linux> {
    let mut linux = match container.spec.linux() {
        Some(asked) => asked.clone(),
        None => {
            let mut linux = Linux::default();
            linux
                .set_resources(None)
                .set_masked_paths(None)
                .set_readonly_paths(None);
            linux
        }
    };
    let is_linux = |domain| domain == LinuxPersonalityDomain::PerLinux;
    let refused = [
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|devices| !devices.is_empty()),
        ),
        (
            "linux.timeOffsets",
            linux
                .time_offsets()
                .as_ref()
                .is_some_and(|offsets| !offsets.is_empty()),
        ),
        (
            "linux.personality",
            linux
                .personality()
                .as_ref()
                .is_some_and(|personality| !is_linux(personality.domain())),
        ),
    ];
    refuse(&refused)?;
    linux.set_personality(None);
    linux.set_net_devices(None);
    linux.set_time_offsets(None);
    linux.set_mount_label(None);
    // Cache and memory nodes of the host.
    linux.set_intel_rdt(None);
    linux.set_memory_policy(None);
    // The host's hierarchy of slices and pods is of no use in a guest that has one pod.
    linux.set_cgroups_path(Some(Path::new("/").join(container.id.as_str())));
    let rules = linux
        .resources()
        .as_ref()
        .and_then(|resources| resources.devices().clone())
        .unwrap_or_default();
    if let Some(asked) = linux.devices() {
        let nodes = devices::nodes(asked, &rules, disks)?;
        linux.set_devices(Some(nodes));
    }
    if let Some(asked) = linux.resources() {
        let limits = limits::for_guest(asked);
        linux.set_resources(Some(limits));
    }
    seccomp(config, &mut linux)?;
    Ok(linux)
}

fn seccomp(config: &Config, linux: &mut Linux) -> Result<()> {
    if config.runtime.disable_guest_seccomp {
        linux.set_seccomp(None);
    }
    let Some(profile) = linux.seccomp() else {
        return Ok(());
    };
    let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
    let asks = profile.listener_path().is_some()
        || notifies(profile.default_action())
        || profile
            .syscalls()
            .iter()
            .flatten()
            .any(|rule| notifies(rule.action()));
    if asks {
        return Err(unsupported(
            "linux.seccomp",
            "the listener of a notification (SCMP_ACT_NOTIFY) is on the host, and cannot act in the guest",
        ));
    }
    Ok(())
}

fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(unsupported(field, "is not supported in the guest; leave it out")),
        None => Ok(()),
    }
}

/// The bytes for the agent: the same for the same specification, whose sets have no order.
fn json(spec: &Spec) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(spec).map_err(|cause| internal("the specification", cause))?;
    if let Some(sets) = value
        .pointer_mut("/process/capabilities")
        .and_then(Value::as_object_mut)
    {
        for names in sets.values_mut().filter_map(Value::as_array_mut) {
            names.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    let json = serde_json::to_vec(&value).map_err(|cause| internal("the specification", cause))?;
    if json.len() > agent_protocol::MAX_SPEC {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "config.json: the specification for the guest has {} bytes; at most {} are allowed: use fewer mounts or \
                 environment variables",
                json.len(),
                agent_protocol::MAX_SPEC
            ),
        ));
    }
    Ok(json)
}

fn missing(field: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("config.json: {field}: is missing"),
    )
}

fn internal(what: &str, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::caused(ErrorKind::Internal, format!("{what} for the guest"), cause)
}
