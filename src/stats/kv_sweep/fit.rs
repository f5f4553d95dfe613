//! Arithmetic of a KV pool: how many sequences fit, and what throughput so many
//! of them give. Knows no record. `predict` is the one place where a throughput
//! comes of a pool; `docs/METRICS.md` says what it leaves out.

use std::collections::BTreeMap;

use crate::stats::distribution::{mean, median};

/// Sequences of a load.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Prompt and output tokens of each sequence; more of them weigh more.
    pub lengths: Vec<(u64, u64)>,
    /// Prefixes that several prompts begin with, and the tokens of each.
    pub prefixes: (u64, u64),
    /// Sequences that run at once where every one fits.
    pub demand: f64,
}

/// A pool that a load is put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Blocks.
    pub num_blocks: u64,
    /// Tokens in a block.
    pub block_size: u64,
    /// Whether prompts that begin alike share the blocks of their beginning.
    pub shares_prefixes: bool,
}

/// What a step takes, in ms: a part of every step, a part of each sequence that
/// decodes in it, a part of each prompt token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCost {
    /// Of every step.
    pub base_ms: f64,
    /// Of each sequence that decodes in it.
    pub per_sequence_ms: f64,
    /// Of each prompt token in it.
    pub per_prompt_token_ms: f64,
}

/// What is expected of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Blocks that a sequence holds at its end, on average, shared ones left out.
    pub blocks_per_sequence: f64,
    /// Sequences that fit at their full length.
    pub fits: u64,
    /// Sequences that run at once.
    pub running: f64,
    /// Output tokens a second; absent where nothing fits.
    pub tokens_per_s: Option<f64>,
}

/// Tokens whose K and V a sequence holds at its end: the last token that it
/// draws is never computed.
#[must_use]
pub const fn held_tokens(prompt: u64, output: u64) -> u64 {
    prompt.saturating_add(output).saturating_sub(1)
}

/// Blocks for so many tokens.
#[must_use]
pub const fn blocks_of(tokens: u64, block_size: u64) -> u64 {
    if block_size == 0 { 0 } else { tokens.div_ceil(block_size) }
}

/// What is expected of a load in a pool: as many sequences run as fit at their
/// full length, and no more than the load has. They take turns in steps of
/// `cost`; nobody is preempted.
#[must_use]
pub fn predict(load: &Load, pool: Pool, cost: StepCost) -> Option<Prediction> {
    let (groups, prefix) = if pool.shares_prefixes { load.prefixes } else { (0, 0) };
    let shared = prefix.checked_div(pool.block_size)?;
    let own = |(prompt, output): &(u64, u64)| {
        blocks_of(held_tokens(*prompt, *output), pool.block_size).saturating_sub(shared) as f64
    };
    let blocks_per_sequence = mean_of(load.lengths.iter().map(own))?;
    let free = pool.num_blocks.saturating_sub(groups.saturating_mul(shared));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a quotient of counts, not negative and below 2^53"
    )]
    let fits = (free as f64 / blocks_per_sequence.max(1.0)) as u64;
    let running = load.demand.min(fits as f64);
    let prompt = mean_of(load.lengths.iter().map(|(prompt, _)| {
        let cached = shared.saturating_mul(pool.block_size);
        prompt.saturating_sub(cached) as f64
    }))?;
    let output = mean_of(load.lengths.iter().map(|(_, output)| *output as f64))?;
    let tokens_per_s = (running > 0.0).then(|| tokens_per_s(prompt, output, running, cost));
    Some(Prediction { blocks_per_sequence, fits, running, tokens_per_s: tokens_per_s.flatten() })
}

/// So many sequences at once: each takes a step for each output token, the first
/// one drawn with the prompt; in the time of these steps all of them are served.
fn tokens_per_s(prompt: f64, output: f64, running: f64, cost: StepCost) -> Option<f64> {
    let decoding = cost.per_sequence_ms * running * (output - 1.0).max(0.0);
    let prefill = cost.per_prompt_token_ms * running * prompt;
    let ms = cost.base_ms.mul_add(output, decoding + prefill);
    (ms > 0.0 && output > 0.0).then(|| 1e3 * running * output / ms)
}

/// A step that was measured: sequences that decoded, prompt tokens, ms.
pub type Measured = (u64, u64, f64);

/// Steps alike in what they computed: sequences that decoded, prompt tokens, the
/// median of their times in ms, their number.
type Alike = (f64, f64, f64, f64);

impl StepCost {
    /// Steps that take the same time whatever is in them: what is left to assume
    /// where no step was seen. Only ratios of what it gives mean anything.
    pub const CONSTANT: Self =
        Self { base_ms: 1.0, per_sequence_ms: 0.0, per_prompt_token_ms: 0.0 };

    /// By least squares over the medians of steps that computed alike, with no part
    /// below zero: of the sets of parts that the steps can tell apart, the one that
    /// leaves the least. `None` of no steps.
    #[must_use]
    pub fn fit(steps: &[Measured]) -> Option<Self> {
        let alike = alike(steps);
        let sets: [&[usize]; 7] = [&[0], &[1], &[2], &[0, 1], &[0, 2], &[1, 2], &[0, 1, 2]];
        let candidates = sets.into_iter().filter_map(|parts| {
            let cost = solve(&alike, parts)?;
            let parts = [cost.base_ms, cost.per_sequence_ms, cost.per_prompt_token_ms];
            let sound = parts.iter().all(|part| part.is_finite() && *part >= 0.0);
            sound.then_some((alike.iter().map(|steps| cost.leaves(*steps)).sum::<f64>(), cost))
        });
        // Of two that explain equally much the simpler one, whatever rounding says.
        let better = |best: (f64, Self), next: (f64, Self)| {
            if next.0 < best.0 * (1.0 - 1e-9) { next } else { best }
        };
        candidates.reduce(better).map(|(_, cost)| cost)
    }

    /// Squares of what it does not explain.
    fn leaves(self, (sequences, prompt, ms, number): Alike) -> f64 {
        let decoding = self.per_sequence_ms.mul_add(sequences, self.base_ms);
        let told = self.per_prompt_token_ms.mul_add(prompt, decoding);
        number * (told - ms).powi(2)
    }
}

/// A median for each kind of step, so that a few that something held up do not
/// tell what a kind costs.
fn alike(steps: &[Measured]) -> Vec<Alike> {
    let mut kinds: BTreeMap<(u64, u64), Vec<f64>> = BTreeMap::new();
    for (sequences, prompt, ms) in steps {
        kinds.entry((*sequences, *prompt)).or_default().push(*ms);
    }
    let kind = |((sequences, prompt), times): ((u64, u64), Vec<f64>)| {
        let number = times.len() as f64;
        Some((sequences as f64, prompt as f64, median(times)?, number))
    };
    kinds.into_iter().filter_map(kind).collect()
}

/// Normal equations over some of the three parts, by elimination; `None` where
/// the steps cannot tell them apart.
fn solve(steps: &[Alike], parts: &[usize]) -> Option<StepCost> {
    let n = parts.len();
    let mut rows = vec![vec![0.0_f64; n + 1]; n];
    for (sequences, prompt, ms, number) in steps {
        let values = [1.0, *sequences, *prompt];
        for (row, part) in rows.iter_mut().zip(parts) {
            for (cell, other) in row.iter_mut().zip(parts) {
                *cell += number * values[*part] * values[*other];
            }
            row[n] += number * values[*part] * ms;
        }
    }
    for pivot in 0..n {
        let scale = rows[pivot][pivot];
        // What is left of a column that others explain is rounding.
        let whole: f64 = steps.iter().map(|s| s.3 * [1.0, s.0, s.1][parts[pivot]].powi(2)).sum();
        if scale <= whole * 1e-9 {
            return None;
        }
        rows[pivot].iter_mut().for_each(|cell| *cell /= scale);
        let by = rows[pivot].clone();
        for row in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot).map(|(_, row)| row) {
            let factor = row[pivot];
            row.iter_mut().zip(&by).for_each(|(cell, known)| *cell -= factor * known);
        }
    }
    let part = |wanted: usize| {
        let place = parts.iter().position(|part| *part == wanted);
        place.map_or(0.0, |place| rows[place][n])
    };
    Some(StepCost { base_ms: part(0), per_sequence_ms: part(1), per_prompt_token_ms: part(2) })
}

fn mean_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    mean(&values.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::infer::kv::{BlockManager, BlockTable};

    const FLAT: StepCost = StepCost::CONSTANT;

    fn load(prompt: u64, output: u64, demand: f64) -> Load {
        Load { lengths: vec![(prompt, output)], prefixes: (0, 0), demand }
    }

    fn pool(num_blocks: u64, block_size: u64) -> Pool {
        Pool { num_blocks, block_size, shares_prefixes: false }
    }

    #[test]
    fn blocks_of_a_sequence_do_not_hold_its_last_token() {
        let of = |prompt, output| predict(&load(prompt, output, 99.0), pool(12, 16), FLAT).unwrap();
        assert_eq!((of(32, 17).blocks_per_sequence, of(32, 17).fits), (3.0, 4));
        assert_eq!((of(32, 18).blocks_per_sequence, of(32, 18).fits), (4.0, 3));
        let none = predict(&load(300, 1, 9.0), pool(12, 16), FLAT).unwrap();
        assert_eq!((none.fits, none.tokens_per_s), (0, None));
        assert_eq!(predict(&load(1, 1, 1.0), pool(1, 0), FLAT), None);
    }

    #[test]
    fn shared_beginnings_are_held_once_a_prefix_and_computed_by_nobody() {
        let shared = Load { prefixes: (2, 40), ..load(50, 15, 99.0) };
        let apart = predict(&shared, pool(20, 16), FLAT).unwrap();
        assert_eq!(apart.fits, 5);
        let together = Pool { shares_prefixes: true, ..pool(20, 16) };
        let together = predict(&shared, together, FLAT).unwrap();
        // Two prefixes of two full blocks each, and two blocks of its own each.
        assert_eq!((together.blocks_per_sequence, together.fits), (2.0, 8));
    }

    #[test]
    fn throughput_grows_with_what_fits_up_to_what_is_asked_for() {
        let cost = StepCost { base_ms: 8.0, per_sequence_ms: 1.0, per_prompt_token_ms: 0.5 };
        let of = |blocks| predict(&load(20, 11, 4.0), pool(blocks, 10), cost).unwrap();
        // One sequence: 11 steps of 8 ms, 10 decodes, 20 prompt tokens.
        assert_eq!(of(3).tokens_per_s, Some(1e3 * 11.0 / (88.0 + 10.0 + 10.0)));
        assert_eq!((of(11).running, of(12).running, of(90).running), (3.0, 4.0, 4.0));
        assert!(of(12).tokens_per_s > of(11).tokens_per_s);
        assert_eq!(of(12).tokens_per_s, of(90).tokens_per_s);
    }

    #[test]
    fn parts_that_steps_cannot_tell_apart_are_left_out() {
        let same: Vec<Measured> = (0..5).map(|_| (4, 0, 6.0)).collect();
        let cost = StepCost::fit(&same).unwrap();
        assert!((cost.base_ms - 6.0).abs() < 1e-9, "{cost:?}");
        assert_eq!((cost.per_sequence_ms, cost.per_prompt_token_ms), (0.0, 0.0));
        // Steps that get faster the fuller they are give no part below zero.
        let faster = [(1, 0, 9.0), (2, 0, 8.0), (3, 0, 7.0)];
        let cost = StepCost::fit(&faster).unwrap();
        assert!((cost.base_ms - 8.0).abs() < 1e-9 && cost.per_sequence_ms == 0.0, "{cost:?}");
        assert_eq!(StepCost::fit(&[]), None);
        // What grows faster than in proportion has no part that every step takes.
        let steep = [(1, 0, 1.0), (8, 0, 9.0), (1, 16, 4.0)];
        let cost = StepCost::fit(&steep).unwrap();
        assert!(cost.base_ms == 0.0 && cost.per_sequence_ms > 1.0, "{cost:?}");
        // One that was held up does not tell what its kind costs.
        let held_up = [(1, 0, 9.0), (1, 0, 9.0), (1, 0, 900.0), (8, 0, 16.0)];
        let cost = StepCost::fit(&held_up).unwrap();
        assert!((cost.base_ms - 8.0).abs() < 1e-9, "{cost:?}");
        assert!((cost.per_sequence_ms - 1.0).abs() < 1e-9, "{cost:?}");
    }

    proptest! {
        #[test]
        fn what_fits_is_what_the_block_manager_takes(
            prompt in 1_u64..80, output in 1_u64..60, num_blocks in 1_u64..70, block_size in 1_u64..33,
        ) {
            let prediction =
                predict(&load(prompt, output, 1e9), pool(num_blocks, block_size), FLAT).unwrap();
            let mut manager =
                BlockManager::new(usize::try_from(num_blocks).unwrap(), usize::try_from(block_size).unwrap());
            let held = usize::try_from(held_tokens(prompt, output)).unwrap();
            let mut tables = Vec::new();
            loop {
                let mut table = BlockTable::new(usize::try_from(block_size).unwrap());
                if !manager.can_append(&table, held) {
                    break;
                }
                manager.append(&mut table, held).unwrap();
                let waste = blocks_of(held as u64, block_size) * block_size - held as u64;
                prop_assert_eq!((table.capacity() - held) as u64, waste);
                prop_assert!(waste < block_size);
                tables.push(table);
            }
            prop_assert_eq!(prediction.fits, tables.len() as u64);
        }

        #[test]
        fn cost_is_found_again_from_steps_that_follow_it(
            base in 0.1_f64..50.0, sequence in 0.01_f64..5.0, prompt in 0.01_f64..5.0,
        ) {
            let steps: Vec<Measured> = (0..40_u32)
                .map(|i| (i % 7, (i % 3) * 16))
                .map(|(s, p)| {
                    let decoding = sequence.mul_add(f64::from(s), base);
                    (s.into(), p.into(), prompt.mul_add(f64::from(p), decoding))
                })
                .collect();
            let cost = StepCost::fit(&steps).unwrap();
            prop_assert!((cost.base_ms - base).abs() < 1e-6, "{:?}", cost);
            prop_assert!((cost.per_sequence_ms - sequence).abs() < 1e-6, "{:?}", cost);
            prop_assert!((cost.per_prompt_token_ms - prompt).abs() < 1e-6, "{:?}", cost);
        }

        #[test]
        fn larger_pools_are_never_expected_to_be_slower(
            prompt in 1_u64..200, output in 1_u64..200, demand in 1_u32..64, blocks in 1_u64..400,
        ) {
            let cost = StepCost { base_ms: 3.0, per_sequence_ms: 0.2, per_prompt_token_ms: 0.1 };
            let of = |blocks| predict(&load(prompt, output, f64::from(demand)), pool(blocks, 16), cost);
            let (less, more) = (of(blocks).unwrap(), of(blocks + 1).unwrap());
            prop_assert!(less.fits <= more.fits && less.tokens_per_s <= more.tokens_per_s);
        }
    }
}
