//! Which sandbox a container belongs to: its bundle's annotations say it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use runtime::error::Result;
use runtime::{Error, ErrorKind, SandboxId, oci};

/// The specification's name in a bundle.
const CONFIG: &str = "config.json";

/// Id of the sandbox of the container `id` with this bundle: its own, unless it is a later container of a pod. A bundle
/// without `config.json` is a sandbox's.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: `config.json` is no JSON, or a container of a pod does not say of which.
pub fn of_bundle(bundle: &Path, id: &SandboxId) -> Result<SandboxId> {
    let sandbox = annotations(bundle).and_then(|annotations| {
        let sandbox = oci::sandbox_id(&annotations);
        sandbox.map_err(|error| Error {
            context: format!("{}: {}", bundle.join(CONFIG).display(), error.context),
            ..error
        })
    })?;
    Ok(sandbox.unwrap_or_else(|| id.clone()))
}

/// The annotations of a bundle; none if it has no `config.json`.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: `config.json` is no JSON.
pub fn annotations(bundle: &Path) -> Result<BTreeMap<String, String>> {
    let path = bundle.join(CONFIG);
    match read(&path) {
        Ok(config) => oci::annotations(&config).map_err(|error| Error {
            context: format!("{}: {}", path.display(), error.context),
            ..error
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(Error::caused(
            ErrorKind::InvalidArgument,
            format!("cannot read {}", path.display()),
            error,
        )),
    }
}

/// Reads a file, and no more of it than is needed to see that it is too large.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut config = Vec::new();
    let most = u64::try_from(oci::MAX_BYTES).unwrap_or(u64::MAX);
    File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut config)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(config: &str) -> Result<String> {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        of_bundle(bundle.path(), &own()).map(|sandbox| sandbox.to_string())
    }

    fn own() -> SandboxId {
        SandboxId::new("own").unwrap()
    }

    #[test]
    fn later_containers_of_a_pod_belong_to_its_sandbox() {
        for (annotations, expected) in [
            (
                r#""io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod""#,
                "pod",
            ),
            (
                r#""io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod""#,
                "own",
            ),
            (r#""what": "ever""#, "own"),
            ("", "own"),
        ] {
            let config =
                format!(r#"{{"ociVersion": "1.0.2", "mounts": 7, "annotations": {{{annotations}}}}}"#);
            assert_eq!(group(&config).unwrap(), expected, "{config}");
        }
        assert_eq!(of_bundle(Path::new("/nonexistent"), &own()).unwrap(), own());
    }

    #[test]
    fn what_is_no_specification_is_named() {
        let huge = format!("{}{{}}", " ".repeat(oci::MAX_BYTES));
        for config in ["", "{", r#"{"annotations": {"a": 1}}"#, &huge] {
            let error = group(config).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.context.contains("/config.json: "), "{error}");
        }
        let error =
            group(r#"{"annotations": {"io.kubernetes.cri.container-type": "container"}}"#).unwrap_err();
        assert!(error.context.contains("io.kubernetes.cri.sandbox-id"), "{error}");
    }
}
