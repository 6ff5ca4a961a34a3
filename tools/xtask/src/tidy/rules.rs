//! The rules that need syntax: unsafe code, pure modules, macros, sleeps, functions' lengths, modules' names. Pure.

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Safety, Signature, UseTree};

use super::Violation;
use super::source::{Source, is_for_tests};

/// Longer functions do more than one thing. Those of tests may have a long table.
const LONGEST_FUNCTION: usize = 100;

/// Files and directories that neither wait nor touch the system, so that their tests need no machine. A file elsewhere
/// joins them by the word `Pure.` in its documentation.
const PURE: &[&str] = &[
    "src/guest.rs",
    "src/model/",
    "src/oci/",
    "src/plan/",
    "src/sandbox/state.rs",
];

/// What a pure file does not name.
const SYSTEM: &[&str] = &["tokio", "std::fs", "std::process", "std::net", "std::thread"];

/// What the runtime's pure files do not name either. Elsewhere their flags and numbers are plain data.
const SYSTEM_CALLS: &[&str] = &["nix", "rustix", "libc"];

/// Macros of unfinished code. What else may panic is clippy's to find.
const UNFINISHED: &[&str] = &["dbg", "panic", "todo", "unimplemented"];

/// Pauses that stand for no condition. Each has its reason in a comment at the place.
const SLEEPS: &[&str] = &[
    // Between attempts to reach a host that is not there.
    "agent/src/dial/mod.rs",
    // Between looks at the lock of an owner that is dead.
    "src/host/home.rs",
    // Between looks at a socket, of which the kernel does not tell that it is listened on.
    "src/host/ready.rs",
    "hypervisor/src/rest/appear.rs",
    // A pause that bounds the rate of an event.
    "src/sandbox/owner/news.rs",
    // Until descriptors may be free again.
    "src/admin/mod.rs",
    "src/engine/link.rs",
    "src/sandbox/forward.rs",
    // Between looks at a lock: a thread that waits for one in the kernel would not heed its deadline.
    "src/factory/lock.rs",
    // Until descriptors may be free again, and until it is time for another attempt, beside everything else.
    "src/factory/cache/server.rs",
    // Until more may be logged of a console that floods.
    "hypervisor/src/supervisor.rs",
];

/// Checks one file.
pub fn check(source: &Source) -> Vec<Violation> {
    let says_pure = source.syntax.attrs.iter().any(claims_purity);
    let is_listed = PURE.iter().any(|place| source.path.starts_with(place));
    let mut walk = Walk {
        path: &source.path,
        in_test: source.is_test,
        in_sys: source
            .path
            .split('/')
            .any(|name| name == "sys" || name == "sys.rs"),
        forbidden: match (is_listed, says_pure) {
            (true, _) => &[SYSTEM, SYSTEM_CALLS],
            (false, true) => &[SYSTEM],
            (false, false) => &[],
        },
        may_sleep: SLEEPS.contains(&source.path.as_str()),
        violations: Vec::new(),
    };
    walk.visit_file(&source.syntax);
    walk.violations
}

/// Whether a line of documentation has the word.
fn claims_purity(attribute: &Attribute) -> bool {
    let syn::Meta::NameValue(meta) = &attribute.meta else {
        return false;
    };
    let syn::Expr::Lit(syn::ExprLit {
        lit: syn::Lit::Str(text),
        ..
    }) = &meta.value
    else {
        return false;
    };
    let text = text.value();
    meta.path.is_ident("doc") && (text.contains("Pure.") || text.contains("Pure:"))
}

struct Walk<'a> {
    path: &'a str,
    in_test: bool,
    in_sys: bool,
    /// Lists of names that must not appear.
    forbidden: &'static [&'static [&'static str]],
    may_sleep: bool,
    violations: Vec<Violation>,
}

impl Walk<'_> {
    fn add(&mut self, at: Span, message: impl Into<String>) {
        self.violations.push(Violation {
            path: self.path.into(),
            line: at.start().line,
            message: message.into(),
        });
    }

    /// Goes on below an item, which may be for tests only.
    fn below(&mut self, attributes: &[Attribute], go_on: impl FnOnce(&mut Self)) {
        let outside = self.in_test;
        self.in_test |= is_for_tests(attributes);
        go_on(self);
        self.in_test = outside;
    }

    fn function(&mut self, signature: &Signature, attributes: &[Attribute], whole: Span) {
        if matches!(signature.safety, Safety::Unsafe(_)) {
            self.unsafe_code(signature.ident.span());
        }
        let is_test = self.in_test || is_for_tests(attributes);
        let lines = whole.end().line - signature.span().start().line + 1;
        if lines > LONGEST_FUNCTION && !is_test {
            let name = &signature.ident;
            self.add(
                name.span(),
                format!("{name} has {lines} lines, more than {LONGEST_FUNCTION}: split it"),
            );
        }
    }

    fn unsafe_code(&mut self, at: Span) {
        if !self.in_sys {
            self.add(at, "unsafe code is for modules named `sys`");
        }
    }

    fn names(&mut self, path: &str, at: Span) {
        if self.in_test {
            return;
        }
        let path = path.trim_start_matches("::");
        for name in self.forbidden.iter().copied().flatten() {
            if path
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            {
                self.add(at, format!("this file is pure: it must not use {name}"));
            }
        }
    }

    fn uses(&mut self, before: &str, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.uses(&format!("{before}{}::", path.ident), &path.tree),
            UseTree::Name(name) if name.ident == "self" => {
                self.names(before.trim_end_matches(':'), name.ident.span());
            }
            UseTree::Name(name) => self.names(&format!("{before}{}", name.ident), name.ident.span()),
            UseTree::Rename(rename) => self.names(&format!("{before}{}", rename.ident), rename.ident.span()),
            UseTree::Glob(glob) => self.names(before.trim_end_matches(':'), glob.span()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.uses(before, tree)),
        }
    }

    fn call(&mut self, name: &str, at: Span) {
        if ["sleep", "sleep_until"].contains(&name) && !self.in_test && !self.may_sleep {
            self.add(
                at,
                "a sleep stands for no condition: wait for what is meant, with a deadline",
            );
        }
    }

    fn calls_macro(&mut self, name: &str, at: Span) {
        if UNFINISHED.contains(&name) && !self.in_test {
            self.add(at, format!("{name}! is for tests"));
        }
    }

    /// The arguments of a macro, whose syntax only the macro knows.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        for (index, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(ident) if ident == "unsafe" => self.unsafe_code(ident.span()),
                TokenTree::Ident(ident) => match tokens.get(index + 1) {
                    Some(TokenTree::Punct(mark)) if mark.as_char() == '!' => {
                        self.calls_macro(&ident.to_string(), ident.span());
                    }
                    Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {
                        self.call(&ident.to_string(), ident.span());
                    }
                    _ => {}
                },
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.below(&item.attrs, |walk| visit::visit_item_mod(walk, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.attrs, item.span());
        self.below(&item.attrs, |walk| visit::visit_item_fn(walk, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.attrs, item.span());
        self.below(&item.attrs, |walk| visit::visit_impl_item_fn(walk, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.function(&item.sig, &item.attrs, item.span());
        self.below(&item.attrs, |walk| visit::visit_trait_item_fn(walk, item));
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.unsafety.is_some() {
            self.unsafe_code(item.span());
        }
        self.below(&item.attrs, |walk| visit::visit_item_impl(walk, item));
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.unsafe_code(item.span());
        visit::visit_item_foreign_mod(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.unsafe_code(block.unsafe_token.span());
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.below(&item.attrs, |walk| walk.uses("", &item.tree));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        self.names(&names.join("::"), path.span());
        visit::visit_path(self, path);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let syn::Expr::Path(path) = &*call.func
            && let Some(last) = path.path.segments.last()
        {
            self.call(&last.ident.to_string(), last.span());
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if let Some(last) = call.path.segments.last() {
            self.calls_macro(&last.ident.to_string(), last.span());
        }
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str, text: &str) -> String {
        let sources = Source::parse_all(&[(path.into(), text.into())]).unwrap();
        check(&sources[0])
            .iter()
            .map(|violation| format!("{violation}\n"))
            .collect()
    }

    fn long_function() -> String {
        format!("fn long() {{\n{}}}", "\n".repeat(LONGEST_FUNCTION))
    }

    #[test]
    fn what_keeps_the_rules_is_silent() {
        for (path, text) in [
            (
                "src/a/sys.rs",
                "fn f() { unsafe { g() } } unsafe impl Send for A {}",
            ),
            ("src/a/sys/b.rs", "fn f() { unsafe { g() } }"),
            ("src/io.rs", "use tokio::fs; fn f() { std::process::exit(1) }"),
            (
                "src/plan/mod.rs",
                "use std::path::Path; use nixon::fs; fn f() { crate::tokio() }",
            ),
            (
                "src/plan/a.rs",
                "#[cfg(test)] mod tests { use std::fs; #[test] fn f() { panic!() } }",
            ),
            (
                "src/a.rs",
                "#[tokio::test] async fn f() { sleep(SECOND).await; todo!() }",
            ),
            ("src/a.rs", &format!("#[test] {}", long_function())),
            ("agent/src/a.rs", "//! Pure.\nuse nix::sched::CloneFlags;"),
            ("tests/a.rs", "fn f() { std::thread::sleep(SECOND); panic!() }"),
            ("agent/src/dial/mod.rs", "fn f() { sleep_until(next) }"),
        ] {
            assert_eq!(said(path, text), "", "{path}: {text}");
        }
    }

    #[test]
    fn each_rule_can_be_broken() {
        let long = long_function();
        for (path, text, expected) in [
            (
                "src/a.rs",
                "fn f() {\n unsafe { g() } }",
                "src/a.rs:2: unsafe code",
            ),
            ("src/a.rs", "unsafe fn f() {}", "unsafe code"),
            ("src/a.rs", "unsafe impl Send for A {}", "unsafe code"),
            ("src/a.rs", "unsafe extern \"C\" { fn f(); }", "unsafe code"),
            (
                "src/a.rs",
                "fn f() { select! { _ = x => { unsafe { g() } } } }",
                "unsafe code",
            ),
            ("src/a.rs", &long, "long has 102 lines"),
            ("src/a.rs", &format!("impl A {{ {long} }}"), "long has 102 lines"),
            ("src/a.rs", "fn f() { todo!() }", "todo! is for tests"),
            (
                "src/a.rs",
                "fn f() { select! { _ = x => { std::panic!() } } }",
                "panic! is for tests",
            ),
            (
                "src/a.rs",
                "#[cfg(not(test))] fn f() { dbg!(1) }",
                "dbg! is for tests",
            ),
            ("src/a.rs", "fn f() { tokio::time::sleep(SECOND) }", "a sleep"),
            (
                "src/a.rs",
                "fn f() { select! { () = sleep_until(t) => {} } }",
                "a sleep",
            ),
            ("src/plan/mod.rs", "use tokio::sync::mpsc;", "must not use tokio"),
            (
                "src/oci/a.rs",
                "use std::{fmt, fs as files};",
                "must not use std::fs",
            ),
            (
                "src/oci/a.rs",
                "use std::fs::{self, File};",
                "must not use std::fs",
            ),
            ("src/oci/a.rs", "use ::rustix::*;", "must not use rustix"),
            (
                "src/guest.rs",
                "fn f() { ::std::process::exit(1) }",
                "must not use std::process",
            ),
            (
                "src/sandbox/state.rs",
                "fn f(pid: nix::unistd::Pid) {}",
                "must not use nix",
            ),
            (
                "agent/src/a.rs",
                "//! Pure.\nuse std::fs;",
                "must not use std::fs",
            ),
            (
                "agent/src/a.rs",
                "//! Pure: no system.\nfn f() { tokio::spawn(g) }",
                "must not use tokio",
            ),
        ] {
            let said = said(path, text);
            assert!(said.contains(expected), "{path}: {text}: {said:?}");
        }
    }
}
