//! A container from its bundle to its removal.

use std::time::Duration;

use runtime::ErrorKind;
use runtime::engine::{ContainerState, PodOptions};

use super::Result;
use super::bench::Bench;

const SIGUSR1: u32 = 10;

/// Created, started, waited for, looked at, removed.
pub async fn run_a_container(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "exit 7")?.name("seven"))
        .await?;
    assert_eq!(container.status().await?.state, ContainerState::Created);
    container.start().await?;
    assert_eq!(container.wait().await?.code, 7);

    let status = container.status().await?;
    assert_eq!(
        (status.name.as_str(), status.state),
        ("seven", ContainerState::Exited)
    );
    assert_eq!(status.exit.map(|exit| exit.code), Some(7));
    assert!(status.started.is_some_and(|at| status.created <= at));

    container.remove(false).await?;
    assert_eq!(container.status().await.unwrap_err().kind, ErrorKind::NotFound);
    assert!(runtime.containers(&[]).await?.is_empty());
    Ok(())
}

/// Ids and names belong to one container each; what does not come about leaves nothing.
pub async fn a_container_is_created_once(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let first = runtime
        .create_container(bench.container("c", "sleep 1000")?.name("web"))
        .await?;
    let again = bench.container("other", "true")?.name("web");
    assert_eq!(
        runtime.create_container(again).await.unwrap_err().kind,
        ErrorKind::AlreadyExists
    );

    let missing = bench.container("missing", "true")?.rootfs(vec![]);
    std::fs::remove_file(bench.path("bundles/missing/config.json"))?;
    assert!(runtime.create_container(missing).await.is_err());
    assert_eq!(runtime.containers(&[]).await?.len(), 1);

    first.remove(true).await?;
    Ok(())
}

/// An id that could not be written down is free again.
pub async fn a_creation_that_fails_takes_no_id(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let pod = runtime.create_pod(PodOptions::new(bench.pod_id("pod")?)).await?;
    let options = bench.container("c", "true")?.name("web");
    // Where the state is written before it is put in its place.
    let in_the_way = bench.path("state/pods").join(format!(".{}.new", pod.id()));
    std::fs::create_dir(&in_the_way)?;
    let error = pod.create_container(options.clone()).await.unwrap_err();
    assert!(error.context.contains("cannot be written"), "{error}");
    std::fs::remove_dir(&in_the_way)?;
    pod.create_container(options).await?;
    pod.remove(true).await?;
    Ok(())
}

/// The stop signal, then its timeout, then SIGKILL.
pub async fn stop_with_a_timeout(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let obeys = bench.container(
        "obeys",
        "trap 'exit 3' USR1; echo ready; while :; do sleep 0.1; done",
    )?;
    let obeys = runtime.create_container(obeys.stop_signal(SIGUSR1)).await?;
    super::bench::start(&obeys).await?;
    assert_eq!(obeys.stop(None).await?.code, 3);
    // One that has ended is fine.
    assert_eq!(obeys.stop(None).await?.code, 3);

    // An init process does not die of a signal that it does not handle.
    let ignores = runtime
        .create_container(bench.container("ignores", "sleep 1000")?)
        .await?;
    ignores.start().await?;
    assert_eq!(
        ignores.stop(Some(Duration::from_millis(300))).await?.code,
        128 + 9
    );

    obeys.remove(false).await?;
    ignores.remove(false).await?;
    Ok(())
}

/// A signal for the first process, or for all.
pub async fn signal(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "exec sleep 1000")?)
        .await?;
    container.start().await?;
    container.kill(9, true).await?;
    assert_eq!(container.wait().await?.code, 128 + 9);
    assert_eq!(
        container.kill(9, true).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    container.remove(false).await?;
    Ok(())
}

/// One that runs is not removed, unless by force.
pub async fn remove(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "sleep 1000")?)
        .await?;
    container.start().await?;
    let error = container.remove(false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert_eq!(container.status().await?.state, ContainerState::Running);
    container.remove(true).await?;
    assert_eq!(
        container.remove(true).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    Ok(())
}
