//! `list`: the containers of this root, and those that others have in virtual machines on this host.

use std::process::ExitCode;

use anyhow::Result;
use runtime::admin::Survey;
use runtime::oci::OCI_VERSION;
use serde_json::{Value, json};

use super::Context;
use super::others::{self, Other};
use super::query::{Form, shown};
use crate::table::table;

/// List containers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How they are printed.
    #[arg(short, long, value_enum, default_value = "table")]
    format: Form,
    /// Only their names.
    #[arg(short, long)]
    quiet: bool,
}

/// Prints the list. `survey`: the sandboxes of this host, if they can be looked for.
///
/// # Errors
/// The root directory cannot be read.
pub fn run(args: &Args, context: &Context, survey: Option<&Survey>) -> Result<ExitCode> {
    let own = context.root.scope()?;
    let mut rows = Vec::new();
    for id in context.root.ids()? {
        // One that is deleted meanwhile is none; one that cannot be asked is no reason to hide the others.
        let Ok(Some(target)) = context.find(id.as_str()) else {
            continue;
        };
        if let Ok(shown) = shown(&target) {
            rows.push(Other {
                scope: own.to_string(),
                shown,
            });
        }
    }
    if let Some(survey) = survey {
        rows.extend(others::all(survey, &own)?);
    }
    if args.quiet {
        rows.iter().for_each(|row| println!("{}", row.shown.id));
    } else if args.format == Form::Json {
        let rows: Vec<Value> = rows.iter().map(json).collect();
        println!("{}", json!(rows));
    } else {
        let rows: Vec<_> = rows.iter().map(row).collect();
        print!(
            "{}",
            table(["ID", "PID", "STATUS", "CREATED", "SCOPE", "BUNDLE"], &rows)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn json(row: &Other) -> Value {
    let Other { scope, shown } = row;
    json!({
        "ociVersion": OCI_VERSION,
        "id": shown.id,
        "pid": shown.pid,
        "status": shown.status,
        "bundle": shown.bundle,
        "rootfs": shown.bundle.join("rootfs"),
        "created": shown.created,
        "annotations": shown.annotations,
        "owner": "",
        "scope": scope,
    })
}

fn row(row: &Other) -> [String; 6] {
    let Other { scope, shown } = row;
    [
        shown.id.clone(),
        shown.pid.to_string(),
        shown.status.clone(),
        shown.created.clone(),
        scope.clone(),
        shown.bundle.display().to_string(),
    ]
}
