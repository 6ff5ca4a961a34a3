//! What the kubelet hands on to users: exec, attach and port-forward, as streams over a WebSocket.
//!
//! The first byte of each message is its channel: of exec and attach as in `v4.channel.k8s.io`, of port-forward two for
//! each port, for data and for an error; there the first message of each channel is the port's number.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::deadlines;
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use serde_json::Value;
use tungstenite::client::ClientRequestBuilder;
use tungstenite::{Message, WebSocket};

use crate::container::Container;
use crate::pod::Pod;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Between two looks at the deadline.
const LOOK: Duration = Duration::from_millis(200);

/// Messages of several channels over one connection.
struct Channels {
    socket: WebSocket<TcpStream>,
    end: Instant,
}

impl Channels {
    fn open(url: &str) -> Result<Self> {
        let address = url
            .strip_prefix("http://")
            .context("containerd answers with a URL")?;
        let host = address.split('/').next().unwrap_or_default();
        let stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
        stream.set_nodelay(true)?;
        let request = ClientRequestBuilder::new(format!("ws://{address}").parse()?)
            .with_sub_protocol("v4.channel.k8s.io");
        let (socket, _) = tungstenite::client(request, stream)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("open {url}"))?;
        // From now on a read that gets nothing is asked again until the deadline.
        socket.get_ref().set_read_timeout(Some(LOOK))?;
        Ok(Self {
            socket,
            end: Instant::now() + deadlines::RUN,
        })
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[channel], bytes].concat();
        self.socket
            .send(Message::binary(message))
            .context("send on a stream")
    }

    /// The next message and its channel; nothing at the end.
    fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    if let Some((&channel, rest)) = bytes.split_first() {
                        return Ok(Some((channel, rest.to_vec())));
                    }
                }
                Ok(Message::Close(_)) => return Ok(None),
                Ok(_) => {}
                Err(tungstenite::Error::Io(error))
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    ensure!(Instant::now() < self.end, "nothing more came on a stream");
                }
                Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                    return Ok(None);
                }
                // containerd closes without a word at the end of a port-forward.
                Err(tungstenite::Error::Protocol(
                    tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                )) => return Ok(None),
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Err(error) => return Err(error).context("receive on a stream"),
            }
        }
    }
}

/// A program in a container, or the container's own, with its streams.
pub struct Session {
    channels: Channels,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    status: Vec<u8>,
}

impl Session {
    /// Starts a program in a container, with a standard input, and on a terminal if `tty`.
    pub fn exec(pod: &Pod, container: &Container, command: &[&str], tty: bool) -> Result<Self> {
        let request = ExecRequest {
            container_id: container.id().into(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let answer = pod
            .world()
            .cri
            .call("Exec", async move |mut client| client.exec(request).await)?;
        Self::open(&answer.url)
    }

    /// Joins the container's first process.
    pub fn attach(pod: &Pod, container: &Container, tty: bool) -> Result<Self> {
        let request = AttachRequest {
            container_id: container.id().into(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let answer = pod
            .world()
            .cri
            .call("Attach", async move |mut client| client.attach(request).await)?;
        Self::open(&answer.url)
    }

    fn open(url: &str) -> Result<Self> {
        Ok(Self {
            channels: Channels::open(url)?,
            stdout: Vec::new(),
            stderr: Vec::new(),
            status: Vec::new(),
        })
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.channels.send(STDIN, bytes)
    }

    /// Gives its terminal another size.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        let size = serde_json::json!({ "Width": columns, "Height": rows });
        self.channels.send(RESIZE, size.to_string().as_bytes())
    }

    /// Waits until its standard output has this text.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            if !self.next()? {
                bail!("the stream ended without {text:?}: {self}");
            }
        }
        Ok(())
    }

    /// Waits for its end, and answers what it wrote.
    pub fn end(mut self) -> Result<Finished> {
        while self.next()? {}
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Finished {
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            status: text(&self.status),
        })
    }

    fn next(&mut self) -> Result<bool> {
        let Some((channel, bytes)) = self.channels.receive().with_context(|| self.to_string())? else {
            return Ok(false);
        };
        match channel {
            STDOUT => self.stdout.extend(bytes),
            STDERR => self.stderr.extend(bytes),
            ERROR => self.status.extend(bytes),
            // An empty message opens the channel.
            _ => ensure!(bytes.is_empty(), "a message on channel {channel}: {bytes:?}"),
        }
        Ok(true)
    }
}

impl std::fmt::Display for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes| String::from_utf8_lossy(bytes);
        let (stdout, stderr, status) = (text(&self.stdout), text(&self.stderr), text(&self.status));
        write!(f, "stdout {stdout:?}, stderr {stderr:?}, status {status:?}")
    }
}

/// What a session came to.
#[derive(Debug)]
pub struct Finished {
    /// What was written.
    pub stdout: String,
    /// What was written of errors.
    pub stderr: String,
    /// Kubernetes' word: a `Status` as JSON.
    pub status: String,
}

impl Finished {
    /// The program's exit code.
    pub fn code(&self) -> Result<i32> {
        let status: Value = serde_json::from_str(&self.status).with_context(|| format!("{self:?}"))?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        let causes = status["details"]["causes"].as_array();
        let code = causes
            .into_iter()
            .flatten()
            .find(|cause| cause["reason"] == "ExitCode")
            .and_then(|cause| cause["message"].as_str())
            .with_context(|| format!("a failure has an exit code: {self:?}"))?;
        Ok(code.parse()?)
    }
}

/// A connection to a port of a pod.
pub struct Forward {
    channels: Channels,
    data: Vec<u8>,
    error: Vec<u8>,
}

impl Forward {
    /// Connects to a port of the pod's `localhost`.
    pub fn connect(pod: &Pod, port: u16) -> Result<Self> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.id().into(),
            port: vec![port.into()],
        };
        let answer = pod.world().cri.call("PortForward", async move |mut client| {
            client.port_forward(request).await
        })?;
        let mut channels = Channels::open(&answer.url)?;
        for _ in 0..2 {
            let (channel, number) = channels.receive()?.context("a port-forward has two channels")?;
            ensure!(
                number == port.to_le_bytes(),
                "channel {channel} is for {number:?}"
            );
        }
        Ok(Self {
            channels,
            data: Vec::new(),
            error: Vec::new(),
        })
    }

    /// Sends bytes to the port.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.channels.send(0, bytes)
    }

    /// Waits until this many bytes have come, and takes them all.
    pub fn read(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.data.len() < count {
            if !self.next()? {
                bail!(
                    "the port was closed after {} of {count} bytes: {}",
                    self.data.len(),
                    String::from_utf8_lossy(&self.error)
                );
            }
        }
        Ok(std::mem::take(&mut self.data))
    }

    fn next(&mut self) -> Result<bool> {
        let Some((channel, bytes)) = self.channels.receive()? else {
            return Ok(false);
        };
        match channel {
            0 => self.data.extend(bytes),
            _ => self.error.extend(bytes),
        }
        Ok(true)
    }
}
