//! How a settings table is declared: each option once, with its documentation. From it come the field that the program
//! sees, the key that is read, its entry in the template and in `kata-runtime config`, and its annotation.

use crate::error::Problems;
use crate::kinds::{Kind, Shape};
use crate::tree::{Item, Place, Table};

/// A key that can be set.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its name in its table.
    pub(crate) key: &'static str,
    /// What it takes, in words.
    pub(crate) takes: fn() -> String,
    /// How it is written.
    pub(crate) shape: Shape,
    /// Its default, in TOML.
    pub(crate) default: &'static str,
    /// Its documentation, by line.
    pub(crate) doc: &'static [&'static str],
    /// Its annotation, without the prefix `io.katacontainers.config.`, if a pod can ever set it.
    pub(crate) annotation: Option<&'static str>,
}

/// Declares a struct with what is read from a table:
/// `/// Documentation`, then `key: Kind = default => field: Type [, pod "annotation"];`.
/// Fields that are no keys come first, in parentheses.
macro_rules! settings {
    (
        $(#[doc = $about:literal])*
        $visible:vis struct $name:ident ( $( $(#[doc = $note:literal])* $other:ident : $other_type:ty ),* ) {
            $(
                $(#[doc = $doc:literal])*
                $key:ident : $kind:ty = $default:expr => $field:ident : $type:ty $(, pod $annotation:literal)? ;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        $visible struct $name {
            $( $(#[doc = $note])* pub $other: $other_type, )*
            $( $(#[doc = $doc])* pub $field: $type, )*
        }

        impl $name {
            /// Its keys, in the order of the template.
            pub(crate) const SETTINGS: &'static [$crate::settings::Setting] = &[
                $( $crate::settings::Setting {
                    key: stringify!($key),
                    takes: <$kind as $crate::kinds::Kind>::takes,
                    shape: <$kind as $crate::kinds::Kind>::SHAPE,
                    default: stringify!($default),
                    doc: &[$($doc),*],
                    annotation: $crate::settings::settings!(@annotation $($annotation)?),
                }, )*
            ];

            /// Reads its keys. What is wrong goes to the section's problems, and then there is no value.
            pub(crate) fn read(section: &mut $crate::settings::Section<'_> $(, $other: $other_type)*) -> Option<Self> {
                $( let $field = section.read::<$kind>(stringify!($key)); )*
                Some(Self { $( $other, )* $( $field: $field?, )* })
            }

            /// Sets the field of `key`; `None` if there is none.
            #[allow(dead_code, reason = "a pod cannot set keys of every table")]
            pub(crate) fn set(&mut self, key: &str, value: &$crate::tree::Value) -> Option<Result<(), String>> {
                $( if key == stringify!($key) {
                    return Some(<$kind as $crate::kinds::Kind>::read(value).map(|value| self.$field = value));
                } )*
                None
            }
        }
    };
    (@annotation) => { None };
    (@annotation $annotation:literal) => { Some($annotation) };
}
pub(crate) use settings;

/// A table of the merged tree while it is read.
pub(crate) struct Section<'a> {
    /// Its dotted name, as messages say it.
    pub(crate) name: &'a str,
    /// Where it begins.
    pub(crate) place: &'a Place,
    /// Its content, over the defaults.
    pub(crate) table: &'a Table,
    /// What is wrong with it.
    pub(crate) problems: &'a mut Problems,
}

impl Section<'_> {
    /// The value of `key`, which the defaults have if no file has it.
    pub(crate) fn read<K: Kind>(&mut self, key: &str) -> Option<K::Value> {
        let Some(item) = self.table.get(key) else {
            let (name, place) = (self.name, self.place);
            self.problems.add(place.rank(), || {
                format!(
                    "{place}: {name}.{key} is missing: it has no default, set it to {}",
                    K::takes()
                )
            });
            return None;
        };
        match K::read(&item.value) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.refuse(item, key, &problem);
                None
            }
        }
    }

    /// Says of an item what is wrong with it.
    pub(crate) fn refuse(&mut self, item: &Item, key: &str, problem: &str) {
        let name = self.name;
        self.problems.add(item.place.rank(), || {
            format!("{}: {name}.{key} {problem}", item.place)
        });
    }
}
