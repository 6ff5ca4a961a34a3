//! `cargo xtask guest`: the guest image, which is a kernel and an initramfs with our agent as its init.
//!
//! The same inputs give the same bytes. Each choice of a kernel has its own directory below `target/guest`; the image that
//! tests, runs and installations use is the default one, `target/guest/{vmlinux,initrd.img,manifest.json}`.

mod agent;
pub mod alone;
mod compression;
mod debian;
mod image;
mod initramfs;
mod kernel;
mod kit;
mod modules;
mod source;
mod vmlinux;

use std::process::ExitCode;

use anyhow::Result;

use crate::Workspace;
use crate::deps::{self, Purpose};
use kernel::Choice;

/// Build the guest's kernel and initramfs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the kernel comes from: `debian` (its cloud kernel), `source` (Debian's source, our configuration), or the
    /// path of a vmlinux or bzImage with everything built in. Without it: what is the default, at first `debian`.
    #[arg(long, value_parser = Choice::parse)]
    kernel: Option<Choice>,

    /// Make this image the default.
    #[arg(long)]
    default: bool,
}

/// Builds what is not up to date.
///
/// # Errors
/// A part is missing or can't be built.
pub fn run(args: Args) -> Result<ExitCode> {
    build(&Workspace::here(), args.kernel, args.default)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the image for `choice` and makes it the default if told to, or if it is the first.
///
/// # Errors
/// A part is missing or can't be built.
pub fn build(workspace: &Workspace, choice: Option<Choice>, make_default: bool) -> Result<()> {
    deps::packages(&[Purpose::Build])?;
    let choice = match choice {
        Some(choice) => choice,
        None => image::default_choice(workspace)?,
    };
    let kernel = choice.provide(workspace)?;
    let agent = agent::build(workspace)?;
    let directory = image::build(workspace, &choice, &kernel, &agent)?;
    // One that is already may have files that it had not when it became it.
    if make_default || image::may_be_default(workspace, &directory) {
        image::set_default(workspace, &directory)?;
    }
    Ok(())
}
