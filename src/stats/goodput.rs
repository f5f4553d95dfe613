//! Goodput: requests a second that met every objective. Failed requests meet
//! none, so that an engine gains nothing by failing.

use serde::{Deserialize, Serialize};

use crate::plan::Slo;
use crate::plan::slo::SloMetric;
use crate::record::{LoadRecord, RequestRecord};

use super::latency;
use super::open_loop::{e2el_from_intended_ms, ended_s, intended_s, rounds, ttft_from_intended_ms};

/// What became of a load's objectives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Requests a second that met every bound, over the time from the first
    /// intended instant to the last end; absent where that is no time.
    pub per_s: Option<f64>,
    /// Of all requests, those that met every bound.
    pub share: f64,
    /// Whether every objective was kept by as many requests as it asks for.
    pub met: bool,
    /// Each objective.
    pub objectives: Vec<Objective>,
}

/// One objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// As in the plan: `ttft_p90<500ms`.
    pub slo: String,
    /// Of all requests, failed ones included, those that met its bound.
    pub share: f64,
    /// Whether they are as many as it asks for.
    pub met: bool,
}

/// The goodput of a load; `None` where it has no objectives, or nothing was sent.
#[must_use]
pub fn goodput(load: &LoadRecord, requests: &[&RequestRecord]) -> Option<Goodput> {
    let slos: Vec<Slo> = load.slos.iter().filter_map(|slo| slo.parse().ok()).collect();
    let span = rounds(requests).iter().filter_map(|round| span_s(round)).sum();
    judge(&slos, requests, |slo, request| keeps(slo, request), span)
}

/// What became of `slos` over `requests` in a time of `span_s` seconds; `None`
/// where there are no objectives, or no requests.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
pub fn judge<R>(
    slos: &[Slo],
    requests: &[R],
    keeps: impl Fn(&Slo, &R) -> bool,
    span_s: f64,
) -> Option<Goodput> {
    if slos.is_empty() || requests.is_empty() {
        return None;
    }
    let n = requests.len() as f64;
    let share = |keeps: &dyn Fn(&R) -> bool| {
        requests.iter().filter(|request| keeps(request)).count() as f64 / n
    };
    let objectives: Vec<Objective> = slos
        .iter()
        .map(|slo| {
            let share = share(&|request| keeps(slo, request));
            // Counts are whole: a share that is short by rounding alone is not short.
            let met = share * 100.0 >= slo.percent - 1e-9;
            Objective { slo: slo.to_string(), share, met }
        })
        .collect();
    let good = share(&|request| slos.iter().all(|slo| keeps(slo, request)));
    Some(Goodput {
        per_s: (span_s > 0.0).then(|| good * n / span_s),
        share: good,
        met: objectives.iter().all(|objective| objective.met),
        objectives,
    })
}

/// Whether a request met an objective's bound. One without a second token has
/// no TPOT to be slow by.
fn keeps(slo: &Slo, request: &RequestRecord) -> bool {
    let lacks = slo.metric == SloMetric::Tpot;
    let keeps = |ms| ms <= slo.limit_ms;
    request.outcome.is_ok() && latency_ms(slo.metric, request).map_or(lacks, keeps)
}

/// A request's latency as objectives and requirements mean it: TTFT and E2EL
/// from the intended instant, which in a closed loop is that of its release.
#[must_use]
pub fn latency_ms(metric: SloMetric, request: &RequestRecord) -> Option<f64> {
    match metric {
        SloMetric::Ttft => ttft_from_intended_ms(request),
        SloMetric::E2el => e2el_from_intended_ms(request),
        SloMetric::Tpot => latency::tpot_ms(request),
    }
}

/// Seconds from the first intended instant to the last end.
fn span_s(requests: &[&RequestRecord]) -> Option<f64> {
    let first = requests.iter().map(|request| intended_s(request)).min_by(f64::total_cmp)?;
    let last = requests.iter().map(|request| ended_s(request)).max_by(f64::total_cmp)?;
    Some(last - first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::stats::case::tests::{failed, request};
    use crate::stats::open_loop::tests::load;

    fn of(slos: &[&str], requests: &[RequestRecord]) -> Option<Goodput> {
        goodput(&load(slos), &requests.iter().collect::<Vec<_>>())
    }

    /// Ten requests with a TTFT of 10, 20, ... 100 ms, all sent at once.
    fn ten() -> Vec<RequestRecord> {
        (1..=10).map(|i| request(i, 0, &[u64::from(i) * 10])).collect()
    }

    #[test]
    fn request_is_good_only_if_it_meets_every_bound() {
        let goodput = of(&["ttft<50ms", "e2el<41ms"], &ten()).unwrap();
        assert!((goodput.share - 0.4).abs() < 1e-9);
        // Four good ones in the 101 ms until the last ended.
        assert!((goodput.per_s.unwrap() - 4.0 / 0.101).abs() < 1e-6);
        assert!(!goodput.met);
    }

    #[test]
    fn percentile_objective_asks_for_its_share_of_all_requests() {
        assert!(of(&["ttft_p90<90ms"], &ten()).unwrap().met);
        assert!(!of(&["ttft_p90<89ms"], &ten()).unwrap().met);
        assert!(!of(&["ttft<90ms"], &ten()).unwrap().met);
    }

    #[test]
    fn failed_requests_meet_no_objective() {
        let mut requests = ten();
        requests.extend([failed(11, 0), failed(12, 0)]);
        let goodput = of(&["ttft_p90<1s"], &requests).unwrap();
        assert!(!goodput.met, "survivors alone would meet it");
        assert!((goodput.objectives[0].share - 10.0 / 12.0).abs() < 1e-9);
    }

    #[test]
    fn late_client_counts_against_the_objective() {
        let mut requests = ten();
        for request in &mut requests {
            request.sent_at_ns = Some(Timestamp::from_nanos(1_000_000_000));
        }
        assert!((of(&["ttft<100ms"], &requests).unwrap().share).abs() < 1e-9);
    }

    #[test]
    fn no_objective_no_goodput() {
        assert_eq!(of(&[], &ten()), None);
        assert_eq!(of(&["damaged"], &ten()), None);
    }
}
