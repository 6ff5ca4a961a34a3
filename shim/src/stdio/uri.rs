//! The addresses of standard streams, as containerd's clients write them. Pure.
//!
//! Empty: nothing. A path, or `fifo://`: a named pipe. `file://`: a file that is appended to. `binary://`: a program that
//! takes the output; the query holds its arguments.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use runtime::error::Result;
use runtime::{Error, ErrorKind};

/// Streams as a request names them; State repeats them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    /// The process gets a terminal.
    pub terminal: bool,
    /// Address of its input.
    pub stdin: String,
    /// Address of its output.
    pub stdout: String,
    /// Address of its error output.
    pub stderr: String,
}

/// Streams, understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The process gets a terminal.
    pub terminal: bool,
    /// A named pipe.
    pub stdin: Option<PathBuf>,
    /// Where output goes.
    pub outputs: Outputs,
}

/// Where output goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Outputs {
    /// To named pipes.
    Fifos {
        /// Its output.
        stdout: Option<PathBuf>,
        /// Its error output.
        stderr: Option<PathBuf>,
    },
    /// Both to one file.
    File(PathBuf),
    /// Both to a program.
    Logger(Program),
}

/// A program that takes output.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Streams {
    /// Understands the addresses.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], naming the stream and its address.
    pub fn parse(&self) -> Result<Wanted> {
        let outputs = match split(&self.stdout) {
            // Whatever is said of the error output then: it goes where the output goes.
            Address::Scheme("file", rest) => {
                Outputs::File(absolute(decode(rest)).ok_or_else(|| bad("stdout", &self.stdout))?)
            }
            Address::Scheme("binary", rest) => {
                Outputs::Logger(program(rest).ok_or_else(|| bad("stdout", &self.stdout))?)
            }
            _ => Outputs::Fifos {
                stdout: fifo("stdout", &self.stdout)?,
                stderr: if self.terminal {
                    None
                } else {
                    fifo("stderr", &self.stderr)?
                },
            },
        };
        Ok(Wanted {
            terminal: self.terminal,
            stdin: fifo("stdin", &self.stdin)?,
            outputs,
        })
    }
}

enum Address<'a> {
    None,
    Path(&'a str),
    Scheme(&'a str, &'a str),
}

fn split(address: &str) -> Address<'_> {
    if address.is_empty() {
        return Address::None;
    }
    match address.split_once("://") {
        Some((scheme, rest)) if !address.starts_with('/') => Address::Scheme(scheme, rest),
        _ => Address::Path(address),
    }
}

fn fifo(stream: &str, address: &str) -> Result<Option<PathBuf>> {
    let path = match split(address) {
        Address::None => return Ok(None),
        Address::Path(path) => absolute(path.into()),
        Address::Scheme("fifo", rest) => absolute(decode(rest)),
        Address::Scheme(..) => None,
    };
    path.map(Some).ok_or_else(|| bad(stream, address))
}

fn bad(stream: &str, address: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!(
            "{stream} {address:?} is not supported: it must be the absolute path of a named pipe or fifo:///path{}",
            if stream == "stdout" {
                ", file:///path or binary:///path"
            } else {
                ""
            }
        ),
    )
}

fn absolute(path: OsString) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    // A NUL would cut the path.
    let whole = !path.as_os_str().as_encoded_bytes().contains(&0);
    (path.is_absolute() && whole).then_some(path)
}

/// A program and, in the query, its arguments: `k=v&w` are `k`, `v`, `w` and an empty one.
fn program(rest: &str) -> Option<Program> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut args: Vec<OsString> = Vec::new();
    let mut names = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| decode(&text.replace('+', " "));
        let name = plain(name);
        // Only the first value of a name counts, as with containerd.
        if !names.contains(&name) {
            args.extend([name.clone(), plain(value)]);
            names.push(name);
        }
    }
    Some(Program {
        path: absolute(decode(path))?,
        args,
    })
}

/// Undoes percent-encoding. What is not well formed stays as it is.
fn decode(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        match rest {
            [b'%', high, low, tail @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = tail;
            }
            [byte, tail @ ..] => {
                bytes.push(*byte);
                rest = tail;
            }
            [] => return OsString::from_vec(bytes),
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn streams(stdin: &str, stdout: &str, stderr: &str) -> Streams {
        Streams {
            terminal: false,
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    fn fifos(stdout: Option<&str>, stderr: Option<&str>) -> Outputs {
        Outputs::Fifos {
            stdout: stdout.map(PathBuf::from),
            stderr: stderr.map(PathBuf::from),
        }
    }

    #[test]
    fn every_form_is_understood() {
        let logger = |args: &[&str]| {
            Outputs::Logger(Program {
                path: "/bin/a b".into(),
                args: args.iter().map(OsString::from).collect(),
            })
        };
        for (stdout, stderr, expected) in [
            ("", "", fifos(None, None)),
            ("/f/out", "/f/err", fifos(Some("/f/out"), Some("/f/err"))),
            ("fifo:///f/out", "", fifos(Some("/f/out"), None)),
            ("", "/f/%41://", fifos(None, Some("/f/%41://"))),
            ("file:///l/a%20b", "/f/err", Outputs::File("/l/a b".into())),
            ("binary:///bin/a%20b", "", logger(&[])),
            (
                "binary:///bin/a%20b?k=v&x+y=%2F1&k=w&flag",
                "",
                logger(&["k", "v", "x y", "/1", "flag", ""]),
            ),
        ] {
            let wanted = streams("", stdout, stderr).parse().unwrap();
            assert_eq!(wanted.outputs, expected, "{stdout:?} {stderr:?}");
        }
        let wanted = streams("/f/in", "", "").parse().unwrap();
        assert_eq!(wanted.stdin, Some("/f/in".into()));
    }

    #[test]
    fn a_terminal_has_one_output() {
        let streams = Streams {
            terminal: true,
            ..streams("/f/in", "/f/out", "whatever")
        };
        assert_eq!(streams.parse().unwrap().outputs, fifos(Some("/f/out"), None));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (stdin, stdout, stderr, part) in [
            ("in", "", "", "stdin \"in\""),
            ("file:///in", "", "", "stdin \"file:///in\""),
            ("", "npipe:////./pipe/x", "", "stdout \"npipe"),
            ("", "ttrpc+unix:///run/s?stream_id=1", "", "stdout \"ttrpc+unix"),
            ("", "file://relative", "", "stdout \"file://relative\""),
            ("", "binary://", "", "stdout \"binary://\""),
            ("", "/out", "binary:///x", "stderr \"binary:///x\""),
            ("", "/a\0b", "", "stdout"),
            ("", "file:///a%00b", "", "stdout"),
        ] {
            let error = streams(stdin, stdout, stderr).parse().unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.context.starts_with(part), "{error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_absolute(address in "(binary|file|fifo)?(://)?/?[a-z%0-9?=&+/]{0,20}") {
            if let Ok(wanted) = streams("", &address, "").parse() {
                match wanted.outputs {
                    Outputs::Fifos { stdout, .. } => prop_assert!(stdout.is_none_or(|path| path.is_absolute())),
                    Outputs::File(path) => prop_assert!(path.is_absolute()),
                    Outputs::Logger(program) => prop_assert!(program.path.is_absolute()),
                }
            }
        }

        #[test]
        fn decoding_undoes_encoding(text in "\\PC{0,20}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&encoded), OsString::from(text));
        }
    }
}
