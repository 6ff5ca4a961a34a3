//! Every wait of this crate, in one place.

use std::time::Duration;

/// From the VMM's start to its control socket's greeting, and from that to the answer to the first command. The guest does not take
/// part: this is the VMM's own initialisation, 50 to 100 ms on an idle machine, and a hundred times that where sixteen start at
/// once on two processors that others want as well.
pub const CONTROL_READY: Duration = Duration::from_secs(30);

/// For one command on the control socket: milliseconds, unless others want the processor. Nobody waits for a VMM that has died.
pub const COMMAND: Duration = Duration::from_secs(15);

/// For a VMM to end after it was asked to; then it is killed.
pub const QUIT: Duration = Duration::from_millis(500);

/// For a killed process to be gone. Long, because freeing a large guest's memory takes its time.
pub const REAP: Duration = Duration::from_secs(10);

/// From the end of a process to the word of its parent how it has ended, which only reaps it.
pub const EXIT_STATUS: Duration = Duration::from_secs(2);

/// For the last bytes of a dead VMM's streams. They are in the kernel's buffers already.
pub const DRAIN: Duration = Duration::from_millis(200);

/// For a VMM or a device's process to say the rest of what it has begun to say, or to answer, and for the requests that are under way
/// when a device is stopped.
pub const BETWEEN: Duration = Duration::from_secs(10);

/// After so much time without a request, memory that large ones have used is given back.
pub const BETWEEN_IDLE: Duration = Duration::from_secs(1);

/// For the guest to let go of a device that is being unplugged.
pub const UNPLUG: Duration = Duration::from_secs(10);

/// For the probe of KVM, as a whole.
pub const PROBE: Duration = Duration::from_millis(250);

/// For a guest that nobody talks to any more to come back to its serial ports. QEMU tells of a port at most once a second, and
/// the guest may have to share its processor.
pub const SETTLED: Duration = Duration::from_secs(20);

/// For the state of a VM's devices to be written, or read: milliseconds, unless others want the processor.
pub const MIGRATION: Duration = Duration::from_secs(20);

/// For a request during which a monitor reads or writes the guest's kernel or all of its memory.
pub const WHOLE_MEMORY: Duration = Duration::from_secs(60);
