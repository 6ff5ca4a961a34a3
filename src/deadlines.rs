//! Every wait of this crate that the configuration does not set, in one place.

use std::time::Duration;

use configuration::AgentConfig;

/// From the VMM's start to the agent's greeting, where the configuration leaves it to us: Kata's, which a boot under KVM needs
/// a hundredth of.
pub(crate) const DIAL: Duration = Duration::from_secs(45);

/// The same for an emulated guest. Ten boots at once on two processors take the last one 47 s.
pub(crate) const DIAL_EMULATED: Duration = Duration::from_secs(180);

/// For the agent to take a SIGKILL. A guest that does not is frozen or hostile; its VM is stopped.
pub(crate) const KILL: Duration = Duration::from_secs(5);

/// For the agent to take another signal. It is on its way then all the same, and whoever sent it has a SIGKILL to come.
pub(crate) const SIGNAL: Duration = Duration::from_secs(5);

/// For the agent to read figures. containerd asks one container after the other, and the next ones wait.
pub(crate) const STATS: Duration = Duration::from_secs(5);

/// For the agent to say whether memory was why a container has failed, before its end is told without.
pub(crate) const OOM_NEWS: Duration = Duration::from_secs(1);

/// Between two OOM notices of one container. A guest can make up any number of them.
pub(crate) const OOM_PAUSE: Duration = Duration::from_secs(1);

/// From a SIGKILL that the agent took to the end of the container. Freeing a large process takes its time, an
/// uninterruptible one never ends; then its VM is stopped.
pub(crate) const KILLED: Duration = Duration::from_secs(10);

/// For the output of an ended process to reach the host's ends of its streams before its end is told: there are clients
/// that stop to read then. A reader that is slow or absent does not hold it up for longer.
pub(crate) const DELIVERY: Duration = Duration::from_secs(2);

/// For the rest of an ended process's output to be read before it is deleted. A client reads what it wants before it
/// deletes; this is for the ones that do not.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// For the guest to end its containers and write back what it has cached before its VM is stopped.
pub(crate) const DESTROY: Duration = Duration::from_secs(3);

/// From the loss of the agent's connection to the news of the VMM's end, if that is its cause.
pub(crate) const EXIT_NEWS: Duration = Duration::from_secs(1);

/// From the loss of the agent's connection to the news that a daemon's end was its cause, which waits for [`EXIT_NEWS`]
/// itself and may have begun to wait later.
pub(crate) const LOSS_NEWS: Duration = Duration::from_secs(2);

/// For a daemon that was killed to be gone. Closing the files of a large guest takes its time.
pub(crate) const DAEMON_END: Duration = Duration::from_secs(10);

/// For a daemon to listen on its socket: a few milliseconds on an idle machine.
pub(crate) const DAEMON_READY: Duration = Duration::from_secs(10);

/// From a VMM's failure to the news that a daemon's end was its cause.
pub(crate) const DAEMON_NEWS: Duration = Duration::from_millis(100);

/// For the processes that a sandbox has left in its cgroup to be gone after a SIGKILL. As for a daemon.
pub(crate) const CGROUP_EMPTY: Duration = Duration::from_secs(10);

/// The same, where nothing else can go on meanwhile.
pub(crate) const CGROUP_EMPTY_NOW: Duration = Duration::from_secs(1);

/// For files that are just being made visible to be so, before all are taken away: milliseconds, where nothing hangs.
pub(crate) const SETTLED: Duration = Duration::from_secs(2);

/// For a sandbox's mounts to be gone. As long as a disk takes to write what is cached.
pub(crate) const CLEARED: Duration = Duration::from_secs(15);

/// For what is left of a sandbox's trace to be written, at its end: milliseconds, where the file system does not hang.
pub(crate) const TRACE: Duration = Duration::from_secs(1);

/// For a hook whose specification sets no timeout, as in the guest.
pub(crate) const HOOK: Duration = Duration::from_secs(30);

/// For the network of a sandbox to be read, connected or disconnected: a few dozen requests that the kernel answers at once,
/// but for its lock, which the end of other network namespaces can hold for seconds.
pub(crate) const NETWORK: Duration = Duration::from_secs(30);

/// For another process that cleans up after a dead owner to be done. Shorter than what callers allow for a cleaning up
/// (containerd: 5 s): then it is left to the other one.
pub(crate) const CLEANED: Duration = Duration::from_millis(3500);

/// From an owner's death to the end of a child that it was just starting, which has its lock. Shorter than what callers
/// allow for a cleaning up (containerd: 5 s).
pub(crate) const LOCK_GONE: Duration = Duration::from_secs(2);

/// Between two looks of a container that waits for what another one makes: whether anybody still waits for the first.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// For another process that makes templates, or takes them away, to be done: a boot, on a busy machine.
pub(crate) const TEMPLATE_LOCK: Duration = Duration::from_secs(180);

/// For who keeps virtual machines ready to answer whether there is one; then one is made as if there were none. It is a process on
/// this host that is there or is not, and may have to share its processor.
pub(crate) const CACHE_GET: Duration = Duration::from_secs(10);

/// From the offer of a virtual machine to its being taken, as [`CACHE_GET`].
pub(crate) const CACHE_HANDOVER: Duration = Duration::from_secs(10);

/// For a guest to do once what a container needs: a second of an emulated guest that nobody disturbs, and nobody waits for it.
pub(crate) const CACHE_PRACTICE: Duration = Duration::from_secs(180);

/// For all virtual machines that are to be kept ready to be so: boots, one after the other, on a busy machine.
pub(crate) const CACHE_FULL: Duration = Duration::from_secs(1800);

/// For all that are kept ready to be ended.
pub(crate) const CACHE_QUIT: Duration = Duration::from_secs(60);

/// From a virtual machine's being taken, while there are others, to the making of the next one: about as long as a container takes to
/// start where guests are emulated, whose processor it would need.
pub(crate) const CACHE_CALM: Duration = Duration::from_secs(1);

/// From the failure to make a virtual machine to the next attempt.
pub(crate) const CACHE_RETRY: Duration = Duration::from_secs(30);

/// After a connection could not be accepted, as when descriptors have run out.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// For an administrator's request to come, and for its answer to be taken. It is a program on this host that is there or is not.
pub(crate) const ADMIN: Duration = Duration::from_secs(10);

/// For all that an answer to an administrator is made from, as his client waits for it. Longer than [`STATS`], which each
/// container may take.
pub(crate) const ADMIN_ANSWER: Duration = Duration::from_secs(30);

/// For what an administrator has a guest do that takes its time where it is emulated: a file system that grows, the kit for
/// iptables. Longer than the agent's own deadlines for it together.
pub(crate) const ADMIN_WORK: Duration = Duration::from_secs(150);

/// From the hang-up of a console to the end of its program by SIGKILL.
pub(crate) const CONSOLE_END: Duration = Duration::from_secs(2);

/// For the state directory of an engine to be read, or written by another process.
pub(crate) const STATE: Duration = Duration::from_secs(20);

/// From a SIGKILL to the end of a container that is stopped: longer than what it takes to stop the virtual machine of one that
/// does not end by it.
pub(crate) const STOPPED: Duration = Duration::from_secs(40);

/// From the end of a process whose output is collected to the end of that: longer than [`DRAIN`].
pub(crate) const COLLECTED: Duration = Duration::from_secs(5);

/// For an agent's first call: what the configuration says, or what suits a guest that is `emulated` or not.
pub(crate) fn dial(config: &AgentConfig, emulated: impl FnOnce() -> bool) -> Duration {
    config.dial_timeout.unwrap_or_else(|| match emulated() {
        true => DIAL_EMULATED,
        false => DIAL,
    })
}
