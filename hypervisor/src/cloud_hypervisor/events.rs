//! What Cloud Hypervisor tells by itself (`--event-monitor`): JSON objects, one after the other. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Most bytes of an event. Those that are listened for have a few hundred.
const MAX_EVENT: usize = 64 << 10;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Event {
    /// Where, such as `vm`.
    pub source: String,
    /// What, such as `booted`.
    pub event: String,
    /// Its details.
    #[serde(default)]
    pub properties: Option<Map<String, Value>>,
}

/// What an event means to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The guest powered off, or we had the monitor do so.
    Shutdown,
    /// The guest panicked or reset, and is about to be booted once more.
    Reset,
    /// The guest has let go of the device with this id.
    Removed(String),
}

impl Event {
    /// What it means, if anything.
    pub fn news(&self) -> Option<News> {
        match (self.source.as_str(), self.event.as_str()) {
            ("vm", "shutdown") => Some(News::Shutdown),
            ("vm", "rebooting") | ("guest", "panic") => Some(News::Reset),
            ("vm", "device-removed") => {
                let id = self.properties.as_ref()?.get("id")?.as_str()?;
                Some(News::Removed(id.to_owned()))
            }
            _ => None,
        }
    }
}

/// Bytes that are no events.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub struct Events {
    partial: Vec<u8>,
}

impl Events {
    /// Takes the next bytes of the stream and hands each event that is complete to `take`.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(Event)) -> Result<(), Malformed> {
        self.partial.extend_from_slice(bytes);
        let mut stream = serde_json::Deserializer::from_slice(&self.partial).into_iter();
        let mut used = 0;
        while let Some(event) = stream.next() {
            match event {
                Ok(event) => take(event),
                Err(error) if error.is_eof() => break,
                Err(_) => return Err(Malformed),
            }
            used = stream.byte_offset();
        }
        self.partial.drain(..used);
        match self.partial.len() > MAX_EVENT {
            true => Err(Malformed),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Cloud Hypervisor 54 writes them.
    const STREAM: &str = r#"{
  "timestamp": {"secs": 0, "nanos": 1},
  "source": "vm",
  "event": "booted",
  "properties": null
}

{
  "timestamp": {"secs": 3, "nanos": 1},
  "source": "vm",
  "event": "device-removed",
  "properties": {"id": "disk-a", "bdf": "0000:00:05.0"}
}

{"timestamp": {"secs": 4, "nanos": 1}, "source": "vm", "event": "rebooting", "properties": null}

"#;

    #[test]
    fn events_are_cut_out_of_the_stream_however_it_comes() {
        for size in [1, 7, 100, STREAM.len()] {
            let mut events = Events::default();
            let mut news = Vec::new();
            for chunk in STREAM.as_bytes().chunks(size) {
                events.push(chunk, |event| news.push(event.news())).unwrap();
            }
            let removed = Some(News::Removed("disk-a".into()));
            assert_eq!(news, [None, removed, Some(News::Reset)], "{size}");
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert_eq!(Events::default().push(b"hello", |_| ()), Err(Malformed));
        let endless = vec![b' '; MAX_EVENT];
        let mut events = Events::default();
        assert_eq!(events.push(b"{\"a\": \"", |_| ()), Ok(()));
        assert_eq!(events.push(&endless, |_| ()), Err(Malformed));
    }
}
