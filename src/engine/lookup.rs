//! Which pod or container is meant: by its id, its name, or a beginning of its id that is no other's. Pure.

use crate::error::{Error, ErrorKind, Result};

/// Something that can be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) id: &'a str,
    /// Empty: it has none.
    pub(super) name: &'a str,
}

/// Ids that an error lists.
const MOST_LISTED: usize = 5;

/// Picks what is meant. A whole id outranks a name, and a name a beginning, so that what somebody else creates never changes
/// what a whole one means.
///
/// # Errors
/// [`ErrorKind::NotFound`]: nothing. [`ErrorKind::Ambiguous`]: several things, whose ids are told.
pub(super) fn pick<'a>(what: &str, all: &[Named<'a>], wanted: &str) -> Result<Named<'a>> {
    if let Some(one) = all.iter().find(|one| one.id == wanted) {
        return Ok(*one);
    }
    if wanted.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("a {what} without id or name does not exist"),
        ));
    }
    if let Some(one) = all.iter().find(|one| one.name == wanted) {
        return Ok(*one);
    }
    let found: Vec<_> = all.iter().filter(|one| one.id.starts_with(wanted)).collect();
    match found.as_slice() {
        [one] => Ok(**one),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            format!("no {what} has the id or name {wanted:?}"),
        )),
        several => {
            let listed: Vec<_> = several.iter().take(MOST_LISTED).map(|one| one.id).collect();
            let more = match several.len().saturating_sub(MOST_LISTED) {
                0 => String::new(),
                more => format!(" or {more} more"),
            };
            Err(Error::new(
                ErrorKind::Ambiguous,
                format!(
                    "{wanted:?} may be {what} {}{more}: write more of the id",
                    listed.join(" or ")
                ),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Named<'_>; 4] = [
        Named {
            id: "abc1",
            name: "web",
        },
        Named { id: "abc2", name: "" },
        Named {
            id: "abc",
            name: "abc2",
        },
        Named { id: "d", name: "a" },
    ];

    #[test]
    fn a_whole_id_outranks_a_name_and_a_name_a_beginning() {
        for (wanted, id) in [
            ("abc", "abc"),
            ("abc1", "abc1"),
            ("abc2", "abc2"),
            ("web", "abc1"),
            ("a", "d"),
            ("d", "d"),
        ] {
            assert_eq!(pick("container", &ALL, wanted).unwrap().id, id, "{wanted}");
        }
    }

    #[test]
    fn unknown_and_ambiguous_are_different_errors_that_name_what_they_mean() {
        for (wanted, kind, said) in [
            ("x", ErrorKind::NotFound, "no container has the id or name \"x\""),
            ("abc11", ErrorKind::NotFound, "abc11"),
            ("we", ErrorKind::NotFound, "we"),
            ("", ErrorKind::NotFound, "without id"),
            ("ab", ErrorKind::Ambiguous, "abc1 or abc2 or abc"),
        ] {
            let error = pick("container", &ALL, wanted).unwrap_err();
            assert_eq!(error.kind, kind, "{wanted}");
            assert!(error.context.contains(said), "{error}");
        }
    }

    #[test]
    fn many_are_not_all_listed() {
        let ids: Vec<_> = (0..8).map(|n| format!("a{n}")).collect();
        let all: Vec<_> = ids.iter().map(|id| Named { id, name: "" }).collect();
        let error = pick("pod", &all, "a").unwrap_err();
        assert!(error.context.contains("a4 or 3 more"), "{error}");
    }

    proptest! {
        #[test]
        fn a_beginning_means_the_one_that_alone_has_it(
            ids in prop::collection::btree_set("[ab]{1,5}", 1..12),
            wanted in "[ab]{1,5}",
        ) {
            let all: Vec<_> = ids.iter().map(|id| Named { id, name: "" }).collect();
            let beginning = ids.iter().filter(|id| id.starts_with(&wanted)).count();
            match pick("pod", &all, &wanted) {
                Ok(one) => prop_assert!(one.id == wanted || (beginning == 1 && one.id.starts_with(&wanted))),
                Err(error) if error.kind == ErrorKind::NotFound => prop_assert_eq!(beginning, 0),
                Err(_) => prop_assert!(beginning > 1 && !ids.contains(&wanted)),
            }
        }
    }
}
