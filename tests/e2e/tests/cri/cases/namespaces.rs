//! What the containers of a pod share, and what not.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{deadlines, wait};
use k8s_cri::v1::{NamespaceMode, NamespaceOption};

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::{Container, ContainerSpec};
use crate::pod::{Pod, PodSpec};
use crate::world::SANDBOXER;

chapter!("namespaces":
    shared_and_own,
    processes_are_apart,
    the_network_is_shared,
    processes_of_another_container,
    processes_are_shared,
    orphans_are_reaped,
    a_host_name_that_changes,
    sysctls_of_the_pod,
    a_wrong_sysctl_is_refused,
);

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("namespaces", |spec| spec)
}

fn two(pod: &Pod) -> Result<[Container; 2]> {
    Ok([
        pod.start(ContainerSpec::idle())?,
        pod.start(ContainerSpec::idle())?,
    ])
}

fn end(containers: impl IntoIterator<Item = Container>) -> Result<()> {
    for container in containers {
        container.stop(Duration::ZERO)?;
        container.remove()?;
    }
    Ok(())
}

/// The identities of the namespaces of a kind.
fn identities(containers: &[Container; 2], kind: &str) -> Result<[String; 2]> {
    let [one, two] = containers;
    let script = format!("readlink /proc/self/ns/{kind}");
    Ok([one.sh(&script)?, two.sh(&script)?])
}

fn shared_and_own(bed: &mut Bed) -> Result<()> {
    let containers = two(&*pod(bed)?)?;
    for (kind, is_shared) in [
        ("net", true),
        ("ipc", true),
        ("uts", true),
        ("mnt", false),
        ("pid", false),
    ] {
        let [one, two] = identities(&containers, kind)?;
        ensure!((one == two) == is_shared, "{kind}: {one} and {two}");
    }
    end(containers)
}

fn processes_are_apart(bed: &mut Bed) -> Result<()> {
    let containers = two(&*pod(bed)?)?;
    let [one, two] = &containers;
    one.sh("sleep 4243 >/dev/null 2>&1 &")?;
    same(&two.sh("ps | grep -c '[s]leep 4243' || true")?, "0")?;
    same(&one.sh("ps | grep -c '[s]leep 4243'")?, "1")?;
    end(containers)
}

fn the_network_is_shared(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let server = pod.start(ContainerSpec::script("nc -ll -p 7001 -e cat"))?;
    let client = pod.start(ContainerSpec::idle())?;
    // It may not listen yet.
    let script = "for i in $(seq 100); do echo hello | nc -w 2 127.0.0.1 7001 && break; sleep 0.1; done";
    same(&client.sh(script)?, "hello")?;
    end([server, client])
}

fn processes_of_another_container(bed: &mut Bed) -> Result<()> {
    // What `kubectl debug --target` does.
    let pod = pod(bed)?;
    let target = pod.start(ContainerSpec::new(&["sleep", "4244"]))?;
    let spec = ContainerSpec::script("ps | grep -c '[s]leep 4244'; test $$ = 1 || echo not the first");
    let spec = spec.security(|security| {
        security.namespace_options = Some(NamespaceOption {
            pid: NamespaceMode::Target.into(),
            target_id: target.id().into(),
            ..Default::default()
        });
    });
    same(&pod.output(spec)?, "1\nnot the first")?;
    end([target])
}

fn shared_pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("shared-processes", PodSpec::shared_processes)
}

fn processes_are_shared(bed: &mut Bed) -> Result<()> {
    let pod = shared_pod(bed)?;
    let target = pod.start(ContainerSpec::script(
        "trap 'exit 5' USR1; echo ready; while :; do sleep 0.1; done",
    ))?;
    target.wait_for_output("ready")?;
    let other = pod.start(ContainerSpec::idle())?;
    let [one, two] = [&target, &other].map(|container| container.sh("readlink /proc/self/ns/pid"));
    same(&one?, &two?)?;
    // The first process is the pod's own, which is the guest's where the pod has no pause container.
    let first = if std::env::var_os(SANDBOXER).is_some() {
        "/init"
    } else {
        "/pause"
    };
    same(&other.sh("tr '\\0' ' ' </proc/1/cmdline")?, first)?;
    other.sh("kill -USR1 $(ps -o pid,args | awk '/[t]rap/ { print $1; exit }')")?;
    let ended = target.wait()?;
    ensure!(ended.code() == 5, "{ended:?}");
    same(&other.sh("echo alive")?, "alive")?;
    end([target, other])
}

fn orphans_are_reaped(bed: &mut Bed) -> Result<()> {
    let pod = shared_pod(bed)?;
    let container = pod.start(ContainerSpec::idle())?;
    // Each subshell ends before its child, whose parent is then the first process.
    container.sh("for i in 1 2 3 4 5; do (sleep 0.1 >/dev/null 2>&1 &); done")?;
    wait::until("no zombie is left", deadlines::PROGRESS, || {
        let zombies = container.sh("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")?;
        Ok((zombies == "0").then_some(()))
    })?;
    end([container])
}

fn a_host_name_that_changes(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let admin = pod.start(ContainerSpec::idle().security(|security| {
        security.capabilities.get_or_insert_default().add_capabilities = vec!["SYS_ADMIN".into()];
    }))?;
    let other = pod.start(ContainerSpec::idle())?;
    admin.sh("hostname changed")?;
    same(&other.sh("hostname")?, "changed")?;
    admin.sh("hostname namespaces")?;
    end([admin, other])
}

fn sysctls_of_the_pod(bed: &mut Bed) -> Result<()> {
    let settings = [
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("net.core.somaxconn", "321"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "16384"),
        ("net.ipv4.ping_group_range", "0\t2147483647"),
    ];
    let pod = bed.fresh(PodSpec::new("sysctls").linux(|linux| {
        linux.sysctls = settings
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
    }))?;
    let container = pod.start(ContainerSpec::idle())?;
    for (key, value) in settings {
        let path = key.replace('.', "/");
        same(&container.sh(&format!("cat /proc/sys/{path}"))?, value).with_context(|| key.to_owned())?;
    }
    pod.remove()
}

fn a_wrong_sysctl_is_refused(bed: &mut Bed) -> Result<()> {
    let spec = PodSpec::new("wrong").linux(|linux| {
        linux.sysctls.insert("kernel.no_such_setting".into(), "1".into());
    });
    crate::cri::refusal(bed.fresh(spec))?.says("kernel.no_such_setting")
}
