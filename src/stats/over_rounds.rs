//! A cell's rounds put together: latencies over the requests of all of them,
//! rates as the median of the rounds. Invalid rounds are left out.

use std::collections::BTreeMap;

use crate::record::JournalEntry;

use super::case::{self, CaseRequests};
use super::cell::{Cell, cells};
use super::distribution::{distribution, median};
use super::summary::{CaseSummary, Distribution};

/// One entry a cell, in the order of the first rounds; empty where no cell has
/// more than one round. The second arms of comparisons of an engine with itself
/// are not among them.
#[must_use]
pub fn pool(
    groups: &[CaseRequests<'_>],
    cases: &[CaseSummary],
    journal: &[JournalEntry],
) -> Vec<CaseSummary> {
    let cells = cells(cases);
    if cells.iter().all(|cell| cell.rounds.len() < 2) {
        return Vec::new();
    }
    cells
        .iter()
        .filter(|cell| !cell.again)
        .map(|cell| put_together(cell, groups, journal))
        .collect()
}

fn put_together(
    cell: &Cell<'_>,
    groups: &[CaseRequests<'_>],
    journal: &[JournalEntry],
) -> CaseSummary {
    let valid: Vec<&CaseSummary> = cell.valid().collect();
    // Where no round is valid they are shown together, as they are, and are still invalid.
    let rounds = if valid.is_empty() { &cell.rounds } else { &valid };
    let members = groups.iter().filter(|group| rounds.iter().any(|case| case.case == group.case));
    let mut members = members.peekable();
    let Some(first) = members.peek() else { return rounds[0].clone() };
    let record = first.record;
    let merged = CaseRequests {
        case: first.case,
        record,
        requests: members.flat_map(|group| group.requests.iter().copied()).collect(),
    };
    let pooled = case::summarise(&merged, journal);
    let of = |value: fn(&CaseSummary) -> Option<f64>| {
        median(rounds.iter().filter_map(|case| value(case)))
    };
    let between = |pooled: Distribution, of: fn(&CaseSummary) -> &Distribution| {
        between_rounds(pooled, rounds, of)
    };
    // One request after another is a sample in itself; those of one burst share their steps,
    // so that only another burst says how another burst would differ.
    let is_burst = record.concurrency > 1;
    let keep = |pooled: Distribution, of: fn(&CaseSummary) -> &Distribution| {
        if is_burst { between(pooled, of) } else { pooled }
    };
    CaseSummary {
        num_rounds: u32::try_from(rounds.len()).ok(),
        invalid: if valid.is_empty() { rounds[0].invalid.clone() } else { Vec::new() },
        ttft_ms: keep(pooled.ttft_ms, |case| &case.ttft_ms),
        tpot_ms: keep(pooled.tpot_ms, |case| &case.tpot_ms),
        itl_ms: keep(pooled.itl_ms, |case| &case.itl_ms),
        e2el_ms: keep(pooled.e2el_ms, |case| &case.e2el_ms),
        decode_tokens_per_s: keep(pooled.decode_tokens_per_s, |case| &case.decode_tokens_per_s),
        cold_ttft_ms: of(|case| case.cold_ttft_ms),
        output_tokens_per_s: of(|case| case.output_tokens_per_s),
        steady_output_tokens_per_s: of(|case| case.steady_output_tokens_per_s),
        steady_absent: rounds.iter().find_map(|case| case.steady_absent.clone()),
        requests_per_s: of(|case| case.requests_per_s),
        send_spread_us: of(|case| case.send_spread_us),
        client_cpu_share: of(|case| case.client_cpu_share),
        staircase: rounds.iter().find_map(|case| case.staircase.clone()),
        ..pooled
    }
}

/// The interval of the median from the medians of the rounds.
fn between_rounds(
    pooled: Distribution,
    rounds: &[&CaseSummary],
    of: fn(&CaseSummary) -> &Distribution,
) -> Distribution {
    let medians = rounds.iter().filter_map(|case| of(case).p50).collect();
    let medians = distribution(medians, "no round has a median");
    let mut reasons: BTreeMap<String, String> = pooled.reasons;
    reasons.remove("interval");
    if let Some(reason) = medians.reasons.get("interval") {
        reasons.insert("interval".to_owned(), reason.replace("n too small", "too few rounds"));
    }
    Distribution { interval: medians.interval, reasons, ..pooled }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CaseRecord, RequestRecord};
    use crate::stats::case::tests::{record, request};
    use crate::stats::summary::Invalid;
    use crate::stats::warnings::WarningClass;

    /// Rounds of a burst of two whose first tokens come at these instants.
    fn rounds(first_ms: &[u64]) -> Vec<(CaseRecord, Vec<RequestRecord>)> {
        let round = |(round, first): (u32, &u64)| {
            let requests = (0..2)
                .map(|index| request(index, 0, &[*first, first + 10, first + 20]))
                .collect::<Vec<_>>();
            (CaseRecord { round, ..record("e", "concurrent-warm", 2) }, requests)
        };
        (0..).zip(first_ms).map(round).collect()
    }

    fn groups(rounds: &[(CaseRecord, Vec<RequestRecord>)]) -> Vec<CaseRequests<'_>> {
        (0..)
            .zip(rounds)
            .map(|(case, (record, requests))| CaseRequests {
                case,
                record,
                requests: requests.iter().collect(),
            })
            .collect()
    }

    fn summaries(groups: &[CaseRequests<'_>]) -> Vec<CaseSummary> {
        groups.iter().map(|group| case::summarise(group, &[])).collect()
    }

    #[test]
    fn latencies_are_of_all_requests_and_rates_the_median_round() {
        let rounds = rounds(&[20, 30, 100]);
        let groups = groups(&rounds);
        let cases = summaries(&groups);
        let pooled = pool(&groups, &cases, &[]);
        assert_eq!(pooled.len(), 1);
        assert_eq!((pooled[0].n, pooled[0].num_rounds, pooled[0].ttft_ms.n), (6, Some(3), 6));
        assert_eq!(pooled[0].ttft_ms.p50, Some(30.0));
        assert_eq!(pooled[0].output_tokens_per_s, cases[1].output_tokens_per_s);
    }

    #[test]
    fn interval_of_bursts_is_between_rounds() {
        let few = rounds(&[20, 30, 100]);
        let of_few = groups(&few);
        let pooled = pool(&of_few, &summaries(&of_few), &[]);
        assert_eq!(pooled[0].ttft_ms.interval, None, "six requests are three bursts");
        assert_eq!(pooled[0].ttft_ms.reasons["interval"], "too few rounds: 3 < 6");
        let many = rounds(&[20, 21, 22, 23, 24, 90]);
        let of_many = groups(&many);
        let pooled = pool(&of_many, &summaries(&of_many), &[]);
        let interval = pooled[0].ttft_ms.interval.clone().unwrap();
        assert_eq!((interval.low, interval.high), (20.0, 90.0));
    }

    #[test]
    fn invalid_round_is_never_averaged_in() {
        let rounds = rounds(&[20, 30, 5_000]);
        let groups = groups(&rounds);
        let mut cases = summaries(&groups);
        let reason =
            || vec![Invalid { class: WarningClass::Failures, reason: "1 of 2".to_owned() }];
        cases[2].invalid = reason();
        let pooled = pool(&groups, &cases, &[]);
        assert_eq!((pooled[0].num_rounds, pooled[0].ttft_ms.max), (Some(2), Some(30.0)));
        assert!(pooled[0].invalid.is_empty());
        for case in &mut cases {
            case.invalid = reason();
        }
        assert_eq!(pool(&groups, &cases, &[])[0].invalid, reason());
    }

    #[test]
    fn one_round_is_put_together_with_nothing() {
        let rounds = rounds(&[20]);
        let groups = groups(&rounds);
        assert!(pool(&groups, &summaries(&groups), &[]).is_empty());
    }
}
