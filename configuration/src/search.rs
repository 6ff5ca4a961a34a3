//! Which files are read: the one that the caller names or the first that exists, and the drop-ins beside it. Every read is
//! bounded.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};

/// Largest file. Kata's own, with all their comments, have a tenth of it.
const LARGEST: u64 = 256 << 10;

/// Most drop-ins.
const MOST_DROP_INS: usize = 64;

/// The file's place below a prefix.
const SHARED: &str = "share/defaults/kata-containers/configuration.toml";

/// What the caller was told about where the configuration is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Named<'a> {
    /// By `KATA_CONF_FILE`.
    pub(crate) environment: Option<&'a Path>,
    /// By containerd's runtime options.
    pub(crate) options: Option<&'a Path>,
}

/// A file's text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// Where the configuration is looked for, if nobody names it: the administrator's file, then those of installations, first
/// that of the running `program`.
pub(crate) fn places(program: Option<&Path>) -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from("/etc/kata-containers/configuration.toml")];
    let own = program.and_then(Path::parent).and_then(Path::parent);
    for prefix in own
        .into_iter()
        .chain([Path::new("/usr"), Path::new("/usr/local")])
    {
        let place = prefix.join(SHARED);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// Reads the file that is named, else the first of `places` that exists, and its drop-ins, in the order to be merged.
pub(crate) fn read(named: Named<'_>, places: &[PathBuf]) -> Result<Vec<Source>, Error> {
    let main = main_file(named, places)?;
    let directory = main.path.with_file_name("config.d");
    let mut sources = vec![main];
    for path in drop_ins(&directory)? {
        sources.push(read_file(&path).map_err(|problem| unreadable(&path, &problem))?);
    }
    Ok(sources)
}

fn main_file(named: Named<'_>, places: &[PathBuf]) -> Result<Source, Error> {
    let by = [
        ("KATA_CONF_FILE names", named.environment),
        ("the caller's runtime options name (ConfigPath)", named.options),
    ];
    // An empty name is how both say that there is none.
    for (who, path) in by {
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            continue;
        };
        let shown = path.display();
        if !path.is_absolute() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{who} the configuration {shown}, which is not absolute: write the path from /"),
            ));
        }
        return read_file(path).map_err(|problem| match problem.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::new(
                ErrorKind::NotFound,
                format!("{who} the configuration {shown}, which does not exist: create it, or name another"),
            ),
            _ => unreadable(path, &problem),
        });
    }
    for path in places {
        match read_file(path) {
            Ok(source) => return Ok(source),
            // A link to nowhere was meant to be a configuration.
            Err(problem) if problem.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
                return Err(unreadable(path, &problem));
            }
            Err(problem)
                if matches!(
                    problem.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(problem) => return Err(unreadable(path, &problem)),
        }
    }
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(Error::new(
        ErrorKind::NotFound,
        format!(
            "there is no configuration: none of {} exists; install the program with its configuration, or name one with \
             KATA_CONF_FILE or the runtime options' ConfigPath",
            places.join(", ")
        ),
    ))
}

/// Files of `directory` that end in `.toml`, by name. Hidden ones are editors' leftovers.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(problem) => return Err(unreadable(directory, &problem)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let name = entry
            .map_err(|problem| unreadable(directory, &problem))?
            .file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        let is_toml = name.as_encoded_bytes().ends_with(b".toml");
        if is_toml && !is_hidden {
            paths.push(directory.join(name));
        }
        if paths.len() > MOST_DROP_INS {
            let problem = format!(
                "{} has more than {MOST_DROP_INS} files: merge some",
                directory.display()
            );
            return Err(Error::new(ErrorKind::Unreadable, problem));
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_file(path: &Path) -> io::Result<Source> {
    let refuse = |problem: &str| Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    // Opening a fifo would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return refuse("it is not a regular file");
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return refuse(&format!(
            "it is larger than {} KiB, so it is no configuration",
            LARGEST >> 10
        ));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source {
            path: path.to_owned(),
            text,
        }),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error
                .as_bytes()
                .iter()
                .take(valid)
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            refuse(&format!("line {line} is not UTF-8 text, so it is no TOML"))
        }
    }
}

fn unreadable(path: &Path, problem: &io::Error) -> Error {
    let text = format!("cannot read the configuration {}: {problem}", path.display());
    Error::new(ErrorKind::Unreadable, text)
}
