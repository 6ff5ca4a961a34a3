//! Bytes become a specification, or one error that names the field. Pure.
//!
//! The specification's types know the capabilities and architectures of their day and refuse the whole specification for
//! another one. What a newer caller may name and an older runtime must pass over is therefore taken out before.

use oci_spec::runtime::{Capability, LinuxResources, Process, Spec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::container_type::Annotations;
use super::{check, shown};
use crate::error::{Error, ErrorKind, Result};

/// A specification's file, in errors.
pub(super) const CONFIG: &str = "config.json";

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
    let mut value = json(CONFIG, config_json)?;
    check::bounds(&value)?;
    if let Some(process) = value.get_mut("process") {
        pass_over_unknown_capabilities(process);
    }
    pass_over_unknown_architectures(&mut value);
    let spec: Spec = typed(CONFIG, value)?;
    check::spec(&spec)?;
    Ok(spec)
}

/// Reads one more process of a container, as [`load`] reads the first one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn process(process_json: &[u8]) -> Result<Process> {
    let mut value = json("process", process_json)?;
    check::nul("process", &value)?;
    pass_over_unknown_capabilities(&mut value);
    let process = typed("process", value)?;
    check::process(&process).map_err(|(field, what)| {
        Error::new(ErrorKind::InvalidArgument, format!("process: {field}: {what}"))
    })?;
    Ok(process)
}

/// Reads new limits of a container.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn resources(resources_json: &[u8]) -> Result<LinuxResources> {
    let value = json("resources", resources_json)?;
    check::nul("resources", &value)?;
    typed("resources", value)
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
    size(CONFIG, config_json)?;
    let part: Part = serde_json::from_slice(config_json).map_err(|error| broken(CONFIG, &error))?;
    Ok(part.annotations.unwrap_or_default())
}

fn size(what: &str, json: &[u8]) -> Result<()> {
    if json.len() > MAX_BYTES {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "{what} has {} bytes; at most {MAX_BYTES} are allowed: use fewer mounts, annotations or environment \
                 variables",
                json.len()
            ),
        ));
    }
    Ok(())
}

fn json(what: &str, json: &[u8]) -> Result<Value> {
    size(what, json)?;
    let value: Value = serde_json::from_slice(json).map_err(|error| broken(what, &error))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{what} is not a JSON object"),
        )),
    }
}

fn broken(what: &str, error: &serde_json::Error) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("{what} cannot be read as JSON: {}", short(&error.to_string())),
    )
}

fn typed<T: DeserializeOwned>(what: &str, value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let message = short(&error.inner().to_string());
        let path = error.path().to_string();
        let path = if path == "." {
            String::new()
        } else {
            format!("{}: ", short(&path))
        };
        Error::new(ErrorKind::InvalidArgument, format!("{what}: {path}{message}"))
    })
}

/// A message that may quote the caller's text, cut to a length for people.
fn short(message: &str) -> String {
    const LONGEST: usize = 400;
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

fn pass_over_unknown_capabilities(process: &mut Value) {
    let Some(process) = process.as_object_mut() else {
        return;
    };
    // Without a user it is root.
    process
        .entry("user")
        .or_insert_with(|| Value::Object(Default::default()));
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for names in sets
        .into_iter()
        .flat_map(|sets| sets.values_mut())
        .filter_map(Value::as_array_mut)
    {
        names.retain(|name| !name.is_string() || Capability::deserialize(name).is_ok());
    }
}

fn pass_over_unknown_architectures(spec: &mut Value) {
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
