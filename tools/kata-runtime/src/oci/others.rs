//! Containers of sandboxes that somebody else has started on this host: containerd's shim, or this program with another root. They
//! are shown, and nothing is done to them: they are their caller's.

use anyhow::{Result, bail};
use futures::future::join_all;
use runtime::SandboxId;
use runtime::admin::client::Client;
use runtime::admin::{Found, Survey};
use serde_json::Value;

use crate::admin::block_on;
use crate::wire::Shown;

/// A container of somebody else's.
pub struct Other {
    /// Whose: containerd's namespace, or what keeps roots apart.
    pub scope: String,
    /// What is told of it.
    pub shown: Shown,
}

/// All of them, but for those of our own scope. A sandbox that does not answer has none that could be shown.
///
/// # Errors
/// The event loop cannot be started.
pub fn all(survey: &Survey, own: &SandboxId) -> Result<Vec<Other>> {
    block_on(async {
        let others = survey
            .sandboxes
            .iter()
            .filter(|found| found.alive && found.scope != *own);
        let asked = others.map(|found| async move {
            let told = Client::new(found).ok()?.inspect().await.ok()?;
            Some(of(found, &told))
        });
        // One that hangs is waited for once, and not after another.
        Ok(join_all(asked).await.into_iter().flatten().flatten().collect())
    })
}

/// The one with this id. `None`: there is none.
///
/// # Errors
/// There are several, or the event loop cannot be started.
pub fn find(id: &str, survey: &Survey, own: &SandboxId) -> Result<Option<Other>> {
    let mut found = all(survey, own)?;
    found.retain(|other| other.shown.id == id);
    let one = found.pop();
    if !found.is_empty() {
        bail!("several callers have a container {id}: `kata-runtime list` shows whose they are");
    }
    Ok(one)
}

fn of(found: &Found, told: &Value) -> Vec<Other> {
    let containers = told.get("containers").and_then(Value::as_array);
    let container = |container: &Value| {
        let text = |key: &str| container.get(key).and_then(Value::as_str);
        let status = text("status")?;
        Some(Other {
            scope: found.scope.to_string(),
            shown: Shown {
                id: text("id")?.to_owned(),
                status: status.to_owned(),
                // What stands for all of its containers on the host is the virtual machine.
                pid: found.vmm.filter(|_| status != "stopped").unwrap_or_default(),
                bundle: text("bundle").unwrap_or_default().into(),
                created: humantime::format_rfc3339(found.created).to_string(),
                annotations: Default::default(),
            },
        })
    };
    containers.into_iter().flatten().filter_map(container).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_sandbox_tells_is_shown_with_whose_it_is() {
        let found = Found {
            scope: SandboxId::new("default").unwrap(),
            id: SandboxId::new("s").unwrap(),
            dir: "/run/kata/default@s".into(),
            alive: true,
            owner: 7,
            vmm: Some(8),
            daemons: Vec::new(),
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
        };
        let told = json!({ "containers": [
            { "id": "s", "status": "running", "bundle": "/b" },
            { "id": "t", "status": "stopped", "bundle": "/c" },
            { "id": 3 },
        ] });
        let all = of(&found, &told);
        let seen: Vec<_> = all
            .iter()
            .map(|other| {
                (
                    other.shown.id.as_str(),
                    other.shown.pid,
                    other.shown.bundle.to_str(),
                )
            })
            .collect();
        assert_eq!(seen, [("s", 8, Some("/b")), ("t", 0, Some("/c"))]);
        let first = all.first().unwrap();
        assert_eq!(
            (first.scope.as_str(), first.shown.created.as_str()),
            ("default", "1970-01-01T00:00:01Z")
        );
        assert!(of(&found, &json!({})).is_empty());
    }
}
