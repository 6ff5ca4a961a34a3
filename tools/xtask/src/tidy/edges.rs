//! Which crate may use which. The reasons are in ARCHITECTURE.md; here is the table that decides. Pure.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Violation;

/// Every crate of the workspace, with those of the others that it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("agent", &["agent-protocol", "netlink"]),
    ("agent-client", &["agent-protocol"]),
    ("agent-protocol", &[]),
    ("bench", &["e2e"]),
    ("configuration", &[]),
    // The harness sees the programs as a user does, from outside.
    ("e2e", &[]),
    // What it drives comes to it as functions.
    ("fuzz", &[]),
    ("hypervisor", &["configuration"]),
    ("kata-runtime", &["configuration", "hypervisor", "runtime"]),
    ("netlink", &[]),
    // It is sent into containers.
    ("random-reads", &[]),
    (
        "runtime",
        &[
            "agent-client",
            "agent-protocol",
            "configuration",
            "hypervisor",
            "netlink",
        ],
    ),
    ("shim", &["configuration", "hypervisor", "runtime"]),
    ("xtask", &["bench", "e2e"]),
];

/// What only the tests of a crate may use besides.
const EDGES_OF_TESTS: &[(&str, &[&str])] = &[
    ("agent", &["agent-client", "fuzz"]),
    ("agent-client", &["fuzz"]),
    ("configuration", &["fuzz"]),
    ("hypervisor", &["fuzz"]),
    ("netlink", &["fuzz"]),
    ("runtime", &["fuzz"]),
    ("shim", &["fuzz"]),
];

/// Crates of others that one of ours must not know.
const FORBIDDEN: &[(&str, &[&str])] = &[
    // containerd's types end in the shim.
    ("hypervisor", &["containerd-shim-protos"]),
    ("kata-runtime", &["containerd-shim-protos"]),
    ("runtime", &["containerd-shim-protos"]),
];

/// The part that we need of what `cargo metadata` prints.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for an ordinary one.
    kind: Option<String>,
}

/// Finds edges that are not in the table.
///
/// # Errors
/// `metadata` is not what cargo prints.
pub fn check(metadata: &str) -> Result<Vec<Violation>> {
    let metadata: Metadata = serde_json::from_str(metadata).context("understand cargo metadata")?;
    let ours: BTreeSet<&str> = metadata
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut violations = Vec::new();
    let mut add = |message| {
        violations.push(Violation {
            path: "Cargo.toml".into(),
            line: 0,
            message,
        });
    };
    for package in &metadata.packages {
        let from = package.name.as_str();
        let Some(allowed) = row(EDGES, from) else {
            add(format!(
                "the crate {from} is new: say in tools/xtask/src/tidy/edges.rs what it may use"
            ));
            continue;
        };
        for Dependency { name: to, kind } in &package.dependencies {
            let to = to.as_str();
            let for_tests = kind.as_deref() == Some("dev") && has(EDGES_OF_TESTS, from, to);
            if ours.contains(to) && !allowed.contains(&to) && !for_tests {
                add(format!(
                    "{from} must not use {to}: no such edge is in ARCHITECTURE.md"
                ));
            }
            if has(FORBIDDEN, from, to) {
                add(format!("{from} must not know {to}"));
            }
        }
    }
    Ok(violations)
}

fn row<'a>(table: &'a [(&str, &[&str])], from: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(name, _)| *name == from).map(|(_, row)| *row)
}

fn has(table: &[(&str, &[&str])], from: &str, to: &str) -> bool {
    row(table, from).is_some_and(|row| row.contains(&to))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said about `crates`: name, dependencies (`dev:` before those of tests).
    fn said(crates: &[(&str, &[&str])]) -> String {
        let packages: Vec<_> = crates
            .iter()
            .map(|(name, dependencies)| {
                let dependencies: Vec<_> = dependencies
                    .iter()
                    .map(|to| match to.strip_prefix("dev:") {
                        Some(to) => serde_json::json!({"name": to, "kind": "dev"}),
                        None => serde_json::json!({"name": to, "kind": null}),
                    })
                    .collect();
                serde_json::json!({"name": name, "dependencies": dependencies})
            })
            .collect();
        let violations = check(&serde_json::json!({"packages": packages}).to_string()).unwrap();
        violations.iter().map(ToString::to_string).collect()
    }

    const OURS: &[(&str, &[&str])] = &[
        ("configuration", &["serde"]),
        ("runtime", &["configuration", "tokio"]),
    ];

    fn with(
        name: &'static str,
        dependencies: &'static [&'static str],
    ) -> Vec<(&'static str, &'static [&'static str])> {
        OURS.iter().copied().chain([(name, dependencies)]).collect()
    }

    #[test]
    fn edges_of_the_table_are_free() {
        assert_eq!(said(OURS), "");
        assert_eq!(said(&with("shim", &["runtime", "containerd-shim-protos"])), "");
        assert_eq!(
            said(&[("agent", &["dev:agent-client"]), ("agent-client", &[])]),
            ""
        );
    }

    #[test]
    fn other_edges_are_found() {
        for (name, dependencies, expected) in [
            ("hypervisor", &["runtime"][..], "hypervisor must not use runtime"),
            ("agent", &["configuration"], "agent must not use configuration"),
            ("hypervisor", &["dev:runtime"], "hypervisor must not use runtime"),
            (
                "hypervisor",
                &["containerd-shim-protos"],
                "hypervisor must not know",
            ),
            ("surprise", &[], "surprise is new"),
        ] {
            let said = said(&with(name, dependencies));
            assert!(said.contains(expected), "{name}: {said:?}");
        }
        assert!(said(&[("agent", &["agent-client"]), ("agent-client", &[])]).contains("agent must not use"));
    }
}
