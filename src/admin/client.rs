//! Asking a sandbox as an administrator.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::console::{self, Order};
use super::http::{self, Head};
use super::report::{Figures, Processes};
use super::{Found, Frame};
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

/// Longest answer that is read, in bytes.
const MOST_ANSWER: usize = 16 << 20;

/// Asks one sandbox. Each question has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    socket: PathBuf,
}

impl Client {
    /// Of a sandbox whose owner lives.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: it is dead.
    pub fn new(found: &Found) -> Result<Self> {
        if !found.alive {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "sandbox {} has lost its owner (pid {}); `kata-runtime gc` removes what is left of it",
                    found.full_name(),
                    found.owner
                ),
            ));
        }
        Ok(Self {
            name: found.full_name(),
            socket: found.socket(),
        })
    }

    /// What runs, how it was started, and its containers.
    ///
    /// # Errors
    /// The sandbox's; it cannot be reached.
    pub async fn inspect(&self) -> Result<Value> {
        self.json("/inspect").await
    }

    /// Its figures, now.
    ///
    /// # Errors
    /// The sandbox's; it cannot be reached.
    pub async fn figures(&self) -> Result<Figures> {
        self.json("/stats").await
    }

    /// The processes of its containers, in the guest.
    ///
    /// # Errors
    /// The sandbox's; it cannot be reached.
    pub async fn processes(&self) -> Result<Vec<Processes>> {
        self.json("/ps").await
    }

    /// Its figures, in Prometheus's text format.
    ///
    /// # Errors
    /// The sandbox's; it cannot be reached.
    pub async fn metrics(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.ask("GET", "/metrics", &[]).await?).into_owned())
    }

    async fn json<T: DeserializeOwned>(&self, target: &str) -> Result<T> {
        let body = self.ask("GET", target, &[]).await?;
        serde_json::from_slice(&body).map_err(|cause| {
            let text = format!("sandbox {} is of another version", self.name);
            Error::caused(ErrorKind::Unsupported, text, cause)
        })
    }

    /// Asks anything: `path` with the query `query`, and a body.
    ///
    /// # Errors
    /// The sandbox's; it cannot be reached.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        query: Option<(&str, &str)>,
        body: &[u8],
    ) -> Result<Vec<u8>> {
        let target = match query {
            Some((key, value)) => format!("{path}?{key}={}", http::encoded(value)),
            None => path.to_owned(),
        };
        self.ask(method, &target, body).await
    }

    async fn ask(&self, method: &str, target: &str, body: &[u8]) -> Result<Vec<u8>> {
        let path = target.split('?').next().unwrap_or_default();
        let limit = super::limit(path) + deadlines::ADMIN;
        let asking = async {
            let mut stream = self.connect().await?;
            let request = http::ask(method, target, body);
            stream
                .write_all(&request)
                .await
                .map_err(|cause| self.lost(cause))?;
            let (head, rest) = self.head(&mut stream).await?;
            let body = self.body(&mut stream, head, rest).await?;
            match head.status {
                200 => Ok(body),
                status => Err(self.refusal(status, &body)),
            }
        };
        timeout(limit, asking).await.unwrap_or_else(|_| Err(self.late()))
    }

    /// Runs a program in the guest itself.
    ///
    /// # Errors
    /// The sandbox's; it cannot be reached.
    pub async fn console(&self, order: &Order) -> Result<(Input, Output)> {
        let opening = async {
            let mut stream = self.connect().await?;
            let order = serde_json::to_vec(order)
                .map_err(|cause| Error::caused(ErrorKind::Internal, "the order is not JSON", cause))?;
            let request = http::ask("POST", "/console", &order);
            stream
                .write_all(&request)
                .await
                .map_err(|cause| self.lost(cause))?;
            let (head, rest) = self.head(&mut stream).await?;
            if head.status != 101 {
                let body = self.body(&mut stream, head, rest).await?;
                return Err(self.refusal(head.status, &body));
            }
            let (from, to) = stream.into_split();
            Ok((Input(to), Output { rest, from }))
        };
        // As long as the configuration may have it take to ask the agent.
        let limit = deadlines::ADMIN_ANSWER * 4;
        timeout(limit, opening).await.unwrap_or_else(|_| Err(self.late()))
    }

    async fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket).await.map_err(|cause| {
            let text = format!(
                "sandbox {} does not answer at {}: it is starting, ending, or of another version",
                self.name,
                self.socket.display()
            );
            Error::caused(ErrorKind::Unavailable, text, cause)
        })
    }

    /// Reads the head of the answer, and what has come behind it.
    async fn head(&self, stream: &mut UnixStream) -> Result<(Head, Vec<u8>)> {
        let mut bytes = Vec::new();
        loop {
            let mut chunk = [0; 4096];
            let length = stream.read(&mut chunk).await.map_err(|cause| self.lost(cause))?;
            if length == 0 {
                return Err(self.lost(std::io::ErrorKind::UnexpectedEof.into()));
            }
            bytes.extend_from_slice(chunk.get(..length).unwrap_or_default());
            if let Some((head, length)) = http::head(&bytes)? {
                let rest = bytes.split_off(length);
                return Ok((head, rest));
            }
        }
    }

    async fn body(&self, stream: &mut UnixStream, head: Head, mut body: Vec<u8>) -> Result<Vec<u8>> {
        let length = head.body.unwrap_or(0);
        if length > MOST_ANSWER {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("sandbox {} answers with {length} bytes", self.name),
            ));
        }
        let start = body.len().min(length);
        body.resize(length, 0);
        let rest = body.get_mut(start..).unwrap_or_default();
        stream.read_exact(rest).await.map_err(|cause| self.lost(cause))?;
        Ok(body)
    }

    fn refusal(&self, status: u16, body: &[u8]) -> Error {
        let text = String::from_utf8_lossy(body);
        Error::new(
            http::kind(status),
            format!("sandbox {}: {}", self.name, text.trim()),
        )
    }

    fn lost(&self, cause: std::io::Error) -> Error {
        let text = format!("sandbox {} has ended before it could answer", self.name);
        Error::caused(ErrorKind::Unavailable, text, cause)
    }

    fn late(&self) -> Error {
        Error::new(
            ErrorKind::DeadlineExceeded,
            format!("sandbox {} does not answer", self.name),
        )
    }
}

/// The way to a console. Dropping both ways ends its program.
#[derive(Debug)]
pub struct Input(OwnedWriteHalf);

impl Input {
    /// Sends a frame.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn send(&mut self, frame: &Frame) -> Result<()> {
        self.0.write_all(&frame.encode()).await.map_err(console::broken)
    }
}

/// The way from a console.
#[derive(Debug)]
pub struct Output {
    rest: Vec<u8>,
    from: OwnedReadHalf,
}

impl Output {
    /// The next frame; `None` when the sandbox has ended.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn receive(&mut self) -> Result<Option<Frame>> {
        let mut rest = self.rest.as_slice();
        let mut from = AsyncReadExt::chain(&mut rest, &mut self.from);
        let frame = console::receive(&mut from).await;
        self.rest = rest.to_vec();
        frame
    }
}
