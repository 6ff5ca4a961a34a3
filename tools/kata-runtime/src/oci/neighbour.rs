//! Whose virtual machine a container shares that no annotation puts into a pod: who joins a namespace of another container's can
//! have it only where that one is. So it is with podman's and Docker's `--network container:NAME`.

use std::path::Path;

use anyhow::Result;
use oci_spec::runtime::Spec;
use runtime::SandboxId;

use super::Context;
use super::query::shown;

/// The sandbox of the container whose namespaces a specification joins. `None`: it joins nobody's that is known here.
///
/// # Errors
/// The root directory cannot be read, or the daemon of the one that is joined does not answer.
pub fn sandbox(spec: &Spec, context: &Context) -> Result<Option<SandboxId>> {
    let pids = pids(spec);
    if pids.is_empty() {
        return Ok(None);
    }
    for id in context.root.ids()? {
        // One that is deleted meanwhile, or whose record cannot be read, is nobody's neighbour.
        let Ok(Some(record)) = context.root.read(&id) else {
            continue;
        };
        if !pids.contains(&record.pid) {
            continue;
        }
        // The pid of a stand-in that has ended may be anybody's by now.
        if let Some(target) = context.find(id.as_str())?
            && shown(&target)?.pid == record.pid
        {
            return Ok(Some(target.sandbox));
        }
    }
    Ok(None)
}

/// Whether it joins namespaces of a process, whosever that is.
pub fn joins(spec: &Spec) -> bool {
    !pids(spec).is_empty()
}

/// The processes whose namespaces it joins.
fn pids(spec: &Spec) -> Vec<u32> {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces());
    namespaces
        .flatten()
        .filter_map(|namespace| process(namespace.path().as_deref()?))
        .collect()
}

/// The process whose namespace this path names.
fn process(path: &Path) -> Option<u32> {
    let mut parts = path.strip_prefix("/proc").ok()?.iter();
    let pid = parts.next()?.to_str()?.parse().ok()?;
    (parts.next()? == "ns" && pid != 0).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_somebodys_if_its_path_says_so() {
        for (path, expected) in [
            ("/proc/17/ns/net", Some(17)),
            ("/proc/17/ns/ipc", Some(17)),
            ("/proc/17/root/run/netns/x", None),
            ("/proc/self/ns/net", None),
            ("/proc/0/ns/net", None),
            ("/proc/17", None),
            ("/run/netns/x", None),
            ("", None),
        ] {
            assert_eq!(process(Path::new(path)), expected, "{path}");
        }
    }
}
