//! The process of the host that stands for a process in a guest: what it is told, what it says, and its life.
//!
//! Whoever calls an OCI runtime knows a container, and every process that is added to one, by the pid of a child: it waits for
//! the child's end, reads its exit status, sends it signals, and looks at its namespaces. The stand-in is that child. It moves
//! no data. It must know neither JSON nor the runtime, and no event loop: there is one for each process of each container.

pub mod channel;
mod life;
pub mod root;

pub use channel::{Said, Told};
pub use life::{Life, ends_with};
