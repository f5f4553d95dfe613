//! When an engine runs at its speed: its last warm-up bursts lie so near to each
//! other that neither a trend nor scatter beyond a bound is left in them. Knows
//! medians, no engine.

use crate::record::RequestRecord;
use crate::units::format_ms;

use super::distribution::median;
use super::latency;

/// Bursts that have to lie near each other.
pub const WINDOW: usize = 4;
/// How far apart the largest and the smallest median may be, as a share of the
/// median of all. Also the most that a trend can amount to over the window.
pub const TOLERANCE: f64 = 0.2;
/// Nearer than this in milliseconds is near enough, whatever the share: it is
/// what a busy machine does to a single request.
const LEAST_TTFT_MS: f64 = 1.0;
/// The same of TPOT, which is a mean over a whole answer.
const LEAST_TPOT_MS: f64 = 0.2;

/// What a burst showed, of the requests of it that completed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Burst {
    /// Median TTFT.
    pub ttft_ms: Option<f64>,
    /// Median TPOT.
    pub tpot_ms: Option<f64>,
}

impl Burst {
    /// The medians of a burst's requests. Where nobody has counted tokens yet,
    /// an event stands for a token: of equal answers only how they differ matters.
    #[must_use]
    pub fn of(requests: &[RequestRecord]) -> Self {
        let completed = || requests.iter().filter(|request| request.outcome.is_ok());
        Self {
            ttft_ms: median(completed().filter_map(latency::ttft_ms)),
            tpot_ms: median(completed().filter_map(|r| latency::tpot_ms(r).or_else(|| pace_ms(r)))),
        }
    }
}

/// Whether the bursts have become flat.
///
/// It is a criterion of equivalence: the whole range of the last [`WINDOW`]
/// medians has to lie within [`TOLERANCE`]. A test that merely fails to find a
/// trend would be passed by whoever measures too little to find one.
///
/// # Errors
/// Why it cannot be said, with numbers.
pub fn settled(bursts: &[Burst]) -> Result<(), String> {
    let from = bursts.len().checked_sub(WINDOW);
    let Some(window) = from.and_then(|from| bursts.get(from..)) else {
        let made = bursts.len();
        let noun = if made == 1 { "burst" } else { "bursts" };
        return Err(format!("{made} {noun}, it takes {WINDOW} to tell"));
    };
    near("TTFT", window.iter().map(|burst| burst.ttft_ms), LEAST_TTFT_MS)?;
    // Answers of a single token have none, throughout.
    if bursts.iter().all(|burst| burst.tpot_ms.is_none()) {
        return Ok(());
    }
    near("TPOT", window.iter().map(|burst| burst.tpot_ms), LEAST_TPOT_MS)
}

fn near(
    what: &str,
    medians: impl Iterator<Item = Option<f64>>,
    least_ms: f64,
) -> Result<(), String> {
    let known: Option<Vec<f64>> = medians.collect();
    let known = known.ok_or_else(|| format!("one of the last {WINDOW} bursts has no {what}"))?;
    let (low, high) = known
        .iter()
        .fold((f64::INFINITY, 0.0_f64), |(low, high), ms| (low.min(*ms), high.max(*ms)));
    let middle = median(known).unwrap_or(0.0);
    if high - low <= (TOLERANCE * middle).max(least_ms) {
        return Ok(());
    }
    Err(format!(
        "median {what} of the last {WINDOW} bursts from {} to {} ms, {:.0} % apart, {:.0} % allowed",
        format_ms(low),
        format_ms(high),
        (high - low) / middle.max(f64::MIN_POSITIVE) * 100.0,
        TOLERANCE * 100.0,
    ))
}

#[expect(clippy::cast_precision_loss, reason = "event counts are far below 2^52")]
fn pace_ms(request: &RequestRecord) -> Option<f64> {
    let mut offsets = latency::token_offsets(request);
    let (first, last) = (offsets.next()?, offsets.next_back()?);
    let events = latency::token_offsets(request).count();
    Some(latency::ms(last - first) / (events - 1) as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stats::case::tests::{failed, request};

    fn bursts(ttft_ms: &[f64]) -> Vec<Burst> {
        ttft_ms.iter().map(|ms| Burst { ttft_ms: Some(*ms), tpot_ms: Some(7.0) }).collect()
    }

    #[test]
    fn flat_bursts_settle_and_what_came_before_them_does_not_matter() {
        assert_eq!(settled(&bursts(&[900.0, 300.0, 100.0, 104.0, 97.0, 101.0])), Ok(()));
    }

    #[test]
    fn too_few_bursts_never_settle_however_flat() {
        for n in 0..WINDOW {
            let error = settled(&bursts(&vec![100.0; n])).unwrap_err();
            assert!(error.contains("it takes 4"), "{error}");
        }
    }

    #[test]
    fn steady_trend_does_not_settle_though_each_step_is_small() {
        let error = settled(&bursts(&[130.0, 120.0, 110.0, 100.0])).unwrap_err();
        assert!(error.contains("from 100 to 130 ms") && error.contains("20 % allowed"), "{error}");
    }

    #[test]
    fn scatter_without_a_trend_does_not_settle() {
        assert!(settled(&bursts(&[100.0, 150.0, 100.0, 150.0])).is_err());
    }

    #[test]
    fn both_metrics_have_to_be_flat() {
        let mut flat = bursts(&[100.0; 4]);
        flat[1].tpot_ms = Some(9.0);
        assert!(settled(&flat).unwrap_err().contains("TPOT"));
        flat[1].tpot_ms = None;
        assert!(settled(&flat).unwrap_err().contains("no TPOT"));
        for burst in &mut flat {
            burst.tpot_ms = None;
        }
        assert_eq!(settled(&flat), Ok(()), "answers of one token");
        flat[2].ttft_ms = None;
        assert!(settled(&flat).unwrap_err().contains("no TTFT"), "a burst that failed");
    }

    #[test]
    fn differences_that_a_machine_makes_to_one_request_are_no_trend() {
        assert_eq!(settled(&bursts(&[0.3, 0.5, 0.9, 0.4])), Ok(()));
    }

    #[test]
    fn burst_is_the_median_of_its_survivors() {
        let mut uncounted = request(2, 0, &[30, 40, 60]);
        uncounted.num_output_tokens = None;
        let of = Burst::of(&[request(0, 0, &[10, 15]), failed(1, 0), uncounted]);
        assert_eq!(of, Burst { ttft_ms: Some(20.0), tpot_ms: Some(10.0) });
        assert_eq!(Burst::of(&[failed(0, 0)]), Burst::default());
        assert_eq!(Burst::of(&[request(0, 0, &[10])]).tpot_ms, None);
    }

    proptest! {
        #[test]
        fn settled_bursts_are_never_further_apart_than_allowed(
            ttft in prop::collection::vec(1.0_f64..1_000.0, WINDOW..9),
        ) {
            let last = &ttft[ttft.len() - WINDOW..];
            let (low, high) = last.iter().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(*v), h.max(*v)));
            if settled(&bursts(&ttft)).is_ok() {
                prop_assert!(high - low <= (TOLERANCE * high).max(LEAST_TTFT_MS));
            } else {
                prop_assert!(high - low > TOLERANCE * low);
            }
        }
    }
}
