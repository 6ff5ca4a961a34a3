//! How good a figure is: the bounds of the project's benchmark matrix. Pure.
//!
//! A ratio is judged by the upper end of its interval, never by itself, and never by milliseconds; and not at all where
//! there are too few samples for an interval.

use crate::report::Figure;

/// What of a figure has bounds.
#[derive(Debug, Clone, Copy)]
enum Bounded {
    /// The ratio.
    Ratio,
    /// Our own value, which does not depend on the machine.
    Ours,
}

/// By id: at most so much for "must", "good" and "best".
const BOUNDS: &[(&str, Bounded, [f64; 3])] = &[
    ("B1", Bounded::Ratio, [0.21, 0.1, 0.05]),
    // One and a half times as fast as a copy, two and a half times, three and a half times.
    ("B2", Bounded::Ratio, [0.667, 0.4, 0.286]),
    ("B3.cache", Bounded::Ratio, [2.5, 1.8, 1.2]),
    ("B3.copy", Bounded::Ratio, [4.0, 2.5, 1.6]),
    ("B4.copy", Bounded::Ratio, [2.0, 1.0, 0.7]),
    ("B4.cache", Bounded::Ratio, [2.0, 1.0, 0.7]),
    ("B5", Bounded::Ratio, [0.15, 0.07, 0.03]),
    ("B5.outside", Bounded::Ratio, [0.15, 0.07, 0.03]),
    ("B6", Bounded::Ratio, [0.05, 0.05, 0.05]),
    ("B7", Bounded::Ratio, [0.8, 0.5, 0.35]),
    ("B7.private_dirty", Bounded::Ratio, [0.8, 0.5, 0.35]),
    ("B8", Bounded::Ours, [6.0, 6.0, 6.0]),
    ("B8.slope", Bounded::Ours, [0.0, 0.0, 0.0]),
    ("B9", Bounded::Ratio, [0.5, 0.25, 0.18]),
    ("B10", Bounded::Ratio, [2.0, 1.4, 1.1]),
    // Of times, of which the rate is the inverse.
    ("B11", Bounded::Ratio, [1.0, 0.77, 0.625]),
    ("B14", Bounded::Ratio, [0.02, 0.01, 0.01]),
    ("B12", Bounded::Ratio, [3.0, 1.5, 1.0]),
    ("B15", Bounded::Ratio, [0.3, 0.3, 0.3]),
    // One and a half times as fast, twice, three times.
    ("B17", Bounded::Ratio, [0.667, 0.5, 0.333]),
    ("B17.1", Bounded::Ratio, [0.667, 0.5, 0.333]),
    ("B17.8", Bounded::Ratio, [0.667, 0.5, 0.333]),
    ("B17.32", Bounded::Ratio, [0.667, 0.5, 0.333]),
];

/// With fewer samples, resampling says little about what chance does.
pub const FEWEST: usize = 5;

/// How good a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As good as anybody could ask.
    Best,
    /// As good as we want to be.
    Good,
    /// As good as it must be.
    Passes,
    /// Worse than that.
    Fails,
}

impl Grade {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Good => "good",
            Self::Passes => "passes",
            Self::Fails => "FAILS",
        }
    }
}

/// The grade of a figure. None where it has no bounds or too few samples. A ratio that could not be computed fails.
pub fn grade(figure: &Figure) -> Option<Grade> {
    let (_, bounded, [must, good, best]) = BOUNDS.iter().find(|(id, ..)| *id == figure.id)?;
    let value = match bounded {
        Bounded::Ratio if figure.n < FEWEST => return None,
        Bounded::Ratio => figure.high.unwrap_or(f64::INFINITY),
        Bounded::Ours => figure.ours,
    };
    Some(match value {
        value if value <= *best => Grade::Best,
        value if value <= *good => Grade::Good,
        value if value <= *must => Grade::Passes,
        _ => Grade::Fails,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Ratio;

    fn figure(id: &str, ours: f64, ratio: Option<(f64, f64)>) -> Figure {
        let ratio = ratio.map(|(value, high)| Ratio {
            value,
            low: value,
            high,
        });
        Figure::new(id, "", "", &[ours; FEWEST], &[1.0; FEWEST], ratio)
    }

    #[test]
    fn the_end_of_the_interval_decides() {
        for (id, ours, ratio, expected) in [
            ("B5", 9.0, Some((0.02, 0.03)), Some(Grade::Best)),
            ("B5", 9.0, Some((0.02, 0.031)), Some(Grade::Good)),
            ("B5", 9.0, Some((0.02, 0.15)), Some(Grade::Passes)),
            ("B5", 9.0, Some((0.02, 0.151)), Some(Grade::Fails)),
            ("B5", 9.0, Some((-0.1, -0.05)), Some(Grade::Best)),
            ("B5", 9.0, None, Some(Grade::Fails)),
            ("B8", 6.0, Some((2.0, 2.0)), Some(Grade::Best)),
            ("B8", 6.5, Some((0.1, 0.1)), Some(Grade::Fails)),
            ("B8.slope", 0.0, None, Some(Grade::Best)),
            ("B8.slope", 0.1, None, Some(Grade::Fails)),
            ("B3", 9.0, Some((20.0, 30.0)), None),
            ("B5.from_shim_start", 9.0, Some((20.0, 30.0)), None),
        ] {
            assert_eq!(grade(&figure(id, ours, ratio)), expected, "{id} {ours} {ratio:?}");
        }
    }

    #[test]
    fn too_few_samples_are_not_judged() {
        let mut figure = figure("B5", 9.0, Some((0.02, 0.03)));
        figure.n = FEWEST - 1;
        assert_eq!(grade(&figure), None);
        figure.id = "B8".into();
        assert_eq!(grade(&figure), Some(Grade::Fails), "no ratio, no chance");
    }

    #[test]
    fn bounds_are_in_their_order() {
        for (id, _, [must, good, best]) in BOUNDS {
            assert!(must >= good && good >= best, "{id}");
        }
    }
}
