//! A container's state as the OCI runtime specification has it: what `state` prints. Pure.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::Serialize;

use super::container_type::Annotations;
use crate::ContainerId;
use crate::container::Status;
use crate::error::{Error, ErrorKind, Result};

/// Version of the runtime specification that states are written for.
pub const OCI_VERSION: &str = "1.0.2";

/// What is known of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Where it is in its life.
    pub status: Status,
    /// The process of the host that stands for it.
    pub pid: Option<u32>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Annotations of its specification.
    pub annotations: Annotations,
    /// Its specification, where it was kept.
    pub spec: Option<Spec>,
}

/// State of a container, for callers. The specification's own words, and `paused`, which every caller knows from `runc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// [`OCI_VERSION`].
    pub oci_version: &'static str,
    /// The container's id.
    pub id: String,
    /// `created`, `running`, `paused` or `stopped`.
    pub status: &'static str,
    /// 0 when there is no process.
    pub pid: u32,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// As in the specification.
    #[serde(skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

/// The word for a status.
pub fn state_to_oci_state(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopped => "stopped",
    }
}

/// The state of a container.
pub fn status_to_oci_state(container: &ContainerStatus) -> State {
    let lives = container.status != Status::Stopped;
    State {
        oci_version: OCI_VERSION,
        id: container.id.to_string(),
        status: state_to_oci_state(container.status),
        pid: container.pid.filter(|_| lives).unwrap_or(0),
        bundle: container.bundle.clone(),
        annotations: container.annotations.clone(),
    }
}

/// The specification that a container was made from.
///
/// # Errors
/// [`ErrorKind::NotFound`] when it was not kept.
pub fn get_oci_config(container: &ContainerStatus) -> Result<&Spec> {
    container.spec.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!(
                "the specification of container {} was not kept; read {}",
                container.id,
                container.bundle.join("config.json").display()
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(status: Status) -> ContainerStatus {
        ContainerStatus {
            id: ContainerId::new("c1").unwrap(),
            status,
            pid: Some(42),
            bundle: "/run/b".into(),
            annotations: Annotations::new(),
            spec: None,
        }
    }

    #[test]
    fn states_are_what_callers_parse() {
        let table = [
            (Status::Created, "created", 42),
            (Status::Running, "running", 42),
            (Status::Paused, "paused", 42),
            // A pid that is used again must not be taken for the container's.
            (Status::Stopped, "stopped", 0),
        ];
        for (status, word, pid) in table {
            let state = serde_json::to_value(status_to_oci_state(&container(status))).unwrap();
            let expected =
                json!({"ociVersion": "1.0.2", "id": "c1", "status": word, "pid": pid, "bundle": "/run/b"});
            assert_eq!(state, expected);
        }
        let mut annotated = container(Status::Running);
        annotated.annotations.insert("a".to_owned(), "b".to_owned());
        assert_eq!(
            serde_json::to_value(status_to_oci_state(&annotated)).unwrap()["annotations"],
            json!({"a": "b"})
        );
    }

    #[test]
    fn a_specification_is_there_or_told_where() {
        let mut container = container(Status::Running);
        let error = get_oci_config(&container).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.context.contains("/run/b/config.json"));
        container.spec = Some(Spec::default());
        assert_eq!(get_oci_config(&container).unwrap(), &Spec::default());
    }
}
