//! What this program says of itself: `-v`, `-info`, `features`.

use std::io::{self, Write};

use anyhow::{Context, Result};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

use crate::input;

/// The runtime's name in containerd's configuration.
const NAME: &str = "io.containerd.kata.v2";
/// Name of the features' type in containerd's registry.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

fn revision() -> &'static str {
    option_env!("KATA_COMMIT").unwrap_or("unknown")
}

/// Prints the version.
///
/// # Errors
/// It cannot be printed.
pub fn version() -> Result<()> {
    let text = format!(
        "containerd-shim-kata-v2 version {}\ncommit: {}\n",
        env!("CARGO_PKG_VERSION"),
        revision()
    );
    print(text.as_bytes())
}

/// Prints the features.
///
/// # Errors
/// They cannot be printed.
pub fn features() -> Result<()> {
    print(format!("{:#}\n", spec_features()).as_bytes())
}

/// Prints the runtime's description, a `containerd.types.RuntimeInfo`.
///
/// # Errors
/// It cannot be printed.
pub fn info() -> Result<()> {
    // The caller's runtime options; the description does not depend on them.
    let options = input::read(io::stdin()).context("cannot read the standard input")?;
    let description = describe(&options)?;
    print(
        &description
            .write_to_bytes()
            .context("cannot encode the description")?,
    )
}

fn describe(options: &[u8]) -> Result<RuntimeInfo> {
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").into(),
        revision: revision().into(),
        ..Default::default()
    };
    let features = Any {
        type_url: FEATURES.into(),
        value: serde_json::to_vec(&spec_features()).context("cannot encode the features")?,
        ..Default::default()
    };
    let options = Any::parse_from_bytes(options)
        .ok()
        .filter(|options| !options.type_url.is_empty());
    Ok(RuntimeInfo {
        name: NAME.into(),
        version: Some(version).into(),
        options: options.into(),
        features: Some(features).into(),
        ..Default::default()
    })
}

/// The "features" object of the OCI runtime specification.
fn spec_features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
    })
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .context("cannot print")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_what_containerd_decodes() {
        let info = describe(&[]).unwrap();
        let info = RuntimeInfo::parse_from_bytes(&info.write_to_bytes().unwrap()).unwrap();
        assert_eq!(info.name, NAME);
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        assert!(info.options.is_none());
        assert_eq!(info.features.type_url, FEATURES);
        let features: Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["ociVersionMin"], "1.0.0");
        // No mounts are promised that we would not make.
        assert!(info.annotations.is_empty());
    }
}
