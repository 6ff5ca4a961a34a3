//! Containers that share a virtual machine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use runtime::ErrorKind;
use runtime::engine::{ContainerState, ExecOptions, PodOptions, PodState};
use runtime::model::PodConfig;

use super::Result;
use super::bench::{self, Bench, Network};

/// The pod is first, then come its containers; they see one host name.
pub async fn two_containers_in_one_machine(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let pod = runtime
        .create_pod(
            PodOptions::new(bench.pod_id("pod")?)
                .name("shop")
                .label("tier", "front"),
        )
        .await?;
    assert_eq!(pod.status().await?.state(), PodState::Created);
    let one = pod
        .create_container(bench.container("one", "sleep 1000")?)
        .await?;
    let two = pod.create_container(bench.container("two", "exit 2")?).await?;
    assert_eq!((one.pod(), two.pod()), (pod.id(), pod.id()));
    pod.start().await?;
    assert_eq!(two.wait().await?.code, 2);
    assert_eq!(pod.status().await?.state(), PodState::Degraded);
    assert_eq!(pod.containers().await?.len(), 2);

    two.remove(false).await?;
    pod.stop(Some(Duration::ZERO)).await?;
    assert_eq!(pod.status().await?.state(), PodState::Exited);
    pod.remove(false).await?;
    Ok(())
}

/// A connection to a port of the pod's localhost: what `kubectl port-forward` ends at.
pub async fn port_forward(bench: &Bench) -> Result {
    // As a CNI plugin has made it.
    let network = Network::new(bench)?;
    let config = PodConfig {
        network_namespace: Some(network.path()),
        ..PodConfig::default()
    };
    let runtime = bench.runtime()?;
    let pod = runtime
        .create_pod(PodOptions::new(bench.pod_id("pod")?).config(config))
        .await?;
    // It listens before it goes to the background.
    let script = "echo hello > /tmp/index.html; httpd -p 8080 -h /tmp && echo ready; sleep 1000";
    let server = bench.container("c", script)?;
    network.name_in(&bench.path("bundles/c"))?;
    let server = pod.create_container(server).await?;
    bench::start(&server).await?;

    let refused = UnixStream::pair()?;
    assert!(pod.port_forward(1, refused.1).await.is_err());

    let (mut ours, theirs) = UnixStream::pair()?;
    let asking = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
        ours.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut said = String::new();
        ours.read_to_string(&mut said).map(|_| said)
    });
    pod.port_forward(8080, theirs).await?;
    let said = asking.await??;
    assert!(said.ends_with("\r\n\r\nhello\n"), "{said}");
    pod.remove(true).await?;
    Ok(())
}

/// A pod goes with all that is in it, or stays as it is.
pub async fn remove_all_or_nothing(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let pod = runtime.create_pod(PodOptions::new(bench.pod_id("pod")?)).await?;
    let runs = pod
        .create_container(bench.container("runs", "sleep 1000")?)
        .await?;
    let waits = pod.create_container(bench.container("waits", "true")?).await?;
    runs.start().await?;

    let error = pod.remove(false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(error.context.contains(runs.id()), "{error}");
    // Nothing has happened, not even to the one that does not run.
    assert_eq!(waits.status().await?.state, ContainerState::Created);
    assert!(runs.exec_sync(ExecOptions::new(["echo"]), None).await.is_ok());

    pod.remove(true).await?;
    assert!(runtime.containers(&[]).await?.is_empty());
    assert!(runtime.pods(&[]).await?.is_empty());
    assert_eq!(std::fs::read_dir(bench.path("run"))?.count(), 0);
    Ok(())
}

/// Everything of this process is stopped; how it ended is still known to whoever opens the directory next.
pub async fn shutdown(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let pod = runtime
        .create_pod(PodOptions::new(bench.pod_id("pod")?).name("shop"))
        .await?;
    let container = pod
        .create_container(bench.container("c", "sleep 1000")?.name("web"))
        .await?;
    container.start().await?;
    let waiting = {
        let container = container.clone();
        tokio::spawn(async move { container.wait().await })
    };
    runtime.shutdown(Some(Duration::from_millis(100))).await?;
    assert_eq!(waiting.await??.code, 128 + 9);
    let late = bench.container("late", "true")?;
    assert_eq!(
        runtime.create_container(late).await.unwrap_err().kind,
        ErrorKind::FailedPrecondition
    );

    let next = bench.runtime()?;
    let left = next.lookup_container("web").await?;
    assert_eq!(left.status().await?.exit.map(|exit| exit.code), Some(128 + 9));
    let pod = next.lookup_pod("shop").await?;
    assert_eq!(pod.status().await?.ended.as_deref(), Some("it was shut down"));
    pod.remove(false).await?;
    assert!(next.containers(&[]).await?.is_empty());
    Ok(())
}
