//! Labels of the host's security modules, for the processes of a sandbox that a guest can get at.
//!
//! They are told to a module that this host runs, and to no other: what asks for a label where there is no such module gets a
//! sandbox without it, as from other runtimes in virtual machines.

use std::fs;
use std::path::PathBuf;

use hypervisor::process::Label;

use crate::model::HostLabels;

/// How this host's security modules are found, and told.
#[derive(Debug, Clone)]
pub(super) struct Modules {
    /// Is there where SELinux is.
    pub(super) selinux: PathBuf,
    /// Says "Y" where AppArmor is.
    pub(super) apparmor: PathBuf,
    /// Attributes of the calling thread (proc(5), `/proc/pid/attr`).
    pub(super) attributes: PathBuf,
}

impl Modules {
    /// Those of the kernel.
    pub(super) fn of_the_host() -> Self {
        Self {
            selinux: "/sys/fs/selinux/enforce".into(),
            apparmor: "/sys/module/apparmor/parameters/enabled".into(),
            attributes: "/proc/thread-self/attr".into(),
        }
    }

    /// For the virtual machine monitor.
    pub(super) fn for_monitor(&self, labels: &HostLabels) -> Vec<Label> {
        self.selinux(labels)
            .into_iter()
            .chain(self.apparmor(labels))
            .collect()
    }

    /// For a daemon beside it. A profile of AppArmor's is made for what runs in a container: it forbids mounts, which virtiofsd
    /// makes to lock itself into its directory.
    pub(super) fn for_daemon(&self, labels: &HostLabels) -> Vec<Label> {
        self.selinux(labels).into_iter().collect()
    }

    fn selinux(&self, labels: &HostLabels) -> Option<Label> {
        let value = Some(&labels.selinux).filter(|label| !label.is_empty())?.clone();
        self.selinux.exists().then(|| Label {
            file: self.attributes.join("exec"),
            value,
        })
    }

    fn apparmor(&self, labels: &HostLabels) -> Option<Label> {
        let profile = Some(&labels.apparmor).filter(|profile| !profile.is_empty())?;
        if !fs::read_to_string(&self.apparmor).is_ok_and(|text| text.starts_with('Y')) {
            return None;
        }
        // Its own since Linux 5.8; before, one module alone has them.
        let own = self.attributes.join("apparmor/exec");
        Some(Label {
            file: if own.exists() {
                own
            } else {
                self.attributes.join("exec")
            },
            value: format!("exec {profile}"),
        })
    }
}
