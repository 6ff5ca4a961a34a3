//! Which pods and containers there are, and which one is meant.

use runtime::ErrorKind;
use runtime::engine::{Filter, PodFilter, PodOptions};

use super::Result;
use super::bench::Bench;

/// By id, name, or a beginning of the id. That it means nothing and that it means several things are different errors.
pub async fn lookup_by_short_id(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let pod = runtime
        .create_pod(PodOptions::new(bench.pod_id("pod")?).name("shop"))
        .await?;
    pod.create_container(bench.container("aaa1", "true")?.name("web"))
        .await?;
    pod.create_container(bench.container("aaa2", "true")?).await?;

    let found = runtime.lookup_container("aaa2").await?;
    assert_eq!(found.id(), bench.id("aaa2"));
    assert_eq!(runtime.lookup_container("web").await?.id(), bench.id("aaa1"));
    assert_eq!(runtime.lookup_pod("shop").await?.id(), pod.id());
    assert_eq!(runtime.lookup_pod("po").await?.id(), pod.id());

    let ambiguous = runtime.lookup_container("aaa").await.unwrap_err();
    assert_eq!(ambiguous.kind, ErrorKind::Ambiguous);
    assert!(ambiguous.context.contains(&bench.id("aaa1")), "{ambiguous}");
    let unknown = runtime.lookup_container("b").await.unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::NotFound);
    pod.remove(true).await?;
    Ok(())
}

/// By podman's filters.
pub async fn list_with_filters(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let pod = runtime
        .create_pod(
            PodOptions::new(bench.pod_id("pod")?)
                .name("shop")
                .label("tier", "front"),
        )
        .await?;
    let web = pod
        .create_container(bench.container("web", "sleep 1000")?.label("app", "web"))
        .await?;
    pod.create_container(bench.container("db", "true")?.label("app", "db"))
        .await?;
    web.start().await?;

    let listed = async |filters: &[&str]| -> Result<Vec<String>> {
        let filters: Vec<Filter> = filters
            .iter()
            .map(|text| text.parse())
            .collect::<runtime::error::Result<_>>()?;
        let found = runtime.containers(&filters).await?;
        Ok(found.into_iter().map(|one| one.id).collect())
    };
    assert_eq!(listed(&[]).await?.len(), 2);
    assert_eq!(listed(&["status=running"]).await?, [web.id()]);
    assert_eq!(listed(&["label=app=web", "pod=shop"]).await?, [web.id()]);
    assert_eq!(listed(&["status=running", "status=created"]).await?.len(), 2);
    assert!(listed(&["label=app=cache"]).await?.is_empty());

    let pods = runtime
        .pods(&[
            PodFilter::Label("tier".into(), None),
            PodFilter::ContainerNumber(2),
        ])
        .await?;
    assert_eq!(pods.len(), 1);
    pod.remove(true).await?;
    Ok(())
}
