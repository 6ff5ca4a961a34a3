//! Nothing is left of a start or a container that fails at any of its steps, nor of an owner that dies there.

use std::fs;
use std::time::Duration;

use configuration::NetworkModel;

use super::super::network::tests::pod::Pod;
use super::super::{Host, cgroup, clean_up_dead};
use super::stand::{Stand, container, daemons_are_here, plan, virtiofsd, vsock_daemon};
use crate::error::ErrorKind;
use crate::model::{BindPlan, ChannelPlan, NetworkPlan, RootPlan, SandboxPlan, SharePlan};
use crate::sandbox::{Ground, SandboxRequest};

/// With every part that a sandbox of a virtual machine can have.
fn planned(stand: &Full) -> SandboxPlan {
    let share = SharePlan::VirtioFs {
        daemon: virtiofsd(),
        cache: "auto",
    };
    SandboxPlan {
        cgroup: Some(stand.cgroup()),
        network: Some(NetworkPlan {
            namespace: Some(stand.pod.path()),
            model: NetworkModel::TcFilter,
            queues: 2,
            localhost: true,
            late: false,
        }),
        ..plan("s", ChannelPlan::DaemonVsock(vsock_daemon()), share)
    }
}

/// Goes through a sandbox's life up to step `left`.
async fn live(stand: &Full, request: &SandboxRequest, left: Option<u32>) -> (Host, crate::error::Result<()>) {
    let mut host = Host::new(request, planned(stand)).unwrap();
    host.steps.limit(left);
    let bind = BindPlan {
        name: "volume".into(),
        source: stand.path("volume"),
        readonly: false,
        recursive: true,
        identity: None,
    };
    let plan = container("c", RootPlan::Directory(stand.path("root")), vec![bind]);
    let lived = async {
        host.acquire().await?;
        let vm = hypervisor::VmRecord {
            driver: "fake".into(),
            // Of a process that is long gone.
            pid: u32::MAX >> 1,
            start_time: 1,
            run_dir: stand.run_dir(),
        };
        host.keep(&vm)?;
        host.carry_out(&plan)
    };
    let result = lived.await;
    (host, result)
}

/// A stand, with all that a sandbox can be given.
struct Full {
    stand: Stand,
    pod: Pod,
    /// Of the pod, before anything was done to it.
    picture: String,
}

impl std::ops::Deref for Full {
    type Target = Stand;

    fn deref(&self) -> &Stand {
        &self.stand
    }
}

fn stand() -> Option<Full> {
    if !daemons_are_here() {
        return None;
    }
    let stand = Stand::new();
    for name in ["root", "volume"] {
        fs::create_dir(stand.path(name)).unwrap();
        fs::write(stand.path(name).join("kept"), "user's").unwrap();
    }
    let pod = Pod::new();
    let picture = pod.picture();
    Some(Full { stand, pod, picture })
}

impl Full {
    async fn assert_kept(&self) {
        // What was dropped is given back by its task.
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.pod.picture() != self.picture && tokio::time::Instant::now() < end {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.pod.picture(), self.picture, "the pod's network");
        for name in ["root", "volume"] {
            assert_eq!(fs::read(self.path(name).join("kept")).unwrap(), b"user's");
        }
    }
}

#[tokio::test]
async fn a_failure_at_any_step_leaves_nothing() {
    let Some(stand) = stand() else { return };
    let (request, _events) = stand.request("s");
    let mut steps = 0;
    loop {
        let (mut host, result) = live(&stand, &request, Some(steps)).await;
        match steps % 3 {
            0 => host.release().await.unwrap(),
            // As beside the end of a virtual machine.
            1 => {
                host.forgo();
                host.release().await.unwrap();
            }
            // Torn down with its runtime.
            _ => drop(host),
        }
        stand.assert_clean();
        stand.assert_kept().await;
        match result {
            Ok(()) => break,
            Err(error) => assert!(error.context.contains("this step"), "{}", error.chain()),
        }
        steps += 1;
    }
    assert!(steps > 10, "only {steps} steps");
}

/// What its daemons have forked as well: whoever lets go of the guest's memory last has all the work of it.
#[tokio::test]
async fn what_serves_a_machine_that_ends_ends_beside_it() {
    let Some(stand) = stand() else { return };
    let (request, _events) = stand.request("s");
    let (mut host, result) = live(&stand, &request, None).await;
    result.unwrap();
    let cgroup = host.held.as_ref().unwrap().record.cgroup.clone().unwrap();
    let procs = cgroup.own.first().unwrap().join("cgroup.procs");
    let members = || fs::read_to_string(&procs).unwrap().lines().count();
    let daemons = host.held.as_ref().unwrap().daemons.len();
    assert!(
        members() >= daemons && daemons == 2,
        "{} processes of {daemons} daemons",
        members()
    );
    host.forgo();
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while members() > 0 && tokio::time::Instant::now() < end {
        tokio::task::yield_now().await;
    }
    assert_eq!(members(), 0, "processes are left before the release");
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn a_start_that_is_given_up_at_any_time_leaves_nothing() {
    let Some(stand) = stand() else { return };
    let (request, _events) = stand.request("s");
    let whole = std::time::Instant::now();
    let (mut host, result) = live(&stand, &request, None).await;
    result.unwrap();
    let whole = whole.elapsed();
    host.release().await.unwrap();
    for n in 0..20 {
        let mut host = Host::new(&request, planned(&stand)).unwrap();
        let _ = tokio::time::timeout(whole * n / 20, host.acquire()).await;
        host.release().await.unwrap();
        stand.assert_clean();
        stand.assert_kept().await;
    }
}

#[tokio::test]
async fn a_dead_owner_is_cleaned_up_after_whatever_it_had() {
    let Some(stand) = stand() else { return };
    let (request, _events) = stand.request("s");
    let clean = || clean_up_dead(&request.config, &*request.hypervisor, &request.scope, &request.id);
    clean().await.expect("nothing there is success");
    let mut steps = 0;
    loop {
        let (host, result) = live(&stand, &request, Some(steps)).await;
        if host.held.is_some() {
            let refused = clean().await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::FailedPrecondition, "{refused}");
        }
        host.die().await;
        match steps % 2 {
            0 => clean().await.unwrap(),
            // Its id is taken by the next sandbox.
            _ => {
                let (mut host, result) = live(&stand, &request, None).await;
                result.unwrap();
                host.release().await.unwrap();
            }
        }
        stand.assert_clean();
        stand.assert_kept().await;
        if result.is_ok() {
            break;
        }
        steps += 1;
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_told_and_the_rest_goes() {
    let Some(stand) = stand() else { return };
    let (request, _events) = stand.request("s");
    let (host, _) = live(&stand, &request, None).await;
    let held = host.held.as_ref().unwrap();
    let record = held.home.dir().join("record.json");
    let cgroups = held.record.cgroup.clone().unwrap();
    host.die().await;
    fs::write(record, "{").unwrap();
    let clean = || clean_up_dead(&request.config, &*request.hypervisor, &request.scope, &request.id);
    let error = clean().await.unwrap_err();
    assert!(error.context.contains("record.json"), "{error}");
    // Nobody else can find these, and nobody is in them.
    assert!(!stand.cgroups().is_empty());
    cgroup::remove_now(&cgroups).unwrap();
    stand.assert_clean();
    clean().await.unwrap();
}

impl Host {
    /// As by SIGKILL: what the kernel does then, and nothing else.
    pub(super) async fn die(mut self) {
        if let Some(mut held) = self.held.take() {
            // Their parent-death signal.
            held.daemons.clear();
            if let Some(network) = held.network.take() {
                network.die().await;
            }
        }
    }
}
