//! HTTP/1.1 as monitors speak it: requests with a JSON body, answers with a length. Pure.

use serde_json::Value;

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 16 << 10;

/// Most bytes of an answer's body. What these drivers ask is answered in a few hundred.
const MAX_BODY: usize = 1 << 20;

/// Most fields of an answer's head.
const MAX_FIELDS: usize = 32;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// Its body, which may be empty.
    pub body: Vec<u8>,
}

/// Bytes that are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not HTTP.
    #[error("it is not HTTP: {0}")]
    Head(httparse::Error),
    /// More than there can be.
    #[error("it is longer than {MAX_HEAD} bytes of head and {MAX_BODY} of body")]
    TooLong,
    /// A length that is no number, or a body without one.
    #[error("its length is not told")]
    Length,
}

/// A request as it is sent.
pub fn request(method: &str, path: &str, body: Option<&Value>) -> Vec<u8> {
    let body = body.map(Value::to_string);
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if let Some(body) = &body {
        text += &format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    text += "\r\n";
    text += &body.unwrap_or_default();
    text.into_bytes()
}

/// The answer at the beginning of `bytes`, and its length; `None` while there is more to come.
pub fn answer(bytes: &[u8]) -> Result<Option<(Answer, usize)>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let head = match response.parse(bytes).map_err(Malformed::Head)? {
        httparse::Status::Complete(head) if head <= MAX_HEAD => head,
        httparse::Status::Partial if bytes.len() <= MAX_HEAD => return Ok(None),
        _ => return Err(Malformed::TooLong),
    };
    let status = response.code.unwrap_or_default();
    let length = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("Content-Length"));
    let length = match length {
        Some(field) => std::str::from_utf8(field.value)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or(Malformed::Length)?,
        // Those that have none.
        None if matches!(status, 100..=199 | 204 | 304) => 0,
        None => return Err(Malformed::Length),
    };
    if length > MAX_BODY {
        return Err(Malformed::TooLong);
    }
    let end = head + length;
    Ok(bytes.get(head..end).map(|body| {
        let body = body.to_vec();
        (Answer { status, body }, end)
    }))
}

impl Answer {
    /// Whether it is a success.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What it says; null where it says nothing.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        match self.body.is_empty() {
            true => Ok(Value::Null),
            false => serde_json::from_slice(&self.body),
        }
    }

    /// The words of a refusal: Firecracker's `fault_message`, Cloud Hypervisor's list of causes, else what there is.
    pub fn words(&self) -> String {
        let words = match self.value() {
            Ok(Value::Object(fields)) => fields
                .get("fault_message")
                .and_then(Value::as_str)
                .map(str::to_owned),
            Ok(Value::Array(causes)) => {
                let causes: Vec<_> = causes.iter().filter_map(Value::as_str).collect();
                Some(causes.join(": "))
            }
            _ => None,
        };
        let words = words.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        let printable = words.chars().filter(|character| !character.is_control());
        printable.take(1000).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_tells_its_length() {
        assert_eq!(
            String::from_utf8(request("GET", "/version", None)).unwrap(),
            "GET /version HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
        );
        let text = String::from_utf8(request("PUT", "/a", Some(&json!({"a": "\u{e9}"})))).unwrap();
        assert!(
            text.ends_with("Content-Length: 10\r\n\r\n{\"a\":\"\u{e9}\"}"),
            "{text}"
        );
    }

    #[test]
    fn answers_are_cut_out_of_the_stream() {
        let none = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        let some =
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 23\r\n\r\n{\"fault_message\":\"no\"}\nHTTP/1.1 2";
        let (answered, length) = answer(none).unwrap().unwrap();
        assert_eq!(
            (answered.status, length, answered.is_success()),
            (204, none.len(), true)
        );
        let (answered, length) = answer(some).unwrap().unwrap();
        assert_eq!((answered.status, answered.words().as_str()), (400, "no"));
        assert_eq!(&some[length..], b"HTTP/1.1 2");
        for end in 0..length {
            assert_eq!(answer(&some[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for (bytes, expected) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], Malformed::Length),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Malformed::Length),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n",
                Malformed::TooLong,
            ),
            (b"hello\r\n\r\n", Malformed::Head(httparse::Error::Version)),
        ] {
            assert_eq!(answer(bytes), Err(expected));
        }
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'x'; MAX_HEAD]].concat();
        assert_eq!(answer(&endless), Err(Malformed::TooLong));
    }

    #[test]
    fn refusals_keep_their_words() {
        for (body, words) in [
            (r#"{"fault_message": "no kernel"}"#, "no kernel"),
            (
                r#"["Error from API", "The VM is not created"]"#,
                "Error from API: The VM is not created",
            ),
            ("plain\u{1b}[31m", "plain[31m"),
            ("", ""),
        ] {
            let answer = Answer {
                status: 400,
                body: body.into(),
            };
            assert_eq!(answer.words(), words);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let with_head = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n".as_slice(), &bytes].concat();
            for bytes in [&bytes, &with_head] {
                if let Ok(Some((answer, length))) = answer(bytes) {
                    prop_assert!(length <= bytes.len() && answer.body.len() <= length);
                }
            }
        }
    }
}
