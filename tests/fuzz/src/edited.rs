//! Bytes as changes to a document that is right: so that a fuzzer gets past the syntax, and has every field say what it should
//! not.

use serde_json::{Map, Value};

/// Most changes: a document that differs in more is none that anybody would mistake for it.
const MOST: usize = 24;

/// The document with these changes. Each takes a few bytes: two for the place, one for what is done there, and what is
/// written.
pub fn edited(document: &Value, changes: &[u8]) -> Value {
    let mut value = document.clone();
    let mut bytes = changes.iter().copied();
    for _ in 0..MOST {
        let (Some(high), Some(low), Some(change)) = (bytes.next(), bytes.next(), bytes.next()) else {
            break;
        };
        let mut places = Vec::new();
        list(&value, &mut String::new(), &mut places);
        let number = usize::from(u16::from_be_bytes([high, low]));
        let Some(place) = places.get(number % places.len().max(1)).cloned() else {
            break;
        };
        let written = match change % 16 {
            0 => Value::Null,
            1 => Value::Bool(bytes.next().is_some_and(|byte| byte & 1 == 1)),
            2 => bytes.next().unwrap_or(0).into(),
            3 => (-i64::from(bytes.next().unwrap_or(1))).into(),
            4 => [u64::MAX, u64::from(u32::MAX), i64::MAX.cast_unsigned(), 1 << 53]
                [usize::from(bytes.next().unwrap_or(0) % 4)]
            .into(),
            5 => i64::MIN.into(),
            6 => Value::Array(Vec::new()),
            7 => Value::Object(Map::new()),
            8 => {
                remove(&mut value, &place);
                continue;
            }
            // What another place says.
            9 | 10 => {
                let from = usize::from(bytes.next().unwrap_or(0)) * 7 % places.len().max(1);
                let other = places.get(from).and_then(|from| value.pointer(from));
                other.cloned().unwrap_or_default()
            }
            // The same a second time.
            11 => {
                let double = value.pointer(&place).cloned().unwrap_or_default();
                Value::Array(vec![double.clone(), double])
            }
            // A text, whole or at the end of what is there.
            kind => {
                let length = usize::from(bytes.next().unwrap_or(0) % 64);
                let text: Vec<u8> = bytes.by_ref().take(length).collect();
                let before = match kind {
                    14 | 15 => value.pointer(&place).and_then(Value::as_str).unwrap_or_default(),
                    _ => "",
                };
                Value::String(format!("{before}{}", String::from_utf8_lossy(&text)))
            }
        };
        if let Some(there) = value.pointer_mut(&place) {
            *there = written;
        }
    }
    value
}

/// The places in a value, as JSON pointers (RFC 6901).
fn list(value: &Value, here: &mut String, places: &mut Vec<String>) {
    places.push(here.clone());
    let length = here.len();
    let mut down = |name: &str, value: &Value| {
        here.push('/');
        here.push_str(&name.replace('~', "~0").replace('/', "~1"));
        list(value, here, places);
        here.truncate(length);
    };
    match value {
        Value::Array(values) => values
            .iter()
            .enumerate()
            .for_each(|(index, value)| down(&index.to_string(), value)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| down(name, value)),
        _ => {}
    }
}

fn remove(value: &mut Value, place: &str) {
    let Some((parent, name)) = place.rsplit_once('/') else {
        return;
    };
    let name = name.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Object(fields)) => drop(fields.remove(&name)),
        Some(Value::Array(values)) => {
            if let Some(index) = name.parse().ok().filter(|&index: &usize| index < values.len()) {
                values.remove(index);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_made_where_they_say() {
        // Places: all, a, a/0, b/c, which is "b~1c".
        let document = json!({"a": [1], "b/c": "x"});
        for (changes, expected) in [
            (&[][..], document.clone()),
            (&[0, 0], document.clone()),
            (&[0, 2, 0], json!({"a": [null], "b/c": "x"})),
            (&[0, 2, 3, 7], json!({"a": [-7], "b/c": "x"})),
            (&[0, 3, 14, 2, b'y', b'z'], json!({"a": [1], "b/c": "xyz"})),
            (&[0, 3, 12, 1, b'y'], json!({"a": [1], "b/c": "y"})),
            (&[0, 3, 8], json!({"a": [1]})),
            (&[0, 2, 8], json!({"a": [], "b/c": "x"})),
            (&[0, 1, 11], json!({"a": [[1], [1]], "b/c": "x"})),
            (&[0, 4, 6], json!([])),
            (&[0, 3, 8, 0, 1, 7], json!({"a": {}})),
        ] {
            assert_eq!(edited(&document, changes), expected, "{changes:?}");
        }
    }
}
