//! Every wait of container creation and control, in one place.

use std::time::Duration;

/// From the clone of a process to its being ready, mounts of slow storage included.
pub(super) const SETUP: Duration = Duration::from_secs(30);
/// From the order to start to the program's execution, without its `startContainer` hooks.
pub(super) const EXECUTE: Duration = Duration::from_secs(10);
/// A `startContainer` hook that names no timeout of its own.
pub(super) const HOOK: Duration = Duration::from_secs(30);
/// All processes of a cgroup stopped or running again.
pub(super) const FREEZE: Duration = Duration::from_secs(10);
/// All processes of a cgroup gone after SIGKILL.
pub(super) const EMPTY: Duration = Duration::from_secs(10);
