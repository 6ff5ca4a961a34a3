//! What the host tells the agent on the kernel's command line. Pure.

use std::str::FromStr as _;

use agent_protocol::CHANNEL_PARAM;
use slog::Level;

use crate::dial::Channel;
use crate::error::{Error, Result};
use crate::log;

/// Kernel parameter with the level of the agent's log.
const LOG_PARAM: &str = "kata.log";

/// The parameters that are ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters {
    /// How to reach the host.
    pub channel: Channel,
    /// What to log.
    pub level: Level,
}

impl Parameters {
    /// Finds ours among the kernel's. The last of several wins, as with the kernel's own.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the channel is missing or a value is wrong.
    pub fn parse(cmdline: &str) -> Result<Self> {
        let (mut channel, mut level) = (None, log::DEFAULT_LEVEL);
        for (key, value) in cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            if key == CHANNEL_PARAM {
                channel = Some(Channel::parse(value)?);
            } else if key == LOG_PARAM {
                level = Level::from_str(value)
                    .map_err(|()| Error::invalid(LOG_PARAM, format!("{value:?} is not a level")))?;
            }
        }
        let channel =
            channel.ok_or_else(|| Error::invalid(CHANNEL_PARAM, "missing on the kernel's command line"))?;
        Ok(Self { channel, level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_found_among_the_kernels() {
        let parse = Parameters::parse;
        assert_eq!(
            parse("console=hvc0 quiet kata.agent=serial panic=1\n").unwrap(),
            Parameters {
                channel: Channel::Serial,
                level: Level::Warning
            }
        );
        assert_eq!(
            parse("kata.agent=serial kata.log=debug kata.agent=vsock:1024").unwrap(),
            Parameters {
                channel: Channel::Vsock(1024),
                level: Level::Debug
            }
        );
        for bad in [
            "",
            "quiet",
            "kata.agent",
            "kata.agent=",
            "kata.agent=serial kata.log=loud",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
