//! What a specification must not be without and must not say, whoever carries it out. Pure.

use std::collections::HashSet;
use std::path::{Component, Path};

use oci_spec::runtime::{Hooks, Linux, LinuxNamespaceType, Mount, Process, Spec};
use serde_json::Value;

use super::load::{CONFIG, MAX_MOUNTS, find_nul};
use super::{cgroup, invalid, shown};
use crate::error::{Error, ErrorKind, Result};

/// Linux's PATH_MAX, without its terminator.
const MAX_PATH: usize = 4095;

/// Linux's `__NEW_UTS_LEN`.
const MAX_HOSTNAME: usize = 64;

/// Files below /proc that may be mounted over, for those who present a container's own figures there. `runc`'s list.
const PROC_ALLOWED: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

/// What is told before the types are looked at, because it is quicker or can't be told afterwards.
pub(super) fn bounds(spec: &Value) -> Result<()> {
    let mounts = spec.get("mounts").and_then(Value::as_array).map_or(0, Vec::len);
    if mounts > MAX_MOUNTS {
        return Err(invalid(
            "mounts",
            format!("has {mounts} entries; at most {MAX_MOUNTS} are allowed"),
        ));
    }
    nul(CONFIG, spec)
}

/// No text has a NUL byte.
pub(super) fn nul(what: &str, value: &Value) -> Result<()> {
    match find_nul(value) {
        Some(path) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{what}: {}: contains a NUL byte", path.trim_start_matches('.')),
        )),
        None => Ok(()),
    }
}

/// Everything else.
pub(super) fn spec(spec: &Spec) -> Result<()> {
    version(spec.version())?;
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| invalid("root", "is missing"))?;
    if root.path().as_os_str().is_empty() {
        return Err(invalid("root.path", "is empty"));
    }
    length("root.path", root.path())?;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| invalid("process", "is missing"))?;
    self::process(process).map_err(|(field, what)| invalid(format_args!("process.{field}"), what))?;
    if let Some(name) = spec.hostname()
        && (name.len() > MAX_HOSTNAME || name.contains('/'))
    {
        return Err(invalid(
            "hostname",
            format!("{} has more than {MAX_HOSTNAME} bytes, or a slash", shown(name)),
        ));
    }
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        self::mount(index, mount)?;
    }
    spec.hooks().as_ref().map_or(Ok(()), hooks)?;
    spec.linux().as_ref().map_or(Ok(()), linux)
}

fn hooks(hooks: &Hooks) -> Result<()> {
    for (kind, list) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = format!("hooks.{kind}[{index}]");
            plain(&format!("{field}.path"), hook.path())?;
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(invalid(format_args!("{field}.timeout"), "is not above 0"));
            }
        }
    }
    Ok(())
}

fn version(version: &str) -> Result<()> {
    if version.is_empty() {
        return Err(invalid("ociVersion", "is missing"));
    }
    // Within a major version, later ones only add.
    match version.split('.').next() {
        Some("1") => Ok(()),
        _ => Err(invalid(
            "ociVersion",
            format!("{} is not version 1 of the specification", shown(version)),
        )),
    }
}

/// A process, of a specification or alone: the field in it and what is wrong there.
pub(super) fn process(process: &Process) -> Result<(), (String, String)> {
    let fault = |field: &str, what: String| Err((field.to_owned(), what));
    match process.args().iter().flatten().next() {
        None => return fault("args", "is missing or empty".to_owned()),
        Some(program) if program.is_empty() => return fault("args[0]", "is empty".to_owned()),
        Some(_) => {}
    }
    let cwd = process.cwd().to_string_lossy();
    if !process.cwd().is_absolute() {
        return fault("cwd", format!("{} is not an absolute path", shown(&cwd)));
    }
    if cwd.len() > MAX_PATH {
        return fault("cwd", too_long(cwd.len()));
    }
    for (index, variable) in process.env().iter().flatten().enumerate() {
        if variable.find('=').is_none_or(|at| at == 0) {
            return fault(
                &format!("env[{index}]"),
                format!("{} is not NAME=VALUE", shown(variable)),
            );
        }
    }
    if let Some(score) = process
        .oom_score_adj()
        .filter(|score| !(-1000..=1000).contains(score))
    {
        return fault("oomScoreAdj", format!("{score} is not from -1000 to 1000"));
    }
    let mut seen = HashSet::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("rlimits[{index}]");
        if !seen.insert(limit.typ().to_string()) {
            return fault(&field, format!("{} is named twice", limit.typ()));
        }
        if limit.soft() > limit.hard() {
            let (soft, hard) = (limit.soft(), limit.hard());
            return fault(&field, format!("soft limit {soft} is above hard limit {hard}"));
        }
    }
    Ok(())
}

fn mount(index: usize, mount: &Mount) -> Result<()> {
    let destination = mount.destination();
    let field = || format!("mounts[{index}].destination");
    plain(&field(), destination)?;
    if !destination
        .components()
        .any(|part| matches!(part, Component::Normal(_)))
    {
        return Err(invalid(field(), "is the root; that is `root`'s business"));
    }
    // Else a container could have the agent's own reads of /proc answered by itself.
    let below_proc = destination
        .strip_prefix("/proc")
        .is_ok_and(|below| !below.as_os_str().is_empty());
    if below_proc && !PROC_ALLOWED.iter().any(|path| destination == Path::new(path)) {
        return Err(invalid(
            field(),
            format!("{} is inside /proc", shown(&destination.to_string_lossy())),
        ));
    }
    if let Some(source) = mount.source() {
        length(&format!("mounts[{index}].source"), source)?;
    }
    Ok(())
}

fn linux(linux: &Linux) -> Result<()> {
    let mut seen = HashSet::new();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if !seen.insert(namespace.typ()) {
            return Err(invalid(field, "its type is in the list twice"));
        }
        let path = namespace
            .path()
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty());
        if path.is_some_and(Path::is_relative) {
            return Err(invalid(field, "path is not absolute"));
        }
    }
    mappings(linux)?;
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        plain(&format!("linux.devices[{index}].path"), device.path())?;
    }
    for (field, paths) in [
        ("linux.maskedPaths", linux.masked_paths()),
        ("linux.readonlyPaths", linux.readonly_paths()),
    ] {
        for (index, path) in paths.iter().flatten().enumerate() {
            plain(&format!("{field}[{index}]"), Path::new(path))?;
        }
    }
    if let Some(path) = linux.cgroups_path() {
        cgroup::parse(path)?;
    }
    for key in linux.sysctl().iter().flat_map(|sysctl| sysctl.keys()) {
        // Either separator is good (sysctl(8)); none may name a directory twice or lead upwards.
        if key.split(['.', '/']).any(str::is_empty) {
            return Err(invalid(
                "linux.sysctl",
                format!("{} is not the name of a sysctl", shown(key)),
            ));
        }
    }
    Ok(())
}

/// Mappings and a new user namespace come together. Those beside one that is joined are that one's already.
fn mappings(linux: &Linux) -> Result<()> {
    let mut namespaces = linux.namespaces().iter().flatten();
    let user = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let joins = user.is_some_and(|user| {
        user.path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty())
    });
    for (field, mappings) in [
        ("linux.uidMappings", linux.uid_mappings()),
        ("linux.gidMappings", linux.gid_mappings()),
    ] {
        let has_mappings = mappings.iter().flatten().next().is_some();
        match (user, has_mappings) {
            _ if joins => {}
            (Some(_), false) => return Err(invalid(field, "is missing, which the new user namespace needs")),
            (None, true) => return Err(invalid(field, "is there, but no user namespace")),
            _ => {}
        }
    }
    Ok(())
}

/// An absolute path that means what it says.
fn plain(field: &str, path: &Path) -> Result<()> {
    length(field, path)?;
    let text = path.to_string_lossy();
    if !path.is_absolute() {
        return Err(invalid(
            field,
            format!("{} is not an absolute path", shown(&text)),
        ));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(invalid(field, format!("{} has a \"..\"", shown(&text))));
    }
    Ok(())
}

fn length(field: &str, path: &Path) -> Result<()> {
    match path.as_os_str().len() {
        0..=MAX_PATH => Ok(()),
        length => Err(invalid(field, too_long(length))),
    }
}

fn too_long(length: usize) -> String {
    format!("has {length} bytes, more than a path may have ({MAX_PATH})")
}
