//! The files of the repository, and the rules that need no syntax: documentation, length, names, paths.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Violation;

/// Longer files are to be split; up to 500 lines is the aim.
const LONGEST_FILE: usize = 600;

/// Names that say nothing about what is in a module.
const EMPTY_NAMES: &[&str] = &[
    "common", "handler", "handlers", "helper", "helpers", "inner", "manager", "misc", "types", "util",
    "utils",
];

/// Directories of the machines on which the project is developed. In two parts, because this file is checked as well.
const PLACES: &[(&str, &str)] = &[
    ("/work", "/main"),
    ("/work", "/shared"),
    ("/work", "/wt"),
    ("/root", "/."),
];

/// All text files of the repository: path relative to `root`, content. Without what is built, and what is hidden but for
/// the directories of the CI and of cargo.
///
/// # Errors
/// A directory or file can't be read.
pub fn files(root: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            let is_hidden = name.starts_with('.') && ![".ci", ".cargo"].contains(&name.as_ref());
            let kind = entry.file_type()?;
            if is_hidden || (name == "target" && directory == root) {
                continue;
            } else if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file()
                && let Ok(text) =
                    String::from_utf8(fs::read(&path).with_context(|| format!("read {}", path.display()))?)
            {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                files.push((relative.display().to_string(), text));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Checks one file.
pub fn check(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut add = |line, message: String| {
        violations.push(Violation {
            path: path.into(),
            line,
            message,
        });
    };
    for (number, line) in (1..).zip(text.lines()) {
        for (parent, rest) in PLACES {
            if line.contains(&format!("{parent}{rest}")) {
                add(number, format!("{parent}{rest} is a directory of one machine"));
            }
        }
    }
    if let Some(stem) = path.strip_suffix(".rs") {
        if !text.trim_start().starts_with("//!") {
            add(
                1,
                "a file begins with `//!`: what it is for, and what it must not know".into(),
            );
        }
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            add(0, format!("{lines} lines are more than {LONGEST_FILE}: split it"));
        }
        for name in stem.split('/').filter(|name| EMPTY_NAMES.contains(name)) {
            add(0, format!("the name {name} says nothing: name what is in it"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str, text: &str) -> String {
        check(path, text)
            .iter()
            .map(|violation| format!("{violation}\n"))
            .collect()
    }

    #[test]
    fn an_ordinary_file_is_fine() {
        assert_eq!(said("src/plan.rs", "//! Plans.\n\nfn plan() {}\n"), "");
        assert_eq!(
            said("docs/common.md", "No Rust: /root and /work are words.\n"),
            ""
        );
    }

    #[test]
    fn each_rule_can_be_broken() {
        let long = format!("//! Long.\n{}", "\n".repeat(LONGEST_FILE));
        for (path, text, expected) in [
            ("src/a.rs", "fn a() {}\n", "src/a.rs:1: a file begins"),
            ("src/a.rs", "// Not a doc.\n", "a file begins"),
            ("src/a.rs", &long, "601 lines"),
            ("src/util.rs", "//! Odds and ends.\n", "the name util"),
            ("src/types/mod.rs", "//! Types.\n", "the name types"),
            (
                "docs/a.md",
                &["see\n/work", "/wt/x"].concat(),
                "docs/a.md:2: /work",
            ),
            ("Makefile", &["x: /root", "/.cargo"].concat(), "one machine"),
        ] {
            let said = said(path, text);
            assert!(said.contains(expected), "{path}: {said:?}");
        }
    }
}
