//! A container's place among others, from the annotations of those who group containers into pods: containerd's CRI
//! plugin, CRI-O (and podman, which writes CRI-O's for the members of its pods) and dockershim. Pure.

use std::collections::BTreeMap;

use super::shown;
use crate::SandboxId;
use crate::error::{Error, ErrorKind, Result};
use crate::model::ContainerType;

/// Annotations of a specification, in an order.
pub type Annotations = BTreeMap<String, String>;

/// Keys that tell a container's type: of containerd, CRI-O, dockershim.
pub const CRI_CONTAINER_TYPE_KEYS: [&str; 3] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.docker.type",
];

/// Keys that tell the id of a container's sandbox, in the same order.
pub const CRI_SANDBOX_NAME_KEYS: [&str; 3] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.sandbox.id",
];

/// What the values of [`CRI_CONTAINER_TYPE_KEYS`] mean, key by key.
pub const CRI_CONTAINER_TYPES: [[(&str, ContainerType); 2]; 3] = {
    const KUBERNETES: [(&str, ContainerType); 2] = [
        ("sandbox", ContainerType::PodSandbox),
        ("container", ContainerType::PodContainer),
    ];
    const DOCKERSHIM: [(&str, ContainerType); 2] = [
        ("podsandbox", ContainerType::PodSandbox),
        ("container", ContainerType::PodContainer),
    ];
    [KUBERNETES, KUBERNETES, DOCKERSHIM]
};

/// The place of a container. Without any of the keys it is alone: `ctr`, docker, nerdctl, podman, and the container that
/// holds a podman pod together.
///
/// The keys must not contradict each other: CRI-O copies a pod's annotations into its specification, so that the author
/// of a pod can write another orchestrator's keys.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for an unknown value or a contradiction, naming the annotation.
pub fn container_type(annotations: &Annotations) -> Result<ContainerType> {
    let mut found: Option<(&str, ContainerType)> = None;
    for (key, types) in CRI_CONTAINER_TYPE_KEYS.into_iter().zip(CRI_CONTAINER_TYPES) {
        let Some(value) = annotations.get(key) else {
            continue;
        };
        let Some((_, kind)) = types.into_iter().find(|(name, _)| name == value) else {
            let known = types.map(|(name, _)| format!("{name:?}")).join(" or ");
            return Err(invalid(key, &format!("is {}, not {known}", shown(value))));
        };
        match found {
            Some((first, other)) if other != kind => {
                return Err(invalid(key, &format!("contradicts {first}")));
            }
            Some(_) => {}
            None => found = Some((key, kind)),
        }
    }
    Ok(found.map_or(ContainerType::SingleContainer, |(_, kind)| kind))
}

/// The sandbox that a container of a pod belongs to; `None` for a container that is the first of its own sandbox.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] when a container of a pod does not name it, names two, or the id is none.
pub fn sandbox_id(annotations: &Annotations) -> Result<Option<SandboxId>> {
    if container_type(annotations)? != ContainerType::PodContainer {
        return Ok(None);
    }
    let mut found: Option<(&str, &String)> = None;
    for key in CRI_SANDBOX_NAME_KEYS {
        match (annotations.get(key), found) {
            (Some(id), Some((first, other))) if id != other => {
                return Err(invalid(key, &format!("contradicts {first}")));
            }
            (Some(id), None) => found = Some((key, id)),
            _ => {}
        }
    }
    let Some((key, id)) = found else {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "the container is one of a pod, but no annotation names its sandbox ({})",
                CRI_SANDBOX_NAME_KEYS.join(", ")
            ),
        ));
    };
    match SandboxId::new(id.as_str()) {
        Ok(id) => Ok(Some(id)),
        Err(error) => Err(invalid(key, &error.context)),
    }
}

fn invalid(key: &str, what: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("annotation {key}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn the_place_of_a_container_is_in_its_annotations() {
        use ContainerType::{PodContainer, PodSandbox, SingleContainer};
        let own = |pairs: Pairs<'_>| -> Annotations {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let [containerd, crio, dockershim] = CRI_CONTAINER_TYPE_KEYS;
        let [containerd_id, crio_id, dockershim_id] = CRI_SANDBOX_NAME_KEYS;
        let table: [(Pairs<'_>, ContainerType, Option<&str>); 9] = [
            (&[], SingleContainer, None),
            (&[("nerdctl/name", "x")], SingleContainer, None),
            (
                &[(containerd, "sandbox"), (containerd_id, "s1")],
                PodSandbox,
                None,
            ),
            (
                &[(containerd, "container"), (containerd_id, "s1")],
                PodContainer,
                Some("s1"),
            ),
            (&[(crio, "sandbox"), (crio_id, "s1")], PodSandbox, None),
            (&[(crio, "container"), (crio_id, "s1")], PodContainer, Some("s1")),
            (&[(dockershim, "podsandbox")], PodSandbox, None),
            (
                &[(dockershim, "container"), (dockershim_id, "s1")],
                PodContainer,
                Some("s1"),
            ),
            (
                &[
                    (containerd, "container"),
                    (crio, "container"),
                    (containerd_id, "s1"),
                    (crio_id, "s1"),
                ],
                PodContainer,
                Some("s1"),
            ),
        ];
        for (pairs, kind, sandbox) in table {
            let annotations = own(pairs);
            assert_eq!(container_type(&annotations).unwrap(), kind, "{pairs:?}");
            let id = sandbox_id(&annotations).unwrap();
            assert_eq!(id.as_ref().map(SandboxId::as_str), sandbox, "{pairs:?}");
        }
        let wrong: [Pairs<'_>; 7] = [
            &[(containerd, "pod")],
            &[(dockershim, "sandbox")],
            &[(containerd, "container")],
            &[(containerd, "container"), (containerd_id, "../x")],
            // A pod's author under CRI-O wants into another pod's virtual machine.
            &[
                (crio, "sandbox"),
                (crio_id, "s1"),
                (containerd, "container"),
                (containerd_id, "s2"),
            ],
            &[(crio, "container"), (crio_id, "s1"), (containerd_id, "s2")],
            &[(crio, "container"), (crio_id, "")],
        ];
        for pairs in wrong {
            let error = sandbox_id(&own(pairs)).expect_err(&format!("{pairs:?}"));
            assert!(error.context.contains("io.kubernetes."), "{}", error.context);
        }
    }
}
