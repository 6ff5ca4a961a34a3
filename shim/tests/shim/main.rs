//! The program as its callers run it, with a guest that is a process of the host.
//!
//! Needs root, `/bin/busybox` (busybox-static) and `cargo build -p agent`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod actions;
mod death;
mod life;
mod pods;
mod sandboxes;
mod stand;
mod streams;
