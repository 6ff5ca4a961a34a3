//! Sandboxes as the programs use them, through this crate's public interface alone: real bundles, the real host, and both
//! the agent as a process and QEMU's machines.
//!
//! Needs root, `/bin/busybox` (busybox-static), `cargo build -p agent`, `cargo xtask deps` and `cargo xtask guest`.

mod bad;
mod death;
mod life;
mod stand;
