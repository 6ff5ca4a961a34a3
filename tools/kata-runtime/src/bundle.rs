//! The files of a bundle that concern its callers and us.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use runtime::error::Result;
use runtime::{Error, ErrorKind, oci};

/// The specification's name in a bundle.
const CONFIG: &str = "config.json";

/// The mark that a process was killed for memory: CRI-O and podman look for it.
const OOM: &str = "oom";

/// The bundle's specification, as text.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: it cannot be read.
pub fn config(bundle: &Path) -> Result<Vec<u8>> {
    let path = bundle.join(CONFIG);
    let mut config = Vec::new();
    let most = u64::try_from(oci::MAX_BYTES).unwrap_or(u64::MAX);
    let read = File::open(&path).and_then(|file| {
        // No more than is needed to see that it is too large.
        file.take(most.saturating_add(1)).read_to_end(&mut config)
    });
    match read {
        Ok(_) => Ok(config),
        Err(error) => Err(Error::caused(
            ErrorKind::InvalidArgument,
            format!("cannot read {}", path.display()),
            error,
        )),
    }
}

/// The annotations of a bundle's specification.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: it cannot be read, or is no JSON.
pub fn annotations(bundle: &Path) -> Result<BTreeMap<String, String>> {
    oci::annotations(&config(bundle)?).map_err(|error| Error {
        context: format!("{}: {}", bundle.join(CONFIG).display(), error.context),
        ..error
    })
}

/// Whether a bundle's specification names a network namespace that is there already.
///
/// # Errors
/// As [`annotations`].
pub fn names_a_network(bundle: &Path) -> Result<bool> {
    let spec: Spec = serde_json::from_slice(&config(bundle)?).map_err(|cause| {
        let what = format!("{} is no specification", bundle.join(CONFIG).display());
        Error::caused(ErrorKind::InvalidArgument, what, cause)
    })?;
    let namespaces = spec
        .linux()
        .iter()
        .flat_map(|linux| linux.namespaces().iter().flatten());
    let mut networks = namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    Ok(networks.any(|network| network.path().is_some()))
}

/// Leaves the mark of a killed process.
///
/// # Errors
/// The file cannot be created.
pub fn mark_oom(bundle: &Path) -> io::Result<()> {
    File::create(bundle.join(OOM)).map(drop)
}
