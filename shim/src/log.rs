//! The server's log: JSON lines to the named pipe `log` of the bundle, which containerd reads.
//!
//! A reader that is slow or gone must not hold up a server: what does not fit into the pipe is dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use slog::{Drain, Level, Logger, OwnedKVList, Record, o};

/// Name of the pipe.
const NAME: &str = "log";

/// Longest line, bytes with its end: so much a pipe takes as a whole or not at all (PIPE_BUF).
const LONGEST: usize = 4096;

/// Opens the pipe of a bundle for writing, without ever waiting, now or later. It is kept open for reading as well: a
/// write does not fail while containerd is down. `None`: there is no pipe.
///
/// # Errors
/// There is one, but it cannot be opened.
pub fn open(bundle: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW)
        .open(bundle.join(NAME));
    match opened {
        Ok(file) if file.metadata()?.file_type().is_fifo() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How much is logged; shared by all loggers, and can be changed while they are in use.
#[derive(Debug, Clone, Default)]
pub struct Verbosity(Arc<AtomicBool>);

impl Verbosity {
    /// From now on debug records are logged as well.
    pub fn debug(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn admits(&self, level: Level) -> bool {
        level.is_at_least(Level::Info) || self.0.load(Ordering::Relaxed)
    }
}

/// A logger into `to`; into nothing without.
pub fn logger(to: Option<impl Write + Send + 'static>, verbosity: Verbosity) -> Logger {
    let Some(to) = to else {
        return Logger::root(slog::Discard, o!());
    };
    let json = slog_json::Json::new(Lines::new(to)).add_default_keys().build();
    let drain = Leveled {
        // Poisoned only by a panic, which ends the program.
        drain: std::sync::Mutex::new(json).ignore_res(),
        verbosity,
    };
    Logger::root(drain, o!("name" => "containerd-shim-kata-v2"))
}

struct Leveled<D> {
    drain: D,
    verbosity: Verbosity,
}

impl<D: Drain<Ok = (), Err = slog::Never>> Drain for Leveled<D> {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        if self.verbosity.admits(record.level()) {
            self.drain.log(record, values)
        } else {
            Ok(())
        }
    }

    fn is_enabled(&self, level: Level) -> bool {
        self.verbosity.admits(level)
    }
}

/// Passes on whole lines, one write each.
struct Lines<W> {
    to: W,
    line: Vec<u8>,
    dropped: u64,
}

impl<W: Write> Lines<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            line: Vec::new(),
            dropped: 0,
        }
    }

    fn emit(&mut self) {
        let mut line = mem::take(&mut self.line);
        if line.len() > LONGEST {
            line.truncate(LONGEST - 1);
            line.push(b'\n');
        }
        if self.dropped > 0 {
            let note = format!(
                "{{\"msg\":\"log records were dropped: nobody reads them\",\"level\":\"WARN\",\"count\":{}}}\n",
                self.dropped
            );
            if self.to.write(note.as_bytes()).is_ok() {
                self.dropped = 0;
            }
        }
        if self.to.write(&line).is_err() {
            self.dropped += 1;
        }
        line.clear();
        self.line = line;
    }
}

impl<W: Write> Write for Lines<W> {
    /// Takes everything: there is nobody who could do something about an error.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // The end of a line is written by itself; those within values are escaped.
        self.line.extend_from_slice(text);
        if text.ends_with(b"\n") {
            self.emit();
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slog::{debug, info};
    use std::io::Read;

    fn pipe() -> (tempfile::TempDir, File) {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join(NAME);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let file = open(bundle.path()).unwrap().unwrap();
        (bundle, file)
    }

    fn text(mut pipe: &File) -> String {
        let mut data = vec![0; 1 << 20];
        let count = pipe.read(&mut data).unwrap_or(0);
        String::from_utf8(data[..count].to_vec()).unwrap()
    }

    #[test]
    fn records_are_json_lines_at_the_level_that_is_set() {
        let (_bundle, pipe) = pipe();
        let verbosity = Verbosity::default();
        let log = logger(Some(pipe.try_clone().unwrap()), verbosity.clone());
        debug!(log, "hidden");
        info!(log, "one\ntwo"; "key" => 7);
        verbosity.debug();
        debug!(log, "shown");
        let text = text(&pipe);
        let records: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(records.len(), 2, "{text}");
        assert_eq!(records[0]["msg"], "one\ntwo");
        assert_eq!(records[0]["key"], 7);
        assert_eq!(records[0]["level"], "INFO");
        assert_eq!(records[1]["msg"], "shown");
    }

    #[test]
    fn nobody_who_reads_costs_neither_time_nor_memory() {
        let (_bundle, pipe) = pipe();
        let log = logger(Some(pipe.try_clone().unwrap()), Verbosity::default());
        let long = "x".repeat(2 * LONGEST);
        for _ in 0..1000 {
            info!(log, "{}", long);
        }
        let full = text(&pipe);
        assert!(full.lines().count() >= 10);
        assert!(full.lines().all(|line| line.len() < LONGEST));
        info!(log, "there is room again");
        let text = text(&pipe);
        let note: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(
            note["count"].as_u64().unwrap() as usize,
            1000 - full.lines().count()
        );
        assert!(text.contains("there is room again"));
    }

    #[test]
    fn without_a_pipe_nothing_is_logged() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(open(bundle.path()).unwrap().is_none());
        std::fs::write(bundle.path().join(NAME), "").unwrap();
        assert!(open(bundle.path()).unwrap().is_none(), "a file is no pipe");
        info!(logger(None::<File>, Verbosity::default()), "to nobody");
    }
}
