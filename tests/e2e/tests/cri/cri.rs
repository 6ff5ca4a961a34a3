//! The CRI's client, as the kubelet's: every call with a deadline, and errors that say which call.
//!
//! Calls block. Cases are told one step after the other, and what happens at the same time is on threads of its own.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use e2e::deadlines;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// A connection to containerd's CRI.
#[derive(Clone)]
pub struct Cri {
    executor: Arc<Runtime>,
    channel: Channel,
}

impl Cri {
    /// For the containerd that listens at `socket`. Connects when it is first used, and again after a loss.
    pub fn new(socket: &Path) -> Result<Self> {
        let executor = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start the client's runtime")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = executor.block_on(async { endpoint.connect_lazy() });
        Ok(Self {
            executor: Arc::new(executor),
            channel,
        })
    }

    /// A call of the runtime service that starts nothing: `what` is its name.
    pub fn call<T, F>(&self, what: &str, call: impl FnOnce(RuntimeServiceClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_within(deadlines::CALL, what, call)
    }

    /// A call of the runtime service that may take as long as `limit`.
    pub fn call_within<T, F>(
        &self,
        limit: Duration,
        what: &str,
        call: impl FnOnce(RuntimeServiceClient<Channel>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        // Answers of an exec are as long as 16 MiB.
        let client = RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        self.wait(limit, what, call(client))
    }

    /// A call of the image service.
    pub fn images<T, F>(&self, what: &str, call: impl FnOnce(ImageServiceClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.wait(
            deadlines::CALL,
            what,
            call(ImageServiceClient::new(self.channel.clone())),
        )
    }

    fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let answer = self.executor.block_on(async { timeout(limit, call).await });
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Refused(status)).with_context(|| format!("the CRI's {what}")),
            Err(_) => bail!("the CRI's {what}: no answer within {} s", limit.as_secs()),
        }
    }
}

/// An answer of the CRI that is an error.
#[derive(Debug)]
struct Refused(Status);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.0.code(), self.0.message())
    }
}

impl std::error::Error for Refused {}

/// What a call that has to fail says.
pub fn refusal<T>(result: Result<T>) -> Result<Refusal> {
    let Err(error) = result else {
        bail!("this should have been refused");
    };
    match error.downcast_ref::<Refused>() {
        Some(Refused(status)) => Ok(Refusal {
            code: status.code(),
            text: status.message().to_owned(),
        }),
        None => Err(error.context("this should have been refused, and failed otherwise")),
    }
}

/// An error that was asked for.
#[derive(Debug)]
pub struct Refusal {
    /// Its kind.
    pub code: tonic::Code,
    /// What a user sees.
    pub text: String,
}

impl Refusal {
    /// Checks that a user is told `words`.
    pub fn says(&self, words: &str) -> Result<()> {
        if !self.text.contains(words) {
            bail!("an error without {words:?}: {}", self.text);
        }
        Ok(())
    }
}
