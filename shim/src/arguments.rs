//! The command line, in the syntax of Go's `flag` package, which every caller uses. Pure.

use std::ffi::OsString;
use std::path::PathBuf;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Serve the task API on the listening socket that is the standard input.
    Serve,
    /// Start a server, or find the one of the pod, and print its address.
    Start,
    /// Remove what is left of a container.
    Delete,
    /// Print what this runtime is (`-info`).
    Info,
    /// Print the version (`-v`).
    Version,
    /// Print the features of the OCI runtime specification.
    Features,
    /// Print the usage (`-h`).
    Help,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// What is to be done.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// Id of the container, or of the sandbox to serve.
    pub id: String,
    /// Path of the bundle; without one it is the working directory.
    pub bundle: Option<PathBuf>,
    /// containerd's gRPC socket; empty under CRI-O.
    pub address: String,
    /// Program that publishes an event for callers without a ttrpc socket.
    pub publish_binary: String,
    /// Log at debug level.
    pub debug: bool,
}

/// What `-h` prints.
pub const USAGE: &str = "\
containerd-shim-kata-v2: runs containerd's containers in virtual machines. Started by containerd or CRI-O.

usage: containerd-shim-kata-v2 [flags] [start | delete | features]
  -namespace string       containerd's namespace
  -id string              id of the container
  -bundle string          path of its bundle (default: the working directory)
  -address string         containerd's gRPC socket
  -publish-binary string  program that publishes events
  -debug                  log at debug level
  -info                   print the runtime's description, a protobuf message
  -v, -version            print the version
  -h, -help               print this text
";

/// A flag's name and, behind `=`, its value.
struct Flag<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

impl<'a> Flag<'a> {
    /// The flag that an argument is, if it is one. `-` alone is not.
    fn of(argument: &'a str) -> Option<Self> {
        let text = argument.strip_prefix('-').filter(|text| !text.is_empty())?;
        let text = text.strip_prefix('-').unwrap_or(text);
        Some(match text.split_once('=') {
            Some((name, value)) => Self {
                name,
                value: Some(value),
            },
            None => Self {
                name: text,
                value: None,
            },
        })
    }

    /// The value of a switch, as Go's `strconv.ParseBool` takes it.
    fn switch(&self) -> Result<bool, String> {
        match self.value {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(other) => Err(format!("-{}: {other:?} is neither true nor false", self.name)),
        }
    }
}

/// Understands a command line, without the program's name.
///
/// # Errors
/// What is wrong with it, on one line.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        action: Action::Serve,
        namespace: String::new(),
        id: String::new(),
        bundle: None,
        address: String::new(),
        publish_binary: String::new(),
        debug: false,
    };
    let mut arguments = arguments.into_iter().map(|argument| {
        argument
            .into_string()
            .map_err(|argument| format!("the argument {argument:?} is no text"))
    });
    let mut action = None;
    while let Some(argument) = arguments.next().transpose()? {
        let Some(flag) = Flag::of(&argument) else {
            action = Some(argument);
            break;
        };
        match flag.name {
            // Ends the flags, as in getopt.
            "" if argument == "--" => {
                action = arguments.next().transpose()?;
                break;
            }
            "debug" => parsed.debug = flag.switch()?,
            "info" if flag.switch()? => parsed.action = Action::Info,
            "v" | "version" if flag.switch()? => parsed.action = Action::Version,
            "h" | "help" if flag.switch()? => parsed.action = Action::Help,
            "info" | "v" | "version" | "h" | "help" => {}
            name @ ("namespace" | "id" | "bundle" | "address" | "publish-binary") => {
                let value = match flag.value {
                    Some(value) => value.to_owned(),
                    None => arguments
                        .next()
                        .transpose()?
                        .ok_or_else(|| format!("-{name} needs a value"))?,
                };
                match name {
                    "namespace" => parsed.namespace = value,
                    "id" => parsed.id = value,
                    "address" => parsed.address = value,
                    "publish-binary" => parsed.publish_binary = value,
                    _ => parsed.bundle = Some(PathBuf::from(value)).filter(|path| path.as_os_str() != ""),
                }
            }
            _ => return Err(format!("there is no flag {argument:?} (see -h)")),
        }
    }
    if parsed.action == Action::Serve {
        parsed.action = match action.as_deref() {
            None => Action::Serve,
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            Some("features") => Action::Features,
            Some(other) => {
                return Err(format!(
                    "there is no action {other:?}: start, delete or features (see -h)"
                ));
            }
        };
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn callers_are_understood() {
        // containerd 1.6 to 2.2.
        let start = parsed(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id c1 start",
        )
        .unwrap();
        let expected = Arguments {
            action: Action::Start,
            namespace: "k8s.io".into(),
            id: "c1".into(),
            bundle: None,
            address: "/run/containerd/containerd.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            debug: false,
        };
        assert_eq!(start, expected);
        // containerd 2.3.
        let start =
            parsed("-namespace n -address a -publish-binary p -id c1 -bundle /b -debug start").unwrap();
        assert_eq!(
            (start.action, start.debug, start.bundle),
            (Action::Start, true, Some("/b".into()))
        );
        // CRI-O: the address is empty.
        let line = [
            "-namespace",
            "default",
            "-address",
            "",
            "-publish-binary",
            "/usr/bin/crio",
            "-id",
            "c1",
            "start",
        ];
        let start = parse(line.map(OsString::from)).unwrap();
        assert_eq!((start.action, start.address.as_str()), (Action::Start, ""));

        for (line, action) in [
            ("", Action::Serve),
            ("-namespace n -id i", Action::Serve),
            ("-info", Action::Info),
            ("--info", Action::Info),
            ("-info=false start", Action::Start),
            ("-v", Action::Version),
            ("--version", Action::Version),
            ("features", Action::Features),
            ("-h", Action::Help),
            ("-id i -- delete", Action::Delete),
        ] {
            assert_eq!(parsed(line).map(|parsed| parsed.action), Ok(action), "{line:?}");
        }
    }

    #[test]
    fn every_form_of_a_flag_means_the_same() {
        for line in [
            "-id c1 -debug start",
            "--id c1 --debug start",
            "-id=c1 -debug=true start",
            "--id=c1 -debug=1 -- start",
        ] {
            let parsed = parsed(line).unwrap();
            assert_eq!((parsed.id.as_str(), parsed.debug), ("c1", true), "{line:?}");
        }
        assert_eq!(parsed("-id=a=b").unwrap().id, "a=b");
        assert_eq!(
            parsed("-id -x start").unwrap().id,
            "-x",
            "a value may look like a flag"
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, part) in [
            ("-nonsense start", "\"-nonsense\""),
            ("-id", "-id needs a value"),
            ("-debug=maybe start", "\"maybe\""),
            ("stop", "\"stop\""),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(part), "{line:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_command_line_is_too_strange(line in prop::collection::vec(".{0,12}", 0..8)) {
            let _ = parse(line.into_iter().map(OsString::from));
        }
    }
}
