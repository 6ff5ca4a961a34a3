//! What can be done about a pod whose owner is dead: it is looked at, waited for, and removed, by whoever comes first.

use std::sync::Arc;

use super::state::PodInfo;
use super::wire::{Answer, Request};
use super::{Runtime, cut_off, own};
use crate::aside::aside;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

impl Runtime {
    /// What can be done about a pod whose owner is dead.
    pub(super) async fn ask_nobody(&self, info: PodInfo, request: Request) -> Result<Answer> {
        match request {
            Request::Wait { id, exec: None } => match info.containers.get(&id).map(|one| one.exit) {
                Some(Some(exit)) => Ok(Answer::Exit { exit }),
                Some(None) | None => Err(own::unknown(&id)),
            },
            Request::Remove { id, .. } if !info.is_alone => {
                if !info.containers.contains_key(&id) {
                    return Err(own::unknown(&id));
                }
                self.remove_dead(info.id, Some(id)).await
            }
            Request::Remove { .. } | Request::RemovePod { .. } => self.remove_dead(info.id, None).await,
            _ => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "pod {} has ended ({}), and can only be looked at and removed",
                    info.id,
                    info.ended.as_deref().unwrap_or("nobody knows why")
                ),
            )),
        }
    }

    /// Removes a dead pod, or a container in it.
    async fn remove_dead(&self, pod: String, container: Option<String>) -> Result<Answer> {
        let settings = Arc::clone(self.settings());
        let removing = tokio::spawn(async move {
            let (root, id) = (settings.root.clone(), pod.clone());
            // Nobody else does the same meanwhile.
            let claiming = aside(deadlines::STATE, move |site| {
                site.at(root.dir())?;
                root.inherit(&root.lock()?, &id)
            });
            let claim = claiming.await?;
            settings.clean_up(&pod).await?;
            let root = settings.root.clone();
            let removing = aside(deadlines::STATE, move |site| {
                site.at(root.dir())?;
                let locked = root.lock()?;
                let Some(id) = container else {
                    return root.remove(&locked, &pod);
                };
                match root.find(&pod)? {
                    Some(mut found) => {
                        found.info.containers.remove(&id);
                        root.write(&found.info)
                    }
                    None => Ok(()),
                }
            });
            let removed = removing.await;
            drop(claim);
            removed
        });
        removing.await.map_err(cut_off)?.map(|()| Answer::Done)
    }
}
