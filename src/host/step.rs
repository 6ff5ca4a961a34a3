//! The steps of an acquisition, so that a test can make it fail at each of them in turn.

use crate::error::Result;
#[cfg(test)]
use crate::error::{Error, ErrorKind};

/// Counts steps.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// So many more are taken; then one fails.
    #[cfg(test)]
    pub(super) left: Option<u32>,
}

impl Steps {
    /// Something was acquired, or is about to be.
    #[cfg_attr(not(test), allow(clippy::unnecessary_wraps, clippy::unused_self))]
    pub(super) fn take(&mut self) -> Result<()> {
        #[cfg(test)]
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a test wants this step to fail"))?;
        }
        Ok(())
    }
}
