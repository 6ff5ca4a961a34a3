//! A small kernel of our own configuration, from Debian's source package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::debian;
use super::kernel::Kernel;
use crate::deps::{self, Purpose};
use crate::program::Program;
use crate::{Workspace, digest};

/// The long-term release that Debian 12 (security) and Debian 13 have.
const PACKAGE: &str = "linux-source-6.12";

/// What no kernel of the same source and configuration should differ in.
const REPRODUCIBLE: &[(&str, &str)] = &[
    ("KBUILD_BUILD_TIMESTAMP", "@0"),
    ("KBUILD_BUILD_USER", "kata"),
    ("KBUILD_BUILD_HOST", "kata"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// Compiles the kernel, unless that was done with this configuration.
///
/// # Errors
/// The source can't be had, the configuration does not hold, or the build failed.
pub fn build(workspace: &Workspace) -> Result<Kernel> {
    let directory = workspace.guest().join("linux");
    let kernel = Kernel {
        image: directory.join("build/vmlinux"),
        modules: None,
    };
    let fragment = workspace.recipes().join("kernel.config");
    let done = directory.join("done");
    let recipe = format!("{PACKAGE} {}\n", digest::of_file(&fragment)?);
    if kernel.image.is_file() && fs::read_to_string(&done).is_ok_and(|old| old == recipe) {
        return Ok(kernel);
    }
    deps::packages(&[Purpose::KernelSource])?;
    let source = source(workspace, &directory)?;
    configure(&source, &fragment, &directory.join("build"))?;
    eprintln!("guest: compiling the kernel; this takes about four minutes on two processors");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    make(&source, &directory.join("build"))
        .args([format!("-j{jobs}").as_str(), "vmlinux"])
        .nice()
        .run()?;
    fs::write(&done, recipe).with_context(|| format!("write {}", done.display()))?;
    Ok(kernel)
}

/// The unpacked source, which appears only when it is complete.
fn source(workspace: &Workspace, directory: &Path) -> Result<PathBuf> {
    let source = directory.join(PACKAGE);
    if source.exists() {
        return Ok(source);
    }
    let archive = debian::content(workspace, PACKAGE)?.join(format!("usr/src/{PACKAGE}.tar.xz"));
    eprintln!("guest: unpacking {}", archive.display());
    let partial = directory.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    Program::new("tar")
        .args(["--extract", "--strip-components=1", "--file"])
        .args([archive.as_os_str(), "--directory".as_ref(), partial.as_os_str()])
        .nice()
        .run()?;
    fs::rename(&partial, &source).with_context(|| format!("move to {}", source.display()))?;
    Ok(source)
}

/// Writes the build's configuration: the smallest there is, and our fragment over it.
fn configure(source: &Path, fragment: &Path, build: &Path) -> Result<()> {
    fs::create_dir_all(build)?;
    make(source, build).args(["tinyconfig"]).run()?;
    let config = build.join(".config");
    Program::new(source.join("scripts/kconfig/merge_config.sh"))
        .args(["-m".as_ref(), "-O".as_ref(), build.as_os_str()])
        .args([&config, fragment])
        .dir(source)
        // It tells every option that the fragment changes, which is what it is for.
        .read()?;
    make(source, build).args(["olddefconfig"]).run()?;
    let wanted = fs::read_to_string(fragment)?;
    let undone = undone(&wanted, &fs::read_to_string(&config)?);
    ensure!(
        undone.is_empty(),
        "{}: the kernel's rules undo these options: {}",
        fragment.display(),
        undone.join(", ")
    );
    Ok(())
}

fn make(source: &Path, build: &Path) -> Program {
    let variables = REPRODUCIBLE.iter().map(|(name, value)| format!("{name}={value}"));
    Program::new("make")
        .args(["--silent".into(), format!("O={}", build.display())])
        .args(variables)
        .dir(source)
}

/// Lines of `fragment` that do not hold in `config`. Pure.
fn undone<'f>(fragment: &'f str, config: &str) -> Vec<&'f str> {
    let config: Vec<&str> = config.lines().collect();
    let holds = |line: &str| match line
        .strip_prefix("# ")
        .and_then(|rest| rest.strip_suffix(" is not set"))
    {
        Some(option) => !config
            .iter()
            .any(|other| other.starts_with(&format!("{option}="))),
        None => config.contains(&line),
    };
    fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_") || line.starts_with("# CONFIG_"))
        .filter(|line| !holds(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_were_undone_are_found() {
        let fragment = "# A comment.\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_N=64\n# CONFIG_C is not set\n# CONFIG_D is not set\n";
        for (config, expected) in [
            (
                "CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=64\n# CONFIG_C is not set\n",
                &[][..],
            ),
            ("CONFIG_A=y\nCONFIG_BB=y\nCONFIG_N=64\n", &["CONFIG_B=y"]),
            ("CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=8\n", &["CONFIG_N=64"]),
            (
                "CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=64\nCONFIG_D=y\nCONFIG_CC=y\n",
                &["# CONFIG_D is not set"],
            ),
        ] {
            assert_eq!(undone(fragment, config), expected, "{config}");
        }
    }
}
