//! All cases, in the order in which they are run.

mod command;
mod conmon;
mod containerd;
mod docker;
mod exec;
mod files;
mod hooks;
mod life;
mod limits;
mod networks;
mod pods;
mod run;

use anyhow::{Result, ensure};

use crate::suite::Case;

/// The functions of a module as cases. One that is for one runtime alone says which, and why.
macro_rules! cases {
    ($($case:ident $(($runtime:ident: $why:literal))?),+ $(,)?) => {
        pub const CASES: &[$crate::suite::Case] = &[
            $($crate::suite::Case {
                group: module_path!(),
                name: stringify!($case),
                only: $crate::cases::cases!(@only $($runtime $why)?),
                run: $case,
            },)+
        ];
    };
    (@only) => { None };
    (@only $runtime:ident $why:literal) => { Some(($crate::suite::Runtime::$runtime, $why)) };
}
pub(crate) use cases;

/// Every case.
pub fn all() -> Vec<Case> {
    [
        run::CASES,
        exec::CASES,
        life::CASES,
        files::CASES,
        limits::CASES,
        pods::CASES,
        networks::CASES,
        command::CASES,
        hooks::CASES,
        conmon::CASES,
        containerd::CASES,
        docker::CASES,
    ]
    .concat()
}

/// Checks that two texts are the same.
fn same(got: &str, wanted: &str) -> Result<()> {
    ensure!(got == wanted, "{got:?} instead of {wanted:?}");
    Ok(())
}

/// Checks that a text has another one in it.
fn has(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{text:?} has no {part:?}");
    Ok(())
}
