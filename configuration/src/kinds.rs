//! The kinds of values: what each takes, in words, and its one conversion from TOML. Pure: whether a path exists is for the
//! one who uses it to find out.

use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::shown;
use crate::keys;
use crate::tree::Value;

/// A kind of value.
pub(crate) trait Kind {
    /// What the program sees.
    type Value;
    /// How it is written.
    const SHAPE: Shape;
    /// What it takes, as messages and the template say it.
    fn takes() -> String;
    /// What was written, if it can be used; else what is wrong: a predicate, and what to do.
    fn read(value: &Value) -> Result<Self::Value, String>;
}

/// How a value is written in TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Boolean,
    Integer,
    Text,
    List,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Boolean => "true or false",
            Self::Integer => "an integer",
            Self::Text => "a string",
            Self::List => "an array of strings",
        }
    }

    /// The value that `text` says, where there is no TOML around it: in an annotation. What does not say one stays text,
    /// and is refused like any other string.
    pub(crate) fn of_text(self, text: &str) -> Value {
        let text = text.to_owned();
        match self {
            Self::Boolean => text.parse().map_or(Value::Text(text), Value::Boolean),
            Self::Integer => text.parse().map_or(Value::Text(text), Value::Integer),
            Self::Text | Self::List => Value::Text(text),
        }
    }

    /// That `value` has another shape.
    fn refuse<K: Kind + ?Sized>(self, value: &Value) -> String {
        let remedy = match (self, value) {
            (Self::Boolean, Value::Text(text)) if ["true", "false"].contains(&text.as_str()) => {
                format!("write {text} without quotes")
            }
            (Self::Integer, Value::Text(text)) if text.parse::<i64>().is_ok() => {
                format!("write {text} without quotes")
            }
            (Self::List, Value::Text(text)) => format!("write [{:?}]", shown(text)),
            _ => format!("it takes {}", K::takes()),
        };
        format!("is {value}, not {}: {remedy}", self.name())
    }
}

fn text<K: Kind>(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(Shape::Text.refuse::<K>(value)),
    }
}

fn flag<K: Kind>(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(flag) => Ok(*flag),
        _ => Err(Shape::Boolean.refuse::<K>(value)),
    }
}

fn number<K: Kind>(value: &Value, range: RangeInclusive<i64>) -> Result<i64, String> {
    match value {
        Value::Integer(number) if range.contains(number) => Ok(*number),
        Value::Integer(number) => Err(format!("is {number}: it takes {}", K::takes())),
        // Too large for any number.
        Value::Other("integer", text) => Err(format!("is {}: it takes {}", shown(text), K::takes())),
        _ => Err(Shape::Integer.refuse::<K>(value)),
    }
}

fn list<K: Kind>(value: &Value) -> Result<Vec<&str>, String> {
    let Value::List(items) = value else {
        return Err(Shape::List.refuse::<K>(value));
    };
    let items = items.iter().map(|item| match item {
        Value::Text(text) => Ok(text.as_str()),
        other => Err(format!("contains {other}: it takes {}", K::takes())),
    });
    items.collect()
}

/// `true` or `false`.
pub(crate) struct Flag;

impl Kind for Flag {
    type Value = bool;
    const SHAPE: Shape = Shape::Boolean;
    fn takes() -> String {
        "true or false".to_owned()
    }
    fn read(value: &Value) -> Result<bool, String> {
        flag::<Self>(value)
    }
}

/// `true` or `false`, for a key that says the opposite of its field.
pub(crate) struct Not;

impl Kind for Not {
    type Value = bool;
    const SHAPE: Shape = Shape::Boolean;
    fn takes() -> String {
        Flag::takes()
    }
    fn read(value: &Value) -> Result<bool, String> {
        flag::<Self>(value).map(|flag| !flag)
    }
}

/// An integer of a range.
pub(crate) struct Number<const FIRST: i64, const LAST: i64, T>(PhantomData<T>);

impl<const FIRST: i64, const LAST: i64, T: TryFrom<i64>> Kind for Number<FIRST, LAST, T> {
    type Value = T;
    const SHAPE: Shape = Shape::Integer;
    fn takes() -> String {
        format!("an integer from {FIRST} to {LAST}")
    }
    fn read(value: &Value) -> Result<T, String> {
        let number = number::<Self>(value, FIRST..=LAST)?;
        T::try_from(number).map_err(|_| format!("is {number}: it takes {}", Self::takes()))
    }
}

/// As many vCPUs as QEMU's machines can have without an interrupt remapper.
pub(crate) const MOST_VCPUS: u32 = 240;

/// vCPUs of a sandbox. All that there may be is `u32::MAX` until the host is known.
pub(crate) struct Vcpus;

impl Kind for Vcpus {
    type Value = u32;
    const SHAPE: Shape = Shape::Integer;
    fn takes() -> String {
        format!("an integer from 1 to {MOST_VCPUS}; 0 is 1, a negative one all of the host's")
    }
    fn read(value: &Value) -> Result<u32, String> {
        Ok(match number::<Self>(value, i64::MIN..=MOST_VCPUS.into())? {
            0 => 1,
            number => u32::try_from(number).unwrap_or(u32::MAX),
        })
    }
}

/// Fewer MiB are a mistake: Debian's kernel with our initramfs needs 96, a kernel of one's own may need less.
const LEAST_MEMORY: i64 = 64;

/// 16 TiB.
const MOST_MEMORY: i64 = 16 << 20;

/// Most vCPUs of a sandbox. 0 stays, until the host is known.
pub(crate) type MostVcpus = Number<0, { MOST_VCPUS as i64 }, u32>;

/// MiB.
pub(crate) type Memory = Number<LEAST_MEMORY, MOST_MEMORY, u64>;

/// MiB. 0 stays, until the host is known.
pub(crate) type MostMemory = Number<0, MOST_MEMORY, u64>;

/// Of anything a second, up to 10^15. 0: any number.
pub(crate) type Rate = Number<0, 1_000_000_000_000_000, u64>;

/// Whole seconds, at most a day.
pub(crate) struct Seconds;

impl Kind for Seconds {
    type Value = Duration;
    const SHAPE: Shape = Shape::Integer;
    fn takes() -> String {
        "an integer from 1 to 86400, in seconds".to_owned()
    }
    fn read(value: &Value) -> Result<Duration, String> {
        let number = number::<Self>(value, 1..=86_400)?;
        Ok(Duration::from_secs(number.unsigned_abs()))
    }
}

/// Whole seconds, at most a day. 0: what suits the host.
pub(crate) struct SecondsOrSuitable;

impl Kind for SecondsOrSuitable {
    type Value = Option<Duration>;
    const SHAPE: Shape = Shape::Integer;
    fn takes() -> String {
        "an integer from 0 to 86400, in seconds".to_owned()
    }
    fn read(value: &Value) -> Result<Option<Duration>, String> {
        let number = number::<Self>(value, 0..=86_400)?;
        Ok((number > 0).then(|| Duration::from_secs(number.unsigned_abs())))
    }
}

/// The absolute path of something on the host.
pub(crate) struct HostPath;

impl Kind for HostPath {
    type Value = PathBuf;
    const SHAPE: Shape = Shape::Text;
    fn takes() -> String {
        "an absolute path".to_owned()
    }
    fn read(value: &Value) -> Result<PathBuf, String> {
        match text::<Self>(value)? {
            "" => Err("is empty: it takes an absolute path".to_owned()),
            path => absolute(path),
        }
    }
}

/// The same, or an empty string for none.
pub(crate) struct HostPathOrNone;

impl Kind for HostPathOrNone {
    type Value = PathBuf;
    const SHAPE: Shape = Shape::Text;
    fn takes() -> String {
        "an absolute path, or \"\" for none".to_owned()
    }
    fn read(value: &Value) -> Result<PathBuf, String> {
        match text::<Self>(value)? {
            "" => Ok(PathBuf::new()),
            path => absolute(path),
        }
    }
}

/// Linux's `PATH_MAX`, with the NUL.
const LONGEST_PATH: usize = 4096;

fn absolute(path: &str) -> Result<PathBuf, String> {
    let refuse = |problem: &str| Err(format!("is {:?}, which {problem}", shown(path)));
    if path.chars().any(char::is_control) {
        return refuse("has a control character: no path here may");
    }
    if path.len() >= LONGEST_PATH {
        return refuse("is too long for a path");
    }
    if !Path::new(path).is_absolute() {
        return refuse("is not absolute: begin it with /");
    }
    Ok(PathBuf::from(path))
}

/// Exact absolute paths.
pub(crate) struct HostPaths;

impl Kind for HostPaths {
    type Value = Vec<PathBuf>;
    const SHAPE: Shape = Shape::List;
    fn takes() -> String {
        "an array of absolute paths, without wildcards".to_owned()
    }
    fn read(value: &Value) -> Result<Vec<PathBuf>, String> {
        let path = |path: &str| {
            if path.contains(['*', '?', '[']) {
                return Err(format!(
                    "contains {:?}, a pattern: name each path in full",
                    shown(path)
                ));
            }
            match absolute(path) {
                Ok(path) => Ok(path),
                Err(problem) => Err(format!("has an entry that {problem}")),
            }
        };
        list::<Self>(value)?.into_iter().map(path).collect()
    }
}

/// An enumeration that is written as a word.
pub(crate) trait Word: Copy + 'static {
    /// Every word, and what it stands for.
    const WORDS: &'static [(&'static str, Self)];
}

/// One of an enumeration's words.
pub(crate) struct OneOf<T>(PhantomData<T>);

impl<T: Word> Kind for OneOf<T> {
    type Value = T;
    const SHAPE: Shape = Shape::Text;
    fn takes() -> String {
        let words: Vec<String> = T::WORDS.iter().map(|(word, _)| format!("{word:?}")).collect();
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        }
    }
    fn read(value: &Value) -> Result<T, String> {
        let text = text::<Self>(value)?;
        let found = T::WORDS.iter().find(|(word, _)| *word == text);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("is {:?}: it takes {}", shown(text), Self::takes()))
    }
}

/// Any of an enumeration's words, each at most once.
pub(crate) struct Features<T>(PhantomData<T>);

impl<T: Word> Kind for Features<T> {
    type Value = Vec<T>;
    const SHAPE: Shape = Shape::List;
    fn takes() -> String {
        match T::WORDS {
            [] => "an array of names, of which there are none at present".to_owned(),
            _ => format!("an array of {}", OneOf::<T>::takes()),
        }
    }
    fn read(value: &Value) -> Result<Vec<T>, String> {
        let names = list::<Self>(value)?;
        let known = |name: &str| T::WORDS.iter().find(|(word, _)| *word == name);
        let unknown: Vec<_> = names
            .iter()
            .filter(|name| known(name).is_none())
            .map(|name| format!("{:?}", shown(name)))
            .collect();
        if let [first, rest @ ..] = unknown.as_slice() {
            // How many there are is nothing that a message could show.
            let more = match rest {
                [] => String::new(),
                [second] => format!(" and {second}"),
                [second, rest @ ..] => format!(", {second} and {} more", rest.len()),
            };
            let there_are = match T::WORDS {
                [] => "there are no such features, leave the array empty".to_owned(),
                _ => format!("it takes {}", Self::takes()),
            };
            return Err(format!("contains {first}{more}: {there_are}"));
        }
        let twice = |(at, name): (usize, &&str)| names.iter().take(at).any(|other| other == name);
        if let Some((_, name)) = names.iter().enumerate().find(|(at, name)| twice((*at, name))) {
            return Err(format!("contains {:?} twice: remove one", shown(name)));
        }
        Ok(names
            .into_iter()
            .filter_map(known)
            .map(|(_, value)| *value)
            .collect())
    }
}

/// Of the 2047 bytes of a kernel command line; the rest is for our own parameters.
const LONGEST_PARAMS: usize = 1536;

/// Kernel parameters, in the kernel's syntax. Each stays as it was written, quotes included.
pub(crate) struct KernelParams;

impl Kind for KernelParams {
    type Value = Vec<String>;
    const SHAPE: Shape = Shape::Text;
    fn takes() -> String {
        format!("a string of kernel parameters, at most {LONGEST_PARAMS} bytes")
    }
    fn read(value: &Value) -> Result<Vec<String>, String> {
        kernel_params(text::<Self>(value)?)
    }
}

/// Splits as the kernel does: at white space that is not between double quotes.
fn kernel_params(line: &str) -> Result<Vec<String>, String> {
    if line.len() > LONGEST_PARAMS {
        return Err(format!(
            "has {} bytes: the kernel's command line has room for {LONGEST_PARAMS}",
            line.len()
        ));
    }
    let mut params = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            ' ' | '\t' | '\n' | '\r' if !quoted => params.push(String::new()),
            c if c.is_control() => {
                return Err(format!("has the control character {c:?}: remove it"));
            }
            c => {
                quoted ^= c == '"';
                if let Some(param) = params.last_mut() {
                    param.push(c);
                }
            }
        }
    }
    if quoted {
        return Err("has a quote that is not closed: close it".to_owned());
    }
    params.retain(|param| !param.is_empty());
    Ok(params)
}

/// Appends `more`, within what a command line can hold.
pub(crate) fn append_kernel_params(params: &mut Vec<String>, more: Vec<String>) -> Result<(), String> {
    params.extend(more);
    kernel_params(&params.join(" ")).map(|_| ())
}

/// Features of QEMU's CPU model.
pub(crate) struct CpuFeatures;

impl Kind for CpuFeatures {
    type Value = Vec<String>;
    const SHAPE: Shape = Shape::Text;
    fn takes() -> String {
        "a string of features, separated by commas".to_owned()
    }
    fn read(value: &Value) -> Result<Vec<String>, String> {
        let text = text::<Self>(value)?;
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let feature = |feature: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-+=".contains(c);
            let is_feature = feature.starts_with(|c: char| c.is_ascii_alphanumeric() || "+-".contains(c))
                && feature.chars().all(allowed);
            if is_feature {
                Ok(feature.to_owned())
            } else {
                Err(format!(
                    "has the feature {:?}: write features as \"pmu=off,+pcid\"",
                    shown(feature)
                ))
            }
        };
        text.split(',').map(feature).collect()
    }
}

/// Names of annotations that a pod may set.
pub(crate) struct AnnotationNames;

impl Kind for AnnotationNames {
    type Value = Vec<String>;
    const SHAPE: Shape = Shape::List;
    fn takes() -> String {
        "an array of exact names".to_owned()
    }
    fn read(value: &Value) -> Result<Vec<String>, String> {
        let name = |name: &str| match keys::annotation_problem(name) {
            None => Ok(name.to_owned()),
            Some(problem) => Err(format!("contains {:?}, {problem}", shown(name))),
        };
        list::<Self>(value)?.into_iter().map(name).collect()
    }
}
