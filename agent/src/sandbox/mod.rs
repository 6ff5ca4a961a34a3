//! The sandbox: every container and process of this guest, owned by one task.

pub mod state;
