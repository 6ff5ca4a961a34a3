//! Every wait of the harness, in one place. They are for a loaded machine without KVM: two cores, four builds.

use std::time::Duration;

/// For a call of `ctr` that starts nothing.
pub const CALL: Duration = Duration::from_secs(30);

/// For a container to start and a short command in it to end; a virtual machine boots in 2 to 4 s there.
pub const RUN: Duration = Duration::from_secs(90);

/// For a pod to be there: as long as a kubelet waits, which is twice its two minutes. Eight that boot at once beside others have taken
/// more than [`RUN`].
pub const POD: Duration = Duration::from_secs(240);

/// For containerd to answer on its socket after its start, and to end after it was told to.
pub const CONTAINERD: Duration = Duration::from_secs(30);

/// For what is being taken away to be gone.
pub const GONE: Duration = Duration::from_secs(10);

/// For a workload that runs to do the next short thing, and for word of that to come: ten virtual machines may be booting beside
/// it, and each has a fifth of a processor then.
pub const PROGRESS: Duration = Duration::from_secs(60);

/// Between two looks at what tells nobody when it changes: other processes, mounts, files, cgroups.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
