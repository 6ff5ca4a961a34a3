//! `list`: the containers of this root.

use std::process::ExitCode;

use anyhow::Result;
use runtime::oci::OCI_VERSION;
use serde_json::{Value, json};

use super::Context;
use super::query::{Form, shown};

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

/// Prints the list.
///
/// # Errors
/// The root directory cannot be read.
pub fn run(args: &Args, context: &Context) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for id in context.root.ids()? {
        // One that is deleted meanwhile is none; one that cannot be asked is no reason to hide the others.
        let Ok(Some(target)) = context.find(id.as_str()) else {
            continue;
        };
        if let Ok(shown) = shown(&target) {
            rows.push(shown);
        }
    }
    if args.quiet {
        rows.iter().for_each(|row| println!("{}", row.id));
    } else if args.format == Form::Json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "ociVersion": OCI_VERSION,
                    "id": row.id,
                    "pid": row.pid,
                    "status": row.status,
                    "bundle": row.bundle,
                    "rootfs": row.bundle.join("rootfs"),
                    "created": row.created,
                    "annotations": row.annotations,
                    "owner": "",
                })
            })
            .collect();
        println!("{}", json!(rows));
    } else {
        let width = rows.iter().map(|row| row.id.len()).max().unwrap_or(0).max(12);
        println!(
            "{:width$}  {:<9} {:<9} {:<30} BUNDLE",
            "ID", "PID", "STATUS", "CREATED"
        );
        for row in rows {
            println!(
                "{:width$}  {:<9} {:<9} {:<30} {}",
                row.id,
                row.pid,
                row.status,
                row.created,
                row.bundle.display()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
