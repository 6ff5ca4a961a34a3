//! Spans in the JSON form of OpenTelemetry's protocol (OTLP), as the file exporter of its collector writes them: one line for
//! each batch. Pure.
//!
//! Numbers of 64 bits are decimal strings there, and ids are hexadecimal.

use serde_json::{Value, json};

/// Longest text of a span that is not ours, in characters.
const LONGEST_TEXT: usize = 256;

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) id: u64,
    /// `None`: the root.
    pub(super) parent: Option<u64>,
    pub(super) name: &'static str,
    /// A call of another program's.
    pub(super) is_call: bool,
    /// Nanoseconds since 1970.
    pub(super) begun: u64,
    pub(super) ended: u64,
    pub(super) attributes: Vec<(&'static str, Told)>,
    /// Moments in it.
    pub(super) events: Vec<(&'static str, u64)>,
    /// Why it has failed.
    pub(super) failure: Option<String>,
}

/// What an attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    Number(u64),
    /// Whosesoever it is: it is cut and cleaned.
    Text(String),
}

impl From<u64> for Told {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<T: ToString + ?Sized> From<&T> for Told {
    fn from(text: &T) -> Self {
        Self::Text(text.to_string())
    }
}

/// What all spans of a file have in common.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) trace: u128,
    pub(super) attributes: Vec<(&'static str, Told)>,
}

/// Spans as a line, with its end.
pub(super) fn line(resource: &Resource, spans: &[Span]) -> String {
    let spans: Vec<Value> = spans.iter().map(|one| span(resource.trace, one)).collect();
    let batch = json!({"resourceSpans": [{
        "resource": {"attributes": attributes(&resource.attributes)},
        "scopeSpans": [{
            "scope": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
            "spans": spans,
        }],
    }]});
    format!("{batch}\n")
}

fn span(trace: u128, span: &Span) -> Value {
    /// `SPAN_KIND_INTERNAL` and `SPAN_KIND_CLIENT`.
    const KINDS: [u8; 2] = [1, 3];
    /// `STATUS_CODE_ERROR`.
    const FAILED: u8 = 2;
    let mut value = json!({
        "traceId": format!("{trace:032x}"),
        "spanId": format!("{:016x}", span.id),
        "name": span.name,
        "kind": KINDS[usize::from(span.is_call)],
        "startTimeUnixNano": span.begun.to_string(),
        "endTimeUnixNano": span.ended.to_string(),
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = format!("{parent:016x}").into();
    }
    if !span.attributes.is_empty() {
        value["attributes"] = attributes(&span.attributes);
    }
    if !span.events.is_empty() {
        let event = |(name, at): &(&str, u64)| json!({"name": name, "timeUnixNano": at.to_string()});
        value["events"] = span.events.iter().map(event).collect();
    }
    if let Some(failure) = &span.failure {
        value["status"] = json!({"code": FAILED, "message": clean(failure)});
    }
    value
}

fn attributes(attributes: &[(&'static str, Told)]) -> Value {
    let attribute = |(key, told): &(&str, Told)| {
        let value = match told {
            Told::Number(number) => json!({"intValue": number.to_string()}),
            Told::Text(text) => json!({"stringValue": clean(text)}),
        };
        json!({"key": key, "value": value})
    };
    attributes.iter().map(attribute).collect()
}

/// As much of a text as can do no harm to whoever shows it.
fn clean(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => Some(' '),
        // Also what makes text run backwards, or is not seen.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => None,
        c => (!c.is_control()).then_some(c),
    };
    text.chars().filter_map(plain).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the example of the protocol's documentation (`examples/trace.json` of opentelemetry-proto), field by field.
    #[test]
    fn a_span_is_written_as_the_protocol_says() {
        let resource = Resource {
            trace: 0x5b8e_fff7_9803_8103_d269_b633_813f_c60c,
            attributes: vec![("service.name", "kata".into())],
        };
        let one = Span {
            id: 0xeee1_9b7e_c3c1_b174,
            parent: Some(0x0ee1_9b7e_c3c1_b173),
            name: "create_container",
            is_call: true,
            begun: 1_544_712_660_000_000_000,
            ended: 1_544_712_661_000_000_000,
            attributes: vec![("kata.container", "c".into()), ("kata.exit_code", 7.into())],
            events: vec![("first output", 1_544_712_660_500_000_000)],
            failure: Some("no\u{1b}[31m\n\u{202e}room".into()),
        };
        let text = line(&resource, std::slice::from_ref(&one));
        assert_eq!(text.lines().count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        let of_resource = &value["resourceSpans"][0];
        assert_eq!(
            of_resource["resource"]["attributes"],
            json!([{"key": "service.name", "value": {"stringValue": "kata"}}])
        );
        assert_eq!(
            of_resource["scopeSpans"][0]["spans"],
            json!([{
                "traceId": "5b8efff798038103d269b633813fc60c",
                "spanId": "eee19b7ec3c1b174",
                "parentSpanId": "0ee19b7ec3c1b173",
                "name": "create_container",
                "kind": 3,
                "startTimeUnixNano": "1544712660000000000",
                "endTimeUnixNano": "1544712661000000000",
                "attributes": [
                    {"key": "kata.container", "value": {"stringValue": "c"}},
                    {"key": "kata.exit_code", "value": {"intValue": "7"}},
                ],
                "events": [{"name": "first output", "timeUnixNano": "1544712660500000000"}],
                "status": {"code": 2, "message": "no[31m room"},
            }])
        );
        let root = Span {
            parent: None,
            is_call: false,
            attributes: vec![],
            events: vec![],
            failure: None,
            ..one
        };
        let value = span(resource.trace, &root);
        assert_eq!(value["kind"], 1);
        for absent in ["parentSpanId", "attributes", "events", "status"] {
            assert_eq!(value.get(absent), None, "{absent}");
        }
    }

    #[test]
    fn no_text_is_longer_than_it_may_be() {
        assert_eq!(clean(&"é".repeat(10_000)).chars().count(), LONGEST_TEXT);
    }
}
