//! What a sandbox has on the host is given back: processes, cgroup and mounts at once, and then the directory that tells of them.
//!
//! It must not know how any of it was made.

use std::sync::Arc;

use super::home::Home;
use super::{Held, cgroup, mount};
use crate::aside::aside;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

impl Held {
    /// Ends the daemons and gives everything back.
    pub(super) async fn release(&mut self) -> Result<()> {
        let network = self.network.take();
        let ended = async {
            let mut result = match network {
                Some(network) => network.release().await,
                None => Ok(()),
            };
            for daemon in self.daemons.drain(..).rev() {
                result = result.and(daemon.stop().await);
            }
            self.place.cgroups.clear();
            if let Some(cgroup) = &self.record.cgroup {
                result = result.and(cgroup::remove(cgroup).await);
            }
            result
        };
        // The last one to let go of a file system may have to wait for what it has not written yet.
        let home = Arc::clone(&self.home);
        let unmounted = aside(deadlines::CLEARED, move |site| {
            site.at(home.dir())?;
            clear_mounts(&home)
        });
        // Neither waits for the other's kernel.
        let (ended, unmounted) = tokio::join!(ended, unmounted);
        let removed = match unmounted {
            Ok(()) => {
                let home = Arc::clone(&self.home);
                aside(deadlines::CLEARED, move |site| {
                    site.at(home.dir())?;
                    home.remove()
                })
                .await
            }
            // What is mounted there stays, with its record.
            error => error,
        };
        ended.and(removed)
    }

    /// Gives back what outlives a process.
    pub(super) fn clear(&self) -> Result<()> {
        clear(&self.home)
    }
}

/// Gives back what a sandbox has in its directory, and then that.
pub(super) fn clear(home: &Home) -> Result<()> {
    clear_mounts(home)?;
    home.remove()
}

fn clear_mounts(home: &Home) -> Result<()> {
    mount::clear_below(home.dir()).map_err(|cause| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot take away the mounts below {}", home.dir().display()),
            cause,
        )
    })
}
