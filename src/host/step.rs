//! The steps of an acquisition, so that a test can make it fail at each of them in turn, and so that one that hangs can be
//! named.

use std::path::Path;
#[cfg(test)]
use std::sync::{Arc, Mutex};

use crate::aside::Site;
use crate::error::Result;
#[cfg(test)]
use crate::error::{Error, ErrorKind};

/// Counts steps. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Steps {
    /// Where the steps are done, if aside.
    site: Option<Site>,
    /// So many more are taken; then one fails.
    #[cfg(test)]
    left: Arc<Mutex<Option<u32>>>,
}

impl Steps {
    /// The same, done there.
    pub(super) fn aside(&self, site: &Site) -> Self {
        Self {
            site: Some(site.clone()),
            #[cfg(test)]
            left: Arc::clone(&self.left),
        }
    }

    /// Something of the caller's is about to be used, which may not answer.
    ///
    /// # Errors
    /// Nobody waits for that any more.
    pub(super) fn at(&self, path: &Path) -> Result<()> {
        self.site.as_ref().map_or(Ok(()), |site| site.at(path))
    }

    /// Something was acquired, or is about to be.
    #[cfg_attr(not(test), allow(clippy::unnecessary_wraps, clippy::unused_self))]
    pub(super) fn take(&self) -> Result<()> {
        #[cfg(test)]
        if let Some(left) = &mut *self.left.lock().unwrap() {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a test wants this step to fail"))?;
        }
        Ok(())
    }

    /// From now on so many are taken.
    #[cfg(test)]
    pub(super) fn limit(&self, left: Option<u32>) {
        *self.left.lock().unwrap() = left;
    }
}
