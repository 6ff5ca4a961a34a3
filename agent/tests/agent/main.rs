//! The agent as an ordinary process, driven over a unix socket by the client that the host uses. Needs root.

mod lifecycle;
mod streams;
mod support;
