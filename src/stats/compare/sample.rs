//! The values of one engine under one load, a block a round. A block is what
//! is drawn, swapped and counted: requests of one round share its conditions.
//! Knows values, not where they come from.

use crate::stats::distribution::percentile;
use crate::stats::order_statistics::smallest_n;

/// What one round gave: the values of its requests, or its one rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Which repetition of the plan.
    pub round: u32,
    /// In ascending order; never empty.
    values: Vec<f64>,
}

impl Block {
    /// A round's values; `None` if there are none.
    #[must_use]
    pub fn new(round: u32, mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Self { round, values })
    }
}

/// The rounds of one engine under one load, and the quantile that is asked of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    blocks: Vec<Block>,
    quantile: f64,
}

impl Sample {
    /// A sample whose statistic is the quantile of its pooled values: for rounds
    /// of one value each, with 0.5, the median over rounds.
    ///
    /// # Errors
    /// Why there is no such statistic, or no ratio of it.
    pub fn new(blocks: Vec<Block>, quantile: f64) -> Result<Self, String> {
        if blocks.is_empty() {
            return Err("no round has a value".to_owned());
        }
        let sample = Self { blocks, quantile };
        let (n, needed) = (sample.n(), smallest_n(quantile));
        if quantile > 0.5 && n < needed {
            return Err(format!("n too small: {n} < {needed}"));
        }
        if sample.of_rounds().any(|value| !(value.is_finite() && value > 0.0)) {
            return Err("a round's value is 0, so there is no ratio".to_owned());
        }
        Ok(sample)
    }

    /// Values of all rounds.
    #[must_use]
    pub fn n(&self) -> usize {
        self.blocks.iter().map(|block| block.values.len()).sum()
    }

    /// Number of rounds.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.blocks.len()
    }

    /// The statistic of each round by itself, in order of the rounds.
    pub fn of_rounds(&self) -> impl Iterator<Item = f64> + '_ {
        let of = |block: &Block| percentile(&block.values, self.quantile);
        // A block has a value, so it has its percentile.
        self.blocks.iter().map(move |block| of(block).unwrap_or(f64::NAN))
    }

    /// The rounds of both that both have, so that a round stands beside itself.
    #[must_use]
    pub fn paired(&self, other: &Self) -> (Self, Self) {
        let keep = |sample: &Self, other: &Self| Self {
            blocks: sample
                .blocks
                .iter()
                .filter(|block| other.blocks.iter().any(|o| o.round == block.round))
                .cloned()
                .collect(),
            quantile: sample.quantile,
        };
        (keep(self, other), keep(other, self))
    }

    /// Ready for statistics of any number of draws.
    #[must_use]
    pub fn pool(&self) -> Pool {
        Pool::new(&self.blocks, self.quantile)
    }

    /// The statistic of all rounds.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.pool().statistic(&vec![1; self.rounds()])
    }
}

/// Values between two checkpoints of a [`Pool`].
const STRIDE: usize = 16;

/// All values of a sample in order, with how many of each block lie below each
/// checkpoint: the quantile of a draw of blocks is then a binary search, not a
/// sort of what was drawn.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Value and the block it is from, in ascending order.
    values: Vec<(f64, u32)>,
    /// For every `STRIDE`-th position, how many values of each block lie before it.
    below: Vec<Vec<u32>>,
    /// How many values each block has.
    sizes: Vec<u32>,
    quantile: f64,
}

impl Pool {
    fn new(blocks: &[Block], quantile: f64) -> Self {
        let mut values: Vec<(f64, u32)> = (0..)
            .zip(blocks)
            .flat_map(|(i, block)| block.values.iter().map(move |value| (*value, i)))
            .collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = Vec::with_capacity(values.len() / STRIDE + 1);
        let mut counts = vec![0; blocks.len()];
        for (i, (_, block)) in values.iter().enumerate() {
            if i % STRIDE == 0 {
                below.push(counts.clone());
            }
            counts[*block as usize] += 1;
        }
        Self { values, below, sizes: counts, quantile }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.sizes.len()
    }

    /// The quantile of the values where block `i` is there `times[i]` times;
    /// interpolated as [`percentile`] does. NaN if nothing is there.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "sample sizes are far below 2^52")]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the quantile lies between 0 and 1, so the position lies in the sample"
    )]
    pub fn statistic(&self, times: &[u32]) -> f64 {
        let Some(last) = weigh(&self.sizes, times).checked_sub(1) else { return f64::NAN };
        let position = last as f64 * self.quantile;
        let below = position.floor();
        let (low, high) = self.at(below as u64, times);
        (high - low).mul_add(position - below, low)
    }

    /// The values of a rank, counted from 0, and of the next one; the last one's
    /// is its own.
    fn at(&self, rank: u64, times: &[u32]) -> (f64, f64) {
        let checkpoint = self.below.partition_point(|counts| weigh(counts, times) <= rank) - 1;
        let mut seen = weigh(&self.below[checkpoint], times);
        let mut low = f64::NAN;
        for (value, block) in &self.values[checkpoint * STRIDE..] {
            let before = seen;
            seen += u64::from(times[*block as usize]);
            if before <= rank && rank < seen {
                low = *value;
            }
            if seen > rank + 1 {
                return (low, *value);
            }
        }
        (low, low)
    }
}

fn weigh(counts: &[u32], times: &[u32]) -> u64 {
    counts.iter().zip(times).map(|(count, times)| u64::from(*count) * u64::from(*times)).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One block a row, its round the row's index.
    pub(in crate::stats::compare) fn sample(rows: &[Vec<f64>], quantile: f64) -> Sample {
        let blocks = (0..).zip(rows).filter_map(|(i, row)| Block::new(i, row.clone())).collect();
        Sample::new(blocks, quantile).unwrap()
    }

    #[test]
    fn tails_need_as_many_values_as_elsewhere() {
        let blocks = |n: u32| vec![Block::new(0, (1..=n).map(f64::from).collect()).unwrap()];
        assert_eq!(Sample::new(blocks(28), 0.9).unwrap_err(), "n too small: 28 < 29");
        assert!(Sample::new(blocks(29), 0.9).is_ok());
        assert!(Sample::new(blocks(1), 0.5).is_ok());
    }

    #[test]
    fn zero_has_no_ratio_and_says_so() {
        let blocks = vec![Block::new(0, vec![0.0, 0.0, 3.0]).unwrap()];
        assert!(Sample::new(blocks, 0.5).unwrap_err().contains("is 0"));
        assert!(Block::new(0, Vec::new()).is_none());
    }

    #[test]
    fn rounds_stand_beside_themselves() {
        let rounds = |rounds: &[u32]| {
            let blocks = rounds.iter().filter_map(|r| Block::new(*r, vec![f64::from(*r) + 1.0]));
            Sample::new(blocks.collect(), 0.5).unwrap()
        };
        let (a, b) = rounds(&[0, 1, 3]).paired(&rounds(&[1, 2, 3]));
        assert_eq!(a, rounds(&[1, 3]));
        assert_eq!(a, b);
    }

    proptest! {
        #[test]
        fn draw_of_blocks_has_the_quantile_of_its_values(
            rows in proptest::collection::vec(proptest::collection::vec(0.1_f64..9.0, 1..90), 1..6),
            times in proptest::collection::vec(0_u32..4, 6),
            q in proptest::sample::select(vec![0.5, 0.9, 0.99]),
        ) {
            let blocks: Vec<_> =
                (0..).zip(&rows).filter_map(|(i, row)| Block::new(i, row.clone())).collect();
            let mut drawn: Vec<f64> = rows
                .iter()
                .zip(&times)
                .flat_map(|(row, times)| (0..*times).flat_map(|_| row.iter().copied()))
                .collect();
            drawn.sort_by(f64::total_cmp);
            let found = Pool::new(&blocks, q).statistic(&times[..rows.len()]);
            match percentile(&drawn, q) {
                Some(expected) => prop_assert!((found - expected).abs() < 1e-12),
                None => prop_assert!(found.is_nan()),
            }
        }
    }
}
