//! What can be in the way, and what is left then.

use std::os::unix::net::UnixListener;

use futures::FutureExt;

use super::super::{Attached, Model, clean_up_dead};
use super::pod::{ADDRESS, Card, OUTSIDE, Pod, attach, until};
use crate::ErrorKind;

#[tokio::test]
async fn what_is_no_namespace_of_a_pod_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, kind, said) in [
        (dir.path().join("gone"), ErrorKind::NotFound, "removed already"),
        (file, ErrorKind::InvalidArgument, "not a namespace"),
        (fifo, ErrorKind::InvalidArgument, "not a namespace"),
        (socket, ErrorKind::InvalidArgument, "cannot be opened"),
        (
            "/proc/self/ns/net".into(),
            ErrorKind::InvalidArgument,
            "the host's own",
        ),
        (
            "/proc/self/ns/uts".into(),
            ErrorKind::InvalidArgument,
            "is something else",
        ),
    ] {
        let error = attach(&path, Some(Model::TcFilter), 1).await.unwrap_err();
        assert_eq!(error.kind, kind, "{}", error.chain());
        let text = error.chain();
        assert!(
            text.contains(said) && text.contains(path.to_str().unwrap()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_namespace_that_is_gone_first_is_no_trouble() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let pod = Pod::new();
        let mut attached = attach(&pod.path(), Some(model), 1).await.unwrap();
        let record = attached.record().unwrap();
        pod.outside("link del there");
        pod.remove_inside();
        attached.release().await.unwrap();
        clean_up_dead(&record).await.unwrap();
    }
}

#[tokio::test]
async fn a_drop_gives_everything_back() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let pod = Pod::new();
        let before = pod.picture();
        drop(attach(&pod.path(), Some(model), 1).await.unwrap());
        assert_eq!(pod.picture(), before);
    }
}

#[tokio::test]
async fn one_machine_at_a_time() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let pod = Pod::new();
        let mut first = attach(&pod.path(), Some(model), 2).await.unwrap();
        let before = pod.picture();
        let error = attach(&pod.path(), Some(model), 2).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{}", error.chain());
        assert!(error.chain().contains("eth0"), "{}", error.chain());
        assert_eq!(pod.picture(), before, "the first is not disturbed");
        let card = Card::of(&first.devices()[0]);
        card.asks_for(ADDRESS, OUTSIDE);
        first.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_failure_in_the_middle_leaves_nothing() {
    let pod = Pod::new();
    pod.outside("link add there2 type veth peer name net2");
    pod.take("net2");
    pod.inside("link set net2 up");
    let index: String = pod
        .inside("-o link show net2")
        .chars()
        .take_while(|c| *c != ':')
        .collect();
    // In the way of the second interface's tap.
    pod.inside(&format!("link add name kata{index} type bridge"));
    let before = pod.picture();
    for model in [Model::TcFilter, Model::Macvtap] {
        let error = attach(&pod.path(), Some(model), 1).await.unwrap_err();
        assert!(error.chain().contains("net2"), "{}", error.chain());
        until("nothing is left", || pod.picture() == before);
    }
}

#[tokio::test]
async fn an_interface_without_frames_is_named() {
    let pod = Pod::new();
    pod.inside("tuntap add tun0 mode tun");
    let mut attached = attach(&pod.path(), Some(Model::TcFilter), 1).await.unwrap();
    attached.release().await.unwrap();
    let before = pod.picture();
    pod.inside("addr add 10.79.0.2/24 dev tun0");
    let error = attach(&pod.path(), Some(Model::TcFilter), 1).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.chain().contains("tun0"), "{}", error.chain());
    pod.inside("addr del 10.79.0.2/24 dev tun0");
    assert_eq!(pod.picture(), before);
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_nothing() {
    let pod = Pod::new();
    let before = pod.picture();
    for model in [Model::TcFilter, Model::Macvtap] {
        let mut attached = Attached::hold(Some(&pod.path()), Some(model), 1).await.unwrap();
        // Begun, and dropped before it could be done.
        assert!(attached.connect().now_or_never().is_none());
        attached.release().await.unwrap();
        assert_eq!(pod.picture(), before, "{model:?}");
    }
}

#[tokio::test]
async fn what_a_dead_owner_left_is_in_nobodys_way() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let pod = Pod::new();
        let before = pod.picture();
        let record = {
            let attached = attach(&pod.path(), Some(model), 1).await.unwrap();
            let record = attached.record().unwrap();
            attached.die();
            record
        };
        assert_ne!(pod.picture(), before);
        let mut other = record.clone();
        other.inode += 1;
        clean_up_dead(&other).await.unwrap();
        assert_ne!(pod.picture(), before, "another namespace is left alone");
        clean_up_dead(&record).await.unwrap();
        until("nothing is left", || pod.picture() == before);
        clean_up_dead(&record).await.expect("a second time");
    }
    // And without a record.
    let pod = Pod::new();
    let dead = attach(&pod.path(), Some(Model::TcFilter), 1).await.unwrap();
    dead.die();
    let mut next = attach(&pod.path(), Some(Model::TcFilter), 1).await.unwrap();
    Card::of(&next.devices()[0]).asks_for(ADDRESS, OUTSIDE);
    next.release().await.unwrap();
}
