//! `cargo xtask install` and `uninstall`: the programs, the guest image and the configuration below a prefix.
//!
//! What was written is recorded there, so that it is exactly this that is removed. Must not touch `/etc`: what is there is
//! the administrator's.

mod layout;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use crate::deps::{self, Purpose};
use crate::program::Program;
use crate::{Workspace, guest};
use layout::{File, Layout};

/// Build, and install below a prefix.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// Where an installation is.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Absolute directory that the installed programs know as theirs.
    #[arg(long, default_value = "/usr/local")]
    prefix: PathBuf,
    /// Directory that stands for `/` while a package is built.
    #[arg(long, default_value = "")]
    destdir: PathBuf,
}

impl Place {
    /// The installation there, whether or not it exists.
    ///
    /// # Errors
    /// The prefix is not absolute.
    pub fn layout(self) -> Result<Layout> {
        Layout::new(self.prefix, &self.destdir)
    }
}

/// Builds what is not up to date, and installs it.
///
/// # Errors
/// A part can't be built or written.
pub fn run(args: Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let layout = args.place.layout()?;
    deps::packages(&[Purpose::Build])?;
    deps::tools(&workspace, deps::DAEMONS)?;
    guest::build(&workspace, None, false)?;
    workspace.build_programs()?;
    let mut files = files(&workspace, layout.prefix())?;
    let pages = tempfile::tempdir().context("create a directory for the manual")?;
    files.extend(described(&workspace, pages.path())?);
    layout.install(&files)?;
    for file in &files {
        println!("{}", layout.prefix().join(&file.to).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Directories of the template's paths, relative to its prefix, and so to ours.
const IMAGE: &str = "share/kata";
const DAEMONS: &str = "libexec/kata";

/// Everything that is installed.
fn files(workspace: &Workspace, prefix: &Path) -> Result<Vec<File>> {
    let (release, tools, image) = (
        workspace.target().join("release"),
        workspace.tools().join("bin"),
        workspace.guest(),
    );
    let program = |to, directory: &Path, name| File::copy(to, 0o755, directory.join(name));
    let data = |to, name| File::copy(to, 0o644, image.join(name));
    let template = workspace.root().join("configuration/configuration.toml");
    let template = fs::read_to_string(&template).with_context(|| format!("read {}", template.display()))?;
    Ok(vec![
        program("bin/containerd-shim-kata-v2", &release, "containerd-shim-kata-v2"),
        program("bin/kata-runtime", &release, "kata-runtime"),
        // It is looked for beside the runtime.
        program("bin/kata-standin", &release, "kata-standin"),
        program("libexec/kata/virtiofsd", &tools, "virtiofsd"),
        program("libexec/kata/vhost-device-vsock", &tools, "vhost-device-vsock"),
        data("share/kata/vmlinux", "vmlinux"),
        data("share/kata/initrd.img", "initrd.img"),
        // It is looked for beside the initramfs.
        data("share/kata/iptables.img", "iptables.img"),
        data("share/kata/manifest.json", "manifest.json"),
        File::text(
            "share/defaults/kata-containers/configuration.toml",
            rewrite(&template, prefix)?,
        ),
    ])
}

/// What the program says of itself: completions where each shell looks for them, and the pages of the manual, which are written
/// below `pages`.
fn described(workspace: &Workspace, pages: &Path) -> Result<Vec<File>> {
    let program = || Program::new(workspace.target().join("release/kata-runtime"));
    let mut files = Vec::new();
    for (shell, to) in [
        ("bash", "share/bash-completion/completions/kata-runtime"),
        ("zsh", "share/zsh/site-functions/_kata-runtime"),
        ("fish", "share/fish/vendor_completions.d/kata-runtime.fish"),
    ] {
        let text = program().args(["completions", shell]).read()?;
        files.push(File::text(to, text));
    }
    program()
        .args(["manual".as_ref(), "--into".as_ref(), pages.as_os_str()])
        .run()?;
    let entries = fs::read_dir(pages).with_context(|| format!("read {}", pages.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.context("a page has a name")?.to_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        files.push(File::text(&format!("share/man/man8/{name}"), text));
    }
    files.sort_by(|one, other| one.to.cmp(&other.to));
    Ok(files)
}

/// The template with the paths of what we install. Pure.
fn rewrite(template: &str, prefix: &Path) -> Result<String> {
    let prefix = prefix.to_str().context("the prefix is not UTF-8")?;
    ensure!(
        !prefix.contains(['"', '\\']) && !prefix.contains(char::is_control),
        "the prefix {prefix:?} cannot be written in the configuration"
    );
    let mut text = template.to_owned();
    for directory in [IMAGE, DAEMONS] {
        // The template has the paths of a distribution's package.
        let (old, new) = (format!("\"/usr/{directory}/"), format!("\"{prefix}/{directory}/"));
        ensure!(
            text.contains(&old),
            "the template names nothing in /usr/{directory}: nothing would find what is installed"
        );
        text = text.replace(&old, &new);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = r#"
kernel = "/usr/share/kata/vmlinux"
path = "/usr/bin/qemu-system-x86_64"
# virtio_fs_daemon = "/usr/libexec/kata/virtiofsd"
"#;

    #[test]
    fn the_configuration_names_what_is_installed() {
        let text = rewrite(TEMPLATE, Path::new("/opt/kata")).unwrap();
        assert_eq!(
            text,
            r#"
kernel = "/opt/kata/share/kata/vmlinux"
path = "/usr/bin/qemu-system-x86_64"
# virtio_fs_daemon = "/opt/kata/libexec/kata/virtiofsd"
"#
        );
        assert_eq!(rewrite(TEMPLATE, Path::new("/usr")).unwrap(), TEMPLATE);
    }

    #[test]
    fn what_would_not_work_is_refused() {
        assert!(rewrite("kernel = \"/elsewhere/vmlinux\"\n", Path::new("/opt")).is_err());
        assert!(rewrite(TEMPLATE, Path::new("/opt/\"")).is_err());
    }
}
