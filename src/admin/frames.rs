//! What goes over the connection of a console once it is one: frames, each a kind, a length and that many bytes. Pure.

use crate::error::{Error, ErrorKind, Result};

/// Longest frame, in bytes, without its head.
pub(super) const MOST: usize = 256 << 10;

/// Bytes of the head.
pub(super) const HEAD: usize = 5;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a stream: to the program its input, from it its output.
    Data(Vec<u8>),
    /// From the program: what it says of errors.
    Errors(Vec<u8>),
    /// To the program: its terminal has so many rows and columns.
    Size(u16, u16),
    /// To the program: there is no more input.
    End,
    /// From the program: it has ended so.
    Exit(u32),
}

impl Frame {
    /// As it goes over the connection. More than [`MOST`] bytes of data are cut.
    pub(super) fn encode(&self) -> Vec<u8> {
        let bytes = |kind: u8, content: &[u8]| {
            let content = content.get(..MOST).unwrap_or(content);
            let length = u32::try_from(content.len()).unwrap_or(0);
            [&[kind][..], &length.to_be_bytes(), content].concat()
        };
        match self {
            Self::Data(data) => bytes(0, data),
            Self::Errors(data) => bytes(1, data),
            Self::Size(rows, columns) => bytes(2, &[rows.to_be_bytes(), columns.to_be_bytes()].concat()),
            Self::End => bytes(3, &[]),
            Self::Exit(code) => bytes(4, &code.to_be_bytes()),
        }
    }

    /// How many bytes follow a head.
    pub(super) fn length(head: [u8; HEAD]) -> Result<usize> {
        let [_, a, b, c, d] = head;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        match length <= MOST {
            true => Ok(length),
            false => Err(refused(&format!("a frame of {length} bytes"))),
        }
    }

    /// The frame with this head and content.
    pub(super) fn decode(head: [u8; HEAD], content: Vec<u8>) -> Result<Self> {
        match (head[0], content.as_slice()) {
            (0, _) => Ok(Self::Data(content)),
            (1, _) => Ok(Self::Errors(content)),
            (2, &[a, b, c, d]) => Ok(Self::Size(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))),
            (3, []) => Ok(Self::End),
            (4, &[a, b, c, d]) => Ok(Self::Exit(u32::from_be_bytes([a, b, c, d]))),
            (kind, content) => Err(refused(&format!(
                "a frame of kind {kind} with {} bytes",
                content.len()
            ))),
        }
    }
}

fn refused(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("the console's connection is not understood: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let data = || prop::collection::vec(any::<u8>(), 0..100);
        prop_oneof![
            data().prop_map(Frame::Data),
            data().prop_map(Frame::Errors),
            any::<(u16, u16)>().prop_map(|(rows, columns)| Frame::Size(rows, columns)),
            Just(Frame::End),
            any::<u32>().prop_map(Frame::Exit),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_comes_through(frame in any_frame()) {
            let bytes = frame.encode();
            let head: [u8; HEAD] = bytes[..HEAD].try_into().unwrap();
            prop_assert_eq!(Frame::length(head).unwrap(), bytes.len() - HEAD);
            prop_assert_eq!(Frame::decode(head, bytes[HEAD..].to_vec()).unwrap(), frame);
        }

        #[test]
        fn any_bytes_are_a_frame_or_refused(head in any::<[u8; HEAD]>(), content in prop::collection::vec(any::<u8>(), 0..8)) {
            let _ = Frame::length(head);
            let _ = Frame::decode(head, content);
        }
    }
}
