//! Events for containerd: put in order into one bounded queue, delivered from there one by one by a task of its own.
//!
//! Whoever publishes never waits. It must not know why an event happens.

mod courier;
mod transport;

use std::time::SystemTime;

use containerd_shim_protos::events::task;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use runtime::{ContainerId, ExecId, ExitStatus};
use slog::{Logger, warn};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

pub use transport::Transport;

use crate::timestamp::timestamp;
use courier::Errand;

/// Most events that wait for delivery. A container makes four, and one more per OOM notice.
const QUEUE: usize = 1024;

/// So many places are kept for events that come once; notices that a guest can cause at will get the others.
const KEPT: usize = QUEUE / 2;

/// The queue's entrance. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    namespace: String,
    errands: mpsc::Sender<Errand>,
    hurry: watch::Sender<bool>,
    log: Logger,
}

impl Events {
    /// Begins to deliver; needs a Tokio runtime.
    pub fn start(namespace: &str, transport: Transport, log: Logger) -> Self {
        let (errands, queue) = mpsc::channel(QUEUE);
        let (hurry, hurried) = watch::channel(false);
        tokio::spawn(courier::run(transport, queue, hurried, log.clone()));
        Self {
            namespace: namespace.to_owned(),
            errands,
            hurry,
            log,
        }
    }

    /// A container was created.
    pub fn created(&self, event: task::TaskCreate) {
        self.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
    }

    /// A container's init process was started.
    pub fn started(&self, container: &ContainerId, pid: u32) {
        let event = task::TaskStart {
            container_id: container.to_string(),
            pid,
            ..Default::default()
        };
        self.publish(topics::TASK_START_EVENT_TOPIC, &event);
    }

    /// A process was added.
    pub fn exec_added(&self, container: &ContainerId, exec: &ExecId) {
        let event = task::TaskExecAdded {
            container_id: container.to_string(),
            exec_id: exec.to_string(),
            ..Default::default()
        };
        self.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
    }

    /// An added process was started.
    pub fn exec_started(&self, container: &ContainerId, exec: &ExecId, pid: u32) {
        let event = task::TaskExecStarted {
            container_id: container.to_string(),
            exec_id: exec.to_string(),
            pid,
            ..Default::default()
        };
        self.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
    }

    /// A process has ended: the init process, or an added one.
    pub fn exited(&self, container: &ContainerId, exec: Option<&ExecId>, pid: u32, exit: ExitStatus) {
        let event = task::TaskExit {
            container_id: container.to_string(),
            id: exec.map_or_else(|| container.to_string(), ExecId::to_string),
            pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    /// A container was deleted.
    pub fn deleted(&self, container: &ContainerId, pid: u32, exit: ExitStatus) {
        let event = task::TaskDelete {
            container_id: container.to_string(),
            id: container.to_string(),
            pid,
            exit_status: exit.code,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
    }

    /// A container was frozen.
    pub fn paused(&self, container: &ContainerId) {
        let event = task::TaskPaused {
            container_id: container.to_string(),
            ..Default::default()
        };
        self.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
    }

    /// A container was thawed.
    pub fn resumed(&self, container: &ContainerId) {
        let event = task::TaskResumed {
            container_id: container.to_string(),
            ..Default::default()
        };
        self.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
    }

    /// A process of a container was killed for memory.
    pub fn oom(&self, container: &ContainerId) {
        if self.errands.capacity() < KEPT {
            warn!(self.log, "an OOM notice is dropped: too many events wait"; "container" => %container);
            return;
        }
        let event = task::TaskOOM {
            container_id: container.to_string(),
            ..Default::default()
        };
        self.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
    }

    /// Returns when everything that was published so far is delivered or given up. From now on nothing is tried twice.
    pub async fn flush(&self) {
        self.hurry.send_replace(true);
        let (done, flushed) = oneshot::channel();
        if self.errands.send(Errand::Flush(done)).await.is_ok() {
            // The courier is gone: then nothing waits either.
            let _ = flushed.await;
        }
    }

    fn publish(&self, topic: &'static str, event: &impl Message) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                warn!(self.log, "an event cannot be encoded"; "topic" => topic, "error" => %error);
                return;
            }
        };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any {
                type_url: name_of(event),
                value,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        match self.errands.try_send(Errand::Deliver(Box::new(envelope))) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                warn!(self.log, "an event is dropped: too many wait"; "topic" => topic);
            }
            Err(TrySendError::Closed(_)) => {
                warn!(self.log, "an event is dropped: nobody delivers"; "topic" => topic);
            }
        }
    }
}

/// Full name of an event's type. (Its descriptor would say it as well, but is built in memory when it is asked.)
fn name_of<E: Message>(_: &E) -> String {
    format!("containerd.events.{}", E::NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadlines;
    use async_trait::async_trait;
    use containerd_shim_protos::api::ForwardRequest;
    use containerd_shim_protos::shim_async;
    use protobuf::well_known_types::empty::Empty;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};
    use tokio::time::timeout;
    use ttrpc::r#async::TtrpcContext;
    use ttrpc::asynchronous::Server;

    /// containerd's side: what arrives, with the namespace of its metadata.
    struct Containerd(mpsc::UnboundedSender<(String, Envelope)>);

    #[async_trait]
    impl shim_async::Events for Containerd {
        async fn forward(&self, context: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let namespace = context.metadata["containerd-namespace-ttrpc"].join(",");
            self.0.send((namespace, request.envelope.unwrap())).unwrap();
            Ok(Empty::new())
        }
    }

    type Arrived = mpsc::UnboundedReceiver<(String, Envelope)>;

    async fn containerd(socket: &Path) -> (Server, Arrived) {
        let (sender, arrived) = mpsc::unbounded_channel();
        let _ = std::fs::remove_file(socket);
        let mut server = Server::new()
            .register_service(shim_async::create_events(Arc::new(Containerd(sender))))
            .bind(&format!("unix://{}", socket.display()))
            .unwrap();
        server.start().await.unwrap();
        (server, arrived)
    }

    async fn next(arrived: &mut Arrived) -> Envelope {
        let (namespace, event) = timeout(Duration::from_secs(20), arrived.recv())
            .await
            .expect("an event arrives")
            .unwrap();
        assert_eq!(namespace, "ns");
        event
    }

    fn events(ttrpc: &Path) -> Events {
        let transport = Transport::choose(ttrpc.to_str().unwrap(), "", "");
        Events::start("ns", transport, Logger::root(slog::Discard, slog::o!()))
    }

    fn id(id: &str) -> ContainerId {
        ContainerId::new(id).unwrap()
    }

    fn socket(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("ttrpc")
    }

    #[tokio::test]
    async fn events_arrive_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (_server, mut arrived) = containerd(&socket(&dir)).await;
        let events = events(&socket(&dir));
        let exec = ExecId::new("e").unwrap();
        let exit = ExitStatus {
            code: 7,
            at: UNIX_EPOCH + Duration::from_secs(5),
            oom: false,
        };
        events.created(task::TaskCreate::new());
        events.started(&id("c"), 1);
        events.exec_added(&id("c"), &exec);
        events.exec_started(&id("c"), &exec, 2);
        events.paused(&id("c"));
        events.resumed(&id("c"));
        events.oom(&id("c"));
        events.exited(&id("c"), Some(&exec), 2, exit);
        events.exited(&id("c"), None, 1, exit);
        events.deleted(&id("c"), 1, exit);
        events.flush().await;

        for (topic, name) in [
            ("/tasks/create", "containerd.events.TaskCreate"),
            ("/tasks/start", "containerd.events.TaskStart"),
            ("/tasks/exec-added", "containerd.events.TaskExecAdded"),
            ("/tasks/exec-started", "containerd.events.TaskExecStarted"),
            ("/tasks/paused", "containerd.events.TaskPaused"),
            ("/tasks/resumed", "containerd.events.TaskResumed"),
            ("/tasks/oom", "containerd.events.TaskOOM"),
            ("/tasks/exit", "containerd.events.TaskExit"),
            ("/tasks/exit", "containerd.events.TaskExit"),
            ("/tasks/delete", "containerd.events.TaskDelete"),
        ] {
            let event = next(&mut arrived).await;
            assert_eq!((event.topic.as_str(), event.namespace.as_str()), (topic, "ns"));
            assert!(event.timestamp.seconds > 1_600_000_000);
            assert_eq!(event.event.type_url, name);
            if topic == "/tasks/exit" {
                let exit = task::TaskExit::parse_from_bytes(&event.event.value).unwrap();
                assert_eq!(exit.exit_status, 7);
                assert_eq!(exit.exited_at.seconds, 5);
                assert_eq!(exit.container_id, "c");
                assert_eq!(exit.id, if exit.pid == 2 { "e" } else { "c" });
            }
        }
    }

    #[tokio::test]
    async fn a_restart_of_containerd_loses_and_doubles_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let events = events(&socket(&dir));
        // Not there yet.
        events.started(&id("a"), 1);
        let (mut server, mut arrived) = containerd(&socket(&dir)).await;
        events.started(&id("b"), 2);
        for pid in [1, 2] {
            let event = next(&mut arrived).await;
            let start = task::TaskStart::parse_from_bytes(&event.event.value).unwrap();
            assert_eq!(start.pid, pid);
        }
        server.shutdown().await.unwrap();
        drop(server);
        events.started(&id("c"), 3);
        events.started(&id("d"), 4);
        let (_server, mut arrived) = containerd(&socket(&dir)).await;
        for pid in [3, 4] {
            let event = next(&mut arrived).await;
            let start = task::TaskStart::parse_from_bytes(&event.event.value).unwrap();
            assert_eq!(start.pid, pid);
        }
        events.flush().await;
        assert!(arrived.try_recv().is_err(), "one event came twice");
    }

    #[tokio::test]
    async fn a_flush_is_not_held_up_by_a_containerd_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let events = events(&socket(&dir));
        for _ in 0..2 * QUEUE {
            // More than fits: this must neither wait nor fail.
            events.oom(&id("a"));
            events.started(&id("a"), 1);
        }
        timeout(deadlines::RETRY * 3, events.flush()).await.unwrap();
    }

    #[tokio::test]
    async fn a_containerd_that_does_not_accept_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let _hangs = crate::socket::listen(&socket(&dir)).unwrap().unwrap();
        let mut full = Vec::new();
        while let Ok(connection) = crate::socket::connect(&socket(&dir)) {
            full.push(connection);
        }
        let events = events(&socket(&dir));
        events.started(&id("a"), 1);
        timeout(deadlines::RETRY * 3, events.flush()).await.unwrap();
    }

    #[tokio::test]
    async fn a_caller_without_sockets_gets_nothing() {
        for (ttrpc, grpc, program) in [("", "", "/usr/bin/crio"), ("", "/run/c.sock", "")] {
            assert!(matches!(
                Transport::choose(ttrpc, grpc, program),
                Transport::Nowhere
            ));
        }
        let events = Events::start("ns", Transport::Nowhere, Logger::root(slog::Discard, slog::o!()));
        events.started(&id("a"), 1);
        events.flush().await;
    }

    #[tokio::test]
    async fn an_old_containerd_gets_events_by_its_program() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("publish");
        let got = dir.path().join("got");
        let script = format!("#!/bin/sh\necho \"$@\" >{0}; cat >>{0}\n", got.display());
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let transport = Transport::choose("", "/run/c.sock", program.to_str().unwrap());
        let events = Events::start("ns", transport, Logger::root(slog::Discard, slog::o!()));
        events.started(&id("a"), 1);
        events.flush().await;
        let got = std::fs::read(&got).unwrap();
        let line = b"--address /run/c.sock publish --topic /tasks/start --namespace ns\n";
        assert!(got.starts_with(line));
        let event = Any::parse_from_bytes(&got[line.len()..]).unwrap();
        assert_eq!(event.type_url, "containerd.events.TaskStart");
    }
}
