//! Where spans go: a file, written by a thread of its own, so that nothing else ever waits for its file system.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use slog::{Logger, warn};
use tokio::sync::oneshot;

use super::otlp::{Resource, Span, line};

/// Spans that may wait for the thread; those beyond are counted and left out.
const WAITING: usize = 1024;

/// Spans of one line, at most.
const BATCH: usize = 64;

/// Bytes that are kept for the line of the root, which comes last.
const RESERVE: u64 = 4096;

/// What is written where.
pub(super) struct Target {
    pub(super) directory: PathBuf,
    pub(super) name: String,
    /// Bytes.
    pub(super) limit: u64,
    pub(super) resource: Resource,
    /// Spans that could not wait for the thread.
    pub(super) lost: Arc<AtomicU64>,
    pub(super) log: Logger,
}

/// Begins to write. What is answered takes spans, and tells when all of them are written: after it was dropped.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn begin(target: Target) -> io::Result<(SyncSender<Span>, oneshot::Receiver<()>)> {
    let (spans, waiting) = sync_channel(WAITING);
    let (done, written) = oneshot::channel();
    thread::Builder::new().name("trace".to_owned()).spawn(move || {
        let path = target.directory.join(&target.name);
        if let Err(error) = write(&target, &waiting) {
            warn!(target.log, "the trace of the sandbox is not written, or not all of it";
                "path" => %path.display(), "error" => %error);
        }
        // Nobody may wait any more, nor give a span that nobody would take.
        drop(waiting);
        let _ = done.send(());
    })?;
    Ok((spans, written))
}

fn write(target: &Target, spans: &Receiver<Span>) -> io::Result<()> {
    let mut file = open(target)?;
    let (mut written, mut left_out) = (0, 0);
    let room = target.limit.saturating_sub(RESERVE);
    while let Ok(first) = spans.recv() {
        let batch = std::iter::once(first).chain(spans.try_iter().take(BATCH - 1));
        let (roots, others): (Vec<_>, Vec<_>) = batch.partition(|span| span.parent.is_none());
        if !others.is_empty() {
            let text = line(&target.resource, &others);
            if written + length(&text) <= room {
                file.write_all(text.as_bytes())?;
                written += length(&text);
            } else {
                left_out += u64::try_from(others.len()).unwrap_or(u64::MAX);
            }
        }
        // It is the last one.
        for mut root in roots {
            let all = left_out + target.lost.load(Ordering::Relaxed);
            root.attributes.push(("kata.spans_left_out", all.into()));
            file.write_all(line(&target.resource, &[root]).as_bytes())?;
        }
    }
    Ok(())
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn open(target: &Target) -> io::Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&target.directory)?;
    // A name that nobody can know before, so that nothing is there but what we make.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target.directory.join(&target.name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Duration;

    use serde_json::Value;
    use slog::{Discard, o};
    use tokio::time::timeout;

    use super::*;

    /// Longer than anything here takes on a busy machine.
    const SOON: Duration = Duration::from_secs(20);

    fn target(directory: &Path, limit: u64) -> Target {
        Target {
            directory: directory.to_owned(),
            name: "t.jsonl".into(),
            limit,
            resource: Resource {
                trace: 1,
                attributes: Vec::new(),
            },
            lost: Arc::default(),
            log: Logger::root(Discard, o!()),
        }
    }

    fn span(id: u64, parent: Option<u64>) -> Span {
        Span {
            id,
            parent,
            name: "one",
            is_call: false,
            begun: 1,
            ended: 2,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        }
    }

    /// The spans in a file, by line.
    fn spans(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of = |line: Value| line["resourceSpans"][0]["scopeSpans"][0]["spans"].clone();
        lines
            .flat_map(|line| of(line).as_array().unwrap().clone())
            .collect()
    }

    #[tokio::test]
    async fn a_file_is_roots_alone_and_never_larger_than_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        let limit = 16 * 1024;
        let target = target(&place, limit);
        let lost = Arc::clone(&target.lost);
        let (sender, written) = begin(target).unwrap();
        let given = 500;
        for id in 2..=given {
            if sender.try_send(span(id, Some(1))).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        // It waits as long as the thread needs, where a sandbox counts one more as lost.
        sender.send(span(1, None)).unwrap();
        drop(sender);
        timeout(SOON, written).await.unwrap().unwrap();

        let path = place.join("t.jsonl");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place), mode(&path)), (0o700, 0o600));
        assert!(fs::metadata(&path).unwrap().len() <= limit);
        let spans = spans(&path);
        let root = spans.last().unwrap();
        assert_eq!(root["spanId"], "0000000000000001");
        let left_out = &root["attributes"][0];
        assert_eq!(left_out["key"], "kata.spans_left_out");
        let count: u64 = left_out["value"]["intValue"].as_str().unwrap().parse().unwrap();
        assert!(count > 0 && spans.len() > 10, "{count}");
        assert_eq!(u64::try_from(spans.len()).unwrap() + count, given);
    }

    #[tokio::test]
    async fn what_cannot_be_written_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("file");
        fs::write(&place, "").unwrap();
        let (sender, written) = begin(target(&place, 1 << 20)).unwrap();
        timeout(SOON, written).await.unwrap().unwrap();
        assert!(sender.try_send(span(2, Some(1))).is_err());
    }
}
