//! Draws the next token from logits. A draw depends on the logits, the
//! parameters and the number of tokens drawn before, never on the batch: its
//! randomness is word `position` of a ChaCha stream that the seed names.

use std::cmp::Ordering;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha12Rng;
use thiserror::Error;

use super::host::TokenLogprobs;
use super::sequence::SamplingParams;

/// Tokens that are sorted first in search of a nucleus; most nuclei are smaller.
const NUCLEUS_START: usize = 64;

/// Logits that cannot be drawn from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SampleError {
    /// The model computed no number.
    #[error("the logit of token {0} is not a number: the weights or the KV cache are damaged")]
    NotANumber(usize),
    /// There is nothing to draw from.
    #[error("no logits to draw from")]
    Empty,
}

/// Draws a token from `logits`, `[vocab]`. `position` counts the tokens drawn
/// before it in the same sequence.
///
/// Greedy at temperature 0, the lowest id among equals. Else logits are divided
/// by the temperature, cut to the `top_k` largest, and to the smallest set of
/// largest ones whose probability reaches `top_p`.
///
/// # Errors
/// [`SampleError`] when a logit is NaN.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    position: usize,
) -> Result<u32, SampleError> {
    let (best, max) = argmax(logits)?;
    let drawn = if params.temperature == 0.0 || params.top_k == Some(1) {
        best
    } else {
        let weights: Vec<f64> = logits
            .iter()
            .map(|logit| ((f64::from(*logit) - f64::from(max)) / params.temperature).exp())
            .collect();
        let uniform = uniform(params.seed, position);
        if params.top_k.is_none_or(|k| k >= weights.len()) && params.top_p >= 1.0 {
            pick(&weights, 0..weights.len(), weights.iter().sum(), uniform)
        } else {
            let (kept, mass) = nucleus(&weights, params);
            pick(&weights, kept, mass, uniform)
        }
    };
    u32::try_from(drawn).map_err(|_| SampleError::Empty)
}

/// Natural-log probabilities of `drawn` and of the `count` most likely tokens,
/// from the logits as the model gave them, before temperature and cuts.
///
/// # Errors
/// [`SampleError`] when a logit is NaN.
#[expect(clippy::cast_possible_truncation, reason = "reported in f32, as computed")]
pub fn logprobs(logits: &[f32], drawn: u32, count: usize) -> Result<TokenLogprobs, SampleError> {
    let (_, max) = argmax(logits)?;
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    let log_sum = max + sum.ln();
    let logprob = |id: usize| (f64::from(logits[id]) - log_sum) as f32;
    let drawn = drawn as usize;
    if drawn >= logits.len() {
        return Err(SampleError::Empty);
    }
    let top = largest(logits, count);
    let top = top.into_iter().map(|id| (id as u32, logprob(id))).collect();
    Ok(TokenLogprobs { logprob: logprob(drawn), top })
}

/// Index and value of the largest logit, the first among equals.
fn argmax(logits: &[f32]) -> Result<(usize, f32), SampleError> {
    // Two passes that vectorise beat one that branches: a maximum, then its place.
    const LANES: usize = 16;
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] { chunk[lane] } else { max[lane] };
            nan[lane] |= chunk[lane].is_nan();
        }
    }
    let max = max.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    if nan.contains(&true) || rest.iter().any(|logit| logit.is_nan()) {
        let at = logits.iter().position(|logit| logit.is_nan());
        return Err(SampleError::NotANumber(at.unwrap_or_default()));
    }
    let at = logits.iter().position(|logit| *logit == max).ok_or(SampleError::Empty)?;
    Ok((at, max))
}

/// Ids of the `count` largest values, largest first, lower ids first among
/// equals; without sorting the rest.
fn largest<T: PartialOrd>(values: &[T], count: usize) -> Vec<usize> {
    let order = |a: &usize, b: &usize| {
        values[*b].partial_cmp(&values[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    let count = count.min(values.len());
    let mut ids: Vec<usize> = (0..values.len()).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// The tokens that `top_k` and `top_p` keep, most likely first, and their weight.
fn nucleus(weights: &[f64], params: &SamplingParams) -> (Vec<usize>, f64) {
    let limit = params.top_k.unwrap_or(weights.len()).min(weights.len());
    let total = match params.top_k {
        None => Some(weights.iter().sum::<f64>()),
        Some(_) => None,
    };
    let mut count = if params.top_k.is_some() { limit } else { NUCLEUS_START.min(limit) };
    loop {
        let ids = largest(weights, count);
        let kept: f64 = ids.iter().map(|id| weights[*id]).sum();
        // `top_p` is a share of what `top_k` kept.
        let wanted = params.top_p * total.unwrap_or(kept);
        if kept >= wanted || count == limit {
            return cut(weights, ids, wanted);
        }
        count = (count * 8).min(limit);
    }
}

/// The shortest head of `ids` whose weight reaches `wanted`, at least one.
fn cut(weights: &[f64], mut ids: Vec<usize>, wanted: f64) -> (Vec<usize>, f64) {
    let mut mass = 0.0;
    let mut len = 0;
    for id in &ids {
        mass += weights[*id];
        len += 1;
        if mass >= wanted {
            break;
        }
    }
    ids.truncate(len);
    (ids, mass)
}

/// The token at which the running weight passes `uniform * mass`.
fn pick(weights: &[f64], ids: impl IntoIterator<Item = usize>, mass: f64, uniform: f64) -> usize {
    let mut left = uniform * mass;
    let mut last = 0;
    for id in ids {
        if weights[id] > 0.0 {
            last = id;
            left -= weights[id];
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// A number in [0, 1), from words `2 * position` and after of the seed's stream.
#[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
pub(super) fn uniform(seed: u64, position: usize) -> f64 {
    let mut generator = ChaCha12Rng::seed_from_u64(seed);
    generator.set_word_pos(2 * position as u128);
    (generator.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f64, top_k: Option<usize>, top_p: f64) -> SamplingParams {
        SamplingParams { temperature, top_p, top_k, seed: 7 }
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        let mut logits = vec![0.0; 100];
        (logits[41], logits[77]) = (3.0, 3.0);
        assert_eq!(sample(&logits, &SamplingParams::default(), 0), Ok(41));
    }

    #[test]
    fn a_nan_is_an_error_wherever_it_stands() {
        for at in [0, 15, 16, 18] {
            let mut logits = vec![1.0; 19];
            logits[at] = f32::NAN;
            let error = SampleError::NotANumber(at);
            assert_eq!(sample(&logits, &SamplingParams::default(), 0), Err(error.clone()));
            assert_eq!(logprobs(&logits, 0, 1), Err(error));
        }
        assert_eq!(sample(&[], &SamplingParams::default(), 0), Err(SampleError::Empty));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 2_f32.ln(), f32::NEG_INFINITY, 5_f32.ln()];
        let mut counts = [0_u32; 4];
        for position in 0..8000 {
            counts[sample(&logits, &params(1.0, None, 1.0), position).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([1000.0, 2000.0, 0.0, 5000.0]) {
            // Four standard deviations of the widest of them.
            assert!((f64::from(*count) - expected).abs() < 4.0 * 44.0, "{counts:?}");
        }
    }

    #[test]
    fn top_k_and_top_p_keep_the_largest_only() {
        let logits: Vec<f32> = (0..1000).map(|id| if id % 100 == 7 { 5.0 } else { 0.0 }).collect();
        for position in 0..200 {
            let drawn = sample(&logits, &params(1.0, Some(10), 1.0), position).unwrap();
            assert_eq!(drawn % 100, 7);
            // 10 * e^5 / (10 * e^5 + 990) is 0.6: half the mass is among the ten.
            let drawn = sample(&logits, &params(1.0, None, 0.5), position).unwrap();
            assert_eq!(drawn % 100, 7);
            // `top_p` of what `top_k` left: 2 of 4 equals, those with the lowest ids.
            let drawn = sample(&logits, &params(1.0, Some(4), 0.5), position).unwrap();
            assert!([7, 107].contains(&drawn), "{drawn}");
        }
    }

    #[test]
    fn a_wide_nucleus_is_found_too() {
        let logits = vec![0.0; 3000];
        let weights = vec![1.0; 3000];
        let (kept, mass) = nucleus(&weights, &params(1.0, None, 0.9));
        assert_eq!((kept.len(), mass), (2700, 2700.0));
        assert!(sample(&logits, &params(1.0, None, 0.9), 3).unwrap() < 2700);
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_alone() {
        let logits: Vec<f32> = (0..500).map(|id| (id as f32).sin()).collect();
        let draw = |seed, position| {
            sample(&logits, &SamplingParams { seed, ..params(0.8, Some(50), 0.95) }, position)
        };
        let forward: Vec<_> = (0..20).map(|position| draw(1, position)).collect();
        let backward: Vec<_> = (0..20).rev().map(|position| draw(1, position)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        assert_ne!(forward, (0..20).map(|position| draw(2, position)).collect::<Vec<_>>());
    }

    #[test]
    fn logprobs_are_a_log_softmax_best_first() {
        let logits = [1.0, 3.0, 2.0, 3.0];
        let found = logprobs(&logits, 2, 3).unwrap();
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        assert!((f64::from(found.logprob) - (2.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(found.top[2].1, found.logprob);
        assert_eq!(logprobs(&logits, 0, 100).unwrap().top.len(), 4);
    }
}
