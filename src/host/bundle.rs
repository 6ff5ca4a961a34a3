//! Reads what a caller's bundle says, as much of it as is sane.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::aside::Site;
use crate::error::{Error, ErrorKind, Result};
use crate::oci;

/// Longest `config.json` that is read, in bytes. What the guest is sent of it is limited as well.
const MAX_CONFIG: u64 = 4 * 1024 * 1024;

/// Longest `resolv.conf` that is read, in bytes.
const MAX_RESOLV_CONF: u64 = 64 * 1024;

/// Where the resolver's configuration is mounted.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The absolute path of a bundle.
pub(super) fn absolute(bundle: &Path) -> Result<PathBuf> {
    std::path::absolute(bundle).map_err(|cause| {
        Error::caused(
            ErrorKind::InvalidArgument,
            format!("the bundle's path {:?} cannot be used", bundle.display()),
            cause,
        )
    })
}

/// The specification of a bundle.
pub(crate) fn specification(bundle: &Path, site: &Site) -> Result<Spec> {
    let path = bundle.join("config.json");
    site.at(&path)?;
    let json = read(&path, MAX_CONFIG)?;
    oci::load(&json).map_err(|error| error.while_doing(path.display()))
}

/// What the specification mounts over `/etc/resolv.conf`, if anything.
pub(super) fn resolv_conf(spec: &Spec, site: &Site) -> Result<Option<String>> {
    let source = spec
        .mounts()
        .iter()
        .flatten()
        // The last one is what a container would see.
        .rfind(|mount| mount.destination() == Path::new(RESOLV_CONF))
        .and_then(|mount| mount.source().as_deref());
    let Some(source) = source.filter(|source| source.is_absolute()) else {
        return Ok(None);
    };
    site.at(source)?;
    String::from_utf8(read(source, MAX_RESOLV_CONF)?)
        .map(Some)
        .map_err(|_| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{}, the source of {RESOLV_CONF}, is not text", source.display()),
            )
        })
}

/// What this host resolves names with; nothing if that is no text.
pub(super) fn resolv_conf_of_the_host() -> String {
    read(Path::new(RESOLV_CONF), MAX_RESOLV_CONF)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_default()
}

/// Reads a file of the caller's, which may be anything.
fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let failed = |cause: io::Error| {
        let said = match cause.kind() {
            io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => cause.to_string(),
        };
        let context = format!("cannot read {}: {said}", path.display());
        Error::caused(ErrorKind::InvalidArgument, context, cause)
    };
    let refused = |what: String| Error::new(ErrorKind::InvalidArgument, format!("{} {what}", path.display()));
    // A named pipe that nobody writes to must not hold us up.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(refused("is not a regular file".to_owned()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(max)).unwrap_or(0));
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(refused(format!("is too large: at most {max} bytes are read")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_sane_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        std::fs::write(path("large"), "x".repeat(11)).unwrap();
        std::fs::write(path("good"), "x".repeat(10)).unwrap();
        assert_eq!(read(&path("good"), 10).unwrap().len(), 10);
        for (name, said) in [
            ("fifo", "not a regular file"),
            ("", "not a regular file"),
            ("loop", "symbolic links"),
            ("large", "at most 10 bytes"),
            ("missing", "no such file"),
        ] {
            let error = read(&path(name), 10).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.context.contains(said), "{error}");
            assert!(error.context.contains(name), "{error}");
        }
    }

    #[test]
    fn the_last_resolv_conf_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let spec = |mounts: serde_json::Value| -> Spec {
            serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "mounts": mounts})).unwrap()
        };
        let mount =
            |source: &Path| serde_json::json!({"destination": RESOLV_CONF, "type": "bind", "source": source});
        let read = |mounts| resolv_conf(&spec(mounts), &Site::default());
        assert_eq!(read(serde_json::json!([])).unwrap(), None);
        let twice = serde_json::json!([mount(Path::new("/nonexistent")), mount(&file)]);
        assert_eq!(read(twice).unwrap().as_deref(), Some("nameserver 192.0.2.1\n"));
        let missing = serde_json::json!([mount(Path::new("/nonexistent"))]);
        assert!(read(missing).unwrap_err().context.contains("/nonexistent"));
    }
}
