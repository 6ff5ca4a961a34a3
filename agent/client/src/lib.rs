//! The host's end of the agent protocol.
//!
//! [`Agent`] has one method per RPC; [`TtrpcAgent`] speaks it over whatever byte stream the guest dialled in on, and
//! [`FakeAgent`] answers from a script in tests. The guest dials and the host listens ([`Listener`]), so nobody polls.
//!
//! This crate must not know about containers, virtual machines or configuration: only the protocol and its channels.

mod agent;
mod durations;
mod error;
mod fake;
mod frames;
mod listener;
mod ttrpc_agent;

pub use agent::Agent;
pub use durations::{BUCKETS_MS, Durations, Ending, Outcome, Told};
pub use error::{Error, ErrorKind};
pub use fake::FakeAgent;
pub use listener::{Channel, Listener};
pub use ttrpc_agent::TtrpcAgent;
