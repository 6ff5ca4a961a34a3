//! What the host says about a container or process, checked and made to fit this agent. Pure.

use std::path::{Path, PathBuf};

use agent_protocol::{GUEST_DIR, MAX_SPEC};
use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::storage::{DiskDevice, GuestPath};

/// Longest id, in bytes (containerd allows 76).
const MAX_ID: usize = 128;

/// Checks the id of a container, process or sandbox: it becomes a part of paths and of cgroup names.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_id(field: &'static str, id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let starts_well = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && id.len() <= MAX_ID && id.chars().all(plain) {
        return Ok(());
    }
    let shown: String = id.chars().take(MAX_ID).collect();
    Err(Error::invalid(
        field,
        format!("{shown:?} is not an id (1 to {MAX_ID} letters, digits, '_', '-', '.')"),
    ))
}

/// Reads a container's specification and moves its guest paths to where this agent has them.
///
/// # Errors
/// [`Error::Invalid`] when it is no specification, or lacks what a container can't be without.
pub fn container(json: &[u8], agent_dir: &Path) -> Result<Spec> {
    let mut spec: Spec = parse("spec", json)?;
    if spec
        .process()
        .as_ref()
        .and_then(|p| p.args().as_ref())
        .is_none_or(Vec::is_empty)
    {
        return Err(Error::invalid("spec.process.args", "missing or empty"));
    }
    let Some(root) = spec.root_mut() else {
        return Err(Error::invalid("spec.root", "missing"));
    };
    let path = root
        .path()
        .to_str()
        .ok_or_else(|| Error::invalid("spec.root.path", "not UTF-8"))?;
    GuestPath::parse("spec.root.path", path)?;
    let located = locate(root.path(), agent_dir);
    root.set_path(located);
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let located = mount.source().as_ref().map(|source| locate(source, agent_dir));
        mount.set_source(located);
    }
    Ok(spec)
}

/// Gives a disk's entry among the devices its numbers, and lets the container use it.
///
/// # Errors
/// [`Error::Invalid`] without such an entry.
pub fn number_disk(spec: &mut Spec, disk: &DiskDevice, (major, minor): (u32, u32)) -> Result<()> {
    let linux = spec.linux_mut().as_mut();
    let entry = |linux: &mut Linux| {
        let devices = linux.devices_mut().iter_mut().flatten();
        let mut disks = devices.filter(|device| device.typ() == LinuxDeviceType::B);
        let entry = disks.find(|device| *device.path() == disk.path)?;
        entry.set_major(major.into());
        entry.set_minor(minor.into());
        Some(())
    };
    let Some((linux, ())) = linux.and_then(|linux| entry(linux).map(|()| (linux, ()))) else {
        return Err(Error::invalid(
            "device.path",
            format!("spec.linux.devices has no block device {}", disk.path.display()),
        ));
    };
    let resources = linux.resources_mut().as_mut();
    let rules = resources.and_then(|resources| resources.devices_mut().as_mut());
    // Without rules there is no limit, and one more rule would be the first.
    if let Some(rules) = rules.filter(|rules| !rules.is_empty()) {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(LinuxDeviceType::B))
            .set_major(Some(major.into()))
            .set_minor(Some(minor.into()))
            .set_access(Some(disk.access.clone()));
        rules.push(rule);
    }
    Ok(())
}

/// Reads the description of one more process.
///
/// # Errors
/// [`Error::Invalid`].
pub fn process(json: &[u8]) -> Result<Process> {
    let process: Process = parse("process", json)?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("process.args", "missing or empty"));
    }
    Ok(process)
}

/// Reads resource limits.
///
/// # Errors
/// [`Error::Invalid`].
pub fn resources(json: &[u8]) -> Result<LinuxResources> {
    parse("resources", json)
}

fn parse<T: DeserializeOwned>(field: &'static str, json: &[u8]) -> Result<T> {
    if json.len() > MAX_SPEC {
        return Err(Error::invalid(
            field,
            format!("{} bytes, more than {MAX_SPEC}", json.len()),
        ));
    }
    serde_json::from_slice(json).map_err(|e| Error::invalid(field, e.to_string()))
}

/// Where a path of the guest is for this agent: only paths below its own directory move.
pub fn locate(path: &Path, agent_dir: &Path) -> PathBuf {
    match path.strip_prefix(GUEST_DIR) {
        Ok(below) => agent_dir.join(below),
        Err(_) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_plain_names() {
        for good in ["a", "pod-1_x.y", &"a".repeat(MAX_ID)] {
            check_id("id", good).unwrap();
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "a/b",
            "a b",
            "a\n",
            "é",
            &"a".repeat(MAX_ID + 1),
        ] {
            assert!(check_id("id", bad).is_err(), "{bad:?}");
        }
    }

    fn spec(root: &str) -> Vec<u8> {
        json!({
            "ociVersion": "1.1.0",
            "root": {"path": root},
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/shm", "type": "bind", "source": "/run/kata/shm"},
            ],
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn guest_paths_move_to_the_agents_directory() {
        let spec = container(&spec("/run/kata/shared/c1/rootfs"), Path::new("/tmp/x")).unwrap();
        assert_eq!(
            spec.root().as_ref().unwrap().path(),
            Path::new("/tmp/x/shared/c1/rootfs")
        );
        let sources: Vec<_> = spec
            .mounts()
            .iter()
            .flatten()
            .filter_map(|m| m.source().as_deref())
            .collect();
        assert_eq!(sources, [Path::new("proc"), Path::new("/tmp/x/shm")]);
    }

    #[test]
    fn a_disk_gets_its_numbers_and_a_rule_where_there_are_rules() {
        let mut json: serde_json::Value = serde_json::from_slice(&spec("/run/kata/disks/c1")).unwrap();
        json["linux"] = json!({
            "devices": [{"path": "/dev/xvda", "type": "b", "major": 0, "minor": 0, "uid": 7}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        });
        let disk = |path: &str| DiskDevice::parse("serial:c0d1", path, "rm").unwrap();
        let parse =
            |json: &serde_json::Value| container(json.to_string().as_bytes(), Path::new("/x")).unwrap();
        let mut limited = parse(&json);
        number_disk(&mut limited, &disk("/dev/xvda"), (254, 3)).unwrap();
        let told = serde_json::to_value(limited.linux().as_ref().unwrap()).unwrap();
        assert_eq!(told["devices"][0]["major"], 254);
        assert_eq!(told["devices"][0]["minor"], 3);
        assert_eq!(told["devices"][0]["uid"], 7);
        let rules = &told["resources"]["devices"];
        assert_eq!(
            rules[1],
            json!({"allow": true, "type": "b", "major": 254, "minor": 3, "access": "rm"})
        );
        assert!(number_disk(&mut limited, &disk("/dev/xvdb"), (254, 3)).is_err());

        json["linux"]["resources"] = json!({"devices": []});
        let mut free = parse(&json);
        number_disk(&mut free, &disk("/dev/xvda"), (254, 3)).unwrap();
        let told = serde_json::to_value(free.linux().as_ref().unwrap()).unwrap();
        assert_eq!(told["resources"]["devices"], json!([]), "no limit stays no limit");
    }

    #[test]
    fn what_is_no_container_is_refused() {
        let here = Path::new(GUEST_DIR);
        for root in ["/", "/etc", "rootfs", "/run/kata/../../etc", ""] {
            assert!(container(&spec(root), here).is_err(), "{root:?}");
        }
        for json in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"ociVersion":"1.0.0","process":{"cwd":"/","args":["sh"],"user":{"uid":0,"gid":0}}}"#,
        ] {
            assert!(container(json.as_bytes(), here).is_err(), "{json}");
        }
        assert!(
            container(&vec![b' '; MAX_SPEC + 1], here)
                .unwrap_err()
                .to_string()
                .contains("bytes")
        );
        assert!(process(br#"{"cwd":"/","args":[],"user":{"uid":0,"gid":0}}"#).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(json in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = container(&json, Path::new(GUEST_DIR));
            let _ = process(&json);
            let _ = resources(&json);
        }
    }
}
