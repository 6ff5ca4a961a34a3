//! The `Agent` trait: one method per RPC of `agent.proto`, in its order.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol as p;
use async_trait::async_trait;

use crate::Error;

/// Declares the trait and its ttrpc implementation from one list, so that an RPC is written once.
macro_rules! agent_rpcs {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $response:ty;)*) => {
        /// The guest agent as the host sees it. `deadline` bounds the answer; `None` waits as long as the connection
        /// lives and is right only for calls that wait for the workload (wait, output, events).
        #[async_trait]
        pub trait Agent: Send + Sync {
            $($(#[$doc])* async fn $name(&self, request: $request, deadline: Option<Duration>) -> Result<$response, Error>;)*

            /// How long the calls of each RPC took so far, by its name; nothing where nobody measures.
            fn durations(&self) -> Vec<(&'static str, crate::Durations)> {
                Vec::new()
            }

            /// The same agent, of whose calls somebody is told; `None` where nobody measures.
            fn telling(&self, _: crate::Told) -> Option<Arc<dyn Agent>> {
                None
            }
        }

        #[async_trait]
        impl Agent for crate::TtrpcAgent {
            $(async fn $name(&self, request: $request, deadline: Option<Duration>) -> Result<$response, Error> {
                let mut measured = self.durations.measure(stringify!($name), self.told.as_ref());
                let call = self.call(move |client| async move {
                    client.$name(crate::ttrpc_agent::context(), &request).await
                });
                let answer = crate::ttrpc_agent::answer(stringify!($name), call, deadline).await;
                measured.ended(answer.as_ref().err().map(|error| error.kind));
                answer
            })*

            fn durations(&self) -> Vec<(&'static str, crate::Durations)> {
                self.durations.list()
            }

            fn telling(&self, told: crate::Told) -> Option<Arc<dyn Agent>> {
                let mut agent = self.clone();
                agent.told = Some(told);
                Some(Arc::new(agent))
            }
        }
    };
}

agent_rpcs! {
    /// Who is there.
    hello(p::HelloRequest) -> p::HelloResponse;
    /// Identity, clock, entropy, network, DNS, sandbox storages; once per guest.
    create_sandbox(p::CreateSandboxRequest) -> p::Empty;
    /// Interfaces, addresses, routes and neighbours in addition.
    update_network(p::UpdateNetworkRequest) -> p::Empty;
    /// Takes vCPUs and memory into use that were added.
    take_growth(p::GrowthRequest) -> p::GrowthResponse;
    /// Ends all processes, syncs and unmounts.
    destroy_sandbox(p::DestroySandboxRequest) -> p::Empty;
    /// Mounts, and creates the init process up to its exec.
    create_container(p::CreateContainerRequest) -> p::ProcessResponse;
    /// Lets the init process execute.
    start_container(p::ContainerRequest) -> p::Empty;
    /// Removes an ended container.
    delete_container(p::DeleteContainerRequest) -> p::Empty;
    /// One more process in a running container.
    exec_process(p::ExecProcessRequest) -> p::ProcessResponse;
    /// Sends a signal.
    signal_process(p::SignalProcessRequest) -> p::Empty;
    /// Waits for the end of a process.
    wait_process(p::ProcessRequest) -> p::WaitProcessResponse;
    /// Forgets an ended exec process.
    delete_process(p::ProcessRequest) -> p::Empty;
    /// Pulls output.
    read_output(p::ReadOutputRequest) -> p::ReadOutputResponse;
    /// Pushes input.
    write_stdin(p::WriteStdinRequest) -> p::WriteStdinResponse;
    /// Ends input.
    close_stdin(p::CloseStdinRequest) -> p::Empty;
    /// Sets the terminal's size.
    resize_terminal(p::ResizeTerminalRequest) -> p::Empty;
    /// Pids of the container's processes in the guest.
    list_processes(p::ContainerRequest) -> p::ListProcessesResponse;
    /// Freezes the container's cgroup.
    pause_container(p::ContainerRequest) -> p::Empty;
    /// Thaws it.
    resume_container(p::ContainerRequest) -> p::Empty;
    /// Applies new limits.
    update_container(p::UpdateContainerRequest) -> p::Empty;
    /// Reads the container's cgroup.
    stats_container(p::ContainerRequest) -> p::StatsResponse;
    /// The container's processes in the guest, described.
    describe_processes(p::ContainerRequest) -> p::DescribeProcessesResponse;
    /// Figures of the guest's kernel.
    read_guest(p::Empty) -> p::ReadGuestResponse;
    /// A process of the guest, outside of every container.
    open_console(p::OpenConsoleRequest) -> p::ProcessResponse;
    /// Connects to a port of the pod's localhost.
    open_connection(p::OpenConnectionRequest) -> p::OpenConnectionResponse;
    /// Pulls from it.
    read_connection(p::ReadConnectionRequest) -> p::ReadConnectionResponse;
    /// Pushes into it.
    write_connection(p::WriteConnectionRequest) -> p::WriteConnectionResponse;
    /// Sends no more.
    finish_connection(p::ConnectionRequest) -> p::Empty;
    /// Ends it.
    close_connection(p::ConnectionRequest) -> p::Empty;
    /// How full a disk's file system is.
    get_volume_stats(p::VolumeRequest) -> p::VolumeStats;
    /// Takes a disk's new size into use.
    resize_volume(p::ResizeVolumeRequest) -> p::VolumeStats;
    /// Rules of the guest's packet filter.
    get_iptables(p::GetIptablesRequest) -> p::IptablesResponse;
    /// Replaces them.
    set_iptables(p::SetIptablesRequest) -> p::IptablesResponse;
    /// What may be asked for from now on.
    set_policy(p::SetPolicyRequest) -> p::Empty;
    /// Long poll for events.
    next_events(p::NextEventsRequest) -> p::NextEventsResponse;
}
