//! Specifications that nobody would write, and what must hold of whatever is made of them.

use std::path::Component;

use super::disks::{found, mounting, with};
use super::*;
use crate::direct::MountInfo;
use crate::error::ErrorKind;
use crate::model::{DiskSource, DisksPlan};

/// Longest error that a specification may bring about, in bytes: it goes through logs and events.
const LONGEST_ERROR: usize = 4096;

/// A caller's mistake, told in a few words.
fn is_told(error: &Error) {
    assert!(
        matches!(error.kind, ErrorKind::InvalidArgument | ErrorKind::Unsupported),
        "{:?}: {error}",
        error.kind
    );
    let text = error.to_string();
    assert!(text.len() <= LONGEST_ERROR, "{} bytes: {text}", text.len());
}

/// Goes the way of `Create` as far as it is pure.
fn convert(json: &[u8]) -> Result<()> {
    // What finds the sandbox must not disagree with what creates it.
    let early = oci::annotations(json);
    let spec = oci::load(json)?;
    let annotations = early?;
    let id = SandboxId::new("pod")?;
    let resolv_conf = spec.hostname().clone().unwrap_or_default();
    let sandbox = oci::sandbox(&id, &spec, Some(&resolv_conf))?;
    assert_eq!(sandbox.annotations, annotations);
    let kind = oci::container_type(&annotations)?;
    // A member of a pod that nothing holds together is a sandbox by itself.
    let alone = match kind {
        ContainerType::PodContainer => ContainerType::SingleContainer,
        kind => kind,
    };
    assert_eq!(sandbox.container_type, alone);
    let named = oci::sandbox_id(&annotations)?;
    assert_eq!(named.is_some(), kind == ContainerType::PodContainer);
    if let Some(path) = oci::sandbox_config_path(&annotations)? {
        assert!(path.is_absolute(), "{}", path.display());
    }
    if let Some(cgroup) = &sandbox.cgroup {
        let shown = format!("{cgroup:?}");
        assert!(!shown.contains("/../"), "{shown}");
    }
    if let Some(process) = spec.process() {
        for variable in oci::env_vars(process)? {
            assert!(
                !variable.name.is_empty() && !variable.name.contains('='),
                "{variable:?}"
            );
        }
    }
    let plan = super::super::sandbox(&config(), &sandbox, &abilities(), &all)?;
    assert!(plan.vcpus >= 1 && plan.vcpus <= plan.max_vcpus, "{plan:?}");
    assert!(plan.memory.size_mib <= plan.memory.max_mib, "{plan:?}");
    let container = container_of(spec);
    let volumes = Volumes::default();
    super::super::sources(&container)?;
    let plan = super::super::container(&config(), &plan, &container, &volumes)?;
    oci::load(&plan.guest.spec).expect("the guest's specification is one");
    for bind in &plan.binds {
        let parts: Vec<_> = Path::new(&bind.name).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{bind:?}");
    }
    Ok(())
}

#[test]
fn specification_texts() {
    let seeds = CALLERS.map(|(_, text)| text);
    fuzz::target("specification-texts", seeds, |input| {
        let _ = convert(input).inspect_err(is_told);
    });
}

#[test]
fn specifications_with_changes() {
    let documents = CALLERS.map(|(_, text)| serde_json::from_str::<Value>(text).unwrap());
    // Which caller's, and changes to it.
    let seeds = [
        b"\x00".to_vec(),
        b"\x01\x00\x05\x0c\x04/a/b".to_vec(),
        b"\x02\x00\x10\x00\x01\x02\x08\x00\x20\x09\x05".to_vec(),
        b"\x03\x00\x07\x04\x00\x00\x30\x0e\x03/..".to_vec(),
        b"\x04\x01\x00\x0b\x00\x40\x05".to_vec(),
    ];
    fuzz::target("specifications-with-changes", seeds, move |input| {
        let Some((caller, changes)) = input.split_first() else {
            return;
        };
        let document = &documents[usize::from(*caller) % documents.len()];
        let text = fuzz::edited(document, changes).to_string();
        let _ = convert(text.as_bytes()).inspect_err(is_told);
    });
}

#[test]
fn processes_and_limits() {
    let documents = [
        json!({"args": ["sh"], "cwd": "/", "env": ["A=b"], "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
            "capabilities": {"bounding": ["CAP_CHOWN"]}, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
            "oomScoreAdj": 5, "noNewPrivileges": true, "terminal": true, "consoleSize": {"height": 1, "width": 2}}),
        json!({"memory": {"limit": 1 << 30, "swap": -1}, "cpu": {"shares": 2, "quota": 50000, "period": 100000, "cpus": "0-1"},
            "pids": {"limit": 10}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "unified": {"memory.high": "1"},
            "devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]}),
    ];
    let seeds = [
        &b"\x00"[..],
        b"\x01",
        b"\x00\x00\x05\x0c\x01x",
        b"\x01\x00\x03\x04\x00",
    ];
    fuzz::target("processes-and-limits", seeds, move |input| {
        let Some((which, changes)) = input.split_first() else {
            return;
        };
        let text = match which % 4 {
            0 | 1 => fuzz::edited(&documents[usize::from(which % 2)], changes)
                .to_string()
                .into_bytes(),
            _ => changes.to_owned(),
        };
        let _ = oci::process(&text).inspect_err(is_told);
        if let Ok(limits) = oci::resources(&text).inspect_err(is_told) {
            let told = serde_json::to_vec(&super::super::update(&limits)).unwrap();
            oci::resources(&told).expect("the guest's limits are some");
        }
    });
}

#[test]
fn direct_volumes() {
    let seeds = [
        r#"{"volume-type":"block","device":"/dev/sdx","fstype":"ext4","metadata":{"fsGroup":"7"},"options":["ro","noatime"]}"#,
        r#"{"volume-type":"directvol","device":"/x/../y","fstype":"xfs","options":["loop"]}"#,
        r#"{"volume-type":"spdkvol","device":"","fstype":"btrfs","metadata":{}}"#,
    ];
    fuzz::target("direct-volumes", seeds, |input| {
        let Ok(info) = serde_json::from_slice::<MountInfo>(input) else {
            return;
        };
        let device = PathBuf::from(&info.device);
        let container = mounting("/volume", &["rbind"], found(None, Some(info.into())));
        match with(DisksPlan::Plugged, &container) {
            Err(error) => is_told(&error),
            Ok((plan, _)) => {
                let disk = &plan.disks[0];
                let path = match &disk.source {
                    DiskSource::Device(path) | DiskSource::File(path) | DiskSource::DeviceOrFile(path) => {
                        Some(path)
                    }
                    DiskSource::Numbers(..) => None,
                };
                assert_eq!(path, Some(&device), "nothing but what was named");
            }
        }
    });
}
