//! The part of rtnetlink (rtnetlink(7), linux/rtnetlink.h) that the two ends of a sandbox's network need: the host reads a
//! network namespace and connects it to taps, the guest makes what the host has read.
//!
//! One request at a time, each answered by the kernel before the call returns: no event loop, no thread. What a socket sees
//! and changes is the network namespace of the thread that opened it. This crate must not know of guests, taps or sandboxes.

mod address;
mod error;
#[cfg(test)]
mod fuzzed;
mod link;
mod message;
mod neighbour;
mod route;
mod rule;
mod socket;
mod sys;
mod traffic;

pub use address::{Address, AddressFlags};
pub use error::{Error, Result};
pub use link::{Link, LinkChange, LinkKind, Mac, Macvtap};
pub use neighbour::Neighbour;
pub use route::{Hop, RT_TABLE_MAIN, Route, RouteKind};
pub use rule::Rule;
pub use socket::Socket;
