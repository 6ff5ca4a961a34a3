//! `gc`: what sandboxes have left whose owners died: processes, mounts, network, cgroups, directories.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use configuration::Config;
use hypervisor::{Hypervisor, registry};
use runtime::admin::Survey;
use runtime::{Sandbox, SandboxId};
use serde_json::{Value, json};
use slog::{Discard, Logger, o};

use super::{Form, Place, block_on};
use crate::table;

/// Show what sandboxes have left whose owner died, or remove it.
///
/// Mostly nothing: the caller of a runtime that died has it cleaned up. Sandboxes whose owner lives are never touched.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// Remove it.
    #[arg(short, long, visible_alias = "yes")]
    force: bool,
    /// How it is shown.
    #[arg(long, value_enum, default_value = "table")]
    format: Form,
}

/// Something that is left.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    /// Scope and id; none where not even that is known.
    name: Option<(SandboxId, SandboxId)>,
    dir: PathBuf,
    /// Its processes that may live yet.
    what: String,
}

/// Shows or removes.
///
/// # Errors
/// The configuration cannot be used. What cannot be removed is shown, and is the exit code.
pub fn run(args: &Args, config: Config, survey: &Survey) -> Result<ExitCode> {
    let left = left(survey);
    let rows = if args.force {
        let driver = registry::driver(
            &config.hypervisor,
            &config.runtime.run_dir,
            Logger::root(Discard, o!()),
        )?;
        block_on(async { Ok(remove(&left, config, &*driver).await) })?
    } else {
        left.iter().map(|left| (left, None)).collect()
    };
    let failed = rows.iter().any(|(_, outcome)| matches!(outcome, Some(Err(_))));
    match args.format {
        Form::Json => println!("{:#}", json!(rows.iter().map(in_json).collect::<Vec<_>>())),
        Form::Table if rows.is_empty() => println!("Nothing is left."),
        Form::Table => {
            print!("{}", printed(&rows));
            if !args.force {
                println!("\nNothing was removed: `kata-runtime gc --force` removes it.");
            }
        }
    }
    Ok(match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

type Row<'a> = (&'a Left, Option<Result<(), String>>);

fn left(survey: &Survey) -> Vec<Left> {
    let dead = survey.sandboxes.iter().filter(|found| !found.alive).map(|found| {
        let mut what: Vec<_> = found.vmm.iter().map(|pid| format!("vmm {pid}")).collect();
        what.extend(found.daemons.iter().map(|(name, pid)| format!("{name} {pid}")));
        Left {
            name: Some((found.scope.clone(), found.id.clone())),
            dir: found.dir.clone(),
            what: match what.as_slice() {
                [] => "its directory".to_owned(),
                what => what.join(", "),
            },
        }
    });
    let bare = survey.bare.iter().map(|dir| Left {
        name: named(dir),
        dir: dir.clone(),
        what: "its directory".to_owned(),
    });
    let unreadable = survey.unreadable.iter().map(|(dir, error)| Left {
        name: named(dir),
        dir: dir.clone(),
        what: error.chain(),
    });
    dead.chain(bare).chain(unreadable).collect()
}

/// Scope and id, as a directory's name tells them.
fn named(dir: &Path) -> Option<(SandboxId, SandboxId)> {
    let (scope, id) = dir.file_name()?.to_str()?.split_once('@')?;
    Some((SandboxId::new(scope).ok()?, SandboxId::new(id).ok()?))
}

async fn remove<'a>(left: &'a [Left], config: Config, driver: &dyn Hypervisor) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for left in left {
        let removed = match &left.name {
            Some((scope, id)) => {
                let mut config = config.clone();
                if let Some(run_dir) = left.dir.parent() {
                    config.runtime.run_dir = run_dir.to_owned();
                }
                Sandbox::clean_up_dead(&config, driver, scope, id)
                    .await
                    .map_err(|error| error.chain())
            }
            None => Err(format!(
                "nothing says whose it is: look at {} and remove it",
                left.dir.display()
            )),
        };
        rows.push((left, Some(removed)));
    }
    rows
}

fn full_name(left: &Left) -> String {
    match &left.name {
        Some((scope, id)) => format!("{scope}/{id}"),
        None => "?".to_owned(),
    }
}

fn outcome(row: &Row<'_>) -> String {
    match &row.1 {
        None => "left".to_owned(),
        Some(Ok(())) => "removed".to_owned(),
        Some(Err(error)) => error.clone(),
    }
}

fn in_json(row: &Row<'_>) -> Value {
    json!({
        "sandbox": full_name(row.0),
        "directory": row.0.dir,
        "what": row.0.what,
        "removed": matches!(row.1, Some(Ok(()))),
        "error": match &row.1 {
            Some(Err(error)) => json!(error),
            _ => Value::Null,
        },
    })
}

fn printed(rows: &[Row<'_>]) -> String {
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            [
                full_name(row.0),
                row.0.dir.display().to_string(),
                row.0.what.clone(),
                outcome(row),
            ]
        })
        .collect();
    table::table(["SANDBOX", "DIRECTORY", "WHAT", "OUTCOME"], &cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_tells_whose_it_is() {
        let (scope, id) = named(Path::new("/run/kata/k8s.io@abc")).unwrap();
        assert_eq!((scope.as_str(), id.as_str()), ("k8s.io", "abc"));
        for dir in ["/run/kata/0123456789abcdef", "/run/kata/@", "/run/kata/a@", "/"] {
            assert_eq!(named(Path::new(dir)), None, "{dir}");
        }
    }

    #[test]
    fn what_a_dead_owner_has_left_is_shown_and_then_removed() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("k8s.io@dead");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("owner"), "1").unwrap();
        let args = |force| Args {
            place: Place::default(),
            force,
            format: Form::Json,
        };
        let mut config = Config::defaults().unwrap();
        config.runtime.run_dir = run.path().to_owned();
        let survey = Survey::take(run.path()).unwrap();
        assert_eq!(left(&survey).len(), 1);
        run_with(&args(false), &config, &survey);
        assert!(dir.exists(), "shown only");
        run_with(&args(true), &config, &survey);
        assert!(!dir.exists(), "removed");
        run_with(&args(true), &config, &Survey::take(run.path()).unwrap());
    }

    fn run_with(args: &Args, config: &Config, survey: &Survey) {
        assert_eq!(run(args, config.clone(), survey).unwrap(), ExitCode::SUCCESS);
    }
}
