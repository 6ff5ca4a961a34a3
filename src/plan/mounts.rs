//! Mounts: which of them are files of the host's, and what the guest mounts in their place. Pure.
//!
//! Every source that the guest is told lies below its own directory, or is a file system of its own kernel. What is at the
//! path on the host is not known here, so that only paths decide: `/sys`, `/proc` and `/dev` are the kernel's, and the guest's
//! kernel is another one than the host's.

use std::path::{Component, Path, PathBuf};

use agent_protocol as p;
use oci_spec::runtime::{LinuxDevice, Mount};

use super::disks::{self, Disks};
use super::{copies, memory, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::guest;
use crate::model::{BindPlan, ContainerConfig, CopyPlan, DisksPlan, SandboxPlan, StageMount};
use crate::plan::volumes::{Volumes, Wanted};

/// File systems that the kernel makes out of nothing.
const OF_THE_KERNEL: [&str; 16] = [
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "proc",
    "ramfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// Where processes look for memory that they share.
const SHM: &str = "/dev/shm";

/// The options that set SELinux labels; the guest's kernel has no SELinux and takes them for nonsense.
const LABELS: [&str; 4] = ["context=", "fscontext=", "defcontext=", "rootcontext="];

/// A container's mounts.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// In the guest.
    pub(super) guest: Vec<Mount>,
    /// On the host, for the guest.
    pub(super) binds: Vec<BindPlan>,
    /// Of the host, in the guest.
    pub(super) copies: Vec<CopyPlan>,
    /// In the guest, for the pod or for the container alone.
    pub(super) storages: Vec<p::Storage>,
    /// What is not mounted, but a device in the container.
    pub(super) nodes: Vec<LinuxDevice>,
    /// On the host, for hooks.
    pub(super) staged: Vec<StageMount>,
}

/// A file or directory of the pod's in the guest, and where every container has it that has nothing else there.
pub(super) struct Given {
    destination: &'static str,
    source: &'static str,
}

/// What a pod gives its containers: nothing if a container stands for it, whose caller has files on the host for all of them.
pub(super) fn given(sandbox: &SandboxPlan) -> Vec<Given> {
    if !sandbox.is_alone {
        return Vec::new();
    }
    let guest = &sandbox.guest;
    let resolves = guest
        .dns
        .as_ref()
        .is_some_and(|dns| !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()));
    [
        (true, SHM, p::GUEST_SHM),
        (resolves, "/etc/resolv.conf", p::GUEST_RESOLV_CONF),
        (!guest.hostname.is_empty(), "/etc/hostname", p::GUEST_HOSTNAME),
    ]
    .into_iter()
    .filter(|(is_there, ..)| *is_there)
    .map(|(_, destination, source)| Given { destination, source })
    .collect()
}

impl Given {
    /// As a mount of a container's. A container that must not write its root must not write a file of the pod's.
    fn mount(&self, readonly: bool) -> Mount {
        let mut mount = Mount::default();
        let mut options = vec!["bind".to_owned()];
        options.extend((readonly && self.destination != SHM).then(|| "ro".to_owned()));
        mount
            .set_destination(self.destination.into())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(self.source.into()))
            .set_options(Some(options));
        mount
    }
}

/// Sorts the mounts of a specification, and adds what is `given` to it. `volumes`: what is shared, where anything can be.
/// `own_user`: the container has a user namespace of its own.
pub(super) fn plan(
    container: &ContainerConfig,
    given: &[Given],
    volumes: Option<&Volumes>,
    disks: &mut Disks,
    own_user: bool,
) -> Result<Mounts> {
    let mut mounts = Mounts::default();
    for (index, asked) in container.spec.mounts().iter().flatten().enumerate() {
        if asked.uid_mappings().is_some() || asked.gid_mappings().is_some() {
            return Err(unsupported(
                format_args!("mounts[{index}].uidMappings"),
                "id-mapped mounts are not supported",
            ));
        }
        let mut mount = asked.clone();
        mount.set_options(options(asked));
        let options = Options::read(&mount);
        if options.remount {
            mount.set_source(None);
        } else if options.bind {
            let place = Place {
                index,
                container,
                volumes,
            };
            if !bind(&place, &mut mount, &options, disks, &mut mounts)? {
                continue;
            }
        } else {
            new(index, &mut mount, own_user)?;
            if mount.typ().as_deref() == Some("tmpfs") {
                mounts.staged.push(staged(index, None, &mount, &options));
            }
        }
        mounts.guest.push(mount);
    }
    let root = container.spec.root().as_ref();
    let readonly = root.and_then(|root| root.readonly()).unwrap_or(false);
    for given in given {
        let there = |mount: &&mut Mount| mount.destination() == Path::new(given.destination);
        match mounts.guest.iter_mut().find(there) {
            None => mounts.guest.push(given.mount(readonly)),
            // Memory of the container's alone, because nobody has had the pod's.
            Some(mount) if given.destination == SHM && mount.typ().as_deref() == Some("tmpfs") => {
                *mount = given.mount(readonly);
            }
            Some(_) => {}
        }
    }
    Ok(mounts)
}

/// The options without labels.
fn options(mount: &Mount) -> Option<Vec<String>> {
    let options = mount.options().as_ref()?;
    let is_label = |option: &str| LABELS.iter().any(|label| option.starts_with(label));
    Some(
        options
            .iter()
            .filter(|option| !is_label(option))
            .cloned()
            .collect(),
    )
}

/// What options say that matters to the host.
struct Options {
    bind: bool,
    recursive: bool,
    readonly: bool,
    remount: bool,
}

impl Options {
    fn read(mount: &Mount) -> Self {
        let mut read = Self {
            bind: mount.typ().as_deref() == Some("bind"),
            recursive: false,
            readonly: false,
            remount: false,
        };
        for option in mount.options().iter().flatten() {
            match option.as_str() {
                "bind" => read.bind = true,
                "rbind" => (read.bind, read.recursive) = (true, true),
                "ro" | "rro" => read.readonly = true,
                "rw" | "rrw" => read.readonly = false,
                "remount" => read.remount = true,
                _ => {}
            }
        }
        read
    }
}

/// Where a mount is asked for.
struct Place<'a> {
    index: usize,
    container: &'a ContainerConfig,
    volumes: Option<&'a Volumes>,
}

/// Whether it is a mount in the container.
fn bind(
    place: &Place<'_>,
    mount: &mut Mount,
    options: &Options,
    disks: &mut Disks,
    mounts: &mut Mounts,
) -> Result<bool> {
    let Place {
        index,
        container,
        volumes,
    } = *place;
    let source = source(mount, &container.bundle).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("config.json: mounts[{index}].source: is missing"),
        )
    })?;
    let clean = clean(&source);
    let found = container.found.get(&source);
    if clean == Path::new("/sys/fs/cgroup") {
        // The host's tree would not show the container's processes.
        let is_binding = |option: &String| {
            matches!(option.as_str(), "bind" | "rbind")
                || option.trim_start_matches('r') == "private"
                || option.trim_start_matches('r') == "slave"
                || option.trim_start_matches('r') == "shared"
        };
        let mut rest = mount.options().clone().unwrap_or_default();
        rest.retain(|option| !is_binding(option));
        mount.set_typ(Some("cgroup".to_owned()));
        mount.set_source(Some("cgroup".into()));
        mount.set_options(Some(rest));
    } else if mount.destination() == Path::new(SHM) || clean.starts_with(SHM) {
        // Memory that processes share must be memory of their own kernel.
        mount.set_source(Some(p::GUEST_SHM.into()));
    } else if let Some(volume) = found.and_then(|found| found.direct.as_ref()) {
        let storage = disks.volume((index, &source), volume, options.readonly)?;
        mount.set_source(Some(storage.mount_point.clone().into()));
        // A disk is mounted once, for writing if anybody writes: who only reads has a mount of his own that is read-only.
        match mounts
            .storages
            .iter_mut()
            .find(|known| known.mount_point == storage.mount_point)
        {
            None => mounts.storages.push(storage),
            Some(known) if !options.readonly => *known = storage,
            Some(_) => {}
        }
    } else if let Some((found, numbers)) = found.and_then(|found| Some((found, found.block?)))
        && disks.how != DisksPlan::Mounted
    {
        let path = mount.destination().clone();
        if disks.how == DisksPlan::Impossible {
            return Err(unsupported(
                format_args!("mounts[{index}].source"),
                format!(
                    "{} is a block device, and this virtual machine can be given none while it runs; use machine_type = \
                     \"q35\"",
                    source.display()
                ),
            ));
        }
        let access = if options.readonly { "rm" } else { "rwm" };
        disks.device(numbers, path.clone(), access);
        mounts
            .nodes
            .push(disks::node(path, found.mode, found.uid, found.gid)?);
        return Ok(false);
    } else if ["/sys", "/proc", "/dev"]
        .iter()
        .any(|kernel| clean.starts_with(kernel))
    {
        mount.set_source(Some(clean));
    } else if let Some(storage) = of_memory(&source, &clean, container, volumes.is_some()) {
        mount.set_source(Some(storage.mount_point.clone().into()));
        if !mounts.storages.contains(&storage) {
            mounts.storages.push(storage);
        }
    } else if let Some(volumes) = volumes {
        mounts
            .staged
            .push(staged(index, Some(source.clone()), mount, options));
        let name = share(source, &clean, options, container, volumes, &mut mounts.binds);
        mount.set_source(Some(guest::shared(&name, guest::DATA).into()));
    } else {
        let wanted = copies::Wanted {
            index,
            source: &source,
            destination: mount.destination(),
            readonly: options.readonly,
            recursive: options.recursive,
        };
        let copy = copies::plan(&wanted, container, mounts.copies.len())?;
        mount.set_source(Some(Path::new(&copy.mount_point).join(guest::DATA)));
        mounts.copies.push(copy);
    }
    Ok(true)
}

/// A mount as the host's hooks find it.
fn staged(index: usize, source: Option<PathBuf>, mount: &Mount, options: &Options) -> StageMount {
    StageMount {
        index,
        source,
        destination: mount.destination().clone(),
        readonly: options.readonly,
        recursive: options.recursive,
    }
}

/// Absolute path of what a mount binds.
fn source(mount: &Mount, bundle: &Path) -> Option<PathBuf> {
    let source = mount.source().as_ref()?;
    (!source.as_os_str().is_empty()).then(|| bundle.join(source))
}

/// What of the host a container's mounts name, as far as it matters what is there.
pub(super) fn sources(container: &ContainerConfig) -> Result<Vec<PathBuf>> {
    let mut disks = Disks::new(DisksPlan::Mounted, container);
    let mounts = plan(container, &[], Some(&Volumes::default()), &mut disks, false)?;
    // Among the host's devices, what is a disk.
    let devices = container.spec.mounts().iter().flatten().filter_map(|mount| {
        let source = source(mount, &container.bundle).filter(|_| Options::read(mount).bind)?;
        let clean = clean(&source);
        (clean.starts_with("/dev") && !clean.starts_with(SHM)).then_some(source)
    });
    let binds = mounts.binds.into_iter().map(|bind| bind.source);
    Ok(binds.chain(devices).collect())
}

fn of_memory(
    source: &Path,
    clean: &Path,
    container: &ContainerConfig,
    is_shared: bool,
) -> Option<p::Storage> {
    let linux = container.spec.linux().as_ref();
    let limits = linux
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.hugepage_limits().as_deref());
    let found = container.found.get(source)?;
    memory::volume(clean, found, limits.unwrap_or_default(), is_shared)
}

/// Shares what is at a path of the host; the answer is its name in the share.
fn share(
    source: PathBuf,
    clean: &Path,
    options: &Options,
    container: &ContainerConfig,
    volumes: &Volumes,
    binds: &mut Vec<BindPlan>,
) -> String {
    let identity = container.found.get(&source).map(|found| &found.identity);
    let wanted = Wanted {
        identity,
        // A pod's own directory is shared for writing if only because another container may come to write: it is to be the
        // same one for those who read, and nothing but the pod's is in it. The mount in the container is read-only.
        readonly: options.readonly && !memory::is_of_a_pod(clean),
        recursive: options.recursive,
    };
    let known = volumes.find(wanted, binds);
    if let Some(name) = &known
        && binds.iter().any(|bind| bind.name == *name)
    {
        return name.clone();
    }
    let new = binds
        .iter()
        .filter(|bind| volumes.get(&bind.name).is_none())
        .count();
    let name = known.unwrap_or_else(|| volumes.new_name(new));
    binds.push(match volumes.get(&name) {
        Some(plan) => plan.clone(),
        None => BindPlan {
            name: name.clone(),
            source,
            readonly: wanted.readonly,
            recursive: wanted.recursive,
            identity: identity.cloned(),
        },
    });
    name
}

fn new(index: usize, mount: &mut Mount, own_user: bool) -> Result<()> {
    let kind = match mount.typ().as_deref() {
        Some(kind) if !kind.is_empty() => kind.to_owned(),
        _ => {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("config.json: mounts[{index}].type: is missing"),
            ));
        }
    };
    if !OF_THE_KERNEL.contains(&kind.as_str()) {
        return Err(unsupported(
            format_args!("mounts[{index}].type"),
            format!(
                "{} cannot be mounted in the guest; mount it on the host, and bind its directory",
                crate::oci::shown(&kind)
            ),
        ));
    }
    if kind == "sysfs" && own_user {
        // A new one belongs to the network namespace, which is the guest's.
        let mut options = mount.options().clone().unwrap_or_default();
        options.push("rbind".to_owned());
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some("/sys".into()));
        mount.set_options(Some(options));
        return Ok(());
    }
    // Only a name that /proc/mounts shows; a path of the host's would be a false one.
    let is_name = |source: &Path| !source.as_os_str().is_empty() && !source.to_string_lossy().contains('/');
    if !mount.source().as_deref().is_some_and(is_name) {
        mount.set_source(Some(kind.into()));
    }
    Ok(())
}

/// A path without `.` and `..`, as text: links are the host's to resolve.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}
