//! Every wait of this program, in one place.

use std::time::Duration;

/// For a daemon to answer. What it does has deadlines of its own, which the configuration sets; this is for one that hangs.
pub const ANSWER: Duration = Duration::from_secs(600);

/// From a daemon's start to the first container. Whoever started it asks at once, but may die in between.
pub const FIRST_CREATE: Duration = Duration::from_secs(60);

/// For a stand-in to join the pod's network: it has only to be scheduled.
pub const STANDIN: Duration = Duration::from_secs(30);

/// For a connection of a daemon to bring its question.
pub const QUESTION: Duration = Duration::from_secs(10);

/// For the answers of a daemon that ends to get out.
pub const FAREWELL: Duration = Duration::from_secs(5);

/// For a container to end after SIGKILL when it is deleted by force. The runtime stops the virtual machine before that.
pub const KILLED: Duration = Duration::from_secs(30);
