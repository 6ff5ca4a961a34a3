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
        .update(&oci::resources(br#"{"pids": {"limit": 50}}"#)?)
        .await?;
    let stats = container.stats().await?;
    assert!(stats.cpu_ns > 0, "{stats:?}");
    container.remove(true).await?;
    Ok(())
}
