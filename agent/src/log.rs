//! The agent's log: JSON lines on standard error, which is the console in a guest.

use std::io;
use std::sync::Mutex;

use slog::{Drain as _, Level, LevelFilter, Logger, o};

/// The level when nobody asks for another: a guest's console is slow, and the host reads all of it.
pub const DEFAULT_LEVEL: Level = Level::Warning;

/// A logger that writes what is at least as important as `level`.
pub fn logger(level: Level) -> Logger {
    let json = Mutex::new(slog_json::Json::default(io::stderr()));
    Logger::root(
        LevelFilter::new(json, level).ignore_res(),
        o!("source" => "agent"),
    )
}
