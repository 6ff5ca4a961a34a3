//! Processes of a sandbox are in its cgroup, in every hierarchy of this host, from their first moment; and nothing of it is
//! there afterwards, whatever they have left.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::{Boot, Vm, registry};
use slog::{Discard, Logger, o};

use super::super::{Host, cgroup, clean_up_dead};
use super::stand::{Stand, plan};
use crate::error::ErrorKind;
use crate::model::{CgroupPlan, ChannelPlan, SharePlan};
use crate::sandbox::{Ground, SandboxRequest};

fn host(request: &SandboxRequest, cgroup: CgroupPlan) -> Host {
    let mut plan = plan("s", ChannelPlan::Serial, SharePlan::Process);
    plan.cgroup = Some(cgroup);
    Host::new(request, plan).unwrap()
}

/// Starts a guest that is this shell script.
pub(super) async fn guest(stand: &Stand, host: &mut Host, script: &str) -> Box<dyn Vm> {
    let path = stand.path("guest");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = crate::sandbox::tests::config();
    config.hypervisor.path = path;
    let log = Logger::root(Discard, o!());
    let driver = registry::driver(&config.hypervisor, &stand.run_dir(), log).unwrap();
    let acquired = host.acquire().await.unwrap();
    let vm = driver.launch(acquired.vm, Boot::Cold).await.unwrap();
    host.keep(&vm.record()).unwrap();
    vm
}

fn members(dir: &Path) -> Vec<u32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// Waits until this many processes are in a cgroup.
async fn wait_for(dir: &Path, count: usize) {
    let wait = async {
        while members(dir).len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
}

/// The cgroup of this path in every hierarchy.
fn everywhere(path: &Path) -> Vec<PathBuf> {
    cgroup::roots().iter().map(|root| root.join(path)).collect()
}

#[tokio::test]
async fn a_guest_is_in_it_everywhere_with_what_it_starts_and_leaves_nothing() {
    let stand = Stand::new();
    let (request, _events) = stand.request("s");
    for is_apart in [false, true] {
        let cgroup = CgroupPlan {
            is_apart,
            ..stand.cgroup()
        };
        let mut host = host(&request, cgroup.clone());
        let mut vm = guest(&stand, &mut host, "sleep 600 & exec sleep 600").await;
        let own = everywhere(&cgroup.path.join(&cgroup.name));
        for dir in &own {
            assert!(members(dir).contains(&vm.pid()), "{}", dir.display());
            wait_for(dir, 2).await;
        }
        // Its child outlives it, and is no child of ours.
        vm.stop().await.unwrap();
        assert_eq!(members(&own[0]).len(), 1);
        host.release().await.unwrap();
        stand.assert_clean();
    }
}

#[tokio::test]
async fn a_dead_owners_processes_are_found_by_it() {
    let stand = Stand::new();
    let (request, _events) = stand.request("s");
    let mut host = host(&request, stand.cgroup());
    let mut vm = guest(&stand, &mut host, "sleep 600 & exec sleep 600").await;
    let cgroup = stand.cgroup();
    wait_for(&everywhere(&cgroup.path.join(cgroup.name))[0], 2).await;
    vm.stop().await.unwrap();
    host.die().await;
    clean_up_dead(&request.config, &*request.hypervisor, &request.scope, &request.id)
        .await
        .unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn what_was_there_before_stays() {
    let stand = Stand::new();
    let (request, _events) = stand.request("s");
    let cgroup = stand.cgroup();
    let theirs = everywhere(&cgroup.path);
    for dir in &theirs {
        fs::create_dir_all(dir).unwrap();
    }
    // The second time, the sandbox's own name is taken as well.
    for left in [false, true] {
        let mut own = everywhere(&cgroup.path.join(&cgroup.name));
        if left {
            for dir in &mut own {
                fs::create_dir(&*dir).unwrap();
                dir.set_extension("1");
            }
        }
        let mut host = host(&request, cgroup.clone());
        let mut vm = guest(&stand, &mut host, "exec sleep 600").await;
        for (dir, above) in own.iter().zip(&theirs) {
            assert_eq!(members(dir), [vm.pid()], "{}", dir.display());
            assert_eq!(members(above), [0; 0], "{}", above.display());
        }
        vm.stop().await.unwrap();
        host.release().await.unwrap();
        assert!(own.iter().all(|dir| !dir.exists()));
        assert!(theirs.iter().all(|dir| dir.exists()));
    }
    for dir in stand.cgroups().iter().rev() {
        fs::remove_dir(dir).unwrap();
    }
    stand.assert_clean();
}

#[tokio::test]
async fn many_share_a_path_and_a_name_that_come_and_go() {
    let stand = Stand::new();
    let sandbox = |name: String| {
        let (request, events) = stand.request(&name);
        let mut plan = plan(&name, ChannelPlan::Serial, SharePlan::Process);
        plan.cgroup = Some(CgroupPlan {
            is_apart: true,
            ..stand.cgroup()
        });
        async move {
            for _ in 0..10 {
                let mut host = Host::new(&request, plan.clone()).unwrap();
                host.acquire().await.unwrap();
                tokio::task::yield_now().await;
                host.release().await.unwrap();
            }
            drop(events);
        }
    };
    // On threads of their own: one by one they would never meet.
    std::thread::scope(|scope| {
        for n in 0..3 {
            let sandbox = sandbox(format!("s{n}"));
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(sandbox);
            });
        }
    });
    stand.assert_clean();
}

#[tokio::test]
async fn what_is_no_directory_is_one_clear_error_and_leaves_nothing() {
    let stand = Stand::new();
    let (request, _events) = stand.request("s");
    for path in ["cgroup.procs/a", "cgroup.procs"] {
        let cgroup = CgroupPlan {
            path: path.into(),
            ..stand.cgroup()
        };
        let mut host = host(&request, cgroup);
        let error = host.acquire().await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{}", error.chain());
        assert!(error.context.contains("linux.cgroupsPath"), "{error}");
        host.release().await.unwrap();
        stand.assert_clean();
    }
    // Hierarchies have no links to directories that anybody could make, so a directory stands for one.
    fs::create_dir(stand.path("elsewhere")).unwrap();
    symlink(stand.path("elsewhere"), stand.path("link")).unwrap();
    let dir = fs::File::open(stand.dir.path()).unwrap().into();
    assert!(cgroup::open_below(&dir, Path::new("elsewhere")).is_ok());
    for outside in ["link", "../", "/proc"] {
        assert!(cgroup::open_below(&dir, Path::new(outside)).is_err(), "{outside}");
    }
}
