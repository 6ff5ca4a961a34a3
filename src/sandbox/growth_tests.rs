//! Virtual machines that grow with their containers, on doubles: how far, when not, and what a failure leaves.

use hypervisor::Size;
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::{Value, json};

use super::doubles::{Fault, World};
use super::tests::{container, start};
use super::*;
use crate::model::{GrowthPlan, Resources};
use crate::oci::Limits;

/// 1 vCPU and 256 MiB, and up to 4 and 2048 MiB.
fn plan() -> GrowthPlan {
    let size = |vcpus, memory_mib| Size { vcpus, memory_mib };
    GrowthPlan {
        base: size(1, 256),
        started: size(1, 256),
        most: size(4, 2048),
        counted: Resources::default(),
    }
}

fn resources(cpus: i64, memory_mib: i64) -> Value {
    json!({"cpu": {"quota": cpus * 100_000, "period": 100_000}, "memory": {"limit": memory_mib << 20}})
}

/// The limits of containers that are created from now on.
fn limit(world: &World, cpus: i64, memory_mib: i64) {
    let spec = json!({"ociVersion": "1.0.2", "linux": {"resources": resources(cpus, memory_mib)}});
    let spec: Spec = serde_json::from_value(spec).unwrap();
    *world.limits.lock().unwrap() = Limits::of(&spec).unwrap();
}

fn size(world: &World) -> (u32, u64) {
    let size = *world.size.lock().unwrap();
    (size.vcpus, size.memory_mib)
}

fn change(value: Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

async fn started(fault: Fault) -> (Arc<World>, Sandbox, mpsc::Receiver<Event>) {
    let world = World::growing(fault, Some(plan()));
    let (sandbox, events) = start(&world).await;
    (world, sandbox.unwrap(), events)
}

#[tokio::test]
async fn a_machine_has_what_its_containers_may_use_before_they_are_there() {
    let (world, sandbox, _events) = started(Fault::None).await;
    sandbox.create_container(container("s")).await.unwrap();
    assert_eq!(
        (size(&world), world.agent.growth()),
        ((1, 256), None),
        "no limits, no growth"
    );

    limit(&world, 1, 256);
    let first = sandbox.create_container(container("a")).await.unwrap();
    assert_eq!((size(&world), world.agent.growth()), ((2, 512), Some((2, 256))));
    let calls = world.agent.calls();
    let place = |call: &str| calls.iter().rposition(|made| *made == call);
    assert!(place("take_growth") < place("create_container"), "{calls:?}");
    let second = sandbox.create_container(container("b")).await.unwrap();
    assert_eq!((size(&world), world.agent.growth()), ((3, 768), Some((3, 512))));

    // What was added once is not added again.
    first.delete().await.unwrap();
    sandbox.create_container(container("c")).await.unwrap();
    assert_eq!(size(&world), (3, 768));

    second.update(&change(resources(100, 512))).await.unwrap();
    assert_eq!(
        (size(&world), world.agent.growth()),
        ((4, 1024), Some((4, 768))),
        "up to its limit"
    );
    second.update(&change(resources(1, 1))).await.unwrap();
    assert_eq!(size(&world), (4, 1024), "nothing is taken away");
    sandbox.stop().await.unwrap();
    assert_eq!(world.left(), Vec::<&str>::new());
}

#[tokio::test]
async fn an_init_container_that_is_done_uses_nothing() {
    let (world, sandbox, _events) = started(Fault::None).await;
    limit(&world, 1, 256);
    let init = sandbox.create_container(container("init")).await.unwrap();
    init.start().await.unwrap();
    world.agent.exit("init", "", 0, 1);
    world.agent.end_output("init", "");
    init.wait(None).await.unwrap();
    sandbox.create_container(container("a")).await.unwrap();
    assert_eq!(size(&world), (2, 512));
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_container_that_cannot_have_its_limits_is_not_created_and_leaves_nothing() {
    for (fault, words) in [
        (Fault::Growth, &["does not grow", "no vCPU left"][..]),
        (Fault::None, &["does not grow", "1 of 2 vCPUs", "384 of 512 MiB"]),
    ] {
        let (world, sandbox, _events) = started(fault).await;
        world.agent.stop_growing(1, 128);
        limit(&world, 1, 256);
        let error = sandbox.create_container(container("a")).await.unwrap_err();
        assert!(
            words.iter().all(|word| error.context.contains(word)),
            "{}",
            error.context
        );
        assert!(!world.agent.calls().contains(&"create_container"));
        assert!(world.containers.lock().unwrap().is_empty());

        // The sandbox is as it was, and takes a container that fits.
        limit(&world, 0, 0);
        sandbox.create_container(container("a")).await.unwrap();
        sandbox.stop().await.unwrap();
        assert_eq!(world.left(), Vec::<&str>::new());
    }
}

#[tokio::test]
async fn an_update_reaches_the_guest_even_if_the_machine_does_not_grow() {
    let (world, sandbox, _events) = started(Fault::Growth).await;
    let made = sandbox.create_container(container("a")).await.unwrap();
    let error = made.update(&change(resources(2, 64))).await.unwrap_err();
    for words in ["does not grow", "no vCPU left", "applied all the same"] {
        assert!(error.context.contains(words), "{}", error.context);
    }
    assert!(world.agent.calls().contains(&"update_container"));
    assert_eq!(size(&world), (1, 320), "memory does not depend on vCPUs");
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_machine_that_keeps_its_size_is_not_asked_to_grow() {
    let world = World::new(Fault::Growth);
    let (sandbox, _events) = start(&world).await;
    let sandbox = sandbox.unwrap();
    limit(&world, 3, 3);
    let made = sandbox.create_container(container("a")).await.unwrap();
    made.update(&change(resources(4, 4))).await.unwrap();
    assert_eq!((size(&world), world.agent.growth()), ((1, 2), None));
    sandbox.stop().await.unwrap();
}
