//! The guest's agent: the first process of the virtual machine, which mounts, reaps, creates containers and serves the
//! agent protocol to the host.
//!
//! The agent is strictly single-threaded, because creating a container forks: no thread pool, no blocking pool, no
//! `tokio::fs`. It also runs as an ordinary process on a host, for tests and for the fake hypervisor.
//!
//! This crate must not know about the host's side: configuration, hypervisors, containerd.

mod arguments;
mod connection;
mod console;
pub mod container;
mod dial;
pub mod error;
mod events;
mod growth;
mod identity;
mod init;
mod iptables;
mod kernel;
mod log;
mod network;
mod patience;
mod policy;
mod process;
mod reaper;
mod rpc;
pub mod run;
mod sandbox;
mod server;
mod storage;
mod sys;
mod sysctl;
mod uevent;
