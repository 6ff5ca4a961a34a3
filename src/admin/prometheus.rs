//! Figures in Prometheus's text format (version 0.0.4): written, and those of several sandboxes put together. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Content type of the format.
pub(super) const CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Samples of one family that are told at most: a guest can have as many disks as it says.
const MOST_SAMPLES: usize = 4096;

/// Longest value of a label, in bytes.
const MOST_LABEL: usize = 256;

/// How a family's figures change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// They only grow.
    Counter,
    /// They go up and down.
    Gauge,
}

/// A family of figures under construction.
#[derive(Debug)]
pub(super) struct Family<'a> {
    name: &'a str,
    text: &'a mut String,
    samples: usize,
}

/// Figures under construction.
#[derive(Debug, Default)]
pub(super) struct Figures {
    text: String,
}

impl Figures {
    /// Begins a family.
    pub(super) fn family<'a>(&'a mut self, name: &'a str, of: Type, help: &str) -> Family<'a> {
        let of = match of {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
        };
        // Writing to a string does not fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {of}\n");
        Family {
            name,
            text: &mut self.text,
            samples: 0,
        }
    }

    /// One figure without labels.
    pub(super) fn single(&mut self, name: &str, of: Type, help: &str, value: f64) {
        self.family(name, of, help).add(&[], value);
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Adds a figure. What is in a label's value is anybody's.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        if self.samples >= MOST_SAMPLES {
            return;
        }
        self.samples += 1;
        self.text.push_str(self.name);
        if !labels.is_empty() {
            let labels: Vec<_> = labels
                .iter()
                .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                .collect();
            let _ = write!(self.text, "{{{}}}", labels.join(","));
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escaped(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c if c.is_control() => text.push('?'),
            c => text.push(c),
        }
        if text.len() >= MOST_LABEL {
            break;
        }
    }
    text
}

/// The figures of several sandboxes in one text: each family once, each figure with the label `sandbox_id`.
pub fn merged<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut order = Vec::new();
    let mut families: BTreeMap<String, (Vec<String>, String)> = BTreeMap::new();
    for (id, text) in texts {
        for line in text.lines().filter(|line| !line.is_empty()) {
            let comment = line.strip_prefix("# ");
            let name = match comment {
                Some(comment) => comment.split(' ').nth(1).unwrap_or_default(),
                None => line.split(['{', ' ']).next().unwrap_or_default(),
            };
            let (comments, samples) = families.entry(name.to_owned()).or_insert_with(|| {
                order.push(name.to_owned());
                Default::default()
            });
            match comment {
                Some(_) if comments.iter().any(|there| there == line) => {}
                Some(_) => comments.push(line.to_owned()),
                None => {
                    samples.push_str(&labelled(line, name, id));
                    samples.push('\n');
                }
            }
        }
    }
    let mut text = String::new();
    for (comments, samples) in order.iter().filter_map(|name| families.get(name)) {
        comments.iter().for_each(|line| text.extend([line, "\n"]));
        text.push_str(samples);
    }
    text
}

fn labelled(line: &str, name: &str, id: &str) -> String {
    let label = format!("sandbox_id=\"{}\"", escaped(id));
    let rest = line.get(name.len()..).unwrap_or_default();
    match rest.strip_prefix('{') {
        Some(rest) => format!("{name}{{{label},{rest}"),
        None => format!("{name}{{{label}}}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_end_its_line() {
        let mut figures = Figures::default();
        let mut family = figures.family("f", Type::Gauge, "What.");
        family.add(&[("disk", "a\"} 1\nb\\\u{1b}")], 0.5);
        assert_eq!(
            figures.finish(),
            "# HELP f What.\n# TYPE f gauge\nf{disk=\"a\\\"} 1\\nb\\\\?\"} 0.5\n"
        );
    }

    #[test]
    fn a_family_is_bounded() {
        let mut figures = Figures::default();
        let mut family = figures.family("f", Type::Gauge, "What.");
        for _ in 0..=MOST_SAMPLES {
            family.add(&[("l", &"x".repeat(1000))], 1.0);
        }
        let text = figures.finish();
        assert_eq!(text.lines().count(), MOST_SAMPLES + 2);
        assert!(text.lines().all(|line| line.len() < MOST_LABEL + 20));
    }

    #[test]
    fn sandboxes_are_told_apart_and_a_family_is_there_once() {
        let one = "# HELP f What.\n# TYPE f gauge\nf 1\n# HELP g Else.\ng{a=\"b\"} 2\n";
        let text = merged([("x", one), ("y", one)]);
        assert_eq!(
            text,
            "# HELP f What.\n# TYPE f gauge\nf{sandbox_id=\"x\"} 1\nf{sandbox_id=\"y\"} 1\n\
             # HELP g Else.\ng{sandbox_id=\"x\",a=\"b\"} 2\ng{sandbox_id=\"y\",a=\"b\"} 2\n"
        );
    }
}
