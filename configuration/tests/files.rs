//! Which files are read: the named one or the first that exists, and the drop-ins beside it; and what is said of files that
//! can't be read.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use configuration::{Config, Error, ErrorKind};
use tempfile::TempDir;

/// A directory of configurations. Each is recognised by its `dial_timeout`.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn config(&self, name: &str, seconds: u64) -> PathBuf {
        self.write(name, format!("[agent.kata]\ndial_timeout = {seconds}\n"))
    }

    /// Loads as if nothing were installed but what is in `places`.
    fn load(
        &self,
        environment: Option<&Path>,
        options: Option<&Path>,
        places: &[&str],
    ) -> Result<Config, Error> {
        let places: Vec<PathBuf> = places.iter().map(|name| self.path(name)).collect();
        Config::load_from(options, environment, &places)
    }

    /// An error's text, with `DIR` for the directory.
    fn said(&self, error: &Error) -> String {
        error.to_string().replace(self.0.path().to_str().unwrap(), "DIR")
    }
}

fn seconds(result: Result<Config, Error>) -> u64 {
    result.unwrap().agent.dial_timeout.unwrap_or_default().as_secs()
}

#[test]
fn the_environment_wins_over_the_options_and_both_over_the_places() {
    let files = Files::new();
    let (environment, options) = (
        files.config("environment.toml", 1),
        files.config("options.toml", 2),
    );
    files.config("etc.toml", 3);
    files.config("usr.toml", 4);
    let places = ["missing.toml", "etc.toml", "usr.toml"];
    assert_eq!(
        seconds(files.load(Some(&environment), Some(&options), &places)),
        1
    );
    assert_eq!(seconds(files.load(None, Some(&options), &places)), 2);
    assert_eq!(seconds(files.load(None, None, &places)), 3);
    assert_eq!(seconds(files.load(None, None, &places[2..])), 4);
    // Both are empty where they are not set.
    let empty = Path::new("");
    assert_eq!(seconds(files.load(Some(empty), Some(&options), &places)), 2);
    assert_eq!(seconds(files.load(Some(empty), Some(empty), &places)), 3);
    // No prefix of a place need be a directory.
    assert_eq!(seconds(files.load(None, None, &["etc.toml/x", "usr.toml"])), 4);
}

#[test]
fn the_places_are_etc_the_programs_own_prefix_and_the_usual_prefixes() {
    let places = Config::places();
    let own = std::env::current_exe().unwrap();
    let own = own.parent().unwrap().parent().unwrap();
    let shared = "share/defaults/kata-containers/configuration.toml";
    assert_eq!(
        places,
        [
            PathBuf::from("/etc/kata-containers/configuration.toml"),
            own.join(shared),
            Path::new("/usr").join(shared),
            Path::new("/usr/local").join(shared),
        ]
    );
}

#[test]
fn a_named_file_that_is_missing_is_an_error_that_says_who_named_it() {
    let files = Files::new();
    files.config("etc.toml", 3);
    let missing = files.path("missing.toml");
    for (environment, options, expected) in [
        (
            Some(&*missing),
            None,
            "KATA_CONF_FILE names the configuration DIR/missing.toml, which does not exist: create it, or name another",
        ),
        (
            None,
            Some(&*missing),
            "the caller's runtime options name (ConfigPath) the configuration DIR/missing.toml, which does not exist: \
             create it, or name another",
        ),
        (
            None,
            Some(Path::new("configuration.toml")),
            "the caller's runtime options name (ConfigPath) the configuration configuration.toml, which is not \
             absolute: write the path from /",
        ),
    ] {
        let error = files.load(environment, options, &["etc.toml"]).unwrap_err();
        assert_eq!(
            (error.kind, files.said(&error).as_str()),
            (ErrorKind::NotFound, expected)
        );
    }
}

#[test]
fn no_file_at_all_is_an_error_that_names_the_places() {
    let files = Files::new();
    let error = files.load(None, None, &["a.toml", "b/c.toml"]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert_eq!(
        files.said(&error),
        "there is no configuration: none of DIR/a.toml, DIR/b/c.toml exists; install the program with its \
         configuration, or name one with KATA_CONF_FILE or the runtime options' ConfigPath"
    );
}

#[test]
fn drop_ins_are_read_in_the_order_of_their_names() {
    let files = Files::new();
    let main = files.write(
        "configuration.toml",
        "[agent.kata]\ndial_timeout = 1\nrequest_timeout = 1\ncreate_container_timeout = 1\n",
    );
    let ten = files.write(
        "config.d/10-site.toml",
        "[agent.kata]\nrequest_timeout = 10\ndial_timeout = 10\n",
    );
    files.write("elsewhere/9.toml", "[agent.kata]\ndial_timeout = 9\n");
    // As a mounted ConfigMap has them.
    symlink("../elsewhere/9.toml", files.path("config.d/9-link.toml")).unwrap();
    for ignored in ["README", "11.toml~", ".11.toml", "11.toml.bak", "12.TOML"] {
        files.write(&format!("config.d/{ignored}"), "not TOML");
    }
    let config = files.load(Some(&main), None, &[]).unwrap();
    assert_eq!(config.sources, [main, ten, files.path("config.d/9-link.toml")]);
    assert_eq!(config.agent.dial_timeout, Some(Duration::from_secs(9)));
    assert_eq!(config.agent.request_timeout, Duration::from_secs(10));
    assert_eq!(config.agent.create_container_timeout, Duration::from_secs(1));
}

#[test]
fn drop_ins_are_beside_the_name_and_not_beside_what_it_links_to() {
    let files = Files::new();
    files.config("share/configuration.toml", 1);
    files.config("share/config.d/1.toml", 2);
    files.config("etc/config.d/1.toml", 3);
    symlink(
        "../share/configuration.toml",
        files.path("etc/configuration.toml"),
    )
    .unwrap();
    assert_eq!(seconds(files.load(None, None, &["etc/configuration.toml"])), 3);
}

#[test]
fn the_drop_in_that_is_wrong_is_named_by_its_path() {
    let files = Files::new();
    files.config("configuration.toml", 1);
    files.write("config.d/1.toml", "[runtime]\nenable_debug = 'yes'\n");
    let error = files.load(None, None, &["configuration.toml"]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(
        files.said(&error),
        "DIR/config.d/1.toml:2: runtime.enable_debug is the string \"yes\", not true or false: it takes true or false"
    );
}

#[test]
fn what_is_no_text_file_of_a_bounded_size_is_refused_at_once() {
    let files = Files::new();
    files.write("large.toml", "#".repeat(10 << 20));
    files.write("binary.toml", b"# \n\x7fELF\xff\xfe\0\0");
    files.config("directory.toml/x", 1);
    let _listener = UnixListener::bind(files.path("socket.toml")).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(files.path("fifo.toml"))
        .status();
    assert!(fifo.unwrap().success());
    symlink("nowhere.toml", files.path("dangling.toml")).unwrap();
    symlink("loop.toml", files.path("loop.toml")).unwrap();
    for (name, problem) in [
        (
            "large.toml",
            "it is larger than 256 KiB, so it is no configuration",
        ),
        ("binary.toml", "line 2 is not UTF-8 text, so it is no TOML"),
        ("directory.toml", "it is not a regular file"),
        ("socket.toml", "it is not a regular file"),
        ("fifo.toml", "it is not a regular file"),
        ("dangling.toml", "No such file or directory (os error 2)"),
        ("loop.toml", "Too many levels of symbolic links (os error 40)"),
    ] {
        let start = Instant::now();
        let error = files.load(None, None, &[name]).unwrap_err();
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "{name}: {:?}",
            start.elapsed()
        );
        assert_eq!(error.kind, ErrorKind::Unreadable);
        assert_eq!(
            files.said(&error),
            format!("cannot read the configuration DIR/{name}: {problem}")
        );
    }
}

#[test]
fn too_many_drop_ins_are_refused() {
    let files = Files::new();
    files.config("configuration.toml", 1);
    for number in 0..65 {
        files.write(&format!("config.d/{number}.toml"), "");
    }
    let error = files.load(None, None, &["configuration.toml"]).unwrap_err();
    assert_eq!(
        files.said(&error),
        "DIR/config.d has more than 64 files: merge some"
    );
    fs::remove_file(files.path("config.d/64.toml")).unwrap();
    assert_eq!(seconds(files.load(None, None, &["configuration.toml"])), 1);
}

#[test]
fn a_strange_name_stays_on_one_line() {
    let files = Files::new();
    let name = std::ffi::OsStr::from_bytes(b"a\nb\xff.toml");
    let path = files.path("").join(name);
    let error = files.load(Some(&path), None, &[]).unwrap_err();
    assert_eq!(
        files.said(&error),
        "KATA_CONF_FILE names the configuration DIR/a\\nb\u{fffd}.toml, which does not exist: create it, or name another"
    );
    fs::write(&path, "[runtime]\nx = 1").unwrap();
    let error = files.load(Some(&path), None, &[]).unwrap_err();
    assert_eq!(
        files.said(&error),
        "DIR/a\\nb\u{fffd}.toml:2: runtime.x is not a key: remove it"
    );
}

#[test]
fn every_value_in_force_says_where_it_comes_from() {
    let files = Files::new();
    let main = files.config("configuration.toml", 7);
    let drop_in = files.write(
        "config.d/a.toml",
        "# first\n[hypervisor.qemu]\ndefault_maxvcpus = 200\n",
    );
    let (config, all) = Config::explained(None, Some(&main)).unwrap();
    let of = |name: &str| all.iter().find(|key| key.name == name).unwrap();
    assert_eq!(of("dial_timeout").value, "7");
    assert_eq!(of("dial_timeout").origin, format!("{}:2", main.display()));
    let most = of("default_maxvcpus");
    assert_eq!(most.value, config.hypervisor.default_maxvcpus.to_string());
    assert_eq!(
        most.origin,
        format!("{}:3 (200: what the host has)", drop_in.display())
    );
    assert!(most.is_given);
    let machine = of("machine_type");
    assert_eq!(
        (machine.value.as_str(), machine.origin.as_str()),
        ("\"q35\"", "built-in defaults")
    );
    assert!(!machine.is_given);
    let supported = Config::explain().filter(|key| key.status == configuration::Status::Supported);
    assert_eq!(all.len(), supported.count(), "every key is told");
}
