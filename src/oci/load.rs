//! Bytes become a specification, or one error that names the field. Pure.
//!
//! The specification's types know the capabilities and architectures of their day and refuse the whole specification for
//! another one. What a newer caller may name and an older runtime must pass over is therefore taken out before.

use oci_spec::runtime::{Capability, Spec};
use serde::Deserialize;
use serde_json::Value;

use super::container_type::Annotations;
use super::{check, invalid, shown};
use crate::error::{Error, ErrorKind, Result};

/// Largest `config.json` that is read, in bytes. The agent takes no larger one.
pub const MAX_BYTES: usize = agent_protocol::MAX_SPEC;

/// Most mounts of a container: each costs one on the host and one in the guest.
pub const MAX_MOUNTS: usize = 1024;

/// Reads a specification.
///
/// As with `runc`, a capability that is not known is passed over, and so is an architecture of a seccomp profile (no
/// program of it can run in the guest); any other unknown name is an error.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn load(config_json: &[u8]) -> Result<Spec> {
    let mut value = json(config_json)?;
    check::bounds(&value)?;
    pass_over_unknown(&mut value);
    let spec: Spec = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." {
            "the specification"
        } else {
            path.as_str()
        };
        invalid(field, short(&error.inner().to_string()))
    })?;
    check::spec(&spec)?;
    Ok(spec)
}

/// Only the annotations of a specification: what a shim needs to find the sandbox, without reading all the rest.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`].
pub fn annotations(config_json: &[u8]) -> Result<Annotations> {
    #[derive(Deserialize)]
    struct Part {
        annotations: Option<Annotations>,
    }
    size(config_json)?;
    let part: Part = serde_json::from_slice(config_json).map_err(|error| broken(&error))?;
    Ok(part.annotations.unwrap_or_default())
}

fn size(config_json: &[u8]) -> Result<()> {
    if config_json.len() > MAX_BYTES {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "config.json has {} bytes; at most {MAX_BYTES} are allowed: use fewer mounts, annotations or environment \
                 variables",
                config_json.len()
            ),
        ));
    }
    Ok(())
}

fn json(config_json: &[u8]) -> Result<Value> {
    size(config_json)?;
    let value: Value = serde_json::from_slice(config_json).map_err(|error| broken(&error))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Error::new(
            ErrorKind::InvalidArgument,
            "config.json is not a JSON object",
        )),
    }
}

fn broken(error: &serde_json::Error) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!(
            "config.json is not a specification: {}",
            short(&error.to_string())
        ),
    )
}

/// A message that may quote the caller's text, cut to a length for people.
fn short(message: &str) -> String {
    const LONGEST: usize = 400;
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

fn pass_over_unknown(spec: &mut Value) {
    // `user` may be missing: root.
    if let Some(process) = spec.get_mut("process").and_then(Value::as_object_mut) {
        process
            .entry("user")
            .or_insert_with(|| Value::Object(Default::default()));
    }
    if let Some(sets) = spec
        .pointer_mut("/process/capabilities")
        .and_then(Value::as_object_mut)
    {
        for names in sets.values_mut().filter_map(Value::as_array_mut) {
            names.retain(|name| !name.is_string() || Capability::deserialize(name).is_ok());
        }
    }
    if let Some(names) = spec
        .pointer_mut("/linux/seccomp/architectures")
        .and_then(Value::as_array_mut)
    {
        names.retain(|name| {
            let foreign = name.as_str().is_some_and(|name| name.starts_with("SCMP_ARCH_"));
            !foreign || oci_spec::runtime::Arch::deserialize(name).is_ok()
        });
    }
}

/// Finds a text with a NUL byte, anywhere, as a path of fields. No C string can carry it, and what the kernel would see is
/// not what was checked.
pub(super) fn find_nul(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(values) => values
            .iter()
            .enumerate()
            .find_map(|(index, value)| Some(format!("[{index}]{}", find_nul(value)?))),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            if name.contains('\0') {
                return Some(format!(".{}", shown(name)));
            }
            Some(format!(".{name}{}", find_nul(value)?))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}
