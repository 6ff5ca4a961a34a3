//! QMP's lines (QEMU's `docs/interop/qmp-spec`): cutting them out of a byte stream and reading them. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Longest line that is accepted, in bytes. The commands of this crate are answered in a few hundred.
pub const MAX_LINE: usize = 1 << 20;

/// A line from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first line.
    Greeting {
        /// QEMU's version, e.g. "7.2.22".
        version: String,
    },
    /// A command succeeded.
    Return {
        /// The command's id.
        id: u64,
        /// Its result.
        value: Value,
    },
    /// A command failed.
    Failure {
        /// The command's id; absent where QEMU could not even read the command.
        id: Option<u64>,
        /// QEMU's error class, e.g. "DeviceNotFound".
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// Something happened.
    Event(Event),
}

/// Something happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// E.g. "SHUTDOWN".
    pub name: String,
    /// Its details; empty for most.
    pub data: Map<String, Value>,
}

impl Event {
    /// A member of the details that is a string.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }

    /// Whether a member of the details is `true`.
    pub fn flag(&self, key: &str) -> bool {
        self.data.get(key).and_then(Value::as_bool) == Some(true)
    }
}

/// A line that is not QMP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No newline within [`MAX_LINE`].
    #[error("a QMP line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// Not JSON, or not an object that QMP knows.
    #[error("not a QMP message: {0}")]
    Unknown(String),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    greeting: Option<RawGreeting>,
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<RawFailure>,
    event: Option<String>,
    #[serde(default)]
    data: Map<String, Value>,
}

#[derive(Deserialize)]
struct RawGreeting {
    version: RawVersions,
}

#[derive(Deserialize)]
struct RawVersions {
    qemu: RawVersion,
}

#[derive(Deserialize)]
struct RawVersion {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct RawFailure {
    class: String,
    desc: String,
}

/// Reads one line.
pub fn parse(line: &[u8]) -> Result<Message, Malformed> {
    let raw: Raw = serde_json::from_slice(line).map_err(|error| Malformed::Unknown(error.to_string()))?;
    match raw {
        Raw {
            greeting: Some(greeting),
            ..
        } => {
            let RawVersion { major, minor, micro } = greeting.version.qemu;
            Ok(Message::Greeting {
                version: format!("{major}.{minor}.{micro}"),
            })
        }
        Raw {
            event: Some(name),
            data,
            ..
        } => Ok(Message::Event(Event { name, data })),
        Raw {
            error: Some(RawFailure { class, desc }),
            id,
            ..
        } => Ok(Message::Failure {
            id,
            class,
            description: desc,
        }),
        Raw {
            value: Some(value),
            id: Some(id),
            ..
        } => Ok(Message::Return { id, value }),
        Raw { .. } => Err(Malformed::Unknown(
            "neither greeting, event, error nor return with an id".into(),
        )),
    }
}

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes at the front of the buffer that hold no newline.
    searched: usize,
}

impl Lines {
    /// Adds the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next complete message, if there is one. Blank lines are skipped.
    pub fn next(&mut self) -> Option<Result<Message, Malformed>> {
        loop {
            let Some(found) = self.buffer[self.searched..]
                .iter()
                .position(|&byte| byte == b'\n')
            else {
                self.searched = self.buffer.len();
                return (self.searched > MAX_LINE).then_some(Err(Malformed::TooLong));
            };
            let end = self.searched + found;
            let message = match self.buffer[..end].trim_ascii() {
                [] => None,
                line if line.len() > MAX_LINE => Some(Err(Malformed::TooLong)),
                line => Some(parse(line)),
            };
            self.buffer.drain(..=end);
            self.searched = 0;
            if message.is_some() {
                return message;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_of_qemu_are_understood() {
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        assert_eq!(
            parse(greeting.as_bytes()),
            Ok(Message::Greeting {
                version: "7.2.22".into()
            })
        );
        assert_eq!(
            parse(br#"{"return": {"a": 1}, "id": 3}"#),
            Ok(Message::Return {
                id: 3,
                value: json!({"a": 1})
            })
        );
        assert_eq!(
            parse(br#"{"id": 4, "error": {"class": "GenericError", "desc": "no"}}"#),
            Ok(Message::Failure {
                id: Some(4),
                class: "GenericError".into(),
                description: "no".into()
            })
        );
        let event = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        let Ok(Message::Event(event)) = parse(event) else {
            panic!("not an event")
        };
        assert_eq!(
            (event.name.as_str(), event.text("reason")),
            ("SHUTDOWN", Some("guest-reset"))
        );
    }

    #[test]
    fn what_is_not_qmp_is_an_error() {
        for line in [
            "",
            "x",
            "{}",
            "[]",
            "7",
            r#"{"return": {}}"#,
            r#"{"id": -1, "return": {}}"#,
            r#"{"error": {}}"#,
            r#"{"QMP": 1}"#,
        ] {
            assert!(
                matches!(parse(line.as_bytes()), Err(Malformed::Unknown(_))),
                "{line}"
            );
        }
    }

    #[test]
    fn an_endless_line_is_an_error() {
        let mut lines = Lines::default();
        let mut refused = false;
        for _ in 0..MAX_LINE / 4096 + 2 {
            lines.push(&[b'x'; 4096]);
            refused |= lines.next() == Some(Err(Malformed::TooLong));
        }
        assert!(refused);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)) {
            let mut lines = Lines::default();
            for chunk in &chunks {
                lines.push(chunk);
                while let Some(message) = lines.next() {
                    // Random bytes form no QMP message.
                    prop_assert!(message.is_err());
                }
            }
        }

        #[test]
        fn chunks_do_not_matter(ids in prop::collection::vec(any::<u64>(), 1..20), size in 1usize..40) {
            let stream: Vec<u8> = ids.iter().flat_map(|id| format!("{{\"return\": {{}}, \"id\": {id}}}\r\n").into_bytes()).collect();
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(size) {
                lines.push(chunk);
                while let Some(message) = lines.next() {
                    match message {
                        Ok(Message::Return { id, .. }) => seen.push(id),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
            }
            prop_assert_eq!(seen, ids);
        }
    }
}
