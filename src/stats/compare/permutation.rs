//! Whether labels matter: how often two samples would lie as far apart as they
//! do if which of them a round belongs to meant nothing. Knows rounds, not
//! what they measure.

use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::bootstrap::Design;
use super::sample::Sample;

/// Up to as many arrangements are all looked at.
const EXACT: u64 = 20_000;

/// Arrangements that are drawn where there are more.
const DRAWS: u32 = 20_000;

const SEED: u64 = 0x7065_726d;

/// Two distances that differ by rounding alone are equal.
const ROUNDING: f64 = 1e-9;

/// The two-sided p of a permutation test.
///
/// Its statistic is the mean over rounds of the logarithm of each round's own
/// statistic, one sample's less the other's. The ratio of pooled medians would
/// not do: it moves with the middle rounds alone, so that many arrangements tie
/// with the measured one, and of eight clearly different pairs of rounds p is
/// still above 0.06. Labels are exchanged within rounds where samples are paired,
/// else over all rounds. A sampled p is (k + 1) / (m + 1) (Phipson and Smyth 2010).
#[must_use]
pub fn p(base: &Sample, candidate: &Sample, design: Design) -> f64 {
    let logs = |sample: &Sample| sample.of_rounds().map(f64::ln).collect::<Vec<_>>();
    let (base, candidate) = (logs(base), logs(candidate));
    match design {
        Design::Itself => 1.0,
        Design::Paired => paired(&differences(&base, &candidate)),
        Design::Unpaired => unpaired(&base, &candidate),
    }
}

/// The smallest p that samples of so many rounds can have.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "more arrangements than 2^52 are as good as none")]
pub fn smallest_p(base: usize, candidate: usize, design: Design) -> f64 {
    let drawn = 1.0 / (f64::from(DRAWS) + 1.0);
    let arrangements = arrangements(base, candidate, design);
    if arrangements > EXACT {
        return drawn;
    }
    // With as many rounds each, every arrangement has its mirror, as far apart.
    let mirrored = base == candidate;
    (if mirrored { 2.0 } else { 1.0 } / arrangements as f64).min(1.0)
}

fn arrangements(base: usize, candidate: usize, design: Design) -> u64 {
    match design {
        Design::Itself => 1,
        Design::Paired => {
            u32::try_from(base).ok().and_then(|n| 1_u64.checked_shl(n)).unwrap_or(u64::MAX)
        }
        Design::Unpaired => choose(base + candidate, base),
    }
}

/// Binomial coefficient, as far as a `u64` goes.
fn choose(n: usize, k: usize) -> u64 {
    let mut number = 1_u64;
    for i in 0..k.min(n - k) {
        // In this order every division is without a rest.
        match number.checked_mul((n - i) as u64) {
            Some(product) => number = product / (i as u64 + 1),
            None => return u64::MAX,
        }
    }
    number
}

fn differences(base: &[f64], candidate: &[f64]) -> Vec<f64> {
    base.iter().zip(candidate).map(|(base, candidate)| candidate - base).collect()
}

fn paired(differences: &[f64]) -> f64 {
    let n = differences.len();
    let observed = differences.iter().sum::<f64>().abs();
    let far = |sum: f64| sum.abs() >= observed - ROUNDING;
    if arrangements(n, n, Design::Paired) <= EXACT {
        let all = 1_u32 << n;
        let flipped = |mask: u32| -> f64 {
            let signed = differences.iter().enumerate();
            signed.map(|(i, d)| if mask >> i & 1 == 1 { -d } else { *d }).sum()
        };
        let count = (0..all).filter(|mask| far(flipped(*mask))).count();
        return share(count, all);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    sampled(|| far(differences.iter().map(|d| if rng.random_bool(0.5) { -d } else { *d }).sum()))
}

fn unpaired(base: &[f64], candidate: &[f64]) -> f64 {
    let mut all: Vec<f64> = base.iter().chain(candidate).copied().collect();
    let total: f64 = all.iter().sum();
    let k = base.len();
    let apart = |of_base: f64| (mean(total - of_base, candidate.len()) - mean(of_base, k)).abs();
    let observed = apart(base.iter().sum());
    let far = |of_base: f64| apart(of_base) >= observed - ROUNDING;
    let number = arrangements(k, candidate.len(), Design::Unpaired);
    if number <= EXACT {
        let mut count = 0;
        for_each_choice(&all, k, 0.0, &mut |sum| count += usize::from(far(sum)));
        return share(count, u32::try_from(number).unwrap_or(u32::MAX));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    sampled(|| {
        let (chosen, _) = all.partial_shuffle(&mut rng, k);
        far(chosen.iter().sum())
    })
}

/// Calls `visit` with the sum of every choice of `k` values.
fn for_each_choice(values: &[f64], k: usize, sum: f64, visit: &mut impl FnMut(f64)) {
    if k == 0 {
        visit(sum);
        return;
    }
    for i in 0..=values.len().saturating_sub(k) {
        if let Some((value, rest)) = values[i..].split_first() {
            for_each_choice(rest, k - 1, sum + value, visit);
        }
    }
}

fn sampled(mut is_far: impl FnMut() -> bool) -> f64 {
    let count = (0..DRAWS).filter(|_| is_far()).count();
    share(count + 1, DRAWS + 1)
}

#[expect(clippy::cast_precision_loss, reason = "counts of rounds are far below 2^52")]
fn mean(sum: f64, count: usize) -> f64 {
    sum / count as f64
}

#[expect(clippy::cast_precision_loss, reason = "counts of arrangements are far below 2^52")]
fn share(count: usize, of: u32) -> f64 {
    count as f64 / f64::from(of)
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    fn rounds(values: &[f64]) -> Sample {
        sample(&values.iter().map(|value| vec![*value]).collect::<Vec<_>>(), 0.5)
    }

    #[test]
    fn identical_arms_have_a_p_of_one() {
        let a = rounds(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        for design in [Design::Paired, Design::Unpaired, Design::Itself] {
            assert!((p(&a, &a, design) - 1.0).abs() < 1e-12, "{design:?}");
        }
    }

    #[test]
    fn arms_wholly_apart_reach_the_smallest_p() {
        for n in 4..=9_u32 {
            let low: Vec<f64> = (0..n).map(|i| 1.0 + f64::from(i) / 100.0).collect();
            let high: Vec<f64> = low.iter().map(|value| value * 2.0).collect();
            let (low, high) = (rounds(&low), rounds(&high));
            let n = n as usize;
            for design in [Design::Paired, Design::Unpaired] {
                let found = p(&low, &high, design);
                assert!((found - smallest_p(n, n, design)).abs() < 1e-9 || found < 2e-4, "{found}");
            }
        }
    }

    #[test]
    fn few_rounds_cannot_reach_five_percent() {
        let within = |a, b, design| smallest_p(a, b, design) <= 0.05;
        assert!(!within(5, 5, Design::Paired) && within(6, 6, Design::Paired));
        assert!(!within(3, 3, Design::Unpaired) && within(4, 4, Design::Unpaired));
        assert!(!within(1, 1, Design::Paired) && !within(1, 8, Design::Unpaired));
        assert!((smallest_p(100, 100, Design::Unpaired) - 1.0 / 20_001.0).abs() < 1e-12);
        assert!((smallest_p(70, 70, Design::Paired) - 1.0 / 20_001.0).abs() < 1e-12);
    }

    #[test]
    fn every_choice_is_visited_once() {
        let mut sums = Vec::new();
        for_each_choice(&[1.0, 2.0, 4.0, 8.0], 2, 0.0, &mut |sum| sums.push(sum));
        assert_eq!(sums, [3.0, 5.0, 9.0, 6.0, 10.0, 12.0]);
        assert_eq!(choose(16, 8), 12_870);
        assert_eq!(choose(200, 100), u64::MAX);
    }

    #[test]
    fn sampled_p_is_near_the_exact_one() {
        // 14 pairs are counted out, 15 are drawn; a further pair of equals changes little.
        let base: Vec<f64> = (0..14).map(|i| 10.0 + f64::from(i % 5)).collect();
        let candidate: Vec<f64> = (0..14).map(|i| 10.2 + f64::from(i * 3 % 5)).collect();
        let exact = p(&rounds(&base), &rounds(&candidate), Design::Paired);
        let more = |values: &[f64]| rounds(&[values, &[10.0]].concat());
        let drawn = p(&more(&base), &more(&candidate), Design::Paired);
        assert!((exact - drawn).abs() < 0.02, "{exact} {drawn}");
    }
}
