//! What a run of the benchmarks has found: as JSON for programs, as a table for people. Pure.

use std::fmt::Write as _;

use e2e::trace::Trace;
use serde::{Deserialize, Serialize};

use crate::bounds::{self, Grade};
use crate::host::Host;
use crate::statistics::{Ratio, Spread, median};

/// Everything that a run has found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Results {
    /// Where it ran.
    pub host: Host,
    /// How it was measured: the virtual machine and why, amounts, order.
    pub conditions: Vec<Condition>,
    /// One for each id of the matrix that was measured.
    pub figures: Vec<Figure>,
    /// More about these, by ids like `B7.pss`.
    pub details: Vec<Figure>,
    /// Where the time of a container's start goes: its parts in their order.
    pub phases: Vec<Measured>,
    /// All samples.
    pub samples: Vec<Measured>,
    /// What could not be measured.
    pub missing: Vec<Missing>,
}

/// Something that one must know to judge the figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// Of what.
    pub name: String,
    /// What it was.
    pub value: String,
}

/// A ratio of two figures of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `B1` to `B18`.
    pub id: String,
    /// In words.
    pub what: String,
    /// As `what` says, of medians; nothing where there is nothing to divide by.
    pub ratio: Option<f64>,
    /// Median of ours.
    pub ours: f64,
    /// Median of what it is compared with.
    pub other: f64,
    /// Of both.
    pub unit: String,
    /// Samples of each.
    pub n: usize,
    /// Lower end of the ratio's interval of 95 % confidence.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

/// The samples of one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// Of the samples.
    pub unit: String,
    /// How many.
    pub n: usize,
    /// Half are below.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// 95 % are below.
    pub p95: f64,
    /// In the order in which they were taken.
    pub samples: Vec<f64>,
}

/// A figure that is not there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub ids: Vec<String>,
    /// Why.
    pub why: String,
}

impl Figure {
    /// From samples. `ratio` is none where there is nothing to divide by.
    pub fn new(id: &str, what: &str, unit: &str, ours: &[f64], other: &[f64], ratio: Option<Ratio>) -> Self {
        Self {
            id: id.into(),
            what: what.into(),
            ratio: ratio.map(|ratio| rounded(ratio.value)),
            ours: rounded(median(ours).unwrap_or(0.0)),
            other: rounded(median(other).unwrap_or(0.0)),
            unit: unit.into(),
            n: ours.len().min(other.len()),
            low: ratio.map(|ratio| rounded(ratio.low)),
            high: ratio.map(|ratio| rounded(ratio.high)),
        }
    }
}

impl Measured {
    /// Of no samples there is none.
    pub fn new(name: &str, unit: &str, samples: &[f64]) -> Option<Self> {
        let Spread { n, median, min, p95 } = Spread::of(samples)?;
        Some(Self {
            name: name.into(),
            unit: unit.into(),
            n,
            median: rounded(median),
            min: rounded(min),
            p95: rounded(p95),
            samples: samples.iter().copied().map(rounded).collect(),
        })
    }
}

/// Clocks do not know more digits.
fn rounded(number: f64) -> f64 {
    (number * 1e4).round() / 1e4
}

impl Results {
    /// Says how something was measured. The first word on a thing stays.
    pub fn condition(&mut self, name: &str, value: impl Into<String>) {
        if self.conditions.iter().all(|condition| condition.name != name) {
            self.conditions.push(Condition {
                name: name.into(),
                value: value.into(),
            });
        }
    }

    /// Says what ran, and why, by what the runtime tells of a start.
    pub fn describe(&mut self, trace: &Trace) {
        self.condition("guest kernel", &trace.guest_kernel);
        self.condition("VMM", format!("{}, machine {}", trace.vmm, trace.machine));
        self.condition("accelerator", format!("{}: {}", trace.accelerator, trace.reason));
    }

    /// Keeps samples.
    pub fn measured(&mut self, name: &str, unit: &str, samples: &[f64]) {
        self.samples.extend(Measured::new(name, unit, samples));
    }

    /// The figures and details that are worse than they must be.
    pub fn failed(&self) -> Vec<&Figure> {
        let all = self.figures.iter().chain(&self.details);
        all.filter(|figure| bounds::grade(figure) == Some(Grade::Fails))
            .collect()
    }

    /// For a person.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.host.facts() {
            let _ = writeln!(text, "{name:16}{value}");
        }
        for Condition { name, value } in &self.conditions {
            let _ = writeln!(text, "{name:16}{value}");
        }
        let _ = writeln!(
            text,
            "\n{:17}{:>12}{:>12} {:6}{:>9}  {:<19}{:>3}  grade",
            "", "ours", "other", "", "ratio", "95 % interval", "n"
        );
        for figure in self.figures.iter().chain(&self.details) {
            text.push_str(&row(figure));
        }
        let _ = writeln!(
            text,
            "\n{:44}{:>12}{:>12}{:>12} {:6}{:>3}",
            "", "median", "min", "95 %", "", "n"
        );
        for measured in self.phases.iter().chain(&self.samples) {
            let Measured {
                name,
                unit,
                n,
                median,
                min,
                p95,
                ..
            } = measured;
            let _ = writeln!(
                text,
                "{name:44}{median:>12.1}{min:>12.1}{p95:>12.1} {unit:6}{n:>3}"
            );
        }
        for Missing { ids, why } in &self.missing {
            let _ = writeln!(text, "\n{} could not be measured: {why}", ids.join(", "));
        }
        // No line ends in spaces.
        text.lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }
}

/// Two lines: what it is, and the numbers.
fn row(figure: &Figure) -> String {
    let Figure {
        id,
        what,
        ratio,
        ours,
        other,
        unit,
        n,
        low,
        high,
    } = figure;
    let number = |number: &Option<f64>| number.map_or_else(|| "-".into(), |number| format!("{number:.3}"));
    let interval = match (low, high) {
        (Some(low), Some(high)) => format!("{low:.3} to {high:.3}"),
        _ => String::new(),
    };
    let grade = bounds::grade(figure).map_or("", Grade::name);
    format!(
        "{id:17}{ours:>12.1}{other:>12.1} {unit:6}{:>9}  {interval:<19}{n:>3}  {grade}\n  {what}\n",
        number(ratio)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let (ours, bare) = ([2070.0, 2060.0, 2090.0, 2070.0, 2070.0], [2000.0; 5]);
        let mut results = Results {
            host: Host {
                kernel: "6.18.0".into(),
                cpu: "EPYC".into(),
                cpus: 2,
                ..Default::default()
            },
            ..Default::default()
        };
        results.condition("accelerator", "tcg: no KVM");
        results.condition("accelerator", "something else");
        let ratio = Ratio::of(&ours, &bare).map(Ratio::excess);
        results.figures.push(Figure::new(
            "B5",
            "overhead over bare QEMU",
            "ms",
            &ours,
            &bare,
            ratio,
        ));
        results.details.push(Figure::new(
            "B8.slope",
            "threads per container",
            "",
            &[0.0],
            &[0.0],
            None,
        ));
        results.measured("agent ready, ours", "ms", &ours);
        results.measured("nothing", "ms", &[]);
        results.missing.push(Missing {
            ids: vec!["B7".into()],
            why: "there is no runc".into(),
        });
        results
    }

    /// What reads the file relies on these names.
    #[test]
    fn figures_have_the_agreed_shape() {
        let json = serde_json::to_value(results()).unwrap();
        let figure = json["figures"][0].as_object().unwrap();
        let mut keys: Vec<_> = figure.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            ["high", "id", "low", "n", "other", "ours", "ratio", "unit", "what"]
        );
        assert_eq!(figure["id"], "B5");
        assert_eq!(figure["ratio"], 0.035);
        assert_eq!(figure["ours"], 2070.0);
        assert_eq!(figure["n"], 5);
        assert_eq!(json["details"][0]["ratio"], serde_json::Value::Null);
        for key in ["host", "conditions", "phases", "samples", "missing"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(json["samples"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let text = serde_json::to_string_pretty(&results()).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results());
    }

    #[test]
    fn the_table_has_what_one_wants_to_know() {
        let table = results().table();
        for expected in [
            "host kernel     6.18.0\n",
            "accelerator     tcg: no KVM\n",
            "B5                     2070.0      2000.0 ms        0.035  0.030 to 0.045       5  good\n  overhead over bare QEMU\n",
            "B8.slope                  0.0         0.0               -                       1  best\n",
            "agent ready, ours                                 2070.0      2060.0      2086.0 ms      5\n",
            "B7 could not be measured: there is no runc\n",
        ] {
            assert!(table.contains(expected), "{expected}\n{table}");
        }
    }
}
