//! An agent that answers from closures, for tests of the runtime that need no guest.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent_protocol as p;
use async_trait::async_trait;

use crate::{Agent, Error, ErrorKind};

/// What a scripted call does: answer, or fail with an error.
type Script = Box<dyn FnMut() -> Result<(), Error> + Send>;

/// Answers every call with the default message, records the order of calls, and fails where a test says so.
/// Calls that wait for the workload (`wait_process`, `read_output`, `next_events`) stay pending forever.
#[derive(Default)]
pub struct FakeAgent {
    calls: Mutex<Vec<&'static str>>,
    scripts: Mutex<HashMap<&'static str, Script>>,
}

impl std::fmt::Debug for FakeAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeAgent").finish_non_exhaustive()
    }
}

impl FakeAgent {
    /// A fake on which everything succeeds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every later call of this RPC fail.
    pub fn fail(&self, call: &'static str, kind: ErrorKind, message: &'static str) {
        self.scripts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(call, Box::new(move || Err(Error::new(kind, call, message))));
    }

    /// Names of the calls made so far, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn answer<T: Default>(&self, call: &'static str) -> Result<T, Error> {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
        if let Some(script) = self
            .scripts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(call)
        {
            script()?;
        }
        if matches!(call, "wait_process" | "read_output" | "next_events") {
            std::future::pending::<()>().await;
        }
        Ok(T::default())
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, _: p::HelloRequest, _: Option<Duration>) -> Result<p::HelloResponse, Error> {
        let mut response: p::HelloResponse = self.answer("hello").await?;
        response.protocol_version = p::VERSION;
        Ok(response)
    }
    async fn create_sandbox(
        &self,
        _: p::CreateSandboxRequest,
        _: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.answer("create_sandbox").await
    }
    async fn destroy_sandbox(
        &self,
        _: p::DestroySandboxRequest,
        _: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.answer("destroy_sandbox").await
    }
    async fn create_container(
        &self,
        _: p::CreateContainerRequest,
        _: Option<Duration>,
    ) -> Result<p::ProcessResponse, Error> {
        self.answer("create_container").await
    }
    async fn start_container(&self, _: p::ContainerRequest, _: Option<Duration>) -> Result<p::Empty, Error> {
        self.answer("start_container").await
    }
    async fn delete_container(
        &self,
        _: p::DeleteContainerRequest,
        _: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.answer("delete_container").await
    }
    async fn exec_process(
        &self,
        _: p::ExecProcessRequest,
        _: Option<Duration>,
    ) -> Result<p::ProcessResponse, Error> {
        self.answer("exec_process").await
    }
    async fn signal_process(
        &self,
        _: p::SignalProcessRequest,
        _: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.answer("signal_process").await
    }
    async fn wait_process(
        &self,
        _: p::ProcessRequest,
        _: Option<Duration>,
    ) -> Result<p::WaitProcessResponse, Error> {
        self.answer("wait_process").await
    }
    async fn delete_process(&self, _: p::ProcessRequest, _: Option<Duration>) -> Result<p::Empty, Error> {
        self.answer("delete_process").await
    }
    async fn read_output(
        &self,
        _: p::ReadOutputRequest,
        _: Option<Duration>,
    ) -> Result<p::ReadOutputResponse, Error> {
        self.answer("read_output").await
    }
    async fn write_stdin(
        &self,
        _: p::WriteStdinRequest,
        _: Option<Duration>,
    ) -> Result<p::WriteStdinResponse, Error> {
        self.answer("write_stdin").await
    }
    async fn close_stdin(&self, _: p::ProcessRequest, _: Option<Duration>) -> Result<p::Empty, Error> {
        self.answer("close_stdin").await
    }
    async fn resize_terminal(
        &self,
        _: p::ResizeTerminalRequest,
        _: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.answer("resize_terminal").await
    }
    async fn list_processes(
        &self,
        _: p::ContainerRequest,
        _: Option<Duration>,
    ) -> Result<p::ListProcessesResponse, Error> {
        self.answer("list_processes").await
    }
    async fn pause_container(&self, _: p::ContainerRequest, _: Option<Duration>) -> Result<p::Empty, Error> {
        self.answer("pause_container").await
    }
    async fn resume_container(&self, _: p::ContainerRequest, _: Option<Duration>) -> Result<p::Empty, Error> {
        self.answer("resume_container").await
    }
    async fn update_container(
        &self,
        _: p::UpdateContainerRequest,
        _: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.answer("update_container").await
    }
    async fn stats_container(
        &self,
        _: p::ContainerRequest,
        _: Option<Duration>,
    ) -> Result<p::StatsResponse, Error> {
        self.answer("stats_container").await
    }
    async fn next_events(
        &self,
        _: p::NextEventsRequest,
        _: Option<Duration>,
    ) -> Result<p::NextEventsResponse, Error> {
        self.answer("next_events").await
    }
}
