//! Which namespaces a container has in the guest. Pure.
//!
//! A virtual machine has one namespace of each kind for all its containers, and that is what a sandbox shares: network, IPC
//! and UTS of a sandbox's first container, and every namespace that a specification names by a path of the host (another
//! container of the pod's), are the guest's own. In the specification for the guest they are left out, which says so.

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType as Kind, Spec};

use super::unsupported;
use crate::error::{Error, ErrorKind, Result};
use crate::model::ContainerType;

/// Namespaces for the guest, and what follows from them.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) list: Vec<LinuxNamespace>,
    /// The container has a host name of its own.
    pub(super) own_uts: bool,
    /// The container has a user namespace of its own.
    pub(super) own_user: bool,
}

/// Chooses. `own_kernel` is false for a guest that is a process of the host: there the kernel's own namespaces are the
/// host's, and new ones stay new.
pub(super) fn plan(spec: &Spec, kind: ContainerType, own_kernel: bool) -> Result<Namespaces> {
    let asked: &[LinuxNamespace] = match spec.linux() {
        Some(linux) => linux.namespaces().as_deref().unwrap_or_default(),
        None => &[],
    };
    let own_user = asked.iter().any(|namespace| namespace.typ() == Kind::User);
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
            Kind::Pid => !joins,
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
    Ok(Namespaces {
        own_uts: kinds.contains(&Kind::Uts),
        own_user,
        list: kinds.into_iter().map(new).collect::<Result<_>>()?,
    })
}

fn new(kind: Kind) -> Result<LinuxNamespace> {
    LinuxNamespaceBuilder::default()
        .typ(kind)
        .build()
        .map_err(|cause| Error::caused(ErrorKind::Internal, format!("the {kind} namespace"), cause))
}
