//! What of the host is shared with a sandbox's guest beside root file systems, and for which containers. Pure.
//!
//! What several containers mount is shared once: two shares of a directory would be two file systems to the guest's kernel, and
//! a lock, a named pipe or a socket in one would be none in the other.

use std::collections::BTreeSet;

use crate::ContainerId;
use crate::model::{BindPlan, Identity};

/// What is shared.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    /// How many there were so far. No name is used twice: a guest remembers what it has seen under one.
    made: usize,
    shared: Vec<Volume>,
}

#[derive(Debug, Clone)]
struct Volume {
    plan: BindPlan,
    users: BTreeSet<ContainerId>,
}

/// What a container wants to share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) identity: Option<&'a Identity>,
    pub(super) readonly: bool,
    pub(super) recursive: bool,
}

impl Wanted<'_> {
    /// Whether what is planned is that. A guest that can write already may do so for one more container, whose own mount is
    /// read-only; the opposite would be of no use.
    fn is(&self, plan: &BindPlan) -> bool {
        self.identity.is_some()
            && self.identity == plan.identity.as_ref()
            && self.recursive == plan.recursive
            && (self.readonly || !plan.readonly)
    }
}

impl Volumes {
    /// The name for what a container wants, if that is there already, or among what is `planned` for it.
    pub(super) fn find(&self, wanted: Wanted<'_>, planned: &[BindPlan]) -> Option<String> {
        let shared = self.shared.iter().map(|volume| &volume.plan);
        shared
            .chain(planned)
            .find(|plan| wanted.is(plan))
            .map(|plan| plan.name.clone())
    }

    /// A name that nothing else has, for the one after so many new ones.
    pub(super) fn new_name(&self, planned: usize) -> String {
        format!("v{}", self.made + planned)
    }

    /// What is there by this name.
    pub(super) fn get(&self, name: &str) -> Option<&BindPlan> {
        let volume = self.shared.iter().find(|volume| volume.plan.name == name);
        volume.map(|volume| &volume.plan)
    }

    /// A container uses this. Whether it is the first to.
    pub fn enter(&mut self, plan: &BindPlan, user: &ContainerId) -> bool {
        if let Some(volume) = self
            .shared
            .iter_mut()
            .find(|volume| volume.plan.name == plan.name)
        {
            volume.users.insert(user.clone());
            return false;
        }
        self.made += 1;
        self.shared.push(Volume {
            plan: plan.clone(),
            users: BTreeSet::from([user.clone()]),
        });
        true
    }

    /// A container uses nothing any more.
    pub fn leave(&mut self, user: &ContainerId) {
        for volume in &mut self.shared {
            volume.users.remove(user);
        }
    }

    /// The names of what nobody uses.
    pub fn unused(&self) -> Vec<String> {
        let unused = self.shared.iter().filter(|volume| volume.users.is_empty());
        unused.map(|volume| volume.plan.name.clone()).collect()
    }

    /// It is there no longer.
    pub fn forget(&mut self, name: &str) {
        self.shared.retain(|volume| volume.plan.name != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(inode: u64) -> Identity {
        Identity {
            device: 1,
            inode,
            mounts: vec![1],
        }
    }

    fn plan(name: &str, inode: u64, readonly: bool) -> BindPlan {
        BindPlan {
            name: name.into(),
            source: "/x".into(),
            readonly,
            recursive: true,
            identity: Some(identity(inode)),
        }
    }

    fn id(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    #[test]
    fn the_same_thing_is_found_again_unless_it_would_have_to_be_writable() {
        let mut volumes = Volumes::default();
        volumes.enter(&plan("v0", 7, true), &id("a"));
        volumes.enter(&plan("v1", 8, false), &id("a"));
        let find = |inode, readonly, recursive| {
            let identity = identity(inode);
            let wanted = Wanted {
                identity: Some(&identity),
                readonly,
                recursive,
            };
            volumes.find(wanted, &[plan("v2", 9, false)])
        };
        assert_eq!(find(7, true, true).as_deref(), Some("v0"));
        assert_eq!(find(7, false, true), None);
        assert_eq!(find(8, false, true).as_deref(), Some("v1"));
        assert_eq!(find(8, true, true).as_deref(), Some("v1"));
        assert_eq!(find(8, true, false), None, "without what is mounted below it");
        assert_eq!(
            find(9, false, true).as_deref(),
            Some("v2"),
            "another mount of the container"
        );
        assert_eq!(find(10, true, true), None);
        let unknown = Wanted {
            identity: None,
            readonly: false,
            recursive: true,
        };
        assert_eq!(
            volumes.find(unknown, &[]),
            None,
            "what was not looked for is nothing that is known"
        );
    }

    #[test]
    fn it_is_there_until_its_last_user_leaves_and_its_name_is_not_used_again() {
        let mut volumes = Volumes::default();
        let plan = plan(&volumes.new_name(0), 7, false);
        assert!(volumes.enter(&plan, &id("a")));
        assert!(!volumes.enter(&plan, &id("b")));
        assert!(!volumes.enter(&plan, &id("b")), "twice in one container");
        volumes.leave(&id("b"));
        assert!(volumes.unused().is_empty());
        volumes.leave(&id("a"));
        assert_eq!(volumes.unused().as_slice(), std::slice::from_ref(&plan.name));
        volumes.forget(&plan.name);
        assert!(volumes.get(&plan.name).is_none());
        assert_ne!(volumes.new_name(0), plan.name);
    }
}
