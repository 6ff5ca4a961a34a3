//! TOML as a tree in which every value knows the file and line it came from, and how two such trees are merged. Must not
//! know what any key means. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::shown;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In our own defaults.
    BuiltIn,
    /// In a file.
    File {
        /// The order in which it was merged.
        order: usize,
        /// Its path, as messages show it.
        name: Arc<str>,
        /// From 1.
        line: usize,
    },
}

impl Place {
    /// The order in which problems are told, and by which the later of two values is found.
    pub(crate) fn rank(&self) -> (usize, usize) {
        match self {
            Self::BuiltIn => (0, 0),
            Self::File { order, line, .. } => (*order, *line),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in defaults"),
            Self::File { name, line, .. } => write!(f, "{name}:{line}"),
        }
    }
}

/// A value and where its key was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// A table's content.
pub(crate) type Table = BTreeMap<String, Item>;

/// TOML's values. Numbers that do not fit and dates stay text: no key takes them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Value>),
    Table(Table),
    /// What it is called, and how it was written.
    Other(&'static str, String),
}

impl fmt::Display for Value {
    /// As a message names it: `the string "two"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "the string {:?}", shown(text)),
            Self::Integer(number) => write!(f, "the integer {number}"),
            Self::Boolean(flag) => write!(f, "{flag}"),
            Self::List(_) => f.write_str("an array"),
            Self::Table(_) => f.write_str("a table"),
            Self::Other(kind, text) => write!(f, "the {kind} {}", shown(text)),
        }
    }
}

/// A text that is not TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// From 1.
    pub(crate) line: usize,
    /// In characters, from 1.
    pub(crate) column: usize,
    /// What was expected.
    pub(crate) message: String,
    /// The beginning of the line.
    pub(crate) excerpt: String,
}

/// Reads `text`. `place` gives the place of a line.
pub(crate) fn parse(text: &str, place: &dyn Fn(usize) -> Place) -> Result<Table, SyntaxError> {
    let lines = Lines::of(text);
    match DeTable::parse(text) {
        Ok(table) => {
            let lines = &lines;
            Ok(Reader { lines, place }.table(table.into_inner()))
        }
        Err(error) => {
            let start = error.span().map_or(0, |span| span.start);
            let line = lines.number(start);
            let begin = lines.start(line);
            Err(SyntaxError {
                line,
                column: text.get(begin..start).map_or(0, |before| before.chars().count()) + 1,
                message: error.message().to_owned(),
                excerpt: shown(
                    text.get(begin..)
                        .and_then(|rest| rest.lines().next())
                        .unwrap_or_default()
                        .trim(),
                ),
            })
        }
    }
}

/// Lays `over` on `base`: tables merge, any other value replaces the one below.
pub(crate) fn merge(base: &mut Table, over: Table) {
    for (key, above) in over {
        let Some(below) = base.get_mut(&key) else {
            base.insert(key, above);
            continue;
        };
        match (&mut below.value, above) {
            (
                Value::Table(table),
                Item {
                    place,
                    value: Value::Table(above),
                },
            ) => {
                merge(table, above);
                // A table is where a file first has it.
                if below.place == Place::BuiltIn {
                    below.place = place;
                }
            }
            (_, above) => *below = above,
        }
    }
}

/// The table at a dotted path, if everything on the way is one.
pub(crate) fn at<'a>(table: &'a Table, path: &str) -> Option<&'a Item> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    let item = table.get(first)?;
    match (rest, &item.value) {
        (None, _) => Some(item),
        (Some(rest), Value::Table(table)) => at(table, rest),
        (Some(_), _) => None,
    }
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect())
    }

    /// The line, from 1, of the byte at `offset`.
    fn number(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }

    fn start(&self, line: usize) -> usize {
        self.0.get(line.saturating_sub(1)).copied().unwrap_or(0)
    }
}

struct Reader<'a> {
    lines: &'a Lines,
    place: &'a dyn Fn(usize) -> Place,
}

impl Reader<'_> {
    /// The recursion is as deep as the parser allows a text to nest.
    fn table(&self, table: DeTable<'_>) -> Table {
        let entry = |(key, value): (Spanned<_>, Spanned<_>)| {
            let line = self.lines.number(key.span().start);
            let item = Item {
                place: (self.place)(line),
                value: self.value(value.into_inner()),
            };
            (std::borrow::Cow::into_owned(key.into_inner()), item)
        };
        table.into_iter().map(entry).collect()
    }

    fn value(&self, value: DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.into_owned()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Other("integer", number.to_string()),
            },
            DeValue::Float(number) => Value::Other("float", number.to_string()),
            DeValue::Boolean(flag) => Value::Boolean(flag),
            DeValue::Datetime(date) => Value::Other("date", date.to_string()),
            DeValue::Array(list) => Value::List(
                list.into_iter()
                    .map(|item| self.value(item.into_inner()))
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(table)),
        }
    }
}
