//! Which sandbox is meant: by its id, by its scope and id, by a beginning of either that is no other's, or by a container in it.

use std::fmt;

use anyhow::{Result, bail};
use futures::future::join_all;
use runtime::admin::client::Client;
use runtime::admin::{Found, Survey};

/// Why there is no answer. Two errors, because the remedies differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// Nothing has this name.
    Unknown,
    /// Several things have, by their full names.
    Ambiguous(Vec<String>),
}

/// Picks the one of these names (scope, id) that is meant. A whole name outranks a beginning.
pub fn pick(names: &[(&str, &str)], wanted: &str) -> Result<usize, Missing> {
    let (scope, id) = match wanted.split_once('/') {
        Some((scope, id)) => (Some(scope), id),
        None => (None, wanted),
    };
    let matching = |is_it: &dyn Fn(&str) -> bool| -> Vec<usize> {
        let of = |(_, (in_scope, name)): &(usize, &(&str, &str))| {
            scope.is_none_or(|scope| scope == *in_scope) && is_it(name)
        };
        names.iter().enumerate().filter(of).map(|(at, _)| at).collect()
    };
    let mut found = matching(&|name| name == id);
    if found.is_empty() && !id.is_empty() {
        found = matching(&|name| name.starts_with(id));
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Missing::Unknown),
        several => {
            let full = several.iter().filter_map(|at| names.get(*at));
            Err(Missing::Ambiguous(
                full.map(|(scope, id)| format!("{scope}/{id}")).collect(),
            ))
        }
    }
}

/// What was meant.
#[derive(Debug)]
pub struct Target {
    /// The sandbox.
    pub sandbox: Found,
    /// The container that was named, if it was one.
    pub container: Option<String>,
}

/// Finds a sandbox; if none has the name, a container in one that runs.
///
/// # Errors
/// There is none, or there are several.
pub async fn target(survey: &Survey, wanted: &str) -> Result<Target> {
    let names: Vec<_> = survey
        .sandboxes
        .iter()
        .map(|found| (found.scope.as_str(), found.id.as_str()))
        .collect();
    match pick(&names, wanted) {
        Ok(at) => match survey.sandboxes.get(at) {
            Some(found) => Ok(Target {
                sandbox: found.clone(),
                container: None,
            }),
            None => bail!("{}", unknown(wanted)),
        },
        Err(Missing::Ambiguous(names)) => bail!("{}", ambiguous(wanted, &names)),
        Err(Missing::Unknown) => by_container(survey, wanted).await,
    }
}

async fn by_container(survey: &Survey, wanted: &str) -> Result<Target> {
    let alive = survey.sandboxes.iter().filter(|found| found.alive);
    // One that does not answer has none that could be meant.
    let asked =
        alive.map(|found| async move { Some((found, Client::new(found).ok()?.inspect().await.ok()?)) });
    let mut containers = Vec::new();
    for (found, inspected) in join_all(asked).await.into_iter().flatten() {
        let ids = inspected.get("containers").and_then(serde_json::Value::as_array);
        for container in ids.into_iter().flatten() {
            if let Some(id) = container.get("id").and_then(serde_json::Value::as_str) {
                containers.push((found, id.to_owned()));
            }
        }
    }
    let names: Vec<_> = containers
        .iter()
        .map(|(found, id)| (found.scope.as_str(), id.as_str()))
        .collect();
    match pick(&names, wanted) {
        Ok(at) => match containers.get(at) {
            Some((found, id)) => Ok(Target {
                sandbox: Found::clone(found),
                container: Some(id.clone()),
            }),
            None => bail!("{}", unknown(wanted)),
        },
        Err(Missing::Ambiguous(names)) => bail!("{}", ambiguous(wanted, &names)),
        Err(Missing::Unknown) => bail!("{}", unknown(wanted)),
    }
}

fn unknown(wanted: &str) -> impl fmt::Display {
    format!(
        "there is no sandbox {wanted}, nor a container in one; `kata-runtime stats --no-stream` lists those that run"
    )
}

fn ambiguous(wanted: &str, names: &[String]) -> impl fmt::Display {
    format!(
        "{wanted} is ambiguous: it may be {}; write more of it, or SCOPE/ID",
        names.join(" or ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [(&str, &str); 5] = [
        ("k8s.io", "abc"),
        ("k8s.io", "abd"),
        ("oci", "abc"),
        ("oci", "x"),
        ("oci", "xy"),
    ];

    #[test]
    fn a_name_may_be_shortened_while_it_is_one() {
        for (wanted, at) in [
            ("abd", 1),
            ("k8s.io/abc", 0),
            ("oci/a", 2),
            // A whole name outranks a beginning.
            ("x", 3),
            ("xy", 4),
        ] {
            assert_eq!(pick(&NAMES, wanted), Ok(at), "{wanted}");
        }
    }

    #[test]
    fn unknown_and_ambiguous_are_different_errors() {
        for wanted in ["", "abcd", "k8s.io/x", "none/abc", "/", "b"] {
            assert_eq!(pick(&NAMES, wanted), Err(Missing::Unknown), "{wanted}");
        }
        let both = vec!["k8s.io/abc".to_owned(), "oci/abc".to_owned()];
        assert_eq!(pick(&NAMES, "abc"), Err(Missing::Ambiguous(both)));
        let Err(Missing::Ambiguous(names)) = pick(&NAMES, "a") else {
            unreachable!("three begin so")
        };
        assert_eq!(names.len(), 3);
    }
}
