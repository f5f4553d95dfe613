//! Distribution-free confidence intervals of a quantile: which two order
//! statistics enclose it with a stated probability. Knows ranks, not values.

/// Coverage of every interval in `summary.json`.
pub const LEVEL: f64 = 0.95;

/// Terms of the binomial distribution below this share of the largest one are
/// left out: together they are far below the last digit of a coverage.
const NEGLIGIBLE: f64 = 1e-20;

/// Rounding error granted to a sum of such terms.
const ROUNDING: f64 = 1e-12;

/// Ranks `(low, high)`, counted from 1, such that the values of those ranks in
/// a sorted sample of `n` enclose the quantile `q` with probability of at
/// least `level`, whatever the distribution.
///
/// The number `B` of values at or below the quantile is binomial `(n, q)`, and
/// `x_(low) <= quantile < x_(high)` holds where `low <= B < high`; so the
/// coverage is the exact sum of those terms (David and Nagaraja, Order
/// Statistics, 3rd ed., section 7.1). The narrowest pair is taken; for the
/// median only pairs that are symmetric (`low + high = n + 1`), for other
/// quantiles, where two pairs are equally narrow, the one whose coverage is
/// nearest to `level`.
///
/// `None` where even the smallest and the largest value do not enclose it:
/// for 95 % below n = 6 (median), 29 (p90), 59 (p95) and 299 (p99).
#[must_use]
pub fn ranks(n: usize, q: f64, level: f64) -> Option<(usize, usize)> {
    if n < 2 || !(q > 0.0 && q < 1.0) {
        return None;
    }
    let (first, terms) = binomial_terms(n, q);
    // Prefix sums: `below[i]` is P(B < first + i).
    let mut below = Vec::with_capacity(terms.len() + 1);
    let mut sum = 0.0;
    below.push(0.0);
    for term in &terms {
        sum += term;
        below.push(sum);
    }
    let below_rank = |rank: usize| below[rank.clamp(first, first + terms.len()) - first];
    let coverage = |low: usize, high: usize| below_rank(high) - below_rank(low);
    let symmetric = (q - 0.5).abs() < f64::EPSILON;

    let mut best: Option<(usize, usize)> = None;
    // `low` beyond the kept terms would cover nothing, below them nothing more.
    for low in first.max(1)..(first + terms.len()).min(n) {
        let high = if symmetric {
            n + 1 - low
        } else {
            let needed = below_rank(low) + level;
            first + below.partition_point(|sum| *sum < needed)
        };
        if high <= low || high > n || coverage(low, high) < level - ROUNDING {
            continue;
        }
        let better =
            best.is_none_or(|(l, h)| (high - low, coverage(low, high)) < (h - l, coverage(l, h)));
        if better {
            best = Some((low, high));
        }
    }
    best
}

/// Smallest sample in which [`ranks`] encloses the quantile `q` at [`LEVEL`].
#[must_use]
pub fn smallest_n(q: f64) -> usize {
    (2..).find(|n| ranks(*n, q, LEVEL).is_some()).unwrap_or(usize::MAX)
}

/// Probabilities of a binomial distribution around its mode, outward by the
/// ratio of neighbours until they no longer matter, and the count of the first.
#[expect(clippy::cast_precision_loss, reason = "counts of events are far below 2^52")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the mode lies between 0 and n"
)]
pub(super) fn binomial_terms(n: usize, q: f64) -> (usize, Vec<f64>) {
    let odds = q / (1.0 - q);
    let mode = (((n + 1) as f64 * q) as usize).min(n);
    let mut down = Vec::new();
    let (mut k, mut term) = (mode, 1.0);
    while k > 0 {
        term *= k as f64 / ((n - k + 1) as f64 * odds);
        if term < NEGLIGIBLE {
            break;
        }
        down.push(term);
        k -= 1;
    }
    let first = mode - down.len();
    let mut terms: Vec<f64> = down.into_iter().rev().collect();
    terms.push(1.0);
    (k, term) = (mode, 1.0);
    while k < n {
        term *= (n - k) as f64 * odds / (k + 1) as f64;
        if term < NEGLIGIBLE {
            break;
        }
        terms.push(term);
        k += 1;
    }
    let total: f64 = terms.iter().sum();
    for term in &mut terms {
        *term /= total;
    }
    (first, terms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The coverage by another road: terms from logarithms of factorials.
    fn exact_coverage(n: usize, q: f64, low: usize, high: usize) -> f64 {
        let ln_factorial = |k: usize| (1..=k).map(|i| (i as f64).ln()).sum::<f64>();
        (low..high)
            .map(|k| {
                (ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
                    + k as f64 * q.ln()
                    + (n - k) as f64 * (1.0 - q).ln())
                .exp()
            })
            .sum()
    }

    #[test]
    fn ranks_are_those_of_published_tables() {
        assert_eq!(ranks(6, 0.5, LEVEL), Some((1, 6)));
        assert_eq!(ranks(10, 0.5, LEVEL), Some((2, 9)));
        assert_eq!(ranks(30, 0.5, LEVEL), Some((10, 21)));
        assert_eq!(ranks(100, 0.5, LEVEL), Some((40, 61)));
        assert_eq!(ranks(30, 0.9, LEVEL), Some((22, 30)));
        assert_eq!(ranks(100, 0.9, LEVEL), Some((85, 97)));
        assert_eq!(ranks(100, 0.95, LEVEL), Some((90, 99)));
    }

    #[test]
    fn smallest_samples_are_those_of_the_formula() {
        // Without a lower bound: 1 - q^n >= 0.95; the median is bounded on both sides.
        assert_eq!(smallest_n(0.5), 6);
        assert_eq!(smallest_n(0.9), 29);
        assert_eq!(smallest_n(0.95), 59);
        assert_eq!(smallest_n(0.99), 299);
    }

    #[test]
    fn a_million_values_are_no_burden() {
        let (low, high) = ranks(1_000_000, 0.5, LEVEL).unwrap();
        assert_eq!(low + high, 1_000_001);
        // 1.96 standard deviations of 500 to each side.
        assert!((979..=982).contains(&(500_000 - low)), "{low}");
    }

    proptest! {
        #[test]
        fn ranks_cover_and_no_narrower_pair_does(n in 2_usize..400, q in 0.05_f64..0.995) {
            if let Some((low, high)) = ranks(n, q, LEVEL) {
                prop_assert!(1 <= low && low < high && high <= n);
                prop_assert!(exact_coverage(n, q, low, high) >= LEVEL - 1e-9);
                for l in 1..n {
                    let h = l + (high - low) - 1;
                    if h > l && h <= n {
                        prop_assert!(exact_coverage(n, q, l, h) < LEVEL + 1e-9);
                    }
                }
            } else {
                prop_assert!(exact_coverage(n, q, 1, n) < LEVEL + 1e-9);
            }
        }

        #[test]
        fn median_ranks_are_symmetric(n in 6_usize..3000) {
            let (low, high) = ranks(n, 0.5, LEVEL).unwrap();
            prop_assert_eq!(low + high, n + 1);
        }
    }
}
