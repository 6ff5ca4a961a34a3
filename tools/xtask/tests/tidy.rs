//! The project keeps its own rules. That each of them can fail is shown beside the rule.

use xtask::{Workspace, tidy};

#[test]
fn the_workspace_is_tidy() {
    let violations = tidy::violations(&Workspace::here()).unwrap();
    let list: String = violations
        .iter()
        .map(|violation| format!("{violation}\n"))
        .collect();
    assert!(violations.is_empty(), "cargo xtask tidy says:\n{list}");
}
