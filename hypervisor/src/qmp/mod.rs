//! QEMU's control protocol: a small client. It knows nothing of what is controlled.

mod client;
pub(crate) mod message;

pub use client::{Client, Events, open};
