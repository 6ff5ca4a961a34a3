//! What may be done to a container that runs.

use runtime::engine::{ContainerState, ExecOptions};
use runtime::{ErrorKind, Stdio, oci};

use super::Result;
use super::bench::Bench;

/// Frozen and thawed. What is frozen cannot be asked to end.
pub async fn pause_and_resume(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "sleep 1000")?)
        .await?;
    container.start().await?;
    container.pause().await?;
    assert_eq!(container.status().await?.state, ContainerState::Paused);
    let refused = [
        container.pause().await.unwrap_err(),
        container.stop(None).await.unwrap_err(),
        container
            .exec(ExecOptions::new(["true"]), Stdio::default())
            .await
            .unwrap_err(),
    ];
    assert!(
        refused
            .iter()
            .all(|error| error.kind == ErrorKind::FailedPrecondition)
    );
    container.resume().await?;
    assert_eq!(container.status().await?.state, ContainerState::Running);
    container.pause().await?;
    container.remove(true).await?;
    Ok(())
}

/// Other limits, and figures.
pub async fn update_and_stats(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "sleep 1000")?)
        .await?;
    container.start().await?;
    container
        .update(&oci::resources(br#"{"memory": {"limit": 67108864}}"#)?)
        .await?;
    // What the guest cannot give.
    let wrong = oci::resources(br#"{"cpu": {"realtimeRuntime": 1000}}"#)?;
    let refused = container.update(&wrong).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported, "{refused}");

    let stats = container.stats().await?;
    // Guests of the driver `fake` share the host's cgroups; one of version 1 limits nothing in those of version 2.
    let is_limited = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|controllers| controllers.split_whitespace().any(|one| one == "memory"));
    assert_eq!(stats.memory_limit, if is_limited { 64 << 20 } else { 0 });
    assert!(stats.cpu_ns > 0, "{stats:?}");
    container.remove(true).await?;
    Ok(())
}
