//! Which sandbox a container belongs to: its bundle's annotations say it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

/// Largest `config.json` that is read, bytes.
const MAX: u64 = 64 << 20;

/// A caller's keys: the kind of the container, and the id of its sandbox.
struct Keys {
    kind: &'static str,
    sandbox: &'static str,
}

/// containerd's, CRI-O's and dockershim's.
const KEYS: [Keys; 3] = [
    Keys {
        kind: "io.kubernetes.cri.container-type",
        sandbox: "io.kubernetes.cri.sandbox-id",
    },
    Keys {
        kind: "io.kubernetes.cri-o.ContainerType",
        sandbox: "io.kubernetes.cri-o.SandboxID",
    },
    Keys {
        kind: "io.kubernetes.docker.type",
        sandbox: "io.kubernetes.sandbox.id",
    },
];

/// The only part of `config.json` that is of interest here.
#[derive(Debug, Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// Id of the sandbox of the container `id` with this bundle: its own, unless it is a later container of a pod. A bundle
/// without `config.json` is a sandbox's.
///
/// # Errors
/// `config.json` cannot be read or is no JSON, or a container of a pod does not say of which.
pub fn of_bundle(bundle: &Path, id: &str) -> Result<String> {
    let path = bundle.join("config.json");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.to_owned()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let reader = BufReader::new(file.take(MAX));
    let annotated: Annotated = serde_json::from_reader(reader)
        .with_context(|| format!("{} is no OCI specification", path.display()))?;
    of_annotations(&annotated.annotations.unwrap_or_default(), id)
        .with_context(|| format!("{}: the annotations are incomplete", path.display()))
}

fn of_annotations(annotations: &HashMap<String, String>, id: &str) -> Result<String> {
    for Keys { kind, sandbox } in KEYS {
        if annotations.get(kind).map(String::as_str) != Some("container") {
            continue;
        }
        return annotations
            .get(sandbox)
            .filter(|sandbox| !sandbox.is_empty())
            .cloned()
            .ok_or_else(|| {
                anyhow!("{kind} says that this is a container of a pod, but {sandbox} does not say which")
            });
    }
    Ok(id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(config: &str) -> Result<String> {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        of_bundle(bundle.path(), "own")
    }

    fn annotated(pairs: &[(&str, &str)]) -> String {
        let annotations: HashMap<_, _> = pairs.iter().copied().collect();
        serde_json::json!({"ociVersion": "1.0.2", "mounts": [{}], "annotations": annotations}).to_string()
    }

    #[test]
    fn later_containers_of_a_pod_belong_to_its_sandbox() {
        for [kind, sandbox] in [
            ["io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"],
            [
                "io.kubernetes.cri-o.ContainerType",
                "io.kubernetes.cri-o.SandboxID",
            ],
            ["io.kubernetes.docker.type", "io.kubernetes.sandbox.id"],
        ] {
            let container = annotated(&[(kind, "container"), (sandbox, "pod")]);
            assert_eq!(group(&container).unwrap(), "pod", "{kind}");
            for first in ["sandbox", "podsandbox"] {
                let first = annotated(&[(kind, first), (sandbox, "pod")]);
                assert_eq!(group(&first).unwrap(), "own", "{kind}");
            }
            let error = group(&annotated(&[(kind, "container")])).unwrap_err();
            assert!(format!("{error:#}").contains(sandbox), "{error:#}");
        }
    }

    #[test]
    fn everything_else_is_a_sandbox_of_its_own() {
        for config in [
            "{}",
            r#"{"annotations": null}"#,
            &annotated(&[("a", "container")]),
        ] {
            assert_eq!(group(config).unwrap(), "own", "{config}");
        }
        assert_eq!(of_bundle(Path::new("/nonexistent"), "own").unwrap(), "own");
    }

    #[test]
    fn what_is_no_specification_is_named() {
        for config in ["", "{", "7", r#"{"annotations": {"a": 1}}"#] {
            let error = format!("{:#}", group(config).unwrap_err());
            assert!(error.contains("config.json is no OCI specification"), "{error}");
        }
    }
}
