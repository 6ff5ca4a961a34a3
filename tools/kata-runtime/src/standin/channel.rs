//! The words between a stand-in and the sandbox's daemon, over a socket pair: five bytes each, a kind and its operand. Pure.
//!
//! The end of the connection is a word as well: of the stand-in, that it was killed; of the daemon, that the virtual machine is
//! gone with it.

/// Bytes of a word.
pub const LENGTH: usize = 5;

const SIGNAL: u8 = b's';
const SIZE: u8 = b'w';
const READY: u8 = b'r';
const FAILED: u8 = b'f';
const SETTLE: u8 = b'n';
const END: u8 = b'e';

/// What a stand-in says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It was sent this signal, which is meant for the workload.
    Signal(u32),
    /// Its terminal has this size now.
    Size {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// It is where it was told to settle.
    Ready,
    /// It cannot settle, for this reason (errno).
    Failed(u32),
}

/// What a stand-in is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// To join the network namespace of the process with this pid, and to take the container's root file system for its own.
    Settle(u32),
    /// The workload has ended with this status, and its output is delivered.
    End(u8),
}

impl Said {
    /// As bytes.
    pub fn to_bytes(self) -> [u8; LENGTH] {
        match self {
            Self::Signal(signal) => word(SIGNAL, signal),
            Self::Size { rows, columns } => word(SIZE, u32::from(rows) | u32::from(columns) << 16),
            Self::Ready => word(READY, 0),
            Self::Failed(reason) => word(FAILED, reason),
        }
    }

    /// From bytes; `None`: that is no word.
    pub fn from_bytes(bytes: [u8; LENGTH]) -> Option<Self> {
        let (kind, [a, b, c, d]) = parts(bytes);
        match kind {
            SIGNAL => Some(Self::Signal(u32::from_le_bytes([a, b, c, d]))),
            SIZE => Some(Self::Size {
                rows: u16::from_le_bytes([a, b]),
                columns: u16::from_le_bytes([c, d]),
            }),
            READY => Some(Self::Ready),
            FAILED => Some(Self::Failed(u32::from_le_bytes([a, b, c, d]))),
            _ => None,
        }
    }
}

impl Told {
    /// As bytes.
    pub fn to_bytes(self) -> [u8; LENGTH] {
        match self {
            Self::Settle(pid) => word(SETTLE, pid),
            Self::End(status) => word(END, status.into()),
        }
    }

    /// From bytes; `None`: that is no word.
    pub fn from_bytes(bytes: [u8; LENGTH]) -> Option<Self> {
        let (kind, operand) = parts(bytes);
        match kind {
            SETTLE => Some(Self::Settle(u32::from_le_bytes(operand))),
            END => Some(Self::End(operand[0])),
            _ => None,
        }
    }
}

fn word(kind: u8, operand: u32) -> [u8; LENGTH] {
    let [a, b, c, d] = operand.to_le_bytes();
    [kind, a, b, c, d]
}

fn parts([kind, a, b, c, d]: [u8; LENGTH]) -> (u8, [u8; 4]) {
    (kind, [a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_arrives_as_it_was_said() {
        for said in [
            Said::Signal(15),
            Said::Signal(u32::MAX),
            Said::Size {
                rows: 24,
                columns: 0x1234,
            },
            Said::Ready,
            Said::Failed(13),
        ] {
            assert_eq!(Said::from_bytes(said.to_bytes()), Some(said));
        }
        for told in [Told::Settle(1 << 22), Told::Settle(0), Told::End(255)] {
            assert_eq!(Told::from_bytes(told.to_bytes()), Some(told));
        }
        assert_eq!(Said::from_bytes([0; LENGTH]), None);
        assert_eq!(Told::from_bytes(*b"s\x0f\0\0\0"), None, "the other side's word");
    }
}
