//! A process's standard streams: from the addresses in a request to what the runtime opens.

mod logger;
pub(crate) mod uri;

pub use logger::{Logger, Owner};
pub use uri::{Streams, Wanted};

use runtime::error::Result;
use runtime::{Input, Output, Stdio};

use uri::Outputs;

/// Makes of what is wanted what the runtime takes; starts the logger, if one is wanted.
///
/// # Errors
/// The logger cannot be started. Nothing is left then.
pub async fn connect(
    wanted: Wanted,
    owner: &Owner<'_>,
    log: &slog::Logger,
) -> Result<(Stdio, Option<Logger>)> {
    let fifo = |path| match path {
        Some(path) => Output::Fifo(path),
        None => Output::Null,
    };
    let (stdout, stderr, logger) = match wanted.outputs {
        Outputs::Fifos { stdout, stderr } => (fifo(stdout), fifo(stderr), None),
        Outputs::File(path) => (Output::File(path.clone()), Output::File(path), None),
        Outputs::Logger(program) => {
            let (logger, stdout, stderr) = Logger::start(program, owner, log).await?;
            (
                Output::Descriptor(stdout),
                Output::Descriptor(stderr),
                Some(logger),
            )
        }
    };
    let stdio = Stdio {
        terminal: wanted.terminal,
        stdin: match wanted.stdin {
            Some(path) => Input::Fifo(path),
            None => Input::Null,
        },
        stdout,
        // A terminal has one output.
        stderr: if wanted.terminal { Output::Null } else { stderr },
        ..Stdio::default()
    };
    Ok((stdio, logger))
}
