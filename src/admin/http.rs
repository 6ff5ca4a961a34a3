//! The little of HTTP/1.1 that an administrator's socket speaks: one request on a connection, with or without a body, and its
//! answer. So `curl --unix-socket` and a scraper of metrics can talk to it. Pure.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};

/// Longest head of a request or an answer, in bytes.
pub(super) const MOST_HEAD: usize = 8 << 10;

/// Longest body of a request, in bytes.
pub(super) const MOST_BODY: usize = 1 << 20;

/// Header fields that are looked at.
const MOST_FIELDS: usize = 32;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// `GET`, `PUT`, `POST`.
    pub(super) method: String,
    /// Its path, without the query.
    pub(super) path: String,
    /// The query, decoded.
    pub(super) query: BTreeMap<String, String>,
    /// Bytes of its body, which follows.
    pub(super) body: usize,
}

/// An answer's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The code.
    pub(super) status: u16,
    /// Bytes of its body, if it says.
    pub(super) body: Option<usize>,
}

/// Reads the head of a request. Answers with it and its length; `None`: more of it has to come.
pub(super) fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let length = match parsed.parse(bytes).map_err(|cause| wrong(&cause))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if bytes.len() >= MOST_HEAD => return Err(too_long()),
        httparse::Status::Partial => return Ok(None),
    };
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if field(parsed.headers, "transfer-encoding").is_some() {
        return Err(refused("a body needs a Content-Length here"));
    }
    let body = body(parsed.headers)?.unwrap_or(0);
    if body > MOST_BODY {
        return Err(refused(&format!(
            "a body of {body} bytes; at most {MOST_BODY} are taken"
        )));
    }
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: decoded(path)?,
        query: query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decoded(key)?, decoded(value)?))
            })
            .collect::<Result<_>>()?,
        body,
    };
    Ok(Some((request, length)))
}

/// Reads the head of an answer. Answers with it and its length; `None`: more of it has to come.
pub(super) fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    match parsed.parse(bytes).map_err(|cause| wrong(&cause))? {
        httparse::Status::Complete(length) => {
            let head = Head {
                status: parsed.code.unwrap_or(0),
                body: body(parsed.headers)?,
            };
            Ok(Some((head, length)))
        }
        httparse::Status::Partial if bytes.len() >= MOST_HEAD => Err(too_long()),
        httparse::Status::Partial => Ok(None),
    }
}

fn field<'a>(fields: &'a [httparse::Header<'_>], name: &str) -> Option<&'a [u8]> {
    fields
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

fn body(fields: &[httparse::Header<'_>]) -> Result<Option<usize>> {
    let Some(value) = field(fields, "content-length") else {
        return Ok(None);
    };
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| refused("its Content-Length is no number"))
}

/// An answer with its body.
pub(super) fn answer(status: u16, content: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {content}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        reason(status),
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The answer after which the connection is the console's.
pub(super) const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: kata-console\r\n\r\n";

/// A request with its body.
pub(super) fn ask(method: &str, target: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "{method} {target} HTTP/1.1\r\nHost: sandbox\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        409 => "Conflict",
        412 => "Precondition Failed",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        300 => "Multiple Choices",
        _ => "Internal Server Error",
    }
}

/// The code of a kind of error.
pub(super) fn status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Ambiguous => 300,
        ErrorKind::InvalidArgument => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::AlreadyExists => 409,
        ErrorKind::FailedPrecondition => 412,
        ErrorKind::Unsupported => 501,
        ErrorKind::Unavailable => 503,
        ErrorKind::DeadlineExceeded => 504,
        ErrorKind::Internal => 500,
    }
}

/// The kind of error that a code tells.
pub(super) fn kind(status: u16) -> ErrorKind {
    match status {
        300 => ErrorKind::Ambiguous,
        400 => ErrorKind::InvalidArgument,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::AlreadyExists,
        412 => ErrorKind::FailedPrecondition,
        501 => ErrorKind::Unsupported,
        503 => ErrorKind::Unavailable,
        504 => ErrorKind::DeadlineExceeded,
        _ => ErrorKind::Internal,
    }
}

/// A text without its percent signs (RFC 3986).
fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| refused("a percent sign without two digits"))?);
        rest = rest.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes).map_err(|_| refused("its target is not UTF-8"))
}

/// A text as part of a target.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            byte => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

fn refused(why: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("the request is not understood: {why}"),
    )
}

fn wrong(cause: &httparse::Error) -> Error {
    refused(&cause.to_string())
}

fn too_long() -> Error {
    refused(&format!("its head has more than {MOST_HEAD} bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_read_as_curl_writes_it() {
        let text = b"PUT /a%20b?path=%2Fx%3F&empty HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nabc";
        let (read, length) = request(text).unwrap().unwrap();
        assert_eq!(&text[length..], b"abc");
        let query = [("path", "/x?"), ("empty", "")];
        assert_eq!(
            read,
            Request {
                method: "PUT".into(),
                path: "/a b".into(),
                query: query.map(|(key, value)| (key.into(), value.into())).into(),
                body: 3,
            }
        );
        assert_eq!(request(&text[..20]).unwrap(), None);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let long = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'x'; MOST_HEAD]].concat();
        for text in [
            &b"\x16\x03\x01\x02\x00\x01\x00"[..],
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET /%zz HTTP/1.1\r\n\r\n",
            b"GET /%ff HTTP/1.1\r\n\r\n",
            b"GET /%f HTTP/1.1\r\n\r\n",
            &long,
        ] {
            let error = request(text).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
        }
    }

    #[test]
    fn a_kind_is_what_it_was_on_the_other_side() {
        for kind_there in [
            ErrorKind::NotFound,
            ErrorKind::AlreadyExists,
            ErrorKind::InvalidArgument,
            ErrorKind::FailedPrecondition,
            ErrorKind::Unsupported,
            ErrorKind::Unavailable,
            ErrorKind::DeadlineExceeded,
            ErrorKind::Internal,
        ] {
            let bytes = answer(status(kind_there), "text/plain", b"why");
            let (read, length) = head(&bytes).unwrap().unwrap();
            assert_eq!((kind(read.status), read.body), (kind_there, Some(3)));
            assert_eq!(&bytes[length..], b"why");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_none(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = request(&bytes);
            let _ = head(&bytes);
        }

        #[test]
        fn any_text_comes_through_a_target(text in any::<String>()) {
            let bytes = ask("GET", &format!("/x?path={}", encoded(&text)), b"");
            let (read, _) = request(&bytes).unwrap().unwrap();
            prop_assert_eq!(read.query.get("path"), Some(&text));
        }
    }
}
