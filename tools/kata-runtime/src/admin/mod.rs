//! The administrator's verbs on sandboxes that run, whoever has started them. One verb, or one kind of them, per file.

pub mod console;
pub mod find;
pub mod gc;
pub mod inspect;
pub mod logs;
pub mod metrics;
pub mod ps;
pub mod rules;
pub mod stats;
pub mod volume;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use configuration::Config;
use runtime::admin::Survey;

/// Form of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Where sandboxes are looked for.
#[derive(Debug, Default, clap::Args)]
pub struct Place {
    /// Directory of the sandboxes. Without it: `run_dir` of the configuration.
    #[arg(long, value_name = "DIRECTORY")]
    run_dir: Option<PathBuf>,
}

impl Place {
    /// The directory.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn run_dir(&self, load: impl FnOnce() -> Result<Config, configuration::Error>) -> Result<PathBuf> {
        match &self.run_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(load()?.runtime.run_dir),
        }
    }

    /// What there is in it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn survey(&self, load: impl FnOnce() -> Result<Config, configuration::Error>) -> Result<Survey> {
        Ok(Survey::take(&self.run_dir(load)?)?)
    }
}

/// Waits for what sandboxes are asked.
///
/// # Errors
/// Its own; there is no event loop to be had.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let done = runtime.block_on(work);
    // Whoever still reads the standard input would hold it up.
    runtime.shutdown_background();
    done
}

/// The whole story of a runtime's error, as one of this program's.
pub fn told(error: runtime::Error) -> anyhow::Error {
    anyhow::anyhow!(error.chain())
}
