//! What is done for a sandbox and how long it takes, as spans of one trace, for whoever has a collector of OpenTelemetry's.
//!
//! Whatever lives is a [`Course`]: a span whose children, its stages, follow each other without a gap, because the end of one is
//! the beginning of the next. So nothing of a sandbox's or a container's time is in no span. Without `enable_tracing` a course
//! is nothing, and so is all that is done with it.
//!
//! Spans have names of ours; texts of others are attributes, cut and cleaned. It must not know what the stages are.

mod file;
mod otlp;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use agent_client::{Agent, Ending, Outcome};
use slog::{Logger, warn};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::file::Target;
use self::otlp::{Resource, Span, Told};
use crate::deadlines;
use crate::error::Error;
use crate::sandbox::{SandboxRequest, entropy};

/// Events of a span, at most.
const MOST_EVENTS: usize = 16;

/// Calls that are none of a sandbox's steps: streams, and what is asked for again and again.
const UNTOLD: &[&str] = &[
    "wait_process",
    "read_output",
    "write_stdin",
    "read_connection",
    "write_connection",
    "next_events",
    "stats_container",
    "list_processes",
    "describe_processes",
    "read_guest",
    "get_volume_stats",
];

/// The one owner of a trace's spans.
#[derive(Debug)]
struct Recorder {
    /// The same moment, by both clocks.
    epoch: (Instant, SystemTime),
    lost: Arc<AtomicU64>,
    spans: Mutex<Spans>,
}

#[derive(Debug)]
struct Spans {
    next: u64,
    open: BTreeMap<u64, Span>,
    /// Those that have ended go here; `None`: the trace is closed.
    ended: Option<SyncSender<Span>>,
}

impl Recorder {
    fn spans(&self) -> MutexGuard<'_, Spans> {
        // Nothing panics while it holds them.
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since 1970, by a clock that is never set.
    fn at(&self, instant: Instant) -> u64 {
        let (then, time) = self.epoch;
        let epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = match instant.checked_duration_since(then) {
            Some(since) => epoch + since,
            None => epoch.saturating_sub(then - instant),
        };
        u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Begins a span. 0, which is no span's, once the trace is closed.
    fn begin(&self, parent: Option<u64>, name: &'static str, begun: u64) -> u64 {
        let mut spans = self.spans();
        if spans.ended.is_none() {
            return 0;
        }
        let id = spans.next;
        // 0 is no id.
        spans.next = id.checked_add(1).unwrap_or(1);
        let span = Span {
            id,
            parent,
            name,
            is_call: false,
            begun,
            ended: begun,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        };
        spans.open.insert(id, span);
        id
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Span)) {
        if let Some(span) = self.spans().open.get_mut(&id) {
            change(span);
        }
    }

    fn end(&self, id: u64, ended: u64) {
        let mut spans = self.spans();
        if let Some(span) = spans.open.remove(&id) {
            self.tell(&spans, Span { ended, ..span });
        }
    }

    fn tell(&self, spans: &Spans, span: Span) {
        if let Some(ended) = &spans.ended
            && ended.try_send(span).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends everything that is open, the root last, and takes no more.
    fn close(&self, root: u64, ended: u64) {
        let mut spans = self.spans();
        let last = spans.open.remove(&root);
        for mut span in std::mem::take(&mut spans.open).into_values() {
            span.attributes.push(("kata.unfinished", "true".into()));
            self.tell(&spans, Span { ended, ..span });
        }
        if let Some(root) = last {
            self.tell(&spans, Span { ended, ..root });
        }
        spans.ended = None;
    }
}

/// Something that lives: a span, and its stages. Dropping it ends both.
#[derive(Debug, Default)]
pub(crate) struct Course(Option<Running>);

#[derive(Debug)]
struct Running {
    recorder: Arc<Recorder>,
    span: u64,
    stage: Arc<AtomicU64>,
    name: &'static str,
    /// Of a sandbox: tells that everything is written.
    written: Option<oneshot::Receiver<()>>,
}

impl Course {
    /// That of a sandbox, where its configuration wants a trace. `begun`: when it, and its first stage, did.
    pub(crate) fn of_sandbox(request: &SandboxRequest, stage: &'static str, begun: Instant) -> Self {
        let config = &request.config.runtime;
        if !config.enable_tracing {
            return Self::default();
        }
        let log = request.log.new(slog::o!("sandbox" => request.id.to_string()));
        let Some((trace, first)) = ids(&log) else {
            return Self::default();
        };
        let lost = Arc::<AtomicU64>::default();
        let target = Target {
            directory: config.trace_directory.clone(),
            name: format!("{}.{}.{:032x}.jsonl", request.scope, request.id, trace),
            limit: config.trace_max_size_mib.saturating_mul(1 << 20),
            resource: Resource {
                trace,
                attributes: vec![
                    ("service.name", "kata".into()),
                    ("service.version", env!("CARGO_PKG_VERSION").into()),
                    ("process.pid", u64::from(std::process::id()).into()),
                    ("kata.sandbox", request.id.as_str().into()),
                    ("kata.scope", request.scope.as_str().into()),
                ],
            },
            lost: Arc::clone(&lost),
            log: log.clone(),
        };
        let (ended, written) = match file::begin(target) {
            Ok(begun) => begun,
            Err(error) => {
                warn!(log, "there is no trace of the sandbox"; "error" => %error);
                return Self::default();
            }
        };
        let recorder = Arc::new(Recorder {
            epoch: (Instant::now(), SystemTime::now()),
            lost,
            spans: Mutex::new(Spans {
                next: first,
                open: BTreeMap::new(),
                ended: Some(ended),
            }),
        });
        let begun = recorder.at(begun);
        let mut course = Self::begin(&recorder, None, "sandbox", stage, begun);
        if let Some(running) = &mut course.0 {
            running.written = Some(written);
        }
        course
    }

    fn begin(
        recorder: &Arc<Recorder>,
        parent: Option<u64>,
        name: &'static str,
        stage: &'static str,
        begun: u64,
    ) -> Self {
        let span = recorder.begin(parent, name, begun);
        let first = recorder.begin(Some(span), stage, begun);
        Self(Some(Running {
            recorder: Arc::clone(recorder),
            span,
            stage: Arc::new(AtomicU64::new(first)),
            name: stage,
            written: None,
        }))
    }

    /// The next stage, unless it is in that already.
    pub(crate) fn next(&mut self, stage: &'static str) {
        if self.0.is_some() {
            self.next_at(stage, Instant::now());
        }
    }

    /// The same, where somebody else has looked at the clock.
    pub(crate) fn next_at(&mut self, stage: &'static str, now: Instant) {
        let Some(running) = self.0.as_mut().filter(|running| running.name != stage) else {
            return;
        };
        let now = running.recorder.at(now);
        let next = running.recorder.begin(Some(running.span), stage, now);
        let last = running.stage.swap(next, Ordering::Relaxed);
        running.recorder.end(last, now);
        running.name = stage;
    }

    /// What is known of it.
    pub(crate) fn tell(&self, key: &'static str, told: impl Into<Told>) {
        if let Some(running) = &self.0 {
            let told = told.into();
            running
                .recorder
                .change(running.span, |span| span.attributes.push((key, told)));
        }
    }

    /// It has come to nothing.
    pub(crate) fn fail(&self, error: &Error) {
        if let Some(running) = &self.0 {
            let text = error.chain();
            running
                .recorder
                .change(running.span, |span| span.failure = Some(text));
        }
    }

    /// Where what is done at its present stage belongs, whichever that is then.
    pub(crate) fn place(&self) -> Place {
        Place(
            self.0
                .as_ref()
                .map(|running| (Arc::clone(&running.recorder), Arc::clone(&running.stage))),
        )
    }

    /// Ends a sandbox's, and with it the trace. Returns when all of it is written, or the file system has had the time.
    pub(crate) async fn close(mut self) {
        let Some(mut running) = self.0.take() else {
            return;
        };
        let now = running.recorder.at(Instant::now());
        running.recorder.end(running.stage.load(Ordering::Relaxed), now);
        running.recorder.close(running.span, now);
        if let Some(written) = running.written.take() {
            let _ = timeout(deadlines::TRACE, written).await;
        }
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        if let Some(running) = &self.0 {
            let now = running.recorder.at(Instant::now());
            running.recorder.end(running.stage.load(Ordering::Relaxed), now);
            running.recorder.end(running.span, now);
        }
    }
}

/// Where spans belong: below the present stage of a course.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place(Option<(Arc<Recorder>, Arc<AtomicU64>)>);

impl Place {
    /// Something that begins to live.
    pub(crate) fn course(&self, name: &'static str, stage: &'static str) -> Course {
        match &self.0 {
            None => Course::default(),
            Some((recorder, parent)) => {
                let parent = parent.load(Ordering::Relaxed);
                Course::begin(recorder, Some(parent), name, stage, recorder.at(Instant::now()))
            }
        }
    }

    /// Something happens.
    pub(crate) fn event(&self, name: &'static str) {
        if let Some((recorder, stage)) = &self.0 {
            let now = recorder.at(Instant::now());
            recorder.change(stage.load(Ordering::Relaxed), |span| {
                if span.events.len() < MOST_EVENTS {
                    span.events.push((name, now));
                }
            });
        }
    }

    /// The same agent; its calls belong here.
    pub(crate) fn watched(&self, agent: &Arc<dyn Agent>) -> Arc<dyn Agent> {
        let Some((recorder, stage)) = self.0.clone() else {
            return Arc::clone(agent);
        };
        let told = move |name| {
            if UNTOLD.contains(&name) {
                return None;
            }
            let recorder = Arc::clone(&recorder);
            let parent = stage.load(Ordering::Relaxed);
            let id = recorder.begin(Some(parent), name, recorder.at(Instant::now()));
            recorder.change(id, |span| span.is_call = true);
            let ending = move |outcome| {
                let failure = match outcome {
                    Outcome::Answered => None,
                    Outcome::Failed(kind) => Some(format!("{kind:?}")),
                    Outcome::GivenUp => Some("nobody waited for the answer any more".to_owned()),
                };
                recorder.change(id, |span| span.failure = failure);
                recorder.end(id, recorder.at(Instant::now()));
            };
            Some(Box::new(ending) as Ending)
        };
        agent.telling(Arc::new(told)).unwrap_or_else(|| Arc::clone(agent))
    }
}

/// The id of a trace, and the first of its spans', both of them nobody else's.
fn ids(log: &Logger) -> Option<(u128, u64)> {
    let bytes = entropy()
        .inspect_err(|error| warn!(log, "there is no trace of the sandbox"; "error" => error.chain()))
        .ok()?;
    let (trace, rest) = bytes.split_first_chunk::<16>()?;
    let (first, _) = rest.split_first_chunk::<8>()?;
    Some((u128::from_be_bytes(*trace), u64::from_be_bytes(*first).max(1)))
}
