//! Work that the kernel may keep for as long as it likes, because a path leads to a file system whose server is gone: done on a
//! thread of its own, and waited for no longer than a deadline.
//!
//! It must not know what is done.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result};

/// Where some work is, so that an error can name it, and whether anybody still waits for it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Site(Arc<State>);

#[derive(Debug, Default)]
struct State {
    path: Mutex<PathBuf>,
    is_given_up: AtomicBool,
}

impl Site {
    /// The work goes on at this path.
    ///
    /// # Errors
    /// Nobody waits for it any more.
    pub(crate) fn at(&self, path: &Path) -> Result<()> {
        if self.is_given_up() {
            return Err(Error::new(
                ErrorKind::DeadlineExceeded,
                "nobody waits for this any more",
            ));
        }
        // Nothing panics while it holds it.
        let mut at = self.0.path.lock().unwrap_or_else(PoisonError::into_inner);
        path.clone_into(&mut at);
        Ok(())
    }

    /// Nobody waits for it any more: whoever does it undoes it.
    pub(crate) fn is_given_up(&self) -> bool {
        self.0.is_given_up.load(Ordering::SeqCst)
    }

    fn path(&self) -> PathBuf {
        self.0.path.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Gives up when it is dropped.
struct Waiting(Site);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.is_given_up.store(true, Ordering::SeqCst);
    }
}

/// Does some work aside and waits for it, up to `limit`. Its result is dropped there if nobody waits any more. Needs a Tokio
/// runtime, in which the work may be registered.
///
/// # Errors
/// The work's; or it takes too long, and the text names the path that it is at.
pub(crate) async fn aside<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(&Site) -> Result<T> + Send + 'static,
) -> Result<T> {
    let waiting = Waiting(Site::default());
    let site = waiting.0.clone();
    let done = tokio::task::spawn_blocking(move || match site.is_given_up() {
        // It has waited for a thread for too long.
        true => Err(Error::new(
            ErrorKind::DeadlineExceeded,
            "nobody waits for this any more",
        )),
        false => work(&site),
    });
    match timeout(limit, done).await {
        Ok(Ok(done)) => done,
        Ok(Err(cause)) => Err(Error::caused(ErrorKind::Internal, "the work was cut off", cause)),
        Err(_) => Err(late(&waiting.0.path(), limit)),
    }
}

fn late(path: &Path, limit: Duration) -> Error {
    let context = if path.as_os_str().is_empty() {
        format!("no thread was free for {limit:?}: too much waits for file systems whose servers are gone")
    } else {
        format!(
            "{} has not answered for {limit:?}; see whether the server of its file system is gone",
            path.display()
        )
    };
    Error::new(ErrorKind::DeadlineExceeded, context)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Longer than anything here takes on a busy machine.
    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn work_that_hangs_is_named_by_where_it_is_and_told_that_it_is_given_up() {
        let (go, gone_on) = mpsc::channel::<()>();
        let (told, ended) = mpsc::channel();
        let hung = aside(Duration::from_millis(50), move |site| {
            site.at(Path::new("/first"))?;
            site.at(Path::new("/dead/nfs"))?;
            gone_on.recv().unwrap();
            told.send(site.at(Path::new("/next")).unwrap_err().kind).unwrap();
            Ok(())
        });
        let error = hung.await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert!(
            error.context.contains("/dead/nfs has not answered for 50ms"),
            "{error}"
        );
        go.send(()).unwrap();
        assert_eq!(ended.recv_timeout(SOON).unwrap(), ErrorKind::DeadlineExceeded);
    }

    #[tokio::test]
    async fn whoever_is_cancelled_gives_up_as_well() {
        let (go, gone_on) = mpsc::channel::<()>();
        let (told, ended) = mpsc::channel();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(aside(SOON, move |site| {
            begun.send(()).unwrap();
            gone_on.recv().unwrap();
            told.send(site.is_given_up()).unwrap();
            Ok(())
        }));
        begins.await.unwrap();
        waiting.abort();
        assert!(waiting.await.is_err());
        go.send(()).unwrap();
        assert!(ended.recv_timeout(SOON).unwrap());
    }

    #[tokio::test]
    async fn an_answer_in_time_is_the_answer() {
        assert_eq!(aside(SOON, |_| Ok(7)).await.unwrap(), 7);
        let error = aside::<()>(SOON, |_| Err(Error::new(ErrorKind::NotFound, "x")))
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
    }
}
