//! The CRI's log format: `<time> <stream> <tag> <text>`, where the tag is `F` for a whole line and `P` for a part of one.

use anyhow::{Context as _, Result, bail};

/// A line of a container's log, which is a line of its output or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339, with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line of output ends here.
    pub full: bool,
    /// What was written.
    pub text: String,
}

/// All lines of a log that are complete; it may be written while we read.
pub fn parse(log: &str) -> Result<Vec<Line>> {
    let (complete, _) = log.rsplit_once('\n').unwrap_or_default();
    complete.lines().map(line).collect()
}

fn line(line: &str) -> Result<Line> {
    let mut fields = line.splitn(4, ' ');
    let mut next = || {
        fields
            .next()
            .with_context(|| format!("a log line of four fields: {line:?}"))
    };
    let (time, stream, tag, text) = (next()?, next()?, next()?, next()?);
    Ok(Line {
        time: time.into(),
        stream: match stream {
            "stdout" | "stderr" => stream.into(),
            _ => bail!("an unknown stream: {line:?}"),
        },
        full: match tag {
            "F" => true,
            "P" => false,
            _ => bail!("an unknown tag: {line:?}"),
        },
        text: text.into(),
    })
}

/// What was written to a stream.
pub fn text(lines: &[Line], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if line.full {
            text.push('\n');
        }
    }
    text
}
