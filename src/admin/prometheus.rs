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
    /// Of each label, how many there were of each size.
    Histogram,
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
            Type::Histogram => "histogram",
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
        self.add_part("", labels, value);
    }

    /// Adds a histogram: how many there were up to each of some sizes, beyond the one before; how many in all; and their sum.
    pub(super) fn add_histogram(
        &mut self,
        label: (&str, &str),
        buckets: &[(u64, u64)],
        count: u64,
        sum: f64,
    ) {
        let mut below = 0;
        for (most, number) in buckets {
            below += number;
            self.add_part("_bucket", &[label, ("le", &most.to_string())], below as f64);
        }
        self.add_part("_bucket", &[label, ("le", "+Inf")], count as f64);
        self.add_part("_sum", &[label], sum);
        self.add_part("_count", &[label], count as f64);
    }

    fn add_part(&mut self, part: &str, labels: &[(&str, &str)], value: f64) {
        if self.samples >= MOST_SAMPLES {
            return;
        }
        self.samples += 1;
        self.text.push_str(self.name);
        self.text.push_str(part);
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
        let mut family = "";
        for line in text.lines().filter(|line| !line.is_empty()) {
            let comment = line.strip_prefix("# ");
            let name = match comment {
                Some(comment) => comment.split(' ').nth(1).unwrap_or_default(),
                None => line.split(['{', ' ']).next().unwrap_or_default(),
            };
            // The parts of a histogram are called like their family, and more.
            match name.strip_prefix(family) {
                Some("_bucket" | "_sum" | "_count") if comment.is_none() => {}
                _ => family = name,
            }
            let (comments, samples) = families.entry(family.to_owned()).or_insert_with(|| {
                order.push(family.to_owned());
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
    fn a_histogram_is_one_family_of_what_was_up_to_each_size() {
        let mut figures = Figures::default();
        let mut family = figures.family("h", Type::Histogram, "What.");
        family.add_histogram(("action", "a"), &[(1, 2), (2, 1)], 4, 9.5);
        let text = figures.finish();
        let samples = "h_bucket{action=\"a\",le=\"1\"} 2\nh_bucket{action=\"a\",le=\"2\"} 3\n\
                       h_bucket{action=\"a\",le=\"+Inf\"} 4\nh_sum{action=\"a\"} 9.5\nh_count{action=\"a\"} 4\n";
        assert_eq!(text, format!("# HELP h What.\n# TYPE h histogram\n{samples}"));
        let both = merged([("x", text.as_str()), ("y", text.as_str())]);
        assert_eq!(both.matches("# TYPE h histogram").count(), 1);
        assert!(
            both.ends_with("h_count{sandbox_id=\"y\",action=\"a\"} 4\n"),
            "{both}"
        );
        let last_of_first = both.find("h_count{sandbox_id=\"x\"").unwrap();
        assert!(last_of_first < both.find("h_bucket{sandbox_id=\"y\"").unwrap());
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
