//! What HTTP adds: the embedded engine behind `serve` against itself in
//! process, case by case.

use crate::engine::EngineKind;
use crate::engine::EngineSpec;
use crate::record::EngineRecord;

use super::summary::{CaseSummary, HttpCost, Interval};

/// Pairs each embedded engine over HTTP with the one in process that has the
/// same settings otherwise, in the order of the cases.
#[must_use]
pub fn pair(engines: &[EngineRecord], cases: &[CaseSummary]) -> Vec<HttpCost> {
    let embedded = || {
        engines.iter().map(|engine| &engine.spec).filter(|spec| spec.kind == EngineKind::Embedded)
    };
    let mut costs = Vec::new();
    for over_http in embedded().filter(|spec| spec.is_embedded_over_http()) {
        let Some(in_process) = embedded()
            .find(|spec| !spec.is_embedded_over_http() && same_but_transport(spec, over_http))
        else {
            continue;
        };
        let valid = || cases.iter().filter(|case| case.invalid.is_empty());
        for http in valid().filter(|case| case.engine == over_http.name) {
            let twin = valid().find(|case| {
                case.engine == in_process.name
                    && case.experiment == http.experiment
                    && case.concurrency == http.concurrency
            });
            if let Some(direct) = twin {
                costs.push(cost(direct, http));
            }
        }
    }
    costs
}

fn same_but_transport(a: &EngineSpec, b: &EngineSpec) -> bool {
    let rest = |spec: &EngineSpec| {
        let mut settings = spec.settings.clone();
        settings.remove("transport");
        settings
    };
    rest(a) == rest(b)
}

fn cost(direct: &CaseSummary, http: &CaseSummary) -> HttpCost {
    let difference = |http: Option<f64>, direct: Option<f64>| Some(http? - direct?);
    HttpCost {
        experiment: http.experiment.clone(),
        concurrency: http.concurrency,
        in_process: direct.engine.clone(),
        over_http: http.engine.clone(),
        ttft_ms: difference(http.ttft_ms.p50, direct.ttft_ms.p50),
        tpot_ms: difference(http.tpot_ms.p50, direct.tpot_ms.p50),
        e2el_ms: difference(http.e2el_ms.p50, direct.e2el_ms.p50),
        ttft_intervals_overlap: match (&direct.ttft_ms.interval, &http.ttft_ms.interval) {
            // Requests of one burst are no independent sample of what another would do.
            (Some(a), Some(b)) if http.concurrency == 1 => Some(overlap(a, b)),
            _ => None,
        },
    }
}

/// Whether two intervals have a point in common.
#[must_use]
pub fn overlap(a: &Interval, b: &Interval) -> bool {
    a.low <= b.high && b.low <= a.high
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case::{self, tests::*};

    fn engine(text: &str) -> EngineRecord {
        EngineRecord { spec: text.parse().unwrap(), info: None, error: None }
    }

    fn case_of(engine: &str, first_ms: u64) -> CaseSummary {
        let requests: Vec<_> =
            (0..8).map(|i| request(i, 0, &[first_ms, first_ms + 5, first_ms + 10])).collect();
        let record = record(engine, "concurrent-warm", 8);
        case::summarise(&group(&record, &requests), &[])
    }

    #[test]
    fn http_is_compared_with_the_same_engine_in_process() {
        let engines = [engine("embedded"), engine("embedded?transport=http"), engine("vllm")];
        let cases = [case_of("embedded", 20), case_of("embedded-http", 22), case_of("vllm", 9)];
        let costs = pair(&engines, &cases);
        assert_eq!(costs.len(), 1);
        assert_eq!((costs[0].in_process.as_str(), costs[0].concurrency), ("embedded", 8));
        assert!((costs[0].ttft_ms.unwrap() - 2.0).abs() < 1e-9);
        assert!(costs[0].tpot_ms.unwrap().abs() < 1e-9);
        assert_eq!(costs[0].ttft_intervals_overlap, None, "one burst each");
    }

    #[test]
    fn engines_with_other_settings_are_no_pair() {
        let engines =
            [engine("embedded?kv_blocks=8"), engine("embedded?transport=http&kv_blocks=9")];
        let cases = [case_of("embedded", 20), case_of("embedded-http", 22)];
        assert!(pair(&engines, &cases).is_empty());
    }
}
