//! Kernel parameters, kernel modules and the configuration's path, as callers name them. Pure.

use std::path::{Component, Path, PathBuf};

use super::container_type::Annotations;
use super::shown;
use crate::error::{Error, ErrorKind, Result};

/// Between two modules with their parameters, in a list of them.
pub const KERNEL_MODULES_SEPARATOR: &str = ";";

/// Annotation with the path of a configuration file.
pub const SANDBOX_CONFIG_PATH_KEY: &str = "io.katacontainers.config_path";

/// Appends a parameter; one without a value is a flag. A kernel's command line is words between blanks, so that neither
/// part may bring a blank, nor the quotes that would hide one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the parameter.
pub fn add_kernel_param(params: &mut Vec<String>, name: &str, value: &str) -> Result<()> {
    let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic() && c != '"');
    if name.is_empty() || name.contains('=') || !is_plain(name) || !is_plain(value) {
        let param = format!("{name}={value}");
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "kernel parameter {}: it needs a name without \"=\", and neither it nor its value may have blanks, quotes \
                 or other than ASCII characters",
                shown(&param)
            ),
        ));
    }
    params.push(match value {
        "" => name.to_owned(),
        value => format!("{name}={value}"),
    });
    Ok(())
}

/// The configuration file that annotations ask for. Whoever writes annotations is not the administrator: do not read the
/// file unless the administrator said that they may choose it.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for what is no absolute, plain path.
pub fn sandbox_config_path(annotations: &Annotations) -> Result<Option<PathBuf>> {
    let Some(text) = annotations.get(SANDBOX_CONFIG_PATH_KEY) else {
        return Ok(None);
    };
    let path = Path::new(text);
    let is_plain = path.is_absolute() && !text.contains('\0');
    if !is_plain || path.components().any(|part| part == Component::ParentDir) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "annotation {SANDBOX_CONFIG_PATH_KEY}: {} is not an absolute path without \"..\"",
                shown(text)
            ),
        ));
    }
    Ok(Some(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_are_words() {
        let mut params = vec!["quiet".to_owned()];
        add_kernel_param(&mut params, "console", "hvc0").unwrap();
        add_kernel_param(&mut params, "systemd.unit", "a=b").unwrap();
        add_kernel_param(&mut params, "nokaslr", "").unwrap();
        assert_eq!(params, ["quiet", "console=hvc0", "systemd.unit=a=b", "nokaslr"]);
        for (name, value) in [
            ("", "x"),
            ("a b", ""),
            ("a", "b c"),
            ("a=b", "c"),
            ("a", "\"b c\""),
            ("a", "b\n"),
        ] {
            let error = add_kernel_param(&mut params, name, value).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
        }
        assert_eq!(params.len(), 4);
    }

    #[test]
    fn a_configuration_is_named_plainly_or_not_at_all() {
        let asked =
            |path: &str| sandbox_config_path(&[(SANDBOX_CONFIG_PATH_KEY.to_owned(), path.to_owned())].into());
        assert_eq!(sandbox_config_path(&Annotations::new()).unwrap(), None);
        assert_eq!(
            asked("/etc/kata/x.toml").unwrap(),
            Some("/etc/kata/x.toml".into())
        );
        for bad in ["", "x.toml", "/etc/../x", "/etc/x\0"] {
            assert!(asked(bad).unwrap_err().context.contains(SANDBOX_CONFIG_PATH_KEY));
        }
    }

    proptest! {
        #[test]
        fn a_parameter_is_one_word(name in ".{0,8}", value in ".{0,8}") {
            let mut params = Vec::new();
            if add_kernel_param(&mut params, &name, &value).is_ok() {
                prop_assert_eq!(params[0].split_whitespace().collect::<Vec<_>>(), [params[0].as_str()]);
            }
        }
    }
}
