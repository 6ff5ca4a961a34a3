//! Processes of a sandbox have the labels that its caller asks for. No module of this machine's need be there: what one would
//! be told goes into files of a directory that stands for `/proc/thread-self/attr`.

use std::fs::{self, File};
use std::io::Read;

use super::super::Host;
use super::super::label::Modules;
use super::cgroup::guest;
use super::stand::{Stand, daemons_are_here, plan, virtiofsd};
use crate::error::ErrorKind;
use crate::model::{ChannelPlan, HostLabels, SharePlan};
use crate::sandbox::Ground;

const CONTEXT: &str = "system_u:system_r:container_kvm_t:s0:c1,c2";

/// A host with these modules.
fn modules(stand: &Stand, selinux: bool, apparmor: Option<&str>) -> Modules {
    let attributes = stand.path("attr");
    fs::create_dir_all(attributes.join("apparmor")).unwrap();
    if selinux {
        fs::write(stand.path("enforce"), "1").unwrap();
    }
    if let Some(state) = apparmor {
        fs::write(stand.path("enabled"), state).unwrap();
    }
    Modules {
        selinux: stand.path("enforce"),
        apparmor: stand.path("enabled"),
        attributes,
    }
}

fn labels(selinux: &str, apparmor: &str) -> HostLabels {
    HostLabels {
        selinux: selinux.to_owned(),
        apparmor: apparmor.to_owned(),
    }
}

#[test]
fn only_modules_that_are_there_are_told() {
    let stand = Stand::new();
    let asked = labels(CONTEXT, "a-profile");
    for (selinux, apparmor, expected) in [
        (false, None, &[][..]),
        (false, Some("N\n"), &[]),
        (false, Some("Y\n"), &[("apparmor/exec", "exec a-profile")]),
        (true, None, &[("exec", CONTEXT)]),
    ] {
        let stand = Stand::new();
        let modules = modules(&stand, selinux, apparmor);
        fs::write(modules.attributes.join("apparmor/exec"), "").unwrap();
        let told: Vec<_> = modules
            .for_monitor(&asked)
            .into_iter()
            .map(|label| (label.file, label.value))
            .collect();
        let expected = expected
            .iter()
            .map(|(file, value)| (modules.attributes.join(file), (*value).to_owned()));
        assert_eq!(told, expected.collect::<Vec<_>>(), "{selinux} {apparmor:?}");
        assert_eq!(
            modules.for_daemon(&asked).len(),
            usize::from(selinux),
            "{selinux} {apparmor:?}"
        );
        assert!(modules.for_monitor(&HostLabels::default()).is_empty());
    }
    // A kernel whose modules share their files.
    let modules = modules(&stand, false, Some("Y"));
    let told = modules.for_monitor(&labels("", "a-profile"));
    assert_eq!(told[0].file, modules.attributes.join("exec"));
}

#[tokio::test]
async fn the_monitor_and_virtiofsd_say_who_they_are_before_they_execute() {
    if !daemons_are_here() {
        return;
    }
    let stand = Stand::new();
    let modules = modules(&stand, true, None);
    // Keeps what several write.
    let told = modules.attributes.join("exec");
    rustix::fs::mkfifoat(rustix::fs::CWD, &told, 0o600.into()).unwrap();
    let mut reading = File::options().read(true).write(true).open(&told).unwrap();
    let share = SharePlan::VirtioFs {
        daemon: virtiofsd(),
        cache: "auto",
    };
    let (request, _events) = stand.request("s");
    let mut plan = plan("s", ChannelPlan::Serial, share);
    plan.labels = labels(CONTEXT, "a-profile");
    let mut host = Host::new(&request, plan).unwrap();
    host.modules = modules;
    let vm = guest(&stand, &mut host, "sleep 100").await;
    let mut text = vec![0; 2 * CONTEXT.len()];
    reading.read_exact(&mut text).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), CONTEXT.repeat(2));
    drop(vm);
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn a_label_that_the_kernel_refuses_starts_nothing() {
    let stand = Stand::new();
    let modules = modules(&stand, false, Some("Y"));
    // What the kernel refuses fails when it is written. So does this.
    std::os::unix::fs::symlink("/dev/full", modules.attributes.join("apparmor/exec")).unwrap();
    let (request, _events) = stand.request("s");
    let mut plan = plan("s", ChannelPlan::Serial, SharePlan::Process);
    plan.labels = labels("", "no-such-profile");
    let mut host = Host::new(&request, plan).unwrap();
    host.modules = modules;
    let acquired = host.acquire().await.unwrap();
    let Err(error) = request
        .hypervisor
        .launch(acquired.vm, hypervisor::Boot::Cold)
        .await
    else {
        unreachable!("it runs");
    };
    let text = error.to_string();
    assert!(
        text.contains("exec no-such-profile") && text.contains("profile loaded"),
        "{text}"
    );
    assert_eq!(crate::Error::from(error).kind, ErrorKind::InvalidArgument);
    host.release().await.unwrap();
    stand.assert_clean();
}
