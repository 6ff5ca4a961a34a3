//! Disks of containers, on doubles: there before the guest is told of the container, gone when it is deleted, and no way for a guest
//! to hold anything up with them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::doubles::{Fault, World};
use super::tests::{container, start};

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn plugged(world: &Arc<World>) -> Vec<String> {
    world.plugged.lock().unwrap().iter().cloned().collect()
}

#[tokio::test]
async fn they_come_and_go_with_their_container() {
    let world = World::new(Fault::None);
    world.disks.store(2, Ordering::SeqCst);
    let sandbox = start(&world).await.0.unwrap();
    let a = sandbox.create_container(container("a")).await.unwrap();
    let b = sandbox.create_container(container("b")).await.unwrap();
    assert_eq!(plugged(&world), ["a0", "a1", "b0", "b1"]);
    a.delete().await.unwrap();
    assert_eq!(plugged(&world), ["b0", "b1"]);
    b.delete().await.unwrap();
    assert_eq!(plugged(&world), [""; 0]);
    sandbox.stop().await.unwrap();
    assert_eq!(world.left(), [""; 0]);
}

/// The end of a machine does not wait long; a file system that is unmounted is waited for.
#[tokio::test]
async fn what_is_on_them_is_written_back_though_all_goes_with_the_sandbox() {
    let world = World::new(Fault::None);
    world.disks.store(1, Ordering::SeqCst);
    let sandbox = start(&world).await.0.unwrap();
    let a = sandbox.create_container(container("a")).await.unwrap();
    a.start().await.unwrap();
    a.kill(None, 9, false).await.unwrap();
    a.wait(None).await.unwrap();
    world
        .agent
        .fail("delete_container", agent_client::ErrorKind::Internal, "no space");
    let error = a.delete_with_sandbox().await.unwrap_err();
    assert!(error.chain().contains("no space"), "{}", error.chain());
    world.agent.obey("delete_container");
    a.delete_with_sandbox().await.unwrap();
    let deletions = world
        .agent
        .calls()
        .iter()
        .filter(|call| **call == "delete_container")
        .count();
    assert_eq!(deletions, 2);
    assert_eq!(plugged(&world), ["a0"], "it goes with the machine");
    sandbox.stop().await.unwrap();
    assert_eq!(world.left(), [""; 0]);
}

#[tokio::test]
async fn a_creation_that_fails_leaves_none() {
    let world = World::new(Fault::None);
    world.disks.store(2, Ordering::SeqCst);
    let sandbox = start(&world).await.0.unwrap();
    // One disk of two.
    world.ports.store(1, Ordering::SeqCst);
    let error = sandbox.create_container(container("a")).await.unwrap_err();
    assert!(
        error.chain().contains("all ports are in use"),
        "{}",
        error.chain()
    );
    assert!(!world.agent.calls().contains(&"create_container"));
    assert_eq!(plugged(&world), [""; 0]);
    assert!(world.containers.lock().unwrap().is_empty());

    world.ports.store(4, Ordering::SeqCst);
    let a = sandbox.create_container(container("a")).await.unwrap();
    a.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(world.left(), [""; 0]);
}

#[tokio::test]
async fn what_a_creation_that_failed_could_not_take_back_is_taken_back_with_the_next() {
    let world = World::new(Fault::None);
    world.disks.store(1, Ordering::SeqCst);
    let sandbox = start(&world).await.0.unwrap();
    world
        .agent
        .fail("create_container", agent_client::ErrorKind::Internal, "full");
    world.keeps.store(true, Ordering::SeqCst);
    let error = sandbox.create_container(container("a")).await.unwrap_err();
    assert!(error.chain().contains("does not let go"), "{}", error.chain());
    assert_eq!(plugged(&world), ["a0"]);
    world.agent.obey("create_container");
    world.keeps.store(false, Ordering::SeqCst);
    sandbox.create_container(container("b")).await.unwrap();
    assert_eq!(plugged(&world), ["b0"]);
    sandbox.stop().await.unwrap();
    assert_eq!(world.left(), [""; 0]);
}

#[tokio::test]
async fn a_guest_that_clings_to_one_does_not_hold_up_a_stop() {
    let world = World::new(Fault::None);
    world.disks.store(1, Ordering::SeqCst);
    let sandbox = start(&world).await.0.unwrap();
    let a = sandbox.create_container(container("a")).await.unwrap();
    world.clings.store(true, Ordering::SeqCst);
    let deleting = tokio::spawn(async move { a.delete().await });
    world
        .agent
        .until(|agent| agent.calls().contains(&"delete_container"))
        .await;
    timeout(SOON, sandbox.stop())
        .await
        .expect("a stop in time")
        .unwrap();
    timeout(SOON, deleting)
        .await
        .expect("an answer")
        .unwrap()
        .expect("what went with the virtual machine is gone");
    assert_eq!(world.left(), [""; 0]);
}
