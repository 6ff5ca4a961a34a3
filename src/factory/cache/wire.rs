//! What is said between who keeps virtual machines and who wants one: one line of JSON each, in turn. Pure.
//!
//! Only an offer is followed by more: who takes it says so, and is told that it is his. Whoever does not hear what he waits for
//! lets go, so that of two sides that live one has the machine, and if one dies the other one does, or nobody.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Status;
use crate::line::Most;

/// Raised when an older program could misunderstand a newer one.
pub(super) const VERSION: u32 = 1;

/// What is taken of an answer: an offer has the most descriptors, a status the most text.
pub(super) const MOST: Most = Most {
    bytes: 256 * 1024,
    fds: 16,
};

/// A question.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) version: u32,
    pub(super) ask: Ask,
}

/// What is asked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// A virtual machine of this key.
    Get { key: String },
    /// Which ones are kept.
    Config,
    /// What there is.
    Status,
    /// To wait until there are as many as there should be, or one could not be made.
    Settle,
    /// To end them all.
    Quit,
}

/// An answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// One is yours if you say so. The driver's descriptors go with it, then the connection to its agent and its network
    /// namespace.
    Offer { about: String },
    /// There is none for you.
    Miss { why: String },
    /// Of this key, and this many.
    Config { key: String, number: u32 },
    /// What there is.
    Status(Status),
    /// What was asked is done.
    Done,
    /// It can't be.
    Failed { why: String },
}

/// What follows an offer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Closing {
    /// The offer is taken.
    Taken,
    /// It is yours, and nobody else's from now on.
    Yours,
}

/// A line.
pub(super) fn line(said: &impl Serialize) -> Vec<u8> {
    // These types have no text that JSON could not hold.
    let mut line = serde_json::to_vec(said).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What a line says.
///
/// # Errors
/// Nothing that is understood.
pub(super) fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|cause| format!("what was said is not understood: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard() {
        let get = Call {
            version: VERSION,
            ask: Ask::Get { key: "a\n\"b".into() },
        };
        let said = line(&get);
        assert_eq!(said.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(parse::<Call>(&said).unwrap(), get);
        assert_eq!(
            line(&Call {
                version: 1,
                ask: Ask::Quit
            }),
            b"{\"version\":1,\"ask\":\"quit\"}\n"
        );
        assert!(parse::<Call>(b"{\"version\":1,\"ask\":\"dance\"}\n").is_err());
        assert!(parse::<Closing>(b"\n").is_err());
    }
}
