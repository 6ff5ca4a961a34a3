//! What the host tells the agent on the kernel's command line. Pure.

use std::str::FromStr as _;

use agent_protocol::CHANNEL_PARAM;
use slog::Level;

use crate::dial::Channel;
use crate::error::{Error, Result};
use crate::log;
use crate::patience::MOST;

/// Kernel parameter with the level of the agent's log.
const LOG_PARAM: &str = "kata.log";

/// Kernel parameter that multiplies the agent's deadlines.
const PATIENCE_PARAM: &str = "kata.patience";

/// The parameters that are ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters {
    /// How to reach the host.
    pub channel: Channel,
    /// What to log.
    pub level: Level,
    /// How many times as long as anywhere else to wait.
    pub patience: u32,
}

impl Parameters {
    /// Finds ours among the kernel's. The last of several wins, as with the kernel's own.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the channel is missing or a value is wrong.
    pub fn parse(cmdline: &str) -> Result<Self> {
        let (mut channel, mut level, mut patience) = (None, log::DEFAULT_LEVEL, 1);
        for (key, value) in cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            if key == CHANNEL_PARAM {
                channel = Some(Channel::parse(value)?);
            } else if key == LOG_PARAM {
                level = Level::from_str(value)
                    .map_err(|()| Error::invalid(LOG_PARAM, format!("{value:?} is not a level")))?;
            } else if key == PATIENCE_PARAM {
                let factor = value.parse().ok().filter(|factor| (1..=MOST).contains(factor));
                patience = factor.ok_or_else(|| {
                    Error::invalid(PATIENCE_PARAM, format!("{value:?} is no number from 1 to {MOST}"))
                })?;
            }
        }
        let channel =
            channel.ok_or_else(|| Error::invalid(CHANNEL_PARAM, "missing on the kernel's command line"))?;
        Ok(Self {
            channel,
            level,
            patience,
        })
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
                level: Level::Warning,
                patience: 1,
            }
        );
        assert_eq!(
            parse("kata.agent=serial kata.log=debug kata.agent=vsock:1024 kata.patience=20").unwrap(),
            Parameters {
                channel: Channel::Vsock(1024),
                level: Level::Debug,
                patience: 20,
            }
        );
        for bad in [
            "",
            "quiet",
            "kata.agent",
            "kata.agent=",
            "kata.agent=serial kata.log=loud",
            "kata.agent=serial kata.patience=0",
            "kata.agent=serial kata.patience=101",
            "kata.agent=serial kata.patience=much",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
