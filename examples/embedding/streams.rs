//! What goes into processes and comes out of them. Streams are descriptors: pipes here, terminals or sockets elsewhere.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::time::Duration;

use runtime::engine::{ExecOptions, Outcome};
use runtime::{Input, Output, Stdio};

use super::Result;
use super::bench::{Bench, line};

/// A pipe: our end of an output, and what is given for it.
fn output() -> Result<(File, Output)> {
    let (ours, theirs) = std::io::pipe()?;
    Ok((
        File::from(std::os::fd::OwnedFd::from(ours)),
        Output::Descriptor(theirs.into()),
    ))
}

/// All that comes, on a thread that may wait for it.
async fn all(mut from: File) -> Result<String> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).map(|_| text)
    });
    Ok(reading.await??)
}

/// The log is in CRI's format, complete when the end is told, and opened anew when it was moved away.
pub async fn log_and_reopen(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let log = bench.path("logs/c.log");
    let script = "echo out; echo err >&2; cat; echo last";
    let options = bench.container("c", script)?.stdin_once().log_path(&log);
    let container = runtime.create_container(options).await?;
    let (stdout, to_stdout) = output()?;
    let (stderr, to_stderr) = output()?;
    let watching = Stdio {
        stdout: to_stdout,
        stderr: to_stderr,
        ..Stdio::default()
    };
    let watching = container.attach(watching).await?;
    container.start().await?;
    line(stdout, "out").await?;
    line(stderr, "err").await?;
    drop(watching);

    let old = bench.path("logs/c.log.1");
    fs::rename(&log, &old)?;
    container.reopen_log().await?;
    let text = fs::read_to_string(&old)?;
    assert!(
        text.contains(" stdout F out\n") && text.contains(" stderr F err\n"),
        "{text}"
    );
    let (nothing, end) = std::io::pipe()?;
    drop(end);
    let typed = Stdio {
        stdin: Input::Descriptor(nothing.into()),
        ..Stdio::default()
    };
    let attached = container.attach(typed).await?;
    container.wait().await?;
    attached.ended().await?;
    let text = fs::read_to_string(&log)?;
    assert!(
        text.ends_with(" stdout F last\n") && text.lines().count() == 1,
        "{text}"
    );
    container.remove(false).await?;
    Ok(())
}

/// Attached before the start, so that nothing is missed. Many may be.
pub async fn attach(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let options = bench
        .container("c", "echo hello; cat; echo bye >&2")?
        .stdin_once();
    let container = runtime.create_container(options).await?;
    let (stdout, to_stdout) = output()?;
    let (stderr, to_stderr) = output()?;
    let (from_us, mut typing) = std::io::pipe()?;
    let attached = container
        .attach(Stdio {
            stdin: Input::Descriptor(from_us.into()),
            stdout: to_stdout,
            stderr: to_stderr,
            ..Stdio::default()
        })
        .await?;
    let (second, to_second) = output()?;
    let also = container
        .attach(Stdio {
            stdout: to_second,
            ..Stdio::default()
        })
        .await?;
    container.start().await?;
    typing.write_all(b"typed\n")?;
    drop(typing);
    assert_eq!(container.wait().await?.code, 0);
    attached.ended().await?;
    also.ended().await?;
    assert_eq!(all(stdout).await?, "hello\ntyped\n");
    assert_eq!(all(second).await?, "hello\ntyped\n");
    assert_eq!(all(stderr).await?, "bye\n");
    container.remove(false).await?;
    Ok(())
}

/// Another process, with streams.
pub async fn exec(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "sleep 1000")?)
        .await?;
    container.start().await?;
    let (stdout, to_stdout) = output()?;
    let process = ExecOptions::new(["sh", "-c", "echo $GREETING; pwd; exit 4"])
        .env("GREETING", "hi")
        .cwd("/tmp");
    let streams = Stdio {
        stdout: to_stdout,
        ..Stdio::default()
    };
    let exec = container.exec(process, streams).await?;
    assert_eq!(all(stdout).await?, "hi\n/tmp\n");
    assert_eq!(exec.wait().await?.code, 4);

    let exec = container
        .exec(ExecOptions::new(["sleep", "1000"]), Stdio::default())
        .await?;
    exec.kill(9).await?;
    assert_eq!(exec.wait().await?.code, 128 + 9);
    container.remove(true).await?;
    Ok(())
}

/// Another process, to its end: what probes do.
pub async fn exec_sync(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "sleep 1000")?)
        .await?;
    container.start().await?;
    let done = container
        .exec_sync(
            ExecOptions::new(["sh", "-c", "echo out; echo err >&2; exit 5"]),
            None,
        )
        .await?;
    assert_eq!(
        (&done.stdout[..], &done.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!((done.outcome, done.is_complete), (Outcome::Exited(5), true));

    let error = container
        .exec_sync(ExecOptions::new(["no-such-program"]), None)
        .await;
    assert_eq!(error.unwrap_err().kind, runtime::ErrorKind::InvalidArgument);
    container.remove(true).await?;
    Ok(())
}

/// Killed when its time is over, with what it has said until then.
pub async fn exec_sync_with_a_timeout(bench: &Bench) -> Result {
    let runtime = bench.runtime()?;
    let container = runtime
        .create_container(bench.container("c", "sleep 1000")?)
        .await?;
    container.start().await?;
    let before = container.pids().await?.len();
    let slow = ExecOptions::new(["sh", "-c", "echo begun; exec sleep 1000"]);
    let done = container.exec_sync(slow, Some(Duration::from_secs(5))).await?;
    assert_eq!(
        (done.outcome, &done.stdout[..]),
        (Outcome::TimedOut, &b"begun\n"[..])
    );
    assert_eq!(container.pids().await?.len(), before);
    container.remove(true).await?;
    Ok(())
}
