//! The agent as an ordinary process, driven over a unix socket by the client that the host uses. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly, its support code too"
)]

mod beside;
mod connections;
mod console;
mod descriptors;
mod iptables;
mod lifecycle;
mod network;
mod pod;
mod streams;
mod support;
