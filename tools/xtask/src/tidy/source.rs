//! Rust files, parsed, and which of them are compiled for tests only. Pure.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use syn::{Attribute, Item};

/// A parsed Rust file.
pub struct Source {
    /// Relative to the workspace.
    pub path: String,
    /// What is in it.
    pub syntax: syn::File,
    /// Compiled for tests only.
    pub is_test: bool,
}

impl Source {
    /// Parses the Rust files among `files` (path, content).
    ///
    /// # Errors
    /// One is not Rust.
    pub fn parse_all(files: &[(String, String)]) -> Result<Vec<Self>> {
        let mut sources = Vec::new();
        for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
            let syntax = syn::parse_file(text).with_context(|| format!("parse {path}"))?;
            // Cargo's directories for what is no part of the programs.
            let is_test = path
                .split('/')
                .any(|name| ["tests", "benches", "examples"].contains(&name));
            sources.push(Self {
                path: path.clone(),
                syntax,
                is_test,
            });
        }
        let of_tests: BTreeSet<String> = sources.iter().flat_map(Self::modules_for_tests).collect();
        for source in &mut sources {
            let module = source.module();
            source.is_test |= of_tests.iter().any(|test| {
                module == test
                    || module
                        .strip_prefix(test.as_str())
                        .is_some_and(|rest| rest.starts_with('/'))
            });
        }
        Ok(sources)
    }

    /// The file's path as that of a module: `src/a.rs` and `src/a/mod.rs` are `src/a`.
    fn module(&self) -> &str {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        stem.strip_suffix("/mod").unwrap_or(stem)
    }

    /// Modules in files of their own that this file declares for tests only.
    fn modules_for_tests(&self) -> Vec<String> {
        let module = self.module();
        let directory = match module.rsplit_once('/') {
            // The root of a crate is in the directory of its modules.
            Some((directory, "lib" | "main")) => directory,
            _ => module,
        };
        self.syntax
            .items
            .iter()
            .filter_map(|item| match item {
                Item::Mod(item) if item.content.is_none() && is_for_tests(&item.attrs) => {
                    Some(item.ident.to_string())
                }
                _ => None,
            })
            .map(|name| format!("{directory}/{name}"))
            .collect()
    }
}

/// Whether an item has `#[test]`, `#[tokio::test]` or `#[cfg(test)]` (also in an `all`).
pub fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        if path
            .segments
            .last()
            .is_some_and(|segment| segment.ident == "test")
        {
            return true;
        }
        let Ok(list) = attribute.meta.require_list() else {
            return false;
        };
        let condition = list.tokens.to_string();
        path.is_ident("cfg") && (condition == "test" || condition.replace(' ', "").starts_with("all(test"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests_among(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| ((*path).into(), (*text).into()))
            .collect();
        let sources = Source::parse_all(&files).unwrap();
        sources
            .into_iter()
            .filter(|source| source.is_test)
            .map(|source| source.path)
            .collect()
    }

    #[test]
    fn files_for_tests_are_known() {
        let files = [
            ("src/lib.rs", "#[cfg(test)] mod doubles; mod plan;"),
            ("src/doubles.rs", ""),
            ("src/doubles/agent.rs", ""),
            (
                "src/plan/mod.rs",
                "#[cfg(all(test, unix))] mod checks; #[cfg(not(test))] mod real;",
            ),
            ("src/plan/checks.rs", ""),
            ("src/plan/real.rs", ""),
            ("shim/tests/all.rs", ""),
            ("README.md", "no Rust"),
        ];
        let expected = [
            "src/doubles.rs",
            "src/doubles/agent.rs",
            "src/plan/checks.rs",
            "shim/tests/all.rs",
        ];
        assert_eq!(tests_among(&files), expected);
    }

    #[test]
    fn a_file_that_is_not_rust_is_named() {
        let error = Source::parse_all(&[("src/a.rs".into(), "fn {".into())])
            .err()
            .unwrap();
        assert!(error.to_string().contains("src/a.rs"));
    }
}
