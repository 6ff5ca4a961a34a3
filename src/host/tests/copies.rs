//! Files of the host, read for a guest that has copies.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use agent_protocol as p;

use super::super::{copies, mount};
use super::stand::container;
use crate::aside::Site;
use crate::error::{Error, ErrorKind};
use crate::guest;
use crate::model::{ContainerPlan, CopyPlan, RootPlan};

fn plan(source: &Path, is_directory: bool, recursive: bool) -> ContainerPlan {
    let mut plan = container("c", RootPlan::Disk, Vec::new());
    let mount_point = guest::copies("c0m0");
    plan.guest.storages = vec![guest::copied(&mount_point)];
    plan.copies = vec![CopyPlan {
        index: 3,
        source: source.into(),
        is_directory,
        recursive,
        mount_point,
    }];
    plan
}

/// What a guest would be sent: path, mode, content.
fn read(source: &Path, is_directory: bool) -> Result<Vec<(String, u32, String)>, Error> {
    let mut plan = plan(source, is_directory, false);
    copies::fill(&mut plan, &Site::default())?;
    let storage = plan.guest.storages.remove(0);
    assert!(storage.options.iter().any(|option| option.starts_with("size=")));
    let shown = |file: p::CopiedFile| (file.path, file.mode, String::from_utf8(file.data).unwrap());
    Ok(storage.files.into_iter().map(shown).collect())
}

#[test]
fn a_file_and_a_directory_of_the_kubelets_are_read_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::set_permissions(path("hosts"), Permissions::from_mode(0o640)).unwrap();
    symlink("hosts", path("link")).unwrap();
    for name in ["hosts", "link"] {
        let hosts = ("data".to_owned(), 0o100_640, "127.0.0.1 localhost\n".to_owned());
        assert_eq!(read(&path(name), false).unwrap(), [hosts], "{name}");
    }
    let secret = tempfile::tempdir().unwrap();
    let path = |name: &str| secret.path().join(name);
    fs::set_permissions(secret.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(path("..2024")).unwrap();
    fs::set_permissions(path("..2024"), Permissions::from_mode(0o750)).unwrap();
    fs::write(path("..2024/token"), "t").unwrap();
    fs::set_permissions(path("..2024/token"), Permissions::from_mode(0o600)).unwrap();
    symlink("..2024", path("..data")).unwrap();
    symlink("..data/token", path("token")).unwrap();
    let row = |path: &str, mode, data: &str| (path.to_owned(), mode, data.to_owned());
    assert_eq!(
        read(secret.path(), true).unwrap(),
        [
            row("data", 0o040_755, ""),
            row("data/..2024", 0o040_750, ""),
            row("data/..2024/token", 0o100_600, "t"),
            row("data/..data", 0o120_777, "..2024"),
            row("data/token", 0o120_777, "..data/token"),
        ]
    );
}

#[test]
fn what_cannot_be_copied_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("large"), vec![0; p::MAX_COPIED]).unwrap();
    fs::create_dir(path("many")).unwrap();
    for number in 0..=p::MAX_COPIED_FILES {
        fs::write(path("many").join(number.to_string()), "").unwrap();
    }
    fs::create_dir(path("socket")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket/s")).unwrap();
    fs::create_dir_all(path("mounted/below")).unwrap();
    mount::memory(&path("mounted/below")).unwrap();
    fs::write(path("file"), "").unwrap();
    fs::create_dir_all(path("deep").join(["x"; 33].join("/"))).unwrap();
    for (name, is_directory, kind, words) in [
        (
            "large",
            false,
            ErrorKind::InvalidArgument,
            "copies of 3 MiB at most",
        ),
        ("many", true, ErrorKind::InvalidArgument, "4096 files each"),
        (
            "socket",
            true,
            ErrorKind::InvalidArgument,
            "\"s\" in it is no file",
        ),
        (
            "socket/s",
            false,
            ErrorKind::InvalidArgument,
            "is no file or directory",
        ),
        (
            "deep",
            true,
            ErrorKind::InvalidArgument,
            "\"x\" in it is too deep",
        ),
        (
            "mounted",
            true,
            ErrorKind::InvalidArgument,
            "mount it with \"rbind\"",
        ),
        (
            "file",
            true,
            ErrorKind::InvalidArgument,
            "not what it was a moment ago",
        ),
        ("missing", false, ErrorKind::InvalidArgument, "no such file"),
    ] {
        let error = read(&path(name), is_directory).unwrap_err();
        assert_eq!(error.kind, kind, "{name}: {error}");
        assert!(
            error.context.contains(words) && error.context.contains(name),
            "{name}: {}",
            error.context
        );
    }
    let mut recursive = plan(&path("mounted"), true, true);
    copies::fill(&mut recursive, &Site::default()).unwrap();
    assert_eq!(recursive.guest.storages[0].files.len(), 2);
    mount::clear(&path("mounted/below")).unwrap();
}
