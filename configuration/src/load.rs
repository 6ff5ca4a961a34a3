//! Loading: search, read, parse, merge, validate.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::search::{self, Named, Source};
use crate::tree::{self, Place, Table};
use crate::{Config, Effective, effective, validate};

impl Config {
    /// Finds, reads, merges and validates the configuration. `options` is the file that the caller's runtime options name
    /// (containerd's ConfigPath), `environment` the value of `KATA_CONF_FILE`.
    ///
    /// It is the first of `environment`, `options` and [`Config::places`]. A file that is named and missing is an error,
    /// and so is one that exists and can't be read; an empty name is none. On it are laid the files `config.d/*.toml`
    /// beside it (beside the link, if it is one), in the order of their names: tables merge, other values replace.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn load(options: Option<&Path>, environment: Option<&Path>) -> Result<Self, Error> {
        Self::load_from(options, environment, &Self::places())
    }

    /// The same, with other `places` in which to look.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn load_from(
        options: Option<&Path>,
        environment: Option<&Path>,
        places: &[PathBuf],
    ) -> Result<Self, Error> {
        let sources = search::read(Named { environment, options }, places)?;
        from_sources(&sources, Host::read()).map(|(config, _)| config)
    }

    /// The same as [`Self::load`], with the value of each key and where it comes from.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn explained(
        options: Option<&Path>,
        environment: Option<&Path>,
    ) -> Result<(Self, Vec<Effective>), Error> {
        let sources = search::read(Named { environment, options }, &Self::places())?;
        let (config, whole) = from_sources(&sources, Host::read())?;
        let effective = effective::list(&config, &whole);
        Ok((config, effective))
    }

    /// What an empty file says: the built-in defaults, for QEMU.
    ///
    /// # Errors
    /// None, unless this crate is broken.
    pub fn defaults() -> Result<Self, Error> {
        from_sources(&[], Host::read()).map(|(config, _)| config)
    }

    /// Where the configuration is looked for if nobody names it, first to last: `/etc/kata-containers`, and
    /// `share/defaults/kata-containers` below the prefix of the running program, below `/usr` and below `/usr/local`.
    pub fn places() -> Vec<PathBuf> {
        search::places(env::current_exe().ok().as_deref())
    }
}

/// Merges texts, and validates.
pub(crate) fn from_sources(sources: &[Source], host: Host) -> Result<(Config, Table), Error> {
    let mut given = Table::new();
    for (order, source) in (1..).zip(sources) {
        let name: Arc<str> = source.path.display().to_string().into();
        let place = |line| Place::File {
            order,
            name: Arc::clone(&name),
            line,
        };
        let table = tree::parse(&source.text, &place).map_err(|error| {
            let tree::SyntaxError {
                line,
                column,
                message,
                excerpt,
            } = error;
            let problem = format!("{name}:{line}:{column}: not TOML: {message}, in {excerpt:?}");
            Error::new(ErrorKind::Invalid, problem)
        })?;
        tree::merge(&mut given, table);
    }
    let sources = sources.iter().map(|source| source.path.clone()).collect();
    validate::config(given, sources, host)
}
