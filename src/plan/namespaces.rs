//! Which namespaces a container has in the guest. Pure.
//!
//! A virtual machine has one namespace of each kind for all its containers, and that is what a sandbox shares: network, IPC
//! and UTS of a sandbox's first container, and every namespace that a specification names by a path of the host (another
//! container of the pod's), are the guest's own. In the specification for the guest they are left out, which says so.

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType as Kind, Spec};

use super::unsupported;
use crate::error::{Error, ErrorKind, Result};
use crate::guest;
use crate::model::ContainerType;
use crate::oci;

/// Environment variable with which a container asks for the pid namespace of the guest's agent. Kata's.
const AGENT_PIDNS: &str = "KATA_AGENT_PIDNS";

/// Namespaces for the guest, and what follows from them.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) list: Vec<LinuxNamespace>,
    /// The container has a host name of its own.
    pub(super) own_uts: bool,
    /// The container has a user namespace of its own.
    pub(super) own_user: bool,
    /// The container has the pid namespace of the guest's agent.
    pub(super) with_agent: bool,
}

/// What decides beside the specification.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// The container's place.
    pub(super) kind: ContainerType,
    /// False for a guest that is a process of the host: there the kernel's own namespaces are the host's, and new ones stay new.
    pub(super) own_kernel: bool,
    /// Who asks for it may see the agent's processes.
    pub(super) agent_pidns: bool,
}

/// Chooses.
pub(super) fn plan(spec: &Spec, setting: Setting) -> Result<Namespaces> {
    let Setting { kind, own_kernel, .. } = setting;
    let asked: &[LinuxNamespace] = match spec.linux() {
        Some(linux) => linux.namespaces().as_deref().unwrap_or_default(),
        None => &[],
    };
    let own_user = asked.iter().any(|namespace| namespace.typ() == Kind::User);
    let with_agent = with_agent(spec, setting, own_user)?;
    let has_domainname = spec.domainname().as_ref().is_some_and(|name| !name.is_empty());
    // No container works without.
    let mut kinds = vec![Kind::Mount];
    for namespace in asked {
        let joins = namespace
            .path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty());
        let of_the_pod = kind != ContainerType::PodContainer && own_kernel;
        let is_new = match namespace.typ() {
            Kind::Mount if joins => {
                return Err(unsupported(
                    "linux.namespaces",
                    "a mount namespace of the host cannot be joined",
                ));
            }
            Kind::Mount => false,
            // Of cgroups the guest has its own tree, so that one of the host's means a new one.
            Kind::Cgroup => true,
            Kind::Pid => !joins && !with_agent,
            Kind::Network => !joins && !own_kernel,
            // A mount of message queues needs an IPC namespace that belongs to the user namespace.
            Kind::Ipc => !joins && (!of_the_pod || own_user),
            // The sandbox has a host name, but no domain.
            Kind::Uts => !joins && (!of_the_pod || own_user || has_domainname),
            Kind::User if joins || kind != ContainerType::SingleContainer => {
                return Err(unsupported(
                    "linux.namespaces",
                    "a user namespace that containers share is not supported; the virtual machine isolates them from the \
                     host without one (in Kubernetes: hostUsers: true)",
                ));
            }
            Kind::User => true,
            Kind::Time => {
                return Err(unsupported(
                    "linux.namespaces",
                    "a time namespace is not supported",
                ));
            }
        };
        if is_new {
            kinds.push(namespace.typ());
        }
    }
    let own_uts = kinds.contains(&Kind::Uts);
    let mut list: Vec<_> = kinds
        .into_iter()
        .map(|kind| named(kind, ""))
        .collect::<Result<_>>()?;
    if with_agent {
        list.push(named(Kind::Pid, guest::AGENT_PIDS)?);
    }
    Ok(Namespaces {
        own_uts,
        own_user,
        with_agent,
        list,
    })
}

/// Whether the container asks for the agent's pid namespace, and may have it.
fn with_agent(spec: &Spec, setting: Setting, own_user: bool) -> Result<bool> {
    let environment = spec
        .process()
        .as_ref()
        .and_then(|process| process.env().as_deref());
    let value = |entry: &'_ String| {
        entry
            .strip_prefix(AGENT_PIDNS)?
            .strip_prefix('=')
            .map(str::to_owned)
    };
    // The last one counts.
    let Some(asked) = environment.unwrap_or_default().iter().rev().find_map(value) else {
        return Ok(false);
    };
    let refuse = |kind, why: &str| {
        Err(Error::new(
            kind,
            format!("config.json: process.env: {AGENT_PIDNS} {why}"),
        ))
    };
    match asked.as_str() {
        "0" | "f" | "F" | "false" | "False" | "FALSE" => return Ok(false),
        "1" | "t" | "T" | "true" | "True" | "TRUE" => {}
        other => {
            let why = format!("is {}: write true or false", oci::shown(other));
            return refuse(ErrorKind::InvalidArgument, &why);
        }
    }
    if !setting.own_kernel {
        return refuse(
            ErrorKind::Unsupported,
            "asks for the agent's pid namespace, which is the host's here; remove it",
        );
    }
    if !setting.agent_pidns {
        return refuse(
            ErrorKind::FailedPrecondition,
            "asks for the pid namespace of the guest's agent, which is not allowed; remove it, or let the administrator set \
             runtime.enable_agent_pidns",
        );
    }
    if setting.kind == ContainerType::PodSandbox {
        return refuse(
            ErrorKind::Unsupported,
            "asks for the pid namespace of the guest's agent, which all containers that share the pod's processes would \
             have then; set it for one of those instead",
        );
    }
    if own_user {
        return refuse(
            ErrorKind::Unsupported,
            "asks for the pid namespace of the guest's agent, whose /proc a user namespace of its own cannot mount; leave out \
             the user namespace",
        );
    }
    Ok(true)
}

/// A namespace of the guest's, or a new one without a path.
fn named(kind: Kind, path: &str) -> Result<LinuxNamespace> {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    let builder = match path {
        "" => builder,
        path => builder.path(path),
    };
    builder
        .build()
        .map_err(|cause| Error::caused(ErrorKind::Internal, format!("the {kind} namespace"), cause))
}
