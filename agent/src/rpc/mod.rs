//! The service: every RPC translated to a call on the sandbox, and its answer back. Nothing is decided here.

#[cfg(test)]
mod fuzzed;
mod gate;
mod translate;

use std::sync::Arc;
use std::time::Duration;

use agent_protocol as p;
use agent_protocol::service::Agent;
use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

use crate::console::ConsoleRequest;
use crate::error::Error;
use crate::growth::Amount;
use crate::iptables::FilterRequest;
use crate::kernel;
use crate::policy::Policy;
use crate::process::Signal;
use crate::sandbox::{After, ContainerRequest, ExecRequest, Handle, SandboxRequest, Stream, spec};
use gate::Rules;
use translate::status;

/// The service as ttrpc wants it.
pub fn service(sandbox: Handle) -> std::collections::HashMap<String, ttrpc::r#async::Service> {
    let rules = Rules::default();
    let rpc = Rpc {
        sandbox,
        rules: rules.clone(),
    };
    gate::gated(p::service::create_agent(Arc::new(rpc)), &rules)
}

struct Rpc {
    sandbox: Handle,
    rules: Rules,
}

type Answer<T> = ttrpc::Result<T>;

fn done(result: Result<(), Error>) -> Answer<p::Empty> {
    result.map(|()| p::Empty::default()).map_err(status)
}

#[async_trait]
impl Agent for Rpc {
    async fn hello(&self, _: &TtrpcContext, request: p::HelloRequest) -> Answer<p::HelloResponse> {
        self.sandbox.seed(request.entropy).await.map_err(status)?;
        Ok(translate::hello())
    }

    async fn create_sandbox(&self, _: &TtrpcContext, request: p::CreateSandboxRequest) -> Answer<p::Empty> {
        let request = SandboxRequest {
            id: request.sandbox_id.clone(),
            storages: translate::storages(&request.storages).map_err(status)?,
            shm_size: request.shm_size,
            grows: request.grows,
            network: translate::network(&request.network).map_err(status)?,
            identity: translate::identity(request),
        };
        done(self.sandbox.create_sandbox(request).await)
    }

    async fn update_network(&self, _: &TtrpcContext, request: p::UpdateNetworkRequest) -> Answer<p::Empty> {
        let network = translate::network(&request.network).map_err(status)?;
        done(self.sandbox.update_network(network).await)
    }

    async fn take_growth(&self, _: &TtrpcContext, request: p::GrowthRequest) -> Answer<p::GrowthResponse> {
        let wanted = Amount {
            vcpus: request.vcpus,
            added_mib: request.added_mib,
        };
        let there = self.sandbox.take_growth(wanted).await.map_err(status)?;
        Ok(p::GrowthResponse {
            vcpus: there.vcpus,
            added_mib: there.added_mib,
            ..Default::default()
        })
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, request: p::DestroySandboxRequest) -> Answer<p::Empty> {
        let grace = Duration::from_nanos(request.grace_ns);
        let after = match (request.machine_ends, request.practised) {
            (true, _) => After::TheMachine,
            (false, true) => After::Anew,
            (false, false) => After::Nothing,
        };
        done(self.sandbox.destroy(grace, after).await)
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: p::CreateContainerRequest,
    ) -> Answer<p::ProcessResponse> {
        let request = ContainerRequest {
            storages: translate::storages(&request.storages).map_err(status)?,
            devices: translate::devices(&request.devices).map_err(status)?,
            stdio: translate::stdio(&request.stdio).map_err(status)?,
            id: request.container_id,
            spec: request.spec,
        };
        let descriptors = request.stdio.descriptors.len();
        translate::process(self.sandbox.create_container(request).await, descriptors)
    }

    async fn start_container(&self, _: &TtrpcContext, request: p::ContainerRequest) -> Answer<p::Empty> {
        done(self.sandbox.start_container(request.container_id).await)
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: p::DeleteContainerRequest,
    ) -> Answer<p::Empty> {
        done(
            self.sandbox
                .delete_container(request.container_id, request.force)
                .await,
        )
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: p::ExecProcessRequest,
    ) -> Answer<p::ProcessResponse> {
        let request = ExecRequest {
            process: spec::process(&request.process).map_err(status)?,
            stdio: translate::stdio(&request.stdio).map_err(status)?,
            container: request.container_id,
            id: request.exec_id,
        };
        let descriptors = request.stdio.descriptors.len();
        translate::process(self.sandbox.exec(request).await, descriptors)
    }

    async fn signal_process(&self, _: &TtrpcContext, request: p::SignalProcessRequest) -> Answer<p::Empty> {
        let signal = Signal::new(request.signal).map_err(status)?;
        done(
            self.sandbox
                .signal(request.container_id, request.exec_id, signal, request.all)
                .await,
        )
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: p::ProcessRequest,
    ) -> Answer<p::WaitProcessResponse> {
        let exit = self
            .sandbox
            .wait(request.container_id, request.exec_id)
            .await
            .map_err(status)?;
        Ok(p::WaitProcessResponse {
            exit_status: exit.status,
            exited_at_unix_ns: exit.at_unix_ns,
            ..Default::default()
        })
    }

    async fn delete_process(&self, _: &TtrpcContext, request: p::ProcessRequest) -> Answer<p::Empty> {
        done(
            self.sandbox
                .delete_process(request.container_id, request.exec_id)
                .await,
        )
    }

    async fn read_output(
        &self,
        _: &TtrpcContext,
        request: p::ReadOutputRequest,
    ) -> Answer<p::ReadOutputResponse> {
        if request.close {
            let number = translate::descriptor(request.descriptor).map_err(status)?;
            let closed = self
                .sandbox
                .close_output(request.container_id, request.exec_id, number);
            closed.await.map_err(status)?;
            return Ok(p::ReadOutputResponse {
                eof: true,
                ..Default::default()
            });
        }
        let max = translate::chunk(request.max).map_err(status)?;
        let stream = match request.descriptor {
            0 => translate::stream(request.stream),
            number => translate::descriptor(number).map(Stream::Descriptor),
        };
        let stream = stream.map_err(status)?;
        let data = self
            .sandbox
            .read(request.container_id, request.exec_id, stream, max)
            .await
            .map_err(status)?;
        Ok(p::ReadOutputResponse {
            eof: data.is_empty(),
            data,
            ..Default::default()
        })
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: p::WriteStdinRequest,
    ) -> Answer<p::WriteStdinResponse> {
        translate::check_chunk(&request.data).map_err(status)?;
        let written = self
            .sandbox
            .write(
                request.container_id,
                request.exec_id,
                request.descriptor,
                &request.data,
            )
            .await;
        Ok(p::WriteStdinResponse {
            open: written.map_err(status)?,
            ..Default::default()
        })
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: p::CloseStdinRequest) -> Answer<p::Empty> {
        done(
            self.sandbox
                .close_input(request.container_id, request.exec_id, request.descriptor)
                .await,
        )
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: p::ResizeTerminalRequest) -> Answer<p::Empty> {
        let (rows, columns) = translate::size(&request.size).map_err(status)?;
        done(
            self.sandbox
                .resize(request.container_id, request.exec_id, rows, columns)
                .await,
        )
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: p::ContainerRequest,
    ) -> Answer<p::ListProcessesResponse> {
        let pids = self.sandbox.pids(request.container_id).await.map_err(status)?;
        Ok(p::ListProcessesResponse {
            pids,
            ..Default::default()
        })
    }

    async fn pause_container(&self, _: &TtrpcContext, request: p::ContainerRequest) -> Answer<p::Empty> {
        done(self.sandbox.pause(request.container_id).await)
    }

    async fn resume_container(&self, _: &TtrpcContext, request: p::ContainerRequest) -> Answer<p::Empty> {
        done(self.sandbox.resume(request.container_id).await)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: p::UpdateContainerRequest,
    ) -> Answer<p::Empty> {
        let resources = spec::resources(&request.resources).map_err(status)?;
        done(self.sandbox.update(request.container_id, resources).await)
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: p::ContainerRequest,
    ) -> Answer<p::StatsResponse> {
        self.sandbox.stats(request.container_id).await.map_err(status)
    }

    async fn describe_processes(
        &self,
        _: &TtrpcContext,
        request: p::ContainerRequest,
    ) -> Answer<p::DescribeProcessesResponse> {
        let pids = self.sandbox.pids(request.container_id).await.map_err(status)?;
        Ok(p::DescribeProcessesResponse {
            processes: kernel::describe(&pids),
            ..Default::default()
        })
    }

    async fn read_guest(&self, _: &TtrpcContext, _: p::Empty) -> Answer<p::ReadGuestResponse> {
        Ok(kernel::figures())
    }

    async fn open_console(
        &self,
        _: &TtrpcContext,
        request: p::OpenConsoleRequest,
    ) -> Answer<p::ProcessResponse> {
        let request = ConsoleRequest {
            stdio: translate::stdio(&request.stdio).map_err(status)?,
            id: request.exec_id,
            program: request.program,
            args: request.args,
            env: request.env,
        };
        translate::process(self.sandbox.open_console(request).await, 0)
    }

    async fn open_connection(
        &self,
        _: &TtrpcContext,
        request: p::OpenConnectionRequest,
    ) -> Answer<p::OpenConnectionResponse> {
        let port = translate::port(request.port).map_err(status)?;
        let opened = self.sandbox.open_connection(port, request.ipv6_first).await;
        Ok(p::OpenConnectionResponse {
            connection: opened.map_err(status)?,
            ..Default::default()
        })
    }

    async fn read_connection(
        &self,
        _: &TtrpcContext,
        request: p::ReadConnectionRequest,
    ) -> Answer<p::ReadConnectionResponse> {
        let max = translate::chunk(request.max).map_err(status)?;
        let connection = self
            .sandbox
            .connection(request.connection)
            .await
            .map_err(status)?;
        let data = connection.read(max).await.map_err(status)?;
        Ok(p::ReadConnectionResponse {
            eof: data.is_empty(),
            data,
            ..Default::default()
        })
    }

    async fn write_connection(
        &self,
        _: &TtrpcContext,
        request: p::WriteConnectionRequest,
    ) -> Answer<p::WriteConnectionResponse> {
        translate::check_chunk(&request.data).map_err(status)?;
        let connection = self
            .sandbox
            .connection(request.connection)
            .await
            .map_err(status)?;
        let written = connection.write(&request.data).await;
        Ok(p::WriteConnectionResponse {
            open: written.map_err(status)?,
            ..Default::default()
        })
    }

    async fn finish_connection(&self, _: &TtrpcContext, request: p::ConnectionRequest) -> Answer<p::Empty> {
        let connection = self.sandbox.connection(request.connection).await;
        done(connection.and_then(|connection| connection.finish()))
    }

    async fn close_connection(&self, _: &TtrpcContext, request: p::ConnectionRequest) -> Answer<p::Empty> {
        done(self.sandbox.close_connection(request.connection).await)
    }

    async fn get_volume_stats(&self, _: &TtrpcContext, request: p::VolumeRequest) -> Answer<p::VolumeStats> {
        let mount_point = translate::mount_point(&request.mount_point).map_err(status)?;
        translate::room(self.sandbox.room(mount_point).await)
    }

    async fn resize_volume(
        &self,
        _: &TtrpcContext,
        request: p::ResizeVolumeRequest,
    ) -> Answer<p::VolumeStats> {
        let mount_point = translate::mount_point(&request.mount_point).map_err(status)?;
        translate::room(self.sandbox.grow_volume(mount_point, request.size).await)
    }

    async fn get_iptables(
        &self,
        _: &TtrpcContext,
        request: p::GetIptablesRequest,
    ) -> Answer<p::IptablesResponse> {
        let request = FilterRequest {
            v6: request.v6,
            rules: None,
            kit: request.kit,
        };
        translate::rules(self.sandbox.filter(request).await)
    }

    async fn set_iptables(
        &self,
        _: &TtrpcContext,
        request: p::SetIptablesRequest,
    ) -> Answer<p::IptablesResponse> {
        let request = FilterRequest {
            v6: request.v6,
            rules: Some(request.rules),
            kit: request.kit,
        };
        translate::rules(self.sandbox.filter(request).await)
    }

    async fn set_policy(&self, _: &TtrpcContext, request: p::SetPolicyRequest) -> Answer<p::Empty> {
        done(Policy::parse(&request.policy).map(|policy| self.rules.set(policy)))
    }

    async fn next_events(
        &self,
        _: &TtrpcContext,
        request: p::NextEventsRequest,
    ) -> Answer<p::NextEventsResponse> {
        let events = self.sandbox.events(request.after).await.map_err(status)?;
        Ok(p::NextEventsResponse {
            events: events.into_iter().map(translate::event).collect(),
            ..Default::default()
        })
    }
}
