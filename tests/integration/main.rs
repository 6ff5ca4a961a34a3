//! Sandboxes as the programs use them, through this crate's public interface alone: real bundles, the real host, and both
//! the agent as a process and QEMU's machines.
//!
//! Needs root and `/bin/busybox` (busybox-static). The other parts are looked for as hypervisor's conformance suite does, and
//! one that is missing fails the test, unless `KATA_TEST_SKIP` names it: `guest-image`, `agent`, `qemu`, `virtiofsd`,
//! `vhost-device-vsock`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails loudly, its support code too"
)]

mod admin;
mod alone;
mod bad;
mod death;
mod drivers;
mod life;
mod network;
mod pod;
mod stand;
