//! Every wait of the benchmarks, in one place. They are for a loaded machine without KVM.

use std::time::Duration;

/// For a guest to boot and its agent to greet.
pub const BOOT: Duration = Duration::from_secs(120);

/// For a daemon to listen.
pub const DAEMON: Duration = Duration::from_secs(20);

/// For the shim's records to come through containerd's log.
pub const RECORDS: Duration = Duration::from_secs(10);

/// For 64 MiB to come out of a container.
pub const OUTPUT: Duration = Duration::from_secs(240);
