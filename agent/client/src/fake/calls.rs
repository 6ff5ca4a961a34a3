//! The calls that a fake agent answers, one method per RPC.

use std::time::Duration;

use agent_protocol as p;
use async_trait::async_trait;

use super::{FakeAgent, Process};
use crate::{Agent, Error, ErrorKind};

#[async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, _: p::HelloRequest, limit: Option<Duration>) -> Result<p::HelloResponse, Error> {
        self.answer("hello", limit, |_| {
            Some(Ok(p::HelloResponse {
                protocol_version: p::VERSION,
                ..Default::default()
            }))
        })
        .await
    }

    async fn create_sandbox(
        &self,
        _: p::CreateSandboxRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("create_sandbox", limit, |_| Ok(())).await
    }

    async fn update_network(
        &self,
        _: p::UpdateNetworkRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("update_network", limit, |_| Ok(())).await
    }

    async fn take_growth(
        &self,
        request: p::GrowthRequest,
        limit: Option<Duration>,
    ) -> Result<p::GrowthResponse, Error> {
        self.answer("take_growth", limit, |state| {
            state.growth = Some((request.vcpus, request.added_mib));
            let (vcpus, added_mib) = state.most_growth.unwrap_or((u32::MAX, u64::MAX));
            Some(Ok(p::GrowthResponse {
                vcpus: request.vcpus.min(vcpus),
                added_mib: request.added_mib.min(added_mib),
                ..Default::default()
            }))
        })
        .await
    }

    async fn destroy_sandbox(
        &self,
        _: p::DestroySandboxRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("destroy_sandbox", limit, |state| {
            state.processes.values_mut().for_each(Process::kill);
            Ok(())
        })
        .await
    }

    async fn create_container(
        &self,
        request: p::CreateContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::ProcessResponse, Error> {
        self.answer("create_container", limit, |state| {
            Some(state.add(&request.container_id, "", &request.stdio))
        })
        .await
    }

    async fn start_container(
        &self,
        request: p::ContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("start_container", limit, |state| {
            state.known(&request.container_id, "").map(drop)
        })
        .await
    }

    async fn delete_container(
        &self,
        request: p::DeleteContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("delete_container", limit, |state| {
            let init = state.known(&request.container_id, "")?;
            if init.exit.is_none() && !request.force {
                return Err(ErrorKind::FailedPrecondition);
            }
            state
                .processes
                .retain(|(container, _), _| container != &request.container_id);
            Ok(())
        })
        .await
    }

    async fn exec_process(
        &self,
        request: p::ExecProcessRequest,
        limit: Option<Duration>,
    ) -> Result<p::ProcessResponse, Error> {
        self.answer("exec_process", limit, |state| {
            Some(match state.known(&request.container_id, "") {
                Ok(_) => state.add(&request.container_id, &request.exec_id, &request.stdio),
                Err(kind) => Err(kind),
            })
        })
        .await
    }

    async fn signal_process(
        &self,
        request: p::SignalProcessRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("signal_process", limit, |state| {
            if state
                .known(&request.container_id, &request.exec_id)?
                .exit
                .is_some()
            {
                return Err(ErrorKind::FailedPrecondition);
            }
            if request.signal == 9 && !state.immortal {
                let whole = request.all || request.exec_id.is_empty();
                for ((container, exec), process) in &mut state.processes {
                    if container == &request.container_id && (whole || exec == &request.exec_id) {
                        process.kill();
                    }
                }
            }
            Ok(())
        })
        .await
    }

    async fn wait_process(
        &self,
        request: p::ProcessRequest,
        limit: Option<Duration>,
    ) -> Result<p::WaitProcessResponse, Error> {
        self.answer("wait_process", limit, |state| {
            match state.known(&request.container_id, &request.exec_id) {
                Err(kind) => Some(Err(kind)),
                Ok(process) => process.exit.map(|exit_status| {
                    Ok(p::WaitProcessResponse {
                        exit_status,
                        exited_at_unix_ns: process.exited_at,
                        ..Default::default()
                    })
                }),
            }
        })
        .await
    }

    async fn delete_process(
        &self,
        request: p::ProcessRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("delete_process", limit, |state| {
            state.known(&request.container_id, &request.exec_id)?;
            state
                .processes
                .remove(&(request.container_id.clone(), request.exec_id.clone()));
            Ok(())
        })
        .await
    }

    async fn read_output(
        &self,
        request: p::ReadOutputRequest,
        limit: Option<Duration>,
    ) -> Result<p::ReadOutputResponse, Error> {
        self.answer("read_output", limit, |state| {
            let max = request.max as usize;
            state.largest_read = state.largest_read.max(max);
            // A process that was forgotten has no more output.
            let Some(process) = state.process(&request.container_id, &request.exec_id) else {
                return Some(Ok(p::ReadOutputResponse {
                    eof: true,
                    ..Default::default()
                }));
            };
            let stream = match process.more(request.descriptor) {
                Some(more) => {
                    more.output.ended |= request.close;
                    more.broken |= request.close;
                    &mut more.output
                }
                None => process.stream(request.stream.enum_value_or_default()),
            };
            let count = stream.data.len().min(max);
            (count > 0 || stream.ended).then(|| {
                Ok(p::ReadOutputResponse {
                    data: stream.data.drain(..count).collect(),
                    eof: count == 0,
                    ..Default::default()
                })
            })
        })
        .await
    }

    async fn write_stdin(
        &self,
        request: p::WriteStdinRequest,
        limit: Option<Duration>,
    ) -> Result<p::WriteStdinResponse, Error> {
        self.answer("write_stdin", limit, |state| {
            Some(
                state
                    .known(&request.container_id, &request.exec_id)
                    .map(|process| {
                        let mut open = process.exit.is_none();
                        match process.more(request.descriptor) {
                            Some(more) if more.closed => open = false,
                            Some(more) => more.input.extend(&request.data),
                            None if open => process.stdin.extend(&request.data),
                            None => {}
                        }
                        p::WriteStdinResponse {
                            open,
                            ..Default::default()
                        }
                    }),
            )
        })
        .await
    }

    async fn close_stdin(
        &self,
        request: p::CloseStdinRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("close_stdin", limit, |state| {
            let process = state.known(&request.container_id, &request.exec_id)?;
            match process.more(request.descriptor) {
                Some(more) => more.closed = true,
                None => process.stdin_closed = true,
            }
            Ok(())
        })
        .await
    }

    async fn resize_terminal(
        &self,
        request: p::ResizeTerminalRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("resize_terminal", limit, |state| {
            let process = state.known(&request.container_id, &request.exec_id)?;
            process.terminal = Some((request.size.rows, request.size.columns));
            Ok(())
        })
        .await
    }

    async fn list_processes(
        &self,
        request: p::ContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::ListProcessesResponse, Error> {
        self.answer("list_processes", limit, |state| {
            let named = state
                .processes
                .keys()
                .filter(|(id, _)| id == &request.container_id);
            let pids = (1..).take(named.count()).collect();
            Some(Ok(p::ListProcessesResponse {
                pids,
                ..Default::default()
            }))
        })
        .await
    }

    async fn pause_container(
        &self,
        request: p::ContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("pause_container", limit, |state| {
            state.known(&request.container_id, "").map(drop)
        })
        .await
    }

    async fn resume_container(
        &self,
        request: p::ContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("resume_container", limit, |state| {
            state.known(&request.container_id, "").map(drop)
        })
        .await
    }

    async fn update_container(
        &self,
        request: p::UpdateContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("update_container", limit, |state| {
            state.known(&request.container_id, "").map(drop)
        })
        .await
    }

    async fn stats_container(
        &self,
        request: p::ContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::StatsResponse, Error> {
        self.answer("stats_container", limit, |state| {
            let memory = p::MemoryStats {
                events_oom_kill: state.oom_kills,
                ..Default::default()
            };
            Some(state.known(&request.container_id, "").map(|_| p::StatsResponse {
                memory: Some(memory).into(),
                ..Default::default()
            }))
        })
        .await
    }

    async fn describe_processes(
        &self,
        request: p::ContainerRequest,
        limit: Option<Duration>,
    ) -> Result<p::DescribeProcessesResponse, Error> {
        self.answer("describe_processes", limit, |state| {
            let named = state
                .processes
                .keys()
                .filter(|(id, _)| id == &request.container_id);
            let describe = |(pid, (_, exec)): (u32, &(String, String))| p::ProcessDescription {
                pid,
                // As a hostile guest might have it.
                command: format!("{exec}\u{1b}[31m"),
                ..Default::default()
            };
            Some(Ok(p::DescribeProcessesResponse {
                processes: (1..).zip(named).map(describe).collect(),
                ..Default::default()
            }))
        })
        .await
    }

    async fn read_guest(&self, _: p::Empty, limit: Option<Duration>) -> Result<p::ReadGuestResponse, Error> {
        self.answer("read_guest", limit, |_| {
            Some(Ok(p::ReadGuestResponse {
                loadavg: "0.25 0.50 1.00 1/50 7\n".to_owned(),
                ..Default::default()
            }))
        })
        .await
    }

    async fn open_console(
        &self,
        _: p::OpenConsoleRequest,
        limit: Option<Duration>,
    ) -> Result<p::ProcessResponse, Error> {
        // It has no processes of its own.
        self.answer("open_console", limit, |_| Some(Err(ErrorKind::Unsupported)))
            .await
    }

    async fn open_connection(
        &self,
        _: p::OpenConnectionRequest,
        limit: Option<Duration>,
    ) -> Result<p::OpenConnectionResponse, Error> {
        // Nothing listens here.
        self.answer("open_connection", limit, |_| Some(Err(ErrorKind::NotFound)))
            .await
    }

    async fn read_connection(
        &self,
        _: p::ReadConnectionRequest,
        limit: Option<Duration>,
    ) -> Result<p::ReadConnectionResponse, Error> {
        self.answer("read_connection", limit, |_| Some(Err(ErrorKind::NotFound)))
            .await
    }

    async fn write_connection(
        &self,
        _: p::WriteConnectionRequest,
        limit: Option<Duration>,
    ) -> Result<p::WriteConnectionResponse, Error> {
        self.answer("write_connection", limit, |_| Some(Err(ErrorKind::NotFound)))
            .await
    }

    async fn finish_connection(
        &self,
        _: p::ConnectionRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("finish_connection", limit, |_| Err(ErrorKind::NotFound))
            .await
    }

    async fn close_connection(
        &self,
        _: p::ConnectionRequest,
        limit: Option<Duration>,
    ) -> Result<p::Empty, Error> {
        self.empty("close_connection", limit, |_| Err(ErrorKind::NotFound))
            .await
    }

    async fn get_volume_stats(
        &self,
        _: p::VolumeRequest,
        limit: Option<Duration>,
    ) -> Result<p::VolumeStats, Error> {
        // It has no disks.
        self.answer("get_volume_stats", limit, |_| Some(Err(ErrorKind::NotFound)))
            .await
    }

    async fn resize_volume(
        &self,
        _: p::ResizeVolumeRequest,
        limit: Option<Duration>,
    ) -> Result<p::VolumeStats, Error> {
        self.answer("resize_volume", limit, |_| Some(Err(ErrorKind::NotFound)))
            .await
    }

    async fn get_iptables(
        &self,
        request: p::GetIptablesRequest,
        limit: Option<Duration>,
    ) -> Result<p::IptablesResponse, Error> {
        self.answer("get_iptables", limit, |state| {
            let rules = state.rules.get(&request.v6).cloned().unwrap_or_default();
            Some(Ok(with_kit(&request.kit, rules)))
        })
        .await
    }

    async fn set_iptables(
        &self,
        request: p::SetIptablesRequest,
        limit: Option<Duration>,
    ) -> Result<p::IptablesResponse, Error> {
        self.answer("set_iptables", limit, |state| {
            if !request.kit.is_empty() {
                state.rules.insert(request.v6, request.rules.clone());
            }
            Some(Ok(with_kit(&request.kit, Vec::new())))
        })
        .await
    }

    async fn set_policy(&self, _: p::SetPolicyRequest, limit: Option<Duration>) -> Result<p::Empty, Error> {
        self.empty("set_policy", limit, |_| Ok(())).await
    }

    async fn next_events(
        &self,
        _: p::NextEventsRequest,
        limit: Option<Duration>,
    ) -> Result<p::NextEventsResponse, Error> {
        self.answer("next_events", limit, |_| None).await
    }
}

/// An answer to who may have sent a kit, which this agent forgets at once.
fn with_kit(kit: &[u8], rules: Vec<u8>) -> p::IptablesResponse {
    p::IptablesResponse {
        wants_kit: kit.is_empty(),
        rules: if kit.is_empty() { Vec::new() } else { rules },
        ..Default::default()
    }
}
