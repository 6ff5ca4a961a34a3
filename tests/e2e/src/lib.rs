//! What the end-to-end tests, `cargo xtask run` and the benchmarks stand on: a containerd of our own in a cell of its own,
//! images made on the spot, and a census of what exists.
//!
//! Sees our programs as a user does, from outside: must not know any crate of theirs.

pub mod cell;
pub mod census;
pub mod configuration;
pub mod containerd;
pub mod deadlines;
pub mod debian;
pub mod factory;
pub mod image;
pub mod parts;
pub mod pause;
pub mod program;
pub mod snapshotter;
pub mod terminal;
pub mod trace;
pub mod wait;
