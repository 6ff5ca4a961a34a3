//! What a process's specification says, taken apart. Pure.

use oci_spec::runtime::Process;

use super::shown;
use crate::error::{Error, ErrorKind, Result};

/// A variable of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvVar {
    /// Not empty, without `=`.
    pub name: String,
    /// May be empty, may contain `=`.
    pub value: String,
}

/// The environment of a process, in its order.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for an entry that is not `NAME=VALUE`.
pub fn env_vars(process: &Process) -> Result<Vec<EnvVar>> {
    variables("process.env", process.env().iter().flatten())
}

/// The environment that is in this field.
pub(crate) fn variables<'a>(field: &str, entries: impl Iterator<Item = &'a String>) -> Result<Vec<EnvVar>> {
    entries
        .enumerate()
        .map(|(index, entry)| match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok(EnvVar {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{field}[{index}]: {} is not NAME=VALUE", shown(entry)),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_ends_its_name_at_the_first_equals_sign() {
        let env = |entries: &[&str]| {
            let mut process = Process::default();
            process.set_env(Some(entries.iter().map(|entry| (*entry).to_owned()).collect()));
            env_vars(&process)
        };
        let pairs: Vec<(String, String)> = env(&["A=", "B=c=d", "é= "])
            .unwrap()
            .into_iter()
            .map(|variable| (variable.name, variable.value))
            .collect();
        let expected = [("A", ""), ("B", "c=d"), ("é", " ")];
        assert_eq!(
            pairs,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        for bad in ["", "A", "=b"] {
            let error = env(&["A=b", bad]).unwrap_err();
            assert!(error.context.starts_with("process.env[1]: "), "{}", error.context);
        }
    }
}
