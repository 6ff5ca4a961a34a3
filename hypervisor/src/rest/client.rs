//! The conversation with a monitor: one task owns the connection, sends a request at a time and reads its answer.
//!
//! A request that nobody waits for any more does not disturb the next: its answer is read all the same, and dropped.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use slog::{Logger, debug, trace};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::Call;
use super::message::{self, Answer};
use crate::{Error, ErrorKind, deadlines};

/// Requests that wait for the connection.
const REQUESTS: usize = 8;

/// A connection. Clones share it; it closes when the last is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    vmm: &'static str,
    base: &'static str,
}

#[derive(Debug)]
struct Request {
    call: Call,
    bytes: Vec<u8>,
    /// Go along with the first byte (SCM_RIGHTS).
    fds: Vec<Arc<OwnedFd>>,
    reply: oneshot::Sender<Result<Answer, Error>>,
}

impl Client {
    /// Begins to serve `stream`, at whose other end `vmm` is or will be; its API is below the path `base`. Must be called in a
    /// runtime.
    pub fn new(stream: UnixStream, vmm: &'static str, base: &'static str, log: Logger) -> Self {
        let (requests, queue) = mpsc::channel(REQUESTS);
        let connection = Connection {
            stream,
            received: Vec::new(),
            vmm,
            log,
        };
        tokio::spawn(connection.run(queue));
        Self { requests, vmm, base }
    }

    /// Sends the first request, which waits until the monitor has come up.
    ///
    /// # Errors
    /// As for [`Client::send`].
    pub async fn greet(&self, call: Call) -> Result<Value, Error> {
        self.run(call, call.path, None, Vec::new(), deadlines::CONTROL_READY)
            .await
    }

    /// Sends a request without parameter in its path.
    ///
    /// # Errors
    /// The monitor's refusal with its words; [`ErrorKind::Unavailable`] for one that is gone, and
    /// [`ErrorKind::DeadlineExceeded`] for one that is silent.
    pub async fn send(&self, call: Call, body: Option<Value>) -> Result<Value, Error> {
        self.run(call, call.path, body, Vec::new(), call.limit()).await
    }

    /// The same for what is named `id`.
    ///
    /// # Errors
    /// As for [`Client::send`].
    pub async fn send_for(&self, call: Call, id: &str, body: Value) -> Result<Value, Error> {
        let path = call.path_for(id);
        self.run(call, &path, Some(body), Vec::new(), call.limit()).await
    }

    /// The same with descriptors.
    ///
    /// # Errors
    /// As for [`Client::send`].
    pub async fn send_with_fds(
        &self,
        call: Call,
        body: Value,
        fds: Vec<Arc<OwnedFd>>,
    ) -> Result<Value, Error> {
        self.run(call, call.path, Some(body), fds, call.limit()).await
    }

    async fn run(
        &self,
        call: Call,
        path: &str,
        body: Option<Value>,
        fds: Vec<Arc<OwnedFd>>,
        limit: Duration,
    ) -> Result<Value, Error> {
        let (reply, answer) = oneshot::channel();
        let path = format!("{}{path}", self.base);
        let request = Request {
            call,
            bytes: message::request(call.method, &path, body.as_ref()),
            fds,
            reply,
        };
        let closed = || closed(self.vmm);
        let conversation = async {
            self.requests.send(request).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        let answer = timeout(limit, conversation).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("{} did not answer {call} within {limit:?}", self.vmm),
            ))
        })?;
        if !answer.is_success() {
            return Err(self.refused(call, &answer));
        }
        answer.value().map_err(|source| {
            Error::caused(
                ErrorKind::Internal,
                format!("{}'s answer to {call} is not JSON: {source}", self.vmm),
                source,
            )
        })
    }

    fn refused(&self, call: Call, answer: &Answer) -> Error {
        let kind = match answer.status {
            400 => ErrorKind::InvalidArgument,
            404 => ErrorKind::NotFound,
            405 | 409 | 429 => ErrorKind::FailedPrecondition,
            501 => ErrorKind::Unsupported,
            _ => ErrorKind::Internal,
        };
        let words = answer.words();
        Error::new(
            kind,
            format!("{} refused {call} ({}): {words}", self.vmm, answer.status),
        )
    }
}

impl Call {
    fn limit(&self) -> Duration {
        match self.is_slow {
            true => deadlines::WHOLE_MEMORY,
            false => deadlines::COMMAND,
        }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

fn closed(vmm: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("{vmm} has closed its control socket"),
    )
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    vmm: &'static str,
    log: Logger,
}

impl Connection {
    /// Until nobody can ask any more, or the monitor is gone or talks nonsense.
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.recv().await {
            let Request {
                call,
                bytes,
                fds,
                reply,
            } = request;
            // Given up before it was sent, it has never been.
            if reply.is_closed() {
                continue;
            }
            trace!(self.log, "rest >"; "call" => %call);
            let answered = match self.send(&bytes, &fds).await {
                Ok(()) => self.answer().await,
                Err(error) => Err(error),
            };
            drop(fds);
            let lost = answered.is_err();
            let answered = answered.map_err(|error| {
                debug!(self.log, "the control connection is lost"; "call" => %call, "error" => %error);
                match error.kind() {
                    io::ErrorKind::InvalidData => Error::caused(
                        ErrorKind::Internal,
                        format!("{}'s answer to {call} cannot be read: {error}", self.vmm),
                        error,
                    ),
                    _ => closed(self.vmm),
                }
            });
            // Whoever waited may have given up, which is fine.
            let _ = reply.send(answered);
            if lost {
                return;
            }
        }
    }

    async fn send(&mut self, bytes: &[u8], fds: &[Arc<OwnedFd>]) -> io::Result<()> {
        let mut sent = 0;
        if !fds.is_empty() {
            let numbers: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
            let socket = Ancillary(self.stream.as_raw_fd());
            let send = || socket.send_with_fds(&[bytes], &numbers).map_err(io::Error::from);
            sent = self.stream.async_io(Interest::WRITABLE, send).await?;
        }
        self.stream.write_all(&bytes[sent..]).await
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        loop {
            let found = message::answer(&self.received)
                .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))?;
            if let Some((answer, length)) = found {
                self.received.drain(..length);
                // Those of 100 to 199 announce another one.
                if answer.status >= 200 {
                    return Ok(answer);
                }
                continue;
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// A socket that sends descriptors.
struct Ancillary(RawFd);

impl ScmSocket for Ancillary {
    fn socket_fd(&self) -> RawFd {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSliceMut, Read, Seek, Write};
    use std::mem::MaybeUninit;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use serde_json::json;
    use slog::{Discard, o};

    use super::*;

    const ASK: Call = Call::get("/ask");
    const ORDER: Call = Call::put("/order");

    fn connected() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            Client::new(ours, "Monitor", "/v1", Logger::root(Discard, o!())),
            theirs,
        )
    }

    async fn heard(monitor: &mut UnixStream, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut byte = [0];
            monitor.read_exact(&mut byte).await.unwrap();
            text.push(byte[0].into());
        }
        text
    }

    #[tokio::test]
    async fn answers_belong_to_their_requests_even_after_one_that_nobody_waited_for() {
        let (client, mut monitor) = connected();
        let impatient = client.run(ASK, "/slow", None, Vec::new(), Duration::from_millis(10));
        let error = impatient.await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert_eq!(error.to_string(), "Monitor did not answer GET /ask within 10ms");
        let script = async {
            heard(&mut monitor, "\r\n\r\n").await;
            let late = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n\"late\"";
            monitor.write_all(late).await.unwrap();
            let second = heard(&mut monitor, "{\"a\":1}").await;
            assert!(second.starts_with("PUT /v1/order HTTP/1.1\r\n"), "{second}");
            let answer =
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n\"in time\"";
            monitor.write_all(answer).await.unwrap();
        };
        let (answer, ()) = tokio::join!(client.send(ORDER, Some(json!({"a": 1}))), script);
        assert_eq!(answer.unwrap(), "in time");
    }

    #[tokio::test]
    async fn refusals_have_a_kind_and_the_monitors_words() {
        let (client, mut monitor) = connected();
        let script = async {
            heard(&mut monitor, "\r\n\r\n").await;
            let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\n[\"a\",\"not b\"]";
            monitor.write_all(answer).await.unwrap();
        };
        let (answer, ()) = tokio::join!(client.send(ASK, None), script);
        let error = answer.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.to_string(), "Monitor refused GET /ask (404): a: not b");
    }

    #[tokio::test]
    async fn garbage_and_an_end_are_errors_for_everybody() {
        for (words, kind) in [
            (&b"garbage\r\n\r\n"[..], ErrorKind::Internal),
            (b"", ErrorKind::Unavailable),
        ] {
            let (client, mut monitor) = connected();
            monitor.write_all(words).await.unwrap();
            monitor.shutdown().await.unwrap();
            assert_eq!(
                client.send(ASK, None).await.map_err(|error| error.kind),
                Err(kind)
            );
            let next = client.send(ASK, None).await;
            assert_eq!(next.map_err(|error| error.kind), Err(ErrorKind::Unavailable));
        }
    }

    #[tokio::test]
    async fn descriptors_come_with_the_first_byte() {
        let (client, mut monitor) = connected();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"it").unwrap();
        file.rewind().unwrap();
        let fds = vec![Arc::new(OwnedFd::from(file))];
        let script = async {
            monitor.readable().await.unwrap();
            let mut byte = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut byte)];
            recvmsg(&monitor, &mut parts, &mut ancillary, RecvFlags::empty()).unwrap();
            let mut received = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    received.extend(fds);
                }
            }
            let [fd] = <[OwnedFd; 1]>::try_from(received).unwrap();
            let mut text = String::new();
            File::from(fd).read_to_string(&mut text).unwrap();
            assert_eq!(text, "it");
            monitor.write_all(b"HTTP/1.1 204 \r\n\r\n").await.unwrap();
        };
        let (answer, ()) = tokio::join!(client.send_with_fds(ORDER, json!({}), fds), script);
        assert_eq!(answer.unwrap(), Value::Null);
    }
}
