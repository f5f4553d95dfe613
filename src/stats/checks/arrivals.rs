//! Whether the client sent what it meant to, when it meant to.

use super::{Facts, about, count};
use crate::record::EngineRecord;
use crate::stats::summary::CaseSummary;
use crate::stats::warnings::{Warning, WarningClass};
use crate::units::format_significant;

/// Delay of the client that is of no account, in milliseconds.
const PUNCTUAL_MS: f64 = 1.0;
/// Delay as a share of the median TTFT above which the client is part of the result.
const MAX_SHARE: f64 = 0.02;

/// Arrivals that left late though nothing here held them back.
pub(super) fn late(facts: &Facts<'_>, engine: &EngineRecord) -> Vec<Warning> {
    let late = |case: &&CaseSummary| {
        let held = case.under_load.open_loop.as_ref().is_some_and(|open| open.num_held > 0);
        let delay = case.under_load.client_delay_ms.as_ref().and_then(|delay| delay.p50);
        let ttft = case.ttft_ms.p50.unwrap_or(f64::INFINITY);
        !held && delay.is_some_and(|ms| ms > PUNCTUAL_MS && ms > MAX_SHARE * ttft)
    };
    let of_case = |case: &CaseSummary| {
        let delay = case.under_load.client_delay_ms.as_ref();
        let (p50, max) = delay.map_or((None, None), |delay| (delay.p50, delay.max));
        let write = |value: Option<f64>| value.map_or_else(String::new, format_significant);
        let mut warning = about(
            WarningClass::LateArrivals,
            Some(engine),
            format!(
                "half of the requests left {} ms or more after they were to, at most {} ms",
                write(p50),
                write(max)
            ),
            "the client shares its processors with something that keeps it waiting: latency from \
             the intended instant holds it, latency from the send does not",
        );
        warning.experiment = Some(case.experiment.clone());
        warning
    };
    facts.cases_of(engine).filter(late).map(of_case).collect()
}

/// Arrivals that waited here since as many as allowed were in flight.
pub(super) fn held(facts: &Facts<'_>, engine: &EngineRecord) -> Vec<Warning> {
    let of_case = |case: &CaseSummary| {
        let held = case.under_load.open_loop.as_ref().map_or(0, |open| open.num_held);
        let held = usize::try_from(held).unwrap_or(usize::MAX);
        (held > 0).then(|| {
            let mut warning = about(
                WarningClass::InFlightBound,
                Some(engine),
                format!(
                    "{} of {} waited here, as many as allowed being in flight",
                    count(held, "request"),
                    case.n
                ),
                "the loop was closed for as long as they waited: read latency from the intended \
                 instant, and raise max_in_flight where the engine should queue them",
            );
            warning.experiment = Some(case.experiment.clone());
            warning
        })
    };
    facts.cases_of(engine).filter_map(of_case).collect()
}

#[cfg(test)]
mod tests {
    use crate::clock::Timestamp;
    use crate::record::RunData;
    use crate::stats::case::tests::{record, request, run};
    use crate::stats::open_loop::tests::load;
    use crate::stats::warnings::WarningClass;

    fn classes(delay_ms: u64, held: bool) -> Vec<WarningClass> {
        let mut case = record("openai", "poisson", 12);
        case.load = Some(load(&[]));
        let requests = (0..12).map(|i| {
            let mut one = request(i, 1_000 + delay_ms, &[40, 50]);
            one.intended_at_ns = Timestamp::from_nanos(1_000_000_000);
            one.held = held;
            one
        });
        let run = RunData {
            requests: requests.collect(),
            ..run(&["openai=http://127.0.0.1:1"], vec![case])
        };
        let found = crate::stats::summarise(&run).warnings;
        let of_us = [WarningClass::LateArrivals, WarningClass::InFlightBound];
        found.into_iter().map(|w| w.class).filter(|class| of_us.contains(class)).collect()
    }

    #[test]
    fn late_client_and_held_requests_are_told_apart() {
        assert_eq!(classes(0, false), []);
        assert_eq!(classes(5, false), [WarningClass::LateArrivals]);
        assert_eq!(classes(5, true), [WarningClass::InFlightBound]);
    }
}
