//! Several processes of one engine, with one state directory.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use runtime::engine::{ContainerState, ExecOptions, Outcome, PodOptions, Runtime};
use runtime::{ErrorKind, ExitStatus, Stdio};

use super::Result;
use super::bench::{Bench, line};

/// Tells the other process what to do, and where.
const PART: &str = "KATA_EXAMPLE_PART";
const PLACE: &str = "KATA_EXAMPLE_PLACE";

/// What the other process says when its container runs.
const RUNS: &str = "the container runs";

pub fn is_other() -> bool {
    std::env::var_os(PART).is_some()
}

fn command(bench: &Bench, part: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(PART, part).env(PLACE, bench.path(""));
    if cfg!(test) {
        command.args(["--exact", "tests::other_process", "--nocapture"]);
    }
    Ok(command)
}

/// Another process, to its end.
async fn run(bench: &Bench, part: &str) -> Result<Output> {
    let mut command = command(bench, part)?;
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    match output.status.success() {
        true => Ok(output),
        false => Err(format!("{part}: {output:?}").into()),
    }
}

/// What the other process does.
pub async fn other() -> Result {
    let bench = Bench::at(PathBuf::from(std::env::var_os(PLACE).ok_or("no place")?));
    let runtime = bench.runtime()?;
    match std::env::var(PART)?.as_str() {
        "look" => {
            let container = runtime.lookup_container("web").await?;
            assert_eq!(container.status().await?.state, ContainerState::Running);
            Ok(())
        }
        "drive" => drive(&runtime, &bench).await,
        "own" => {
            let pod = runtime.create_pod(PodOptions::new(bench.pod_id("pod")?)).await?;
            let container = pod
                .create_container(bench.container("c", "sleep 1000")?.name("web"))
                .await?;
            container.start().await?;
            println!("{RUNS}");
            // Until it is killed.
            std::future::pending().await
        }
        part => Err(format!("no part {part}").into()),
    }
}

/// What another process does is seen at once, without a call to refresh anything.
pub async fn in_step_with_another_process(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "sleep 1000")?.name("web"))
        .await?;
    container.start().await?;
    run(bench, "look").await?;

    // Two runtimes of one process are as strange to each other as two processes.
    let second = bench.runtime()?;
    let seen = second.lookup_container("web").await?;
    container.pause().await?;
    assert_eq!(seen.status().await?.state, ContainerState::Paused);
    container.remove(true).await?;
    assert_eq!(seen.status().await.unwrap_err().kind, ErrorKind::NotFound);
    Ok(())
}

/// Another process drives what this one owns, by the same calls.
pub async fn driven_by_another_process(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let pod = runtime
        .create_pod(PodOptions::new(bench.pod_id("pod")?).name("shop"))
        .await?;
    run(bench, "drive").await?;
    assert_eq!(pod.status().await.unwrap_err().kind, ErrorKind::NotFound);
    assert!(runtime.pods(&[]).await?.is_empty());
    Ok(())
}

async fn drive(runtime: &Runtime, bench: &Bench) -> Result {
    let pod = runtime.lookup_pod("shop").await?;
    let container = pod
        .create_container(bench.container("c", "cat; sleep 1000")?.stdin())
        .await?;
    container.start().await?;
    let done = container
        .exec_sync(
            ExecOptions::new(["echo", "over there"]),
            Some(Duration::from_secs(60)),
        )
        .await?;
    assert_eq!(
        (done.outcome, &done.stdout[..]),
        (Outcome::Exited(0), &b"over there\n"[..])
    );

    let (mut ours, theirs) = std::io::pipe()?;
    let (from_us, mut typing) = std::io::pipe()?;
    let attached = container
        .attach(Stdio {
            stdin: runtime::Input::Descriptor(from_us.into()),
            stdout: runtime::Output::Descriptor(theirs.into()),
            ..Stdio::default()
        })
        .await?;
    let echoed = tokio::task::spawn_blocking(move || -> std::io::Result<[u8; 5]> {
        use std::io::{Read, Write};
        typing.write_all(b"typed")?;
        let mut said = [0; 5];
        ours.read_exact(&mut said)?;
        Ok(said)
    });
    assert_eq!(&echoed.await??, b"typed");
    drop(attached);

    container.pause().await?;
    assert_eq!(
        container.stop(None).await.unwrap_err().kind,
        ErrorKind::FailedPrecondition
    );
    container.resume().await?;
    assert!(container.stats().await?.cpu_ns > 0);
    let stopped: ExitStatus = container.stop(Some(Duration::ZERO)).await?;
    assert_eq!(container.wait().await?, stopped);
    pod.remove(false).await?;
    Ok(())
}

/// The owner dies: what it had is seen as ended, waited for and removed; nothing else, and nothing is left.
pub async fn left_by_a_dead_process(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let mut owner = command(bench, "own")?
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let running = match owner.stdout.take() {
        Some(said) => line(said, RUNS).await,
        None => Err("it says nothing".into()),
    };
    let container = runtime.lookup_container("web").await;
    let waiting = container.as_ref().ok().cloned();
    let waiting = tokio::spawn(async move {
        match waiting {
            Some(container) => container.wait().await.map(drop),
            None => Ok(()),
        }
    });
    tokio::task::yield_now().await;
    owner.kill()?;
    owner.wait()?;
    running?;
    let container = container?;

    // Whoever waits is told, whether the question was there before or after.
    if let Err(error) = waiting.await? {
        assert_eq!(error.kind, ErrorKind::Unavailable);
    }
    assert_eq!(container.wait().await?.code, 255);
    let error = container.start().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(error.context.contains("is dead"), "{error}");
    let pod = runtime.lookup_pod(container.pod()).await?;
    pod.remove(false).await?;
    assert!(runtime.containers(&[]).await?.is_empty());
    assert_eq!(std::fs::read_dir(bench.path("run"))?.count(), 0);
    Ok(())
}
