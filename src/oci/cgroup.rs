//! Where a caller wants a container's cgroup on the host, in both of the forms that callers write. Pure.

use std::path::{Component, Path, PathBuf};

use super::{invalid, shown};
use crate::error::Result;
use crate::model::HostCgroup;

const FIELD: &str = "linux.cgroupsPath";

/// Longest name of a directory.
const MAX_NAME: usize = 255;

/// Longest path, in bytes: with a hierarchy's root in front and ours behind it is still one that the kernel takes.
const MAX_PATH: usize = 2048;

/// Reads `linux.cgroupsPath`: systemd's `slice:prefix:name`, or a path.
pub(super) fn parse(path: &Path) -> Result<Option<HostCgroup>> {
    let text = path.to_string_lossy();
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |what: &str| invalid(FIELD, format!("{} {what}", shown(&text)));
    if path.as_os_str().len() > MAX_PATH {
        return Err(wrong("is longer than 2048 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(wrong("contains a control character"));
    }
    let parts: Vec<&str> = text.split(':').collect();
    if let [slice, prefix, name] = parts[..]
        && !text.starts_with('/')
    {
        // An empty slice is the one that systemd puts scopes in by itself.
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let is_unit = |text: &str| !text.contains('/') && text.len() <= MAX_NAME / 2;
        if name.is_empty() || !is_unit(prefix) || !is_unit(name) {
            return Err(wrong("is no slice, prefix and name of a systemd unit"));
        }
        return Ok(Some(HostCgroup::Systemd {
            slice: slice_path(slice).ok_or_else(|| wrong("names no systemd slice"))?,
            unit: match prefix {
                "" => format!("{name}.scope"),
                prefix => format!("{prefix}-{name}.scope"),
            },
        }));
    }
    let mut relative = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) if name.len() <= MAX_NAME => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(wrong("is no path below the root of cgroups")),
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(wrong("is the root of cgroups"));
    }
    Ok(Some(HostCgroup::Path(relative)))
}

/// Directory of a slice: systemd nests `a-b.slice` in `a.slice`, and `-.slice` is the root.
fn slice_path(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/'))?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        path.push(format!("{so_far}.slice"));
    }
    (slice.len() <= MAX_NAME).then_some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn systemd(slice: &str, unit: &str) -> HostCgroup {
        HostCgroup::Systemd {
            slice: slice.into(),
            unit: unit.to_owned(),
        }
    }

    #[test]
    fn callers_forms() {
        let table = [
            ("", None),
            ("/default/first", Some(HostCgroup::Path("default/first".into()))),
            (
                "kubepods/burstable/pod1/./a/",
                Some(HostCgroup::Path("kubepods/burstable/pod1/a".into())),
            ),
            ("/a:b:c", Some(HostCgroup::Path("a:b:c".into()))),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:a",
                Some(systemd(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
                    "cri-containerd-a.scope",
                )),
            ),
            (
                "machine.slice:libpod:a",
                Some(systemd("machine.slice", "libpod-a.scope")),
            ),
            (":docker:a", Some(systemd("system.slice", "docker-a.scope"))),
            ("-.slice::a", Some(systemd("", "a.scope"))),
        ];
        for (path, expected) in table {
            assert_eq!(parse(Path::new(path)).unwrap(), expected, "{path}");
        }
        for bad in [
            "/",
            "..",
            "a/../../b",
            "x:p:n",
            "a--b.slice:p:n",
            "../a.slice:p:n",
            "a.slice:p/..:n",
            "a.slice:p:",
            "/a\nb",
            "a.slice:p:n\0",
            &"/a".repeat(MAX_PATH),
        ] {
            let error = parse(Path::new(bad)).unwrap_err();
            assert!(error.context.contains(FIELD), "{bad}: {}", error.context);
        }
    }

    proptest! {
        #[test]
        fn never_outside_the_tree(path in "[a.:/-]{0,20}(\\.slice)?:?[a./:]{0,4}") {
            let path = match parse(Path::new(&path)) {
                Ok(Some(HostCgroup::Path(path))) => path,
                Ok(Some(HostCgroup::Systemd { slice, unit })) => slice.join(unit),
                Ok(None) | Err(_) => return Ok(()),
            };
            prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
            prop_assert!(path.components().count() > 0);
        }
    }
}
