//! The ways to containerd's event service: its ttrpc socket, its publishing program, or none.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::Message;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::{deadlines, socket, sys};

/// Metadata that names the namespace.
const NAMESPACE: &str = "containerd-namespace-ttrpc";

/// Where events go.
pub enum Transport {
    /// Nowhere: CRI-O does not want them.
    Nowhere,
    /// To containerd's ttrpc socket.
    Ttrpc(Connection),
    /// To containerd's program, which passes them on.
    Program(Publisher),
}

impl Transport {
    /// The way that the caller offers: `ttrpc` is the path of containerd's ttrpc socket, `grpc` of its gRPC socket.
    pub fn choose(ttrpc: &str, grpc: &str, program: &str) -> Self {
        if !ttrpc.is_empty() {
            Self::Ttrpc(Connection {
                address: ttrpc.to_owned(),
                client: None,
            })
        } else if !grpc.is_empty() && !program.is_empty() {
            Self::Program(Publisher {
                program: program.into(),
                address: grpc.to_owned(),
            })
        } else {
            Self::Nowhere
        }
    }

    /// Delivers one event.
    pub(super) async fn send(&mut self, event: &Envelope) -> Result<(), String> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Ttrpc(connection) => connection.forward(event).await,
            Self::Program(publisher) => publisher.publish(event).await,
        }
    }
}

/// A connection that is made when it is needed, and again when it is lost.
pub struct Connection {
    address: String,
    client: Option<EventsClient>,
}

impl Connection {
    async fn forward(&mut self, event: &Envelope) -> Result<(), String> {
        let request = ForwardRequest {
            envelope: Some(event.clone()).into(),
            ..Default::default()
        };
        let known = self.client.is_some();
        match self.attempt(&event.namespace, &request).await {
            // containerd was restarted since the last event: the request went nowhere.
            Err(error) if known && socket::is_lost(&error) => self.attempt(&event.namespace, &request).await,
            answer => answer,
        }
        .map_err(|error| error.to_string())
    }

    async fn attempt(&mut self, namespace: &str, request: &ForwardRequest) -> ttrpc::Result<()> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                // Not ttrpc's own way to connect, which blocks when containerd does not accept.
                let path = self.address.strip_prefix("unix://").unwrap_or(&self.address);
                let stream = UnixStream::connect(path)
                    .await
                    .map_err(|error| ttrpc::Error::Socket(format!("{path}: {error}")))?;
                let client = EventsClient::new(Client::new(Socket::from(stream)));
                self.client.insert(client)
            }
        };
        let mut context = context::with_duration(deadlines::FORWARD);
        context.set(NAMESPACE.to_owned(), vec![namespace.to_owned()]);
        match client.forward(context, request).await {
            Ok(_) => Ok(()),
            Err(error) => {
                // An answer shows that the connection is good.
                if !matches!(error, ttrpc::Error::RpcStatus(_)) {
                    self.client = None;
                }
                Err(error)
            }
        }
    }
}

/// containerd's program, run once per event.
pub struct Publisher {
    program: PathBuf,
    address: String,
}

impl Publisher {
    async fn publish(&self, event: &Envelope) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.program.display());
        let content = event.event.write_to_bytes().map_err(|error| error.to_string())?;
        let (input, mut writer) = std::io::pipe().map_err(failed)?;
        // An event is far smaller than a pipe.
        writer.write_all(&content).map_err(failed)?;
        drop(writer);
        let child = Command::new(&self.program)
            .args(["--address", &self.address, "publish"])
            .args(["--topic", &event.topic, "--namespace", &event.namespace])
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let pidfd =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        let pidfd = sys::watch(pidfd).map_err(failed)?;
        let in_time = timeout(deadlines::PUBLISH, pidfd.readable()).await.is_ok();
        if !in_time {
            // It can only fail because the process has ended.
            let _ = pidfd_send_signal(pidfd.get_ref(), Signal::KILL);
        }
        let status = waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED)
            .map_err(|error| failed(error.into()))?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            Some(code) => Err(format!("{} exited with {code}", self.program.display())),
            None => Err(format!("{} was killed", self.program.display())),
        }
    }
}
