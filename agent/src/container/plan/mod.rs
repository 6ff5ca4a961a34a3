//! An OCI specification as the values that creation needs: everything about a bad specification is refused here, with
//! the field's name, before the agent has made anything.
//!
//! Pure: reads the specification only. Must not know how a step is carried out.

mod filesystem;
#[cfg(test)]
mod fuzzed;
mod process;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};

use super::cgroup;
use super::error::{Error, Result};
use super::{Environment, deadlines};
pub(super) use filesystem::{Device, Mount, MountKind};
pub(super) use process::ProcessPlan;

/// What a container's creation does.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) namespaces: Namespaces,
    pub(super) filesystem: filesystem::Filesystem,
    /// Relative to the agent's cgroup root.
    pub(super) cgroup: PathBuf,
    pub(super) sysctl: Vec<Sysctl>,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    pub(super) process: ProcessPlan,
    /// `startContainer` hooks; the others ran on the host.
    pub(super) hooks: Vec<Hook>,
}

/// A setting of the kernel's.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sysctl {
    /// Below /proc/sys.
    pub(super) path: PathBuf,
    pub(super) value: String,
    /// As the specification names it.
    pub(super) key: String,
}

/// Namespaces of the container; those that are in neither list it shares with the agent.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) new: CloneFlags,
    pub(super) join: Vec<(CloneFlags, PathBuf)>,
    /// The pid namespace in which the new one is made; the agent's, if none.
    pub(super) pid_parent: Option<PathBuf>,
    /// Contents of uid_map and gid_map, for a new user namespace.
    pub(super) uid_map: String,
    pub(super) gid_map: String,
}

/// A program that runs in the container just before its own.
#[derive(Debug)]
pub(super) struct Hook {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) timeout: Duration,
}

impl Plan {
    /// Checks a specification and turns it into a plan.
    pub(super) fn new(id: &str, spec: &Spec, environment: &Environment) -> Result<Self> {
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| Error::spec("linux", "is missing"))?;
        refuse_unsupported(linux)?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| Error::spec("process", "is missing"))?;
        let namespaces = Namespaces::new(linux, environment)?;
        let uts = CloneFlags::CLONE_NEWUTS;
        let own_uts = namespaces.new.contains(uts) || namespaces.join.iter().any(|(kind, _)| *kind == uts);
        let name = |field: &str, value: &Option<String>| match value {
            // An empty name is none.
            Some(name) if !name.is_empty() && !own_uts => Err(Error::spec(field, "needs a UTS namespace")),
            // The kernel's __NEW_UTS_LEN.
            Some(name) if name.len() > 64 => Err(Error::spec(field, "is longer than 64 bytes")),
            value => Ok(value.clone().filter(|name| !name.is_empty())),
        };
        Ok(Self {
            filesystem: filesystem::Filesystem::new(spec, linux)?,
            cgroup: cgroup::path::relative(linux.cgroups_path().as_deref(), id)?,
            sysctl: sysctl(linux)?,
            hostname: name("hostname", spec.hostname())?,
            domainname: name("domainname", spec.domainname())?,
            process: ProcessPlan::new(process)?,
            hooks: hooks(spec)?,
            namespaces,
        })
    }
}

fn refuse_unsupported(linux: &Linux) -> Result<()> {
    let unsupported = [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
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
    ];
    match unsupported.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(Error::unsupported(*field, "this setting")),
        None => Ok(()),
    }
}

impl Namespaces {
    fn new(linux: &Linux, environment: &Environment) -> Result<Self> {
        const FIELD: &str = "linux.namespaces";
        let mut namespaces = Self {
            new: CloneFlags::empty(),
            join: Vec::new(),
            pid_parent: None,
            uid_map: String::new(),
            gid_map: String::new(),
        };
        let mut seen = HashSet::new();
        for namespace in linux.namespaces().iter().flatten() {
            let kind = namespace.typ();
            if !seen.insert(kind) {
                return Err(Error::spec(FIELD, format!("{kind} is named twice")));
            }
            let pod = &environment.pod;
            let (flag, shared) = match kind {
                LinuxNamespaceType::Mount => (CloneFlags::CLONE_NEWNS, None),
                LinuxNamespaceType::Cgroup => (CloneFlags::CLONE_NEWCGROUP, None),
                LinuxNamespaceType::Uts => (CloneFlags::CLONE_NEWUTS, pod.uts.as_ref()),
                LinuxNamespaceType::Ipc => (CloneFlags::CLONE_NEWIPC, pod.ipc.as_ref()),
                LinuxNamespaceType::User => (CloneFlags::CLONE_NEWUSER, None),
                LinuxNamespaceType::Pid => (CloneFlags::CLONE_NEWPID, None),
                LinuxNamespaceType::Network => (CloneFlags::CLONE_NEWNET, pod.network.as_ref()),
                LinuxNamespaceType::Time => return Err(Error::unsupported(FIELD, "a time namespace")),
            };
            let path = namespace
                .path()
                .as_ref()
                .filter(|path| !path.as_os_str().is_empty());
            match path.or(shared) {
                None => namespaces.new |= flag,
                Some(path) if flag == CloneFlags::CLONE_NEWNS => {
                    return Err(Error::unsupported(
                        FIELD,
                        format!("joining the mount namespace {}", path.display()),
                    ));
                }
                Some(path) if path.is_absolute() => namespaces.join.push((flag, path.clone())),
                Some(path) => {
                    return Err(Error::spec(FIELD, format!("{} is not absolute", path.display())));
                }
            }
        }
        if let Some(pod) = &environment.pod.pid {
            let pid = CloneFlags::CLONE_NEWPID;
            if namespaces.new.contains(pid) {
                namespaces.pid_parent = Some(pod.clone());
            } else if namespaces.join.iter().all(|(kind, _)| *kind != pid) {
                namespaces.join.push((pid, pod.clone()));
            }
        }
        if !namespaces.new.contains(CloneFlags::CLONE_NEWNS) {
            return Err(Error::spec(FIELD, "a container needs a mount namespace"));
        }
        namespaces.uid_map = mapping("linux.uidMappings", linux.uid_mappings().as_deref())?;
        namespaces.gid_map = mapping("linux.gidMappings", linux.gid_mappings().as_deref())?;
        let user = namespaces.new.contains(CloneFlags::CLONE_NEWUSER);
        if user == namespaces.uid_map.is_empty() || user == namespaces.gid_map.is_empty() {
            return Err(Error::spec(
                "linux.uidMappings",
                "id mappings and a new user namespace must come together",
            ));
        }
        // The others may belong to the joined user namespace.
        namespaces
            .join
            .sort_by_key(|(kind, _)| *kind != CloneFlags::CLONE_NEWUSER);
        Ok(namespaces)
    }
}

fn mapping(field: &str, mappings: Option<&[LinuxIdMapping]>) -> Result<String> {
    let mut text = String::new();
    for mapping in mappings.unwrap_or_default() {
        if mapping.size() == 0 {
            return Err(Error::spec(field, "has a mapping of size 0"));
        }
        text.push_str(&format!(
            "{} {} {}\n",
            mapping.container_id(),
            mapping.host_id(),
            mapping.size()
        ));
    }
    Ok(text)
}

fn sysctl(linux: &Linux) -> Result<Vec<Sysctl>> {
    let mut settings = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        // As sysctl(8): the first separator decides whether a dot is a separator or part of a name.
        let path = match key.find(['.', '/']) {
            Some(at) if key.as_bytes()[at] == b'/' => key.clone(),
            _ => key
                .chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect(),
        };
        let ordinary = path
            .split('/')
            .all(|name| !name.is_empty() && name != "." && name != ".." && !name.contains('\0'));
        if !ordinary {
            return Err(Error::spec("linux.sysctl", format!("{key:?} is no sysctl")));
        }
        settings.push(Sysctl {
            path: PathBuf::from(path),
            value: value.clone(),
            key: key.clone(),
        });
    }
    settings.sort();
    Ok(settings)
}

fn hooks(spec: &Spec) -> Result<Vec<Hook>> {
    const FIELD: &str = "hooks.startContainer";
    let Some(hooks) = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.start_container().as_ref())
    else {
        return Ok(Vec::new());
    };
    hooks
        .iter()
        .map(|hook| {
            if !hook.path().is_absolute() {
                return Err(Error::spec(FIELD, "has a path that is not absolute"));
            }
            let timeout = match hook.timeout() {
                None => deadlines::HOOK,
                Some(seconds) => u64::try_from(seconds)
                    .ok()
                    .filter(|&seconds| seconds > 0)
                    .map(Duration::from_secs)
                    .ok_or_else(|| Error::spec(FIELD, "has a timeout that is not positive"))?,
            };
            Ok(Hook {
                path: hook.path().clone(),
                args: hook.args().clone().unwrap_or_default(),
                env: hook.env().clone().unwrap_or_default(),
                timeout,
            })
        })
        .collect()
}

/// An absolute path without `.`, `..` and doubled slashes; `..` never leads above the root.
fn clean(path: &Path) -> PathBuf {
    use std::path::Component;
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

#[cfg(test)]
mod tests;
