//! Runtime options: which configuration a caller wants. Pure.

use std::path::PathBuf;

use protobuf::CodedInputStream;
use protobuf::well_known_types::any::Any;

/// Names of the one message that is ours to understand, new and old. A caller may send others, runc's for example, because
/// they are its default for every runtime.
const TYPES: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];

/// Field `config_path` of the message, as a tag: number 2, length-delimited. (Field 3 is containerd's own table of options
/// as TOML, for runtimes that have their configuration there; ours is a file.)
const CONFIG_PATH: u32 = 2 << 3 | 2;

/// The configuration file that runtime options name, if they are options of ours and name one.
///
/// # Errors
/// They are damaged, or the path is not absolute.
pub fn config_path(options: Option<&Any>) -> Result<Option<PathBuf>, String> {
    let Some(options) = options.filter(|options| is_ours(&options.type_url)) else {
        return Ok(None);
    };
    let path = read(&options.value)
        .map_err(|error| format!("the runtime options ({}) are damaged: {error}", options.type_url))?;
    if path.is_empty() {
        return Ok(None);
    }
    if !path.starts_with('/') {
        return Err(format!(
            "the runtime options' ConfigPath {path:?} is not absolute"
        ));
    }
    Ok(Some(path.into()))
}

/// Whether this names a message of ours. A name may have a prefix that ends with a slash.
pub fn is_ours(type_url: &str) -> bool {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    TYPES.contains(&name)
}

fn read(message: &[u8]) -> protobuf::Result<String> {
    let mut path = String::new();
    let mut input = CodedInputStream::from_bytes(message);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        if tag == CONFIG_PATH {
            path = input.read_string()?;
        } else {
            protobuf::rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(path)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What containerd sends for `ConfigPath = path`.
    pub fn options(type_url: &str, path: &str) -> Any {
        let mut value = vec![0x0a, 3, b'a', b'b', b'c', 0x12, path.len() as u8];
        value.extend_from_slice(path.as_bytes());
        Any {
            type_url: type_url.into(),
            value,
            ..Default::default()
        }
    }

    #[test]
    fn a_path_is_found_under_every_name_of_the_message() {
        for name in [
            "runtimeoptions.v1.Options",
            "cri.runtimeoptions.v1.Options",
            "types.example/runtimeoptions.v1.Options",
        ] {
            let found = config_path(Some(&options(name, "/etc/k.toml")));
            assert_eq!(found, Ok(Some("/etc/k.toml".into())), "{name}");
        }
    }

    #[test]
    fn what_is_not_ours_or_says_nothing_is_no_path() {
        let empty = options("runtimeoptions.v1.Options", "");
        let runc = options("containerd.runc.v1.Options", "/etc/k.toml");
        let mut unsaid = empty.clone();
        unsaid.value.clear();
        for options in [None, Some(&empty), Some(&runc), Some(&unsaid)] {
            assert_eq!(config_path(options), Ok(None), "{options:?}");
        }
    }

    #[test]
    fn a_bad_path_is_named() {
        let error = config_path(Some(&options("runtimeoptions.v1.Options", "k.toml"))).unwrap_err();
        assert!(error.contains("\"k.toml\""), "{error}");
        let mut cut = options("runtimeoptions.v1.Options", "/etc/k.toml");
        cut.value.pop();
        assert!(config_path(Some(&cut)).unwrap_err().contains("damaged"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_options_or_an_error(value in prop::collection::vec(any::<u8>(), 0..64)) {
            let options = Any { type_url: TYPES[0].into(), value, ..Default::default() };
            let _ = config_path(Some(&options));
        }
    }
}
