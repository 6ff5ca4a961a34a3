//! What files say and what comes of it, without files: texts under names, and a host of four CPUs and 8 GiB.

mod annotations;
mod conflicts;
mod fuzzed;
mod meaning;
mod properties;
mod wrong;

use std::path::Path;

use crate::host::Host;
use crate::load::from_sources;
use crate::search::Source;
use crate::{Config, Error};

/// The host of these tests.
const HOST: Host = Host {
    cpus: 4,
    memory_mib: 8192,
};

/// What a main file `main` and its drop-ins `drop-in-1`, `drop-in-2`… say.
fn load(texts: &[&str]) -> Result<Config, Error> {
    let source = |(number, text): (usize, &&str)| Source {
        path: match number {
            0 => "main".into(),
            _ => Path::new(&format!("drop-in-{number}")).to_owned(),
        },
        text: (*text).to_owned(),
    };
    from_sources(&texts.iter().enumerate().map(source).collect::<Vec<_>>(), HOST).map(|(config, _)| config)
}

/// What a file with one line in a table says.
fn line(table: &str, line: &str) -> Result<Config, Error> {
    load(&[&format!("[{table}]\n{line}\n")])
}

/// The problem of a file that has one.
fn refused(result: Result<Config, Error>) -> String {
    let error = result.expect_err("a wrong configuration");
    assert_eq!(error.problems().count(), 1, "{error}");
    error.to_string()
}
