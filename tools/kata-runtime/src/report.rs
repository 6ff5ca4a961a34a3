//! How a failure is told to whoever called: one line on the standard error output, and one object in the file that `--log` names.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::ValueEnum;
use serde_json::json;

/// Form of the log file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `key=value`
    #[default]
    Text,
    /// An object in each line.
    Json,
}

/// Where failures are told besides.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The file.
    pub file: Option<PathBuf>,
    /// Its form.
    pub format: Format,
}

impl Report {
    /// Tells a failure.
    pub fn failure(&self, text: &str) {
        // Callers take the first line for all of it.
        let text = text.replace('\n', " ");
        eprintln!("kata-runtime: {text}");
        let Some(path) = &self.file else { return };
        let line = entry(self.format, &text, SystemTime::now());
        // It is appended to: a caller may use one file for several commands.
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("kata-runtime: cannot write {}: {error}", path.display());
        }
    }
}

fn entry(format: Format, text: &str, now: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(now);
    match format {
        Format::Json => {
            let object = json!({"level": "error", "msg": text, "time": time.to_string()});
            format!("{object}\n")
        }
        Format::Text => format!("time=\"{time}\" level=error msg={text:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_object_or_one_line() {
        let text = entry(Format::Json, "no \"x\"", SystemTime::UNIX_EPOCH);
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            object,
            json!({"level": "error", "msg": "no \"x\"", "time": "1970-01-01T00:00:00Z"})
        );
        assert_eq!(
            entry(Format::Text, "no \"x\"", SystemTime::UNIX_EPOCH),
            "time=\"1970-01-01T00:00:00Z\" level=error msg=\"no \\\"x\\\"\"\n"
        );
    }

    #[test]
    fn the_file_gets_it_and_its_absence_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report {
            file: Some(dir.path().join("log")),
            format: Format::Json,
        };
        report.failure("a\nb");
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["msg"], "a b");
        report.file = Some(dir.path().join("missing/log"));
        report.failure("c");
    }
}
