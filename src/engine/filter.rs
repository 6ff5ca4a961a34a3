//! Which pods or containers somebody wants to see, with podman's names and rules. Pure.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::num::ParseIntError;
use std::str::FromStr;

use super::state::{ContainerInfo, ContainerState, PodInfo, PodState};
use crate::error::{Error, ErrorKind, Result};

/// A condition on containers. Of several with one key any may hold, but every label; all keys have to.
///
/// ```
/// use runtime::engine::{ContainerState, Filter};
///
/// let filter: Filter = "status=running".parse().unwrap();
/// assert_eq!(filter, Filter::Status(ContainerState::Running));
/// assert!("colour=red".parse::<Filter>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// `id=`: its id begins so.
    Id(String),
    /// `name=`: its name has this in it.
    Name(String),
    /// `label=KEY` or `label=KEY=VALUE`.
    Label(String, Option<String>),
    /// `status=`.
    Status(ContainerState),
    /// `pod=`: a pod's name, or the beginning of its id.
    Pod(String),
    /// `exited=`: it has ended with this code.
    Exited(u32),
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (key, value) = split(text)?;
        match key {
            "id" => Ok(Self::Id(value.to_owned())),
            "name" => Ok(Self::Name(value.to_owned())),
            "label" => Ok(label(value, Self::Label)),
            "status" => Ok(Self::Status(value.parse()?)),
            "pod" => Ok(Self::Pod(value.to_owned())),
            "exited" => number(text, value, "exit code").map(Self::Exited),
            _ => Err(unknown(text, "id, name, label, status, pod or exited")),
        }
    }
}

/// A condition on pods; see [`Filter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodFilter {
    /// `id=`: its id begins so.
    Id(String),
    /// `name=`: its name has this in it.
    Name(String),
    /// `label=KEY` or `label=KEY=VALUE`.
    Label(String, Option<String>),
    /// `status=`.
    Status(PodState),
    /// `ctr-ids=`: a container's id in it begins so.
    ContainerId(String),
    /// `ctr-names=`: a container's name in it has this in it.
    ContainerName(String),
    /// `ctr-status=`: a container in it is in this state.
    ContainerStatus(ContainerState),
    /// `ctr-number=`: it has so many.
    ContainerNumber(usize),
}

impl FromStr for PodFilter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (key, value) = split(text)?;
        match key {
            "id" => Ok(Self::Id(value.to_owned())),
            "name" => Ok(Self::Name(value.to_owned())),
            "label" => Ok(label(value, Self::Label)),
            "status" => Ok(Self::Status(value.parse()?)),
            "ctr-ids" => Ok(Self::ContainerId(value.to_owned())),
            "ctr-names" => Ok(Self::ContainerName(value.to_owned())),
            "ctr-status" => Ok(Self::ContainerStatus(value.parse()?)),
            "ctr-number" => number(text, value, "number").map(Self::ContainerNumber),
            _ => Err(unknown(
                text,
                "id, name, label, status, ctr-ids, ctr-names, ctr-status or ctr-number",
            )),
        }
    }
}

fn split(text: &str) -> Result<(&str, &str)> {
    text.split_once('=').ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("{text:?} is no filter: write KEY=VALUE"),
        )
    })
}

/// The number that `text` says by `value`, which is a `what`.
fn number<T: FromStr<Err = ParseIntError>>(text: &str, value: &str, what: &str) -> Result<T> {
    value.parse().map_err(|cause| {
        Error::caused(
            ErrorKind::InvalidArgument,
            format!("{text:?}: {value:?} is no {what}"),
            cause,
        )
    })
}

fn label<T>(value: &str, make: impl Fn(String, Option<String>) -> T) -> T {
    match value.split_once('=') {
        Some((key, value)) => make(key.to_owned(), Some(value.to_owned())),
        None => make(value.to_owned(), None),
    }
}

fn unknown(text: &str, known: &str) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("there is no filter {text:?}: use {known}"),
    )
}

fn has_label(labels: &BTreeMap<String, String>, key: &str, value: Option<&str>) -> bool {
    labels
        .get(key)
        .is_some_and(|found| value.is_none_or(|value| value == found))
}

/// Whether a container of this pod is wanted.
pub(super) fn wants(filters: &[Filter], pod: &PodInfo, container: &ContainerInfo) -> bool {
    all(filters, |filter| match filter {
        Filter::Id(beginning) => (container.id.starts_with(beginning.as_str()), false),
        Filter::Name(part) => (container.name.contains(part.as_str()), false),
        Filter::Label(key, value) => (has_label(&container.labels, key, value.as_deref()), true),
        Filter::Status(state) => (container.state == *state, false),
        Filter::Pod(wanted) => (
            !pod.is_alone && (pod.name == *wanted || pod.id.starts_with(wanted.as_str())),
            false,
        ),
        Filter::Exited(code) => (container.exit.is_some_and(|exit| exit.code == *code), false),
    })
}

/// Whether a pod is wanted.
pub(super) fn wants_pod(filters: &[PodFilter], pod: &PodInfo) -> bool {
    all(filters, |filter| match filter {
        PodFilter::Id(beginning) => (pod.id.starts_with(beginning.as_str()), false),
        PodFilter::Name(part) => (pod.name.contains(part.as_str()), false),
        PodFilter::Label(key, value) => (has_label(&pod.labels, key, value.as_deref()), true),
        PodFilter::Status(state) => (pod.state() == *state, false),
        PodFilter::ContainerId(beginning) => {
            let found = pod.shown().any(|one| one.id.starts_with(beginning.as_str()));
            (found, false)
        }
        PodFilter::ContainerName(part) => (pod.shown().any(|one| one.name.contains(part.as_str())), false),
        PodFilter::ContainerStatus(state) => (pod.shown().any(|one| one.state == *state), false),
        PodFilter::ContainerNumber(number) => (pod.shown().count() == *number, false),
    })
}

/// Whether every key has what it needs: one condition that holds, or all of them. `holds` answers for a condition with whether it
/// does, and whether all of its key have to.
fn all<F>(filters: &[F], holds: impl Fn(&F) -> (bool, bool)) -> bool {
    filters.iter().all(|filter| match holds(filter) {
        (held, true) => held,
        (true, false) => true,
        (false, false) => filters
            .iter()
            .any(|other| discriminant(other) == discriminant(filter) && holds(other).0),
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::super::state::tests::{container, pod};
    use super::*;
    use crate::ExitStatus;

    fn parsed<F: FromStr<Err = Error>>(filters: &[&str]) -> Vec<F> {
        filters.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn of_one_key_any_of_all_keys_each_and_of_labels_all() {
        let mut one = container("abc", ContainerState::Running);
        one.name = "web-1".into();
        one.labels = [("app", "web"), ("tier", "front")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let mut of = pod("p1", vec![one.clone()]);
        of.name = "shop".into();
        for (filters, wanted) in [
            (&[][..], true),
            (&["id=ab"], true),
            (&["id=bc"], false),
            (&["name=eb-"], true),
            (&["name=db"], false),
            (&["status=running"], true),
            (&["status=exited"], false),
            (&["status=exited", "status=running"], true),
            (&["status=running", "id=x"], false),
            (&["label=app"], true),
            (&["label=app=web", "label=tier=front"], true),
            (&["label=app=web", "label=tier=back"], false),
            (&["label=none"], false),
            (&["pod=shop"], true),
            (&["pod=p"], true),
            (&["pod=sho"], false),
            (&["exited=0"], false),
        ] {
            assert_eq!(wants(&parsed(filters), &of, &one), wanted, "{filters:?}");
        }
        let mut ended = container("x", ContainerState::Exited);
        ended.exit = Some(ExitStatus {
            code: 3,
            at: SystemTime::UNIX_EPOCH,
            oom: false,
        });
        for (filters, wanted) in [
            (&["exited=3"][..], true),
            (&["exited=0"], false),
            (&["exited=0", "exited=3"], true),
            (&["status=exited"], true),
        ] {
            assert_eq!(wants(&parsed(filters), &of, &ended), wanted, "{filters:?}");
        }
    }

    #[test]
    fn pods_are_found_by_what_is_in_them() {
        let mut one = container("abc", ContainerState::Running);
        one.name = "web-1".into();
        let mut half = container("half", ContainerState::Creating);
        half.name = "half".into();
        let mut of = pod("p1", vec![one, half]);
        of.name = "shop".into();
        of.labels = [("app", "shop"), ("tier", "front")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (filters, wanted) in [
            (&[][..], true),
            (&["id=p"], true),
            (&["id=1"], false),
            (&["label=app"], true),
            (&["label=app=shop", "label=tier=front"], true),
            (&["label=app=shop", "label=tier=back"], false),
            (&["name=x"], false),
            (&["name=ho"], true),
            (&["status=running"], true),
            (&["status=degraded"], false),
            (&["ctr-ids=ab"], true),
            (&["ctr-ids=half"], false),
            (&["ctr-number=1"], true),
            (&["ctr-number=1", "ctr-number=5"], true),
            (&["ctr-number=2"], false),
            (&["ctr-status=running"], true),
            (&["ctr-status=paused"], false),
            (&["ctr-names=eb-"], true),
            (&["ctr-names=x"], false),
            (&["ctr-names=half"], false),
        ] {
            assert_eq!(wants_pod(&parsed(filters), &of), wanted, "{filters:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_by_name() {
        for (text, said) in [
            ("running", "KEY=VALUE"),
            ("colour=red", "id, name, label"),
            ("status=dead", "no state"),
            ("exited=x", "no exit code"),
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.context.contains(said), "{error}");
        }
        assert!("ctr-number=-1".parse::<PodFilter>().is_err());
        assert!("exited=1".parse::<PodFilter>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = text.parse::<Filter>();
            let _ = text.parse::<PodFilter>();
        }
    }
}
