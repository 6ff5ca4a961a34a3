//! The conversation with QEMU: one task owns the socket, matches answers to commands by id and hands on events.
//!
//! A command that nobody waits for any more does not disturb the others: its answer is dropped.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slog::{Logger, trace, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::message::{Event, Lines, Message};
use crate::{Error, ErrorKind, deadlines};

/// Events that wait for a slow listener; older ones are lost to it.
const EVENTS: usize = 32;

/// Commands that wait for the socket.
const COMMANDS: usize = 8;

/// A connection that is ready for commands. Clones share it; it closes when the last is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    events: broadcast::WeakSender<Event>,
}

/// The events of a connection; closed when the connection is.
pub type Events = broadcast::Receiver<Event>;

#[derive(Debug)]
struct Command {
    name: &'static str,
    arguments: Value,
    /// Goes along with the command (SCM_RIGHTS).
    fd: Option<Arc<OwnedFd>>,
    reply: oneshot::Sender<Result<Value, Error>>,
}

/// A connection on which QEMU has not greeted yet.
#[derive(Debug)]
pub struct Negotiation {
    client: Client,
    greeting: oneshot::Receiver<String>,
}

/// Begins to serve `stream`. The events are those from the very first on.
pub fn open(stream: UnixStream, log: Logger) -> (Negotiation, Events) {
    let (greeted, greeting) = oneshot::channel();
    let (commands, queue) = mpsc::channel(COMMANDS);
    let (events, listener) = broadcast::channel(EVENTS);
    let client = Client {
        commands,
        events: events.downgrade(),
    };
    let connection = Connection {
        stream,
        lines: Lines::default(),
        pending: HashMap::new(),
        next_id: 0,
        greeted: Some(greeted),
        events,
        log,
    };
    tokio::spawn(connection.run(queue));
    (Negotiation { client, greeting }, listener)
}

impl Negotiation {
    /// Waits for QEMU's greeting and makes the connection ready for commands. Returns QEMU's version as well.
    pub async fn finish(self) -> Result<(Client, String), Error> {
        let version = match timeout(deadlines::CONTROL_READY, self.greeting).await {
            Ok(Ok(version)) => version,
            Ok(Err(_)) => return Err(closed()),
            Err(_) => {
                return Err(Error::new(
                    ErrorKind::DeadlineExceeded,
                    format!(
                        "QEMU did not open its control socket within {:?}",
                        deadlines::CONTROL_READY
                    ),
                ));
            }
        };
        // It greets before it is there for commands.
        let limit = deadlines::CONTROL_READY;
        self.client
            .run("qmp_capabilities", json!({}), None, limit)
            .await?;
        Ok((self.client, version))
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "QEMU has closed its control socket")
}

impl Client {
    /// Runs a command within the usual deadline.
    pub async fn execute(&self, name: &'static str, arguments: Value) -> Result<Value, Error> {
        self.run(name, arguments, None, deadlines::COMMAND).await
    }

    /// Runs a command that takes a descriptor (`getfd`, `add-fd`).
    pub async fn execute_with_fd(
        &self,
        name: &'static str,
        arguments: Value,
        fd: Arc<OwnedFd>,
    ) -> Result<Value, Error> {
        self.run(name, arguments, Some(fd), deadlines::COMMAND).await
    }

    /// The events from now on; `None` if the connection is closed.
    pub fn events(&self) -> Option<Events> {
        self.events.upgrade().map(|events| events.subscribe())
    }

    async fn run(
        &self,
        name: &'static str,
        arguments: Value,
        fd: Option<Arc<OwnedFd>>,
        limit: Duration,
    ) -> Result<Value, Error> {
        let (reply, answer) = oneshot::channel();
        let command = Command {
            name,
            arguments,
            fd,
            reply,
        };
        let conversation = async {
            self.commands.send(command).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        timeout(limit, conversation).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("QEMU did not answer {name} within {limit:?}"),
            ))
        })
    }
}

struct Pending {
    name: &'static str,
    reply: oneshot::Sender<Result<Value, Error>>,
}

struct Connection {
    stream: UnixStream,
    lines: Lines,
    pending: HashMap<u64, Pending>,
    next_id: u64,
    greeted: Option<oneshot::Sender<String>>,
    events: broadcast::Sender<Event>,
    log: Logger,
}

impl Connection {
    /// Serves until QEMU closes the socket, breaks the protocol, or no client is left. Commands without an answer then
    /// learn it by their dropped channel.
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut buffer = [0; 4096];
        loop {
            let result = tokio::select! {
                read = self.stream.read(&mut buffer) => match read {
                    Ok(0) => return,
                    Ok(count) => self.received(&buffer[..count]),
                    // It ended without reading our last command.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                    Err(error) => Err(error),
                },
                command = queue.recv() => match command {
                    Some(command) => self.send(command).await,
                    None => return,
                },
            };
            if let Err(error) = result {
                warn!(self.log, "the connection to QEMU broke"; "error" => %error);
                return;
            }
        }
    }

    fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.lines.push(bytes);
        while let Some(message) = self.lines.next() {
            self.dispatch(message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?);
        }
        Ok(())
    }

    fn dispatch(&mut self, message: Message) {
        trace!(self.log, "qmp <"; "message" => ?message);
        // Whoever waited may have given up: then a send finds no receiver, which is fine.
        match message {
            Message::Greeting { version } => {
                if let Some(greeted) = self.greeted.take() {
                    let _ = greeted.send(version);
                }
            }
            Message::Event(event) => {
                let _ = self.events.send(event);
            }
            Message::Return { id, value } => {
                if let Some(Pending { reply, .. }) = self.pending.remove(&id) {
                    let _ = reply.send(Ok(value));
                }
            }
            Message::Failure {
                id,
                class,
                description,
            } => match id.and_then(|id| self.pending.remove(&id)) {
                Some(Pending { name, reply }) => {
                    let _ = reply.send(Err(refused(name, &class, &description)));
                }
                None => warn!(self.log, "QEMU could not read a command"; "error" => description),
            },
        }
    }

    async fn send(&mut self, command: Command) -> io::Result<()> {
        let Command {
            name,
            arguments,
            fd,
            reply,
        } = command;
        trace!(self.log, "qmp >"; "command" => name);
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({"execute": name, "arguments": arguments, "id": id})
            .to_string()
            .into_bytes();
        line.push(b'\n');
        self.pending.insert(id, Pending { name, reply });
        let sent = match fd {
            Some(fd) => {
                let socket = Ancillary(self.stream.as_raw_fd());
                self.stream
                    .async_io(Interest::WRITABLE, || {
                        socket
                            .send_with_fd(line.as_slice(), fd.as_raw_fd())
                            .map_err(io::Error::from)
                    })
                    .await?
            }
            None => 0,
        };
        self.stream.write_all(&line[sent..]).await
    }
}

/// A socket that sends descriptors.
struct Ancillary(RawFd);

impl ScmSocket for Ancillary {
    fn socket_fd(&self) -> RawFd {
        self.0
    }
}

fn refused(name: &str, class: &str, description: &str) -> Error {
    // The classes that QEMU promises to keep (qapi/error.json); all else is GenericError, which may mean anything.
    let kind = match class {
        "CommandNotFound" => ErrorKind::Unsupported,
        "DeviceNotFound" => ErrorKind::NotFound,
        "DeviceNotActive" => ErrorKind::FailedPrecondition,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("QEMU refused {name}: {description}"))
}

#[cfg(test)]
mod tests {
    use slog::{Discard, o};
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    const GREETING: &[u8] =
        b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}}}}\r\n";

    fn log() -> Logger {
        Logger::root(Discard, o!())
    }

    /// A connection whose other end is scripted: it has greeted and accepted the negotiation.
    async fn connected() -> (Client, Events, BufReader<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qemu = BufReader::new(theirs);
        let script = async {
            qemu.write_all(GREETING).await.unwrap();
            let id = next_command(&mut qemu).await.1;
            answer(&mut qemu, id, "{}").await;
            qemu
        };
        let (negotiation, events) = open(ours, log());
        let (negotiated, qemu) = tokio::join!(negotiation.finish(), script);
        let (client, version) = negotiated.unwrap();
        assert_eq!(version, "7.2.0");
        (client, events, qemu)
    }

    async fn next_command(qemu: &mut BufReader<UnixStream>) -> (String, u64) {
        let mut line = String::new();
        qemu.read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        (
            command["execute"].as_str().unwrap().into(),
            command["id"].as_u64().unwrap(),
        )
    }

    async fn answer(qemu: &mut BufReader<UnixStream>, id: u64, value: &str) {
        qemu.write_all(format!("{{\"return\": {value}, \"id\": {id}}}\r\n").as_bytes())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order() {
        let (client, _events, mut qemu) = connected().await;
        let script = async {
            let first = next_command(&mut qemu).await;
            let second = next_command(&mut qemu).await;
            answer(&mut qemu, second.1, &format!("\"{}\"", second.0)).await;
            qemu.write_all(b"{\"event\": \"RESUME\"}\n").await.unwrap();
            answer(&mut qemu, first.1, &format!("\"{}\"", first.0)).await;
        };
        let (a, b, ()) = tokio::join!(
            client.execute("a", json!({})),
            client.execute("b", json!({})),
            script
        );
        assert_eq!(a.unwrap(), "a");
        assert_eq!(b.unwrap(), "b");
    }

    #[tokio::test]
    async fn a_cancelled_command_leaves_the_connection_usable() {
        let (client, _events, mut qemu) = connected().await;
        let impatient = client.run("slow", json!({}), None, Duration::from_millis(10));
        assert_eq!(
            impatient.await.map_err(|error| error.kind),
            Err(ErrorKind::DeadlineExceeded)
        );
        let script = async {
            let slow = next_command(&mut qemu).await.1;
            answer(&mut qemu, slow, "\"late\"").await;
            let next = next_command(&mut qemu).await.1;
            answer(&mut qemu, next, "\"in time\"").await;
        };
        let (next, ()) = tokio::join!(client.execute("next", json!({})), script);
        assert_eq!(next.unwrap(), "in time");
    }

    #[tokio::test]
    async fn events_reach_all_listeners_until_the_end() {
        let (client, mut first, mut qemu) = connected().await;
        let mut second = client.events().unwrap();
        qemu.write_all(b"{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n")
            .await
            .unwrap();
        for events in [&mut first, &mut second] {
            assert_eq!(events.recv().await.unwrap().text("reason"), Some("guest-reset"));
        }
        drop(qemu);
        assert_eq!(first.recv().await, Err(broadcast::error::RecvError::Closed));
        let dead = client.execute("late", json!({})).await;
        assert_eq!(dead.map_err(|error| error.kind), Err(ErrorKind::Unavailable));
    }

    #[tokio::test]
    async fn garbage_ends_the_connection_not_the_program() {
        let (client, mut events, mut qemu) = connected().await;
        qemu.write_all(b"\x00\xff garbage\n").await.unwrap();
        assert_eq!(events.recv().await, Err(broadcast::error::RecvError::Closed));
        let dead = client.execute("late", json!({})).await;
        assert_eq!(dead.map_err(|error| error.kind), Err(ErrorKind::Unavailable));
    }

    #[tokio::test]
    async fn errors_keep_their_class_and_words() {
        let (client, _events, mut qemu) = connected().await;
        let script = async {
            let id = next_command(&mut qemu).await.1;
            let line = format!(
                "{{\"error\": {{\"class\": \"DeviceNotFound\", \"desc\": \"no d\"}}, \"id\": {id}}}\n"
            );
            qemu.write_all(line.as_bytes()).await.unwrap();
        };
        let (result, ()) = tokio::join!(client.execute("device_del", json!({})), script);
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.to_string(), "QEMU refused device_del: no d");
    }
}
