//! A pod that no container stands for: what its caller says of it becomes what the planner understands. Pure.

use std::fmt::Write as _;

use super::{cgroup, dns, resources};
use crate::SandboxId;
use crate::error::Result;
use crate::model::{ContainerType, Dns, HostLabels, NetworkNamespace, PodConfig, SandboxConfig};

/// What a pod's configuration says of its sandbox. `resolv_conf` is the text of the host's, which a pod has that is told of no other.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), naming the field.
pub fn pod(id: &SandboxId, pod: PodConfig, resolv_conf: &str) -> Result<SandboxConfig> {
    let cgroup = match &pod.cgroup_parent {
        parent if parent.is_empty() => None,
        // As the CRI's plugin names the cgroup of a first container.
        parent if parent.ends_with(".slice") => {
            let unit = parent.rsplit('/').next().unwrap_or_default();
            cgroup::parse(format!("{unit}:cri-containerd:{id}").as_ref())?
        }
        parent => cgroup::parse(format!("{parent}/{id}").as_ref())?,
    };
    Ok(SandboxConfig {
        id: id.clone(),
        container_type: ContainerType::PodSandbox,
        is_alone: true,
        hostname: pod.hostname,
        dns: match pod.dns == Dns::default() {
            true => dns::parse(resolv_conf),
            false => resolved(&pod.dns),
        },
        shm_size: 0,
        sysctls: pod.sysctls,
        resources: resources::of_pod(pod.limits, &pod.annotations)?,
        network_namespace: match pod.network_namespace {
            None => NetworkNamespace::Host,
            Some(path) => NetworkNamespace::Existing(path),
        },
        // It has no hooks.
        network_may_change: false,
        cgroup,
        // Its caller tells what they are made of, and not what they are.
        labels: HostLabels::default(),
        annotations: pod.annotations,
    })
}

/// As much of it as a resolver would take from its file.
fn resolved(told: &Dns) -> Dns {
    let mut text = String::new();
    for server in &told.servers {
        // Into a text nothing fails.
        let _ = writeln!(text, "nameserver {server}");
    }
    if !told.searches.is_empty() {
        let _ = writeln!(text, "search {}", told.searches.join(" "));
    }
    if !told.options.is_empty() {
        let _ = writeln!(text, "options {}", told.options.join(" "));
    }
    dns::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HostCgroup, PodLimits, Resources};

    fn id() -> SandboxId {
        SandboxId::new("p1").unwrap()
    }

    #[test]
    fn what_is_told_of_a_pod_is_its_sandboxes() {
        let told = PodConfig {
            hostname: "web".into(),
            dns: Dns {
                servers: vec!["10.0.0.1".into(), "no address".into()],
                searches: vec!["a.example".into(), "b.example".into()],
                options: vec!["ndots:5".into()],
            },
            sysctls: [("net.core.somaxconn".to_owned(), "7".to_owned())].into(),
            network_namespace: Some("/run/netns/x".into()),
            cgroup_parent: "/kubepods/podx".into(),
            limits: PodLimits {
                cpu_quota: 150_000,
                cpu_period: 100_000,
                cpu_shares: 2,
                memory: 1 << 30,
            },
            annotations: Default::default(),
        };
        let sandbox = pod(&id(), told, "").unwrap();
        assert_eq!((sandbox.id.as_str(), sandbox.hostname.as_str()), ("p1", "web"));
        assert_eq!(sandbox.container_type, ContainerType::PodSandbox);
        assert_eq!(sandbox.dns.servers, ["10.0.0.1"]);
        assert_eq!(sandbox.dns.searches, ["a.example", "b.example"]);
        assert_eq!(sandbox.dns.options, ["ndots:5"]);
        assert_eq!(sandbox.sysctls.len(), 1);
        assert_eq!(
            sandbox.network_namespace,
            NetworkNamespace::Existing("/run/netns/x".into())
        );
        let resources = Resources {
            cpu_millis: Some(1500),
            memory_bytes: Some(1 << 30),
        };
        assert_eq!(sandbox.resources, resources);
        assert_eq!(sandbox.cgroup, Some(HostCgroup::Path("kubepods/podx/p1".into())));
    }

    #[test]
    fn nothing_told_is_nothing_wanted() {
        let sandbox = pod(&id(), PodConfig::default(), "").unwrap();
        assert_eq!(sandbox.network_namespace, NetworkNamespace::Host);
        assert_eq!((sandbox.cgroup, sandbox.resources), (None, Resources::default()));
        assert_eq!(sandbox.dns, Dns::default());
        assert!(sandbox.is_alone);
    }

    #[test]
    fn a_pod_that_is_told_of_no_resolver_has_the_hosts() {
        let host = "# the host's\nnameserver 192.0.2.9\nsearch here.example\n";
        let servers = |told| pod(&id(), told, host).unwrap().dns.servers;
        assert_eq!(servers(PodConfig::default()), ["192.0.2.9"]);
        let mut told = PodConfig::default();
        told.dns.servers = vec!["192.0.2.1".into()];
        assert_eq!(servers(told), ["192.0.2.1"]);
    }

    #[test]
    fn a_slice_gets_a_scope_and_what_is_neither_is_refused() {
        let with = |parent: &str| {
            let told = PodConfig {
                cgroup_parent: parent.into(),
                ..Default::default()
            };
            pod(&id(), told, "").map(|sandbox| sandbox.cgroup)
        };
        let Some(HostCgroup::Systemd { unit, .. }) = with("/kubepods.slice/kubepods-podx.slice").unwrap()
        else {
            panic!("no scope");
        };
        assert_eq!(unit, "cri-containerd-p1.scope");
        assert!(with("../up").is_err());
    }
}
