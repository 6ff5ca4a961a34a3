//! Hooks that change a container's files, and what the guest sees of that.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use slog::{Discard, Logger, o};

use super::files::ready;
use super::stand::{Stand, container};
use crate::ContainerId;
use crate::error::Result;
use crate::host::{Hooks, Host, Stage};
use crate::model::{ContainerPlan, HookPlan, HooksPlan, RootPlan, StageMount, StagePlan};
use crate::sandbox::{Ground, RootfsMount};

/// A bundle with an image whose links would lead to the host, what it mounts, and a hook.
fn plan(stand: &Stand, script: &str) -> ContainerPlan {
    let bundle = stand.path("bundle");
    for dir in ["bundle/rootfs", "image/usr", "upper", "work", "library"] {
        fs::create_dir_all(stand.path(dir)).unwrap();
    }
    fs::write(stand.path("library/x.so"), "code").unwrap();
    fs::write(stand.path("hosts"), "names").unwrap();
    // To what is not there: in the root, not on the host.
    symlink(stand.path("outside/etc"), stand.path("image/etc")).unwrap();
    symlink("usr/lib", stand.path("image/lib")).unwrap();
    let hook = bundle.join("hook");
    fs::write(
        &hook,
        format!("#!/bin/sh\nPATH=/usr/bin:/bin:/usr/sbin:/sbin\nset -e\n{script}\n"),
    )
    .unwrap();
    fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).unwrap();
    let overlay = RootfsMount {
        fs_type: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", stand.path("image").display()),
            format!("upperdir={}", stand.path("upper").display()),
            format!("workdir={}", stand.path("work").display()),
        ],
    };
    let mount = |index, source: Option<&str>, destination: &str| StageMount {
        index,
        source: source.map(|name| stand.path(name)),
        destination: destination.into(),
        readonly: true,
        recursive: true,
    };
    let mut plan = container("c", RootPlan::Mounts(vec![overlay]), Vec::new());
    plan.stage = Some(StagePlan {
        root: bundle.join("rootfs"),
        mounts: vec![
            mount(0, None, "/run"),
            mount(1, Some("library"), "/lib/vendor"),
            mount(2, Some("hosts"), "etc/hosts"),
            mount(3, Some("hosts"), "/run/names"),
        ],
    });
    plan.hooks = HooksPlan {
        container: vec![HookPlan {
            name: "hooks.createContainer[0]".into(),
            path: hook,
            args: Vec::new(),
            env: Vec::new(),
            timeout: None,
        }],
        version: "1.0.2".into(),
        bundle,
        ..Default::default()
    };
    plan
}

/// As [`Ground::add`] does it.
fn stage(host: &Host, plan: &ContainerPlan) -> Stage {
    let (share, steps) = host.shared().unwrap();
    share.add(|_| Ok(plan.clone()), &steps).unwrap();
    share.stage(plan, None, &steps).unwrap().unwrap()
}

async fn told(plan: &ContainerPlan, stage: Stage) -> Result<()> {
    let hooks = Hooks::new(&plan.id, plan.hooks.clone());
    hooks.creating(7, Some(stage), &Logger::root(Discard, o!())).await
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn hooks_find_the_root_where_the_bundle_says_and_the_guest_what_they_made_of_it() {
    let stand = Stand::new();
    let (mut host, shared) = ready(&stand).await;
    let script = format!(
        "[ \"$PWD\" = {root} ]
        cat lib/vendor/x.so run/names >made
        cat .{outside}/etc/hosts >>made
        ! touch lib/vendor/new 2>/dev/null
        ln -s /lib/vendor/x.so usr/lib/x.so
        mkdir memory && mount -t tmpfs none memory && echo kept >memory/file
        ! [ -e {seen}/usr ]",
        root = stand.path("bundle/rootfs").display(),
        outside = stand.path("outside").display(),
        seen = shared.join("c/rootfs").display(),
    );
    let plan = plan(&stand, &script);
    let stage = stage(&host, &plan);
    assert_eq!(names(&shared.join("c/rootfs")), Vec::<PathBuf>::new());
    told(&plan, stage).await.unwrap();

    let root = shared.join("c/rootfs");
    assert_eq!(fs::read_to_string(root.join("made")).unwrap(), "codenamesnames");
    assert_eq!(
        fs::read_link(root.join("usr/lib/x.so")).unwrap(),
        Path::new("/lib/vendor/x.so")
    );
    // What they have mounted is there; what the container mounts is the guest's to mount.
    assert_eq!(fs::read_to_string(root.join("memory/file")).unwrap(), "kept\n");
    assert_eq!(names(&root.join("usr/lib/vendor")), Vec::<PathBuf>::new());
    assert_eq!(names(&root.join("run")), Vec::<PathBuf>::new());
    assert!(
        !stand.path("outside").exists(),
        "a link of the image's led out of it"
    );
    assert_eq!(names(&stand.path("bundle/rootfs")), Vec::<PathBuf>::new());

    host.remove(&ContainerId::new("c").unwrap()).await.unwrap();
    assert_eq!(names(&shared), Vec::<PathBuf>::new());
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn of_one_that_fails_nothing_is_left_and_the_guest_has_seen_nothing() {
    let stand = Stand::new();
    let (mut host, shared) = ready(&stand).await;
    let plan = plan(&stand, "mount -t tmpfs none usr; echo no such device >&2; exit 3");
    let stage = stage(&host, &plan);
    let error = told(&plan, stage).await.unwrap_err();
    for part in ["hooks.createContainer[0]", "no such device"] {
        assert!(error.chain().contains(part), "{}", error.chain());
    }
    assert_eq!(names(&shared.join("c/rootfs")), Vec::<PathBuf>::new());
    host.remove(&ContainerId::new("c").unwrap()).await.unwrap();
    host.release().await.unwrap();
    stand.assert_clean();
    // Nobody holds it: it can be somebody else's.
    fs::remove_dir_all(stand.path("upper")).unwrap();
    assert_eq!(stand.mounts(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_cannot_be_mounted_for_hooks_is_named() {
    let stand = Stand::new();
    let (mut host, _) = ready(&stand).await;
    let mut plan = plan(&stand, "");
    fs::write(stand.path("image/file"), "").unwrap();
    let mounts = &mut plan.stage.as_mut().unwrap().mounts;
    mounts[2].destination = "/file/below".into();
    let (share, steps) = host.shared().unwrap();
    share.add(|_| Ok(plan.clone()), &steps).unwrap();
    let error = share.stage(&plan, None, &steps).unwrap_err();
    assert!(error.chain().contains("mounts[2]"), "{}", error.chain());
    host.release().await.unwrap();
    stand.assert_clean();
}
