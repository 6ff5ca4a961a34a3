//! The program as its callers run it, with a guest that is a process of the host, and once with a virtual machine.
//!
//! Needs root, `/bin/busybox` (busybox-static) and `cargo build -p agent`; for the virtual machine QEMU, `cargo xtask guest`
//! and `cargo xtask deps`, or their names (qemu, guest-image, virtiofsd, vhost-device-vsock) in `KATA_TEST_SKIP`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod actions;
mod death;
mod life;
mod pods;
mod sandboxes;
mod stand;
mod streams;
mod vm;
