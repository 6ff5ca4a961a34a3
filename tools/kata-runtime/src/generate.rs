//! What is installed beside the program and made from the definition of its command line: completions of shells, and pages of the
//! manual.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

/// The manual's section for the administrator's programs.
const SECTION: &str = "8";

/// Print the completions of a shell.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the pages of the manual into a directory. For the installation.
#[derive(Debug, clap::Args)]
pub struct Manual {
    /// The directory.
    #[arg(long, value_name = "DIRECTORY")]
    into: PathBuf,
}

/// Prints completions.
///
/// # Errors
/// None.
pub fn completions(args: &Completions, mut command: Command) -> Result<ExitCode> {
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

/// Writes the manual.
///
/// # Errors
/// A page cannot be written.
pub fn manual(args: &Manual, command: Command) -> Result<ExitCode> {
    fs::create_dir_all(&args.into).with_context(|| format!("cannot make {}", args.into.display()))?;
    for (name, page) in pages(command)? {
        let path = args.into.join(name);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A page for the program and one for each of its verbs that is shown, and for theirs, by their names.
fn pages(mut command: Command) -> Result<Vec<(String, Vec<u8>)>> {
    command.build();
    let mut pages = vec![(command.get_name().to_owned(), command)];
    let mut next = 0;
    while let Some((name, command)) = pages.get(next).cloned() {
        next += 1;
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            if verb.get_name() != "help" {
                let full = format!("{name}-{}", verb.get_name());
                pages.push((full.clone(), verb.clone().name(full)));
            }
        }
    }
    let page = |(name, command): (String, Command)| {
        let mut text = Vec::new();
        clap_mangen::Man::new(command)
            .section(SECTION)
            .title(name.to_uppercase())
            .render(&mut text)
            .with_context(|| format!("cannot make the page {name}"))?;
        Ok((format!("{name}.{SECTION}"), text))
    };
    pages.into_iter().map(page).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Arguments;

    #[test]
    fn every_verb_has_a_page() {
        let pages = pages(Arguments::command()).unwrap();
        let of = |name: &str| pages.iter().find(|(page, _)| page == name).map(|(_, text)| text);
        for name in [
            "kata-runtime.8",
            "kata-runtime-check.8",
            "kata-runtime-direct-volume.8",
        ] {
            let text = String::from_utf8_lossy(of(name).unwrap()).into_owned();
            assert!(text.contains(".SH NAME"), "{name}: {text}");
            assert!(text.contains(".SH OPTIONS"), "{name}: {text}");
        }
        assert!(
            of("kata-runtime-daemon.8").is_none(),
            "it is for this program itself"
        );
    }

    #[test]
    fn every_shell_knows_the_verbs() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "kata-runtime", &mut text);
            let text = String::from_utf8(text).unwrap();
            for verb in ["check", "direct-volume", "no-stream"] {
                assert!(text.contains(verb), "{shell} does not know {verb}");
            }
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }
}
