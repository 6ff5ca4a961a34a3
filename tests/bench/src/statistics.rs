//! Medians, spreads, slopes, and how far chance may have moved a ratio. The same samples give the same answers. Pure.

/// Samples that are drawn from the given ones to see what chance does.
const RESAMPLES: usize = 4000;

/// Of 100 intervals like ours, 95 hold the true value: 2.5 % are below, 2.5 % above.
const TAIL: f64 = 2.5;

/// Where the drawing begins: the same samples give the same interval.
const SEED: u64 = 0x5eed_0f5a_3b1e_5500;

/// What samples of one thing say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// How many there are.
    pub n: usize,
    /// Half are below.
    pub median: f64,
    /// The least of them: what the machine can do when nothing disturbs it.
    pub min: f64,
    /// 95 % are below.
    pub p95: f64,
}

impl Spread {
    /// Of no samples there is none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples);
        Some(Self {
            n: samples.len(),
            median: percentile(&sorted, 50.0)?,
            min: *sorted.first()?,
            p95: percentile(&sorted, 95.0)?,
        })
    }
}

/// The median; of no samples there is none.
pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(&sorted(samples), 50.0)
}

/// A ratio, and its interval of 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Of the medians.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Ratio {
    /// `ours` / `other`, of which neither sample belongs to one of the other's. None where a median of `other` is zero or
    /// there are no samples.
    pub fn of(ours: &[f64], other: &[f64]) -> Option<Self> {
        let mut dice = Dice(SEED);
        Self::resampled(
            median(ours)? / median(other)?,
            (0..RESAMPLES).map(|_| {
                let ours = median(&dice.resample(ours))?;
                Some(ours / median(&dice.resample(other))?)
            }),
        )
    }

    /// The same, where each sample of `ours` belongs to the one of `other` at its place: they are drawn together.
    pub fn of_pairs(pairs: &[(f64, f64)]) -> Option<Self> {
        let mut dice = Dice(SEED);
        Self::resampled(
            ratio_of(pairs)?,
            (0..RESAMPLES).map(|_| ratio_of(&dice.resample(pairs))),
        )
    }

    /// What is more than the whole: 1.07 becomes 0.07.
    pub fn excess(self) -> Self {
        Self {
            value: self.value - 1.0,
            low: self.low - 1.0,
            high: self.high - 1.0,
        }
    }

    fn resampled(value: f64, drawn: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let mut drawn: Vec<f64> = drawn.collect::<Option<_>>()?;
        drawn.sort_by(f64::total_cmp);
        let ratio = Self {
            value,
            low: percentile(&drawn, TAIL)?,
            high: percentile(&drawn, 100.0 - TAIL)?,
        };
        [ratio.value, ratio.low, ratio.high]
            .iter()
            .all(|number| number.is_finite())
            .then_some(ratio)
    }
}

fn ratio_of(pairs: &[(f64, f64)]) -> Option<f64> {
    let (ours, other): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    Some(median(&ours)? / median(&other)?)
}

/// By how much `y` grows with `x`: of the straight line with the least squares. None where `x` does not change.
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (spread > 0.0).then(|| together / spread)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Between two samples the value is on the straight line from one to the other.
fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let place = percent / 100.0 * (sorted.len().checked_sub(1)? as f64);
    let below = *sorted.get(place.floor() as usize)?;
    let above = *sorted.get(place.ceil() as usize)?;
    Some(below + (above - below) * place.fract())
}

/// Pseudorandom numbers: SplitMix64 (Steele, Lea, Flood 2014), which passes the usual tests and is four lines.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// As many samples as there are, each drawn from all.
    fn resample<T: Copy>(&mut self, samples: &[T]) -> Vec<T> {
        let count = samples.len() as u128;
        (0..samples.len())
            .filter_map(|_| {
                // The high half of the product is below `count`.
                let place = (u128::from(self.next()) * count) >> 64;
                samples.get(place as usize).copied()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn medians_and_percentiles() {
        for (samples, n, median, min, p95) in [
            (&[7.0][..], 1, 7.0, 7.0, 7.0),
            (&[3.0, 1.0], 2, 2.0, 1.0, 2.9),
            (&[5.0, 1.0, 3.0], 3, 3.0, 1.0, 4.8),
            (&[4.0, 1.0, 3.0, 2.0], 4, 2.5, 1.0, 3.85),
            (&[2.0, 2.0, 2.0], 3, 2.0, 2.0, 2.0),
        ] {
            let spread = Spread::of(samples).unwrap();
            assert_eq!(
                (spread.n, spread.median, spread.min),
                (n, median, min),
                "{samples:?}"
            );
            assert!((spread.p95 - p95).abs() < 1e-9, "{samples:?}: {}", spread.p95);
        }
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn samples_that_agree_leave_chance_no_room() {
        let ratio = Ratio::of(&[30.0; 5], &[10.0; 9]).unwrap();
        assert_eq!((ratio.value, ratio.low, ratio.high), (3.0, 3.0, 3.0));
    }

    #[test]
    fn a_ratio_to_nothing_is_none() {
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
        assert_eq!(Ratio::of(&[], &[1.0]), None);
        assert_eq!(Ratio::of(&[1.0], &[]), None);
        assert_eq!(Ratio::of(&[0.0], &[0.0]), None);
        assert_eq!(Ratio::of_pairs(&[]), None);
        assert_eq!(Ratio::of(&[0.0], &[2.0]).unwrap().value, 0.0);
    }

    #[test]
    fn scattered_samples_give_a_wide_interval_and_many_a_narrow_one() {
        let scattered =
            |count: u32| -> Vec<f64> { (0..count).map(|i| 100.0 + f64::from(i * 37 % 20)).collect() };
        let width = |count| {
            let ratio = Ratio::of(&scattered(count), &[100.0; 10]).unwrap();
            assert!(ratio.low <= ratio.value && ratio.value <= ratio.high, "{ratio:?}");
            ratio.high - ratio.low
        };
        assert!(width(20) > 0.02);
        assert!(width(500) < width(20) / 2.0);
    }

    /// Pairs that rise and fall together have a ratio that does not move; apart it does.
    #[test]
    fn pairs_are_drawn_together() {
        let pairs: Vec<(f64, f64)> = (1..=9).map(|i| (f64::from(i) * 2.0, f64::from(i))).collect();
        let (ours, other): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        let together = Ratio::of_pairs(&pairs).unwrap();
        assert_eq!((together.low, together.value, together.high), (2.0, 2.0, 2.0));
        let apart = Ratio::of(&ours, &other).unwrap();
        assert!(apart.low < 1.5 && apart.high > 2.5, "{apart:?}");
    }

    #[test]
    fn an_excess_is_what_is_above_one() {
        let excess = Ratio::of(&[107.0], &[100.0]).unwrap().excess();
        assert!((excess.value - 0.07).abs() < 1e-9);
        assert!((excess.high - 0.07).abs() < 1e-9);
    }

    #[test]
    fn slopes() {
        for (points, expected) in [
            (&[(1.0, 12.0), (2.0, 12.0), (3.0, 12.0)][..], Some(0.0)),
            (&[(1.0, 5.0), (2.0, 17.0)], Some(12.0)),
            (&[(1.0, 1.0), (2.0, 3.0), (3.0, 2.0)], Some(0.5)),
            (&[(1.0, 1.0), (1.0, 2.0)], None),
            (&[], None),
        ] {
            assert_eq!(slope(points), expected, "{points:?}");
        }
    }

    proptest! {
        #[test]
        fn a_spread_is_ordered_and_within_the_samples(samples in prop::collection::vec(0.0..1e9, 1..40)) {
            let spread = Spread::of(&samples).unwrap();
            let max = samples.iter().copied().fold(f64::MIN, f64::max);
            prop_assert!(spread.min <= spread.median);
            prop_assert!(spread.median <= spread.p95);
            prop_assert!(spread.p95 <= max);
        }

        #[test]
        fn dice_stay_on_the_table(seed: u64, count in 1_usize..50) {
            let samples: Vec<usize> = (0..count).collect();
            let drawn = Dice(seed).resample(&samples);
            prop_assert_eq!(drawn.len(), count);
            prop_assert!(drawn.iter().all(|sample| *sample < count));
        }
    }
}
