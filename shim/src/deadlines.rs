//! Every wait of this program, in one place.

use std::time::Duration;

/// For `start` and `-info` to read what the caller has to say. A caller writes it at once; a terminal never ends.
pub const STDIN: Duration = Duration::from_secs(1);

/// From the server's start to the first Create. containerd sends it at once, but may be busy or die in between.
pub const FIRST_CREATE: Duration = Duration::from_secs(120);

/// For a server that holds nothing any more to be told to end; then it goes by itself.
pub const VACANT: Duration = Duration::from_secs(20);

/// For Shutdown to be answered: containerd waits for three seconds. What is not done by then goes on behind the answer.
pub const SHUTDOWN: Duration = Duration::from_millis(2500);

/// For a sandbox to be released when the server ends, before it is left to the `delete` action.
pub const RELEASE: Duration = Duration::from_secs(20);

/// For events to be delivered when the server ends.
pub const FLUSH: Duration = Duration::from_secs(1);

/// For open connections to be closed when the server ends: the last answer has to get out.
pub const DISCONNECT: Duration = Duration::from_millis(500);

/// From the answer to Shutdown to the end of the connection by whoever has asked: containerd closes it at once.
pub const ANSWER_TAKEN: Duration = Duration::from_secs(1);

/// For containerd to take an event.
pub const FORWARD: Duration = Duration::from_secs(5);

/// For containerd's publishing program to take an event.
pub const PUBLISH: Duration = Duration::from_secs(5);

/// Before an event is sent once more: this long after the first failure, twice as long after the second, and so on.
pub const RETRY: Duration = Duration::from_secs(1);

/// For the end of a process that has ended to be announced, before its deletion is.
pub const ANNOUNCED: Duration = Duration::from_secs(1);

/// For a logger to say that it is ready.
pub const LOGGER_READY: Duration = Duration::from_secs(10);

/// For a logger to end by itself at the end of its input, before it is asked to.
pub const LOGGER_END: Duration = Duration::from_secs(2);

/// For a logger to end after it was asked to (containerd's own shim waits as long); then it is killed.
pub const LOGGER_TERM: Duration = Duration::from_secs(12);

/// For a thread that has nothing to do to get something: the next step of a creation follows at once, the next container
/// does not.
pub const IDLE_THREAD: Duration = Duration::from_millis(50);

/// For the whole of `delete`: containerd kills it after five seconds.
pub const DELETE: Duration = Duration::from_millis(4500);

/// For a living server to give up a container on behalf of `delete`.
pub const GIVE_UP: Duration = Duration::from_secs(3);
