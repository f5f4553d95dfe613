//! A set of values summarised: mean, percentiles, extremes, intervals, and the
//! reason for each number that is not given.

use std::collections::BTreeMap;

use super::order_statistics::{LEVEL, ranks, smallest_n};
use super::summary::{Distribution, Interval};

/// The quantile `q` of sorted values by linear interpolation between the two
/// nearest (numpy's default, type 7 of Hyndman and Fan 1996). `None` if empty.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "sample sizes are far below 2^52")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "q lies between 0 and 1, so the position lies in the slice"
)]
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = last as f64 * q.clamp(0.0, 1.0);
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    let share = position - below as f64;
    Some((sorted[above] - sorted[below]).mul_add(share, sorted[below]))
}

/// The middle of unsorted values; `None` if empty.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5)
}

/// Arithmetic mean; `None` if empty.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "sample sizes are far below 2^52")]
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Summarises values; `empty` says why there are none, where there are none.
#[must_use]
pub fn distribution(mut values: Vec<f64>, empty: &str) -> Distribution {
    values.sort_by(f64::total_cmp);
    let mut reasons = BTreeMap::new();
    if values.is_empty() {
        for field in
            ["mean", "p50", "p90", "p99", "min", "max", "interval", "p90_interval", "p99_interval"]
        {
            reasons.insert(field.to_owned(), empty.to_owned());
        }
    }
    let interval = interval(&values, 0.5, "p50", "interval", &mut reasons);
    let p90_interval = interval_of_tail(&values, 0.9, "p90", &mut reasons);
    let p99_interval = interval_of_tail(&values, 0.99, "p99", &mut reasons);
    Distribution {
        n: values.len() as u64,
        mean: mean(&values),
        p50: percentile(&values, 0.5),
        p90: p90_interval.as_ref().and_then(|_| percentile(&values, 0.9)),
        p99: p99_interval.as_ref().and_then(|_| percentile(&values, 0.99)),
        min: values.first().copied(),
        max: values.last().copied(),
        interval,
        p90_interval,
        p99_interval,
        reasons,
    }
}

/// A tail percentile without an interval is not given at all: between two
/// largest values it would be a blend of them, not a percentile.
fn interval_of_tail(
    sorted: &[f64],
    q: f64,
    of: &str,
    reasons: &mut BTreeMap<String, String>,
) -> Option<Interval> {
    let field = format!("{of}_interval");
    let found = interval(sorted, q, of, &field, reasons);
    if let Some(reason) = reasons.get(&field).cloned() {
        reasons.insert(of.to_owned(), reason);
    }
    found
}

fn interval(
    sorted: &[f64],
    q: f64,
    of: &str,
    field: &str,
    reasons: &mut BTreeMap<String, String>,
) -> Option<Interval> {
    let found = ranks(sorted.len(), q, LEVEL).map(|(low, high)| Interval {
        of: of.to_owned(),
        level: LEVEL,
        low: sorted[low - 1],
        high: sorted[high - 1],
    });
    if found.is_none() && !sorted.is_empty() {
        let reason = format!("n too small: {} < {}", sorted.len(), smallest_n(q));
        reasons.insert(field.to_owned(), reason);
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted(n: u32) -> Vec<f64> {
        (1..=n).map(f64::from).collect()
    }

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        // numpy.percentile([1, 2, 3, 4], [50, 90, 99])
        let values = counted(4);
        assert!((percentile(&values, 0.5).unwrap() - 2.5).abs() < 1e-12);
        assert!((percentile(&values, 0.9).unwrap() - 3.7).abs() < 1e-12);
        assert!((percentile(&values, 0.99).unwrap() - 3.97).abs() < 1e-12);
        assert_eq!(percentile(&[], 0.5), None);
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
    }

    #[test]
    fn ten_values_have_a_median_interval_and_no_tail() {
        let found = distribution(counted(10), "none");
        assert_eq!(
            (found.n, found.p50, found.min, found.max),
            (10, Some(5.5), Some(1.0), Some(10.0))
        );
        let interval = found.interval.unwrap();
        assert_eq!((interval.low, interval.high), (2.0, 9.0));
        assert_eq!((found.p90, found.p99), (None, None));
        assert_eq!(found.reasons["p90"], "n too small: 10 < 29");
        assert_eq!(found.reasons["p99"], "n too small: 10 < 299");
        assert!(!found.reasons.contains_key("p50") && !found.reasons.contains_key("interval"));
    }

    #[test]
    fn one_value_has_a_median_without_an_interval() {
        let found = distribution(vec![3.0], "none");
        assert_eq!((found.p50, found.interval), (Some(3.0), None));
        assert_eq!(found.reasons["interval"], "n too small: 1 < 6");
    }

    #[test]
    fn no_values_have_one_reason_everywhere() {
        let found = distribution(Vec::new(), "no request completed");
        assert_eq!((found.n, found.mean, found.p50), (0, None, None));
        assert_eq!(found.reasons.len(), 9);
        assert!(found.reasons.values().all(|reason| reason == "no request completed"));
    }

    #[test]
    fn thirty_values_have_a_p90_and_its_interval() {
        let found = distribution(counted(30), "none");
        assert!((found.p90.unwrap() - 27.1).abs() < 1e-12);
        let interval = found.p90_interval.unwrap();
        assert_eq!((interval.low, interval.high), (22.0, 30.0));
        assert_eq!(found.p99, None);
    }

    proptest! {
        #[test]
        fn order_is_kept_and_nothing_leaves_the_range(
            values in proptest::collection::vec(0.0_f64..1e6, 1..400),
        ) {
            let found = distribution(values.clone(), "none");
            let (min, max) = (found.min.unwrap(), found.max.unwrap());
            let p50 = found.p50.unwrap();
            prop_assert!(min <= p50 && p50 <= max);
            prop_assert!(found.p90.is_none_or(|p90| p50 <= p90 && p90 <= max));
            prop_assert!(found.p99.is_none_or(|p99| found.p90.unwrap() <= p99 && p99 <= max));
            for (value, interval) in [
                (found.p50, &found.interval),
                (found.p90, &found.p90_interval),
                (found.p99, &found.p99_interval),
            ] {
                if let Some(interval) = interval {
                    prop_assert!(interval.low <= value.unwrap() && value.unwrap() <= interval.high);
                    prop_assert!(min <= interval.low && interval.high <= max);
                }
            }
            let mut backwards = values;
            backwards.reverse();
            let again = distribution(backwards, "none");
            prop_assert_eq!((again.p50, again.interval), (found.p50, found.interval));
        }

        #[test]
        fn a_number_is_given_or_a_reason_is(n in 0_usize..320) {
            #[expect(clippy::cast_precision_loss, reason = "n is small")]
            let found = distribution((0..n).map(|i| i as f64).collect(), "none");
            for (given, field) in [
                (found.p50.is_some(), "p50"),
                (found.interval.is_some(), "interval"),
                (found.p90.is_some(), "p90"),
                (found.p90_interval.is_some(), "p90_interval"),
                (found.p99.is_some(), "p99"),
                (found.p99_interval.is_some(), "p99_interval"),
            ] {
                prop_assert!(given != found.reasons.contains_key(field), "{} at n = {}", field, n);
            }
        }
    }
}
