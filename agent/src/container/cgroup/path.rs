//! Where a container's cgroup lies below the tree that the agent may use.
//!
//! Pure. Takes what callers send: nothing, a path, or systemd's `slice:prefix:name`, which the guest (it has no systemd)
//! maps to the plain path `slice/prefix-name.scope`.

use std::path::{Component, Path, PathBuf};

use crate::container::error::{Error, Result};

const FIELD: &str = "linux.cgroupsPath";

/// The relative path: at least one component, all of them ordinary names.
pub(in crate::container) fn relative(cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf> {
    let path = match cgroups_path {
        Some(path) if !path.as_os_str().is_empty() => {
            path.to_str().ok_or_else(|| Error::spec(FIELD, "is not UTF-8"))?
        }
        _ => id,
    };
    let systemd: Option<String> = match path.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if !path.starts_with('/') && !name.is_empty() => {
            let unit = if prefix.is_empty() {
                format!("{name}.scope")
            } else {
                format!("{prefix}-{name}.scope")
            };
            if unit.contains('/') {
                return Err(Error::spec(
                    FIELD,
                    format!("{path:?} has a slash in a unit's name"),
                ));
            }
            Some(format!("{slice}/{unit}"))
        }
        _ => None,
    };
    let mut relative = PathBuf::new();
    for component in Path::new(systemd.as_deref().unwrap_or(path)).components() {
        match component {
            Component::Normal(name) if name.len() <= 255 && !name.as_encoded_bytes().contains(&b'\n') => {
                relative.push(name);
            }
            Component::RootDir | Component::CurDir => {}
            _ => {
                return Err(Error::spec(
                    FIELD,
                    format!("{path:?} is no path below the cgroup root"),
                ));
            }
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(Error::spec(FIELD, "names the cgroup root"));
    }
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn callers_forms() {
        let table = [
            (None, "abc", "abc"),
            (Some(""), "abc", "abc"),
            (Some("/default/abc"), "x", "default/abc"),
            (Some("k8s.io/./abc/"), "x", "k8s.io/abc"),
            (
                Some("kubepods-besteffort-pod1.slice:cri-containerd:abc"),
                "x",
                "kubepods-besteffort-pod1.slice/cri-containerd-abc.scope",
            ),
            (Some("system.slice::abc"), "x", "system.slice/abc.scope"),
            (Some(":docker:abc"), "x", "docker-abc.scope"),
        ];
        for (path, id, expected) in table {
            assert_eq!(
                relative(path.map(Path::new), id).unwrap(),
                Path::new(expected),
                "{path:?}"
            );
        }
        for bad in ["/", "../x", "a/../../b", "s:p:../x", "/.."] {
            assert!(relative(Some(Path::new(bad)), "x").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_leaves_the_root(path in "[a-z./:\\-]{0,24}") {
            if let Ok(relative) = relative(Some(Path::new(&path)), "id") {
                prop_assert!(relative.is_relative());
                prop_assert!(relative.components().count() > 0);
                prop_assert!(relative.components().all(|c| matches!(c, Component::Normal(_))));
            }
        }
    }
}
