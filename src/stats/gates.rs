//! The requirements of a run and whether they are met: each over all rounds of
//! one engine under one load.

use serde::{Deserialize, Serialize};

use crate::plan::Requirement;
use crate::plan::slo::SloMetric;
use crate::record::{CaseRecord, RequestRecord, RunData};

use super::case::{self, CaseRequests};
use super::cell::cells;
use super::gate::{Rule, Test, Verdict};
use super::goodput::latency_ms;
use super::summary::CaseSummary;

/// One requirement of one engine under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Engine name.
    pub engine: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// As in the plan: `ttft_p90<500ms@99%`.
    pub requirement: String,
    /// Requests that count, over all rounds; failed ones are among them.
    pub n: u64,
    /// Of those, requests over the bound; failed ones are.
    pub num_over: u64,
    /// Whether the bound was shown to be kept.
    pub verdict: Verdict,
    /// By which test; absent where nothing was tested.
    pub rule: Option<Rule>,
    /// Undecided: how many more requests would show it, if none of them is over;
    /// absent where none could.
    pub more: Option<u64>,
    /// What keeps it from being decided, beside the number of requests.
    pub reason: Option<String>,
}

/// The test of a requirement.
#[must_use]
pub fn test(requirement: &Requirement, stop_when_decided: bool) -> Test {
    let rule = if stop_when_decided { Rule::Sequential } else { Rule::Binomial };
    Test { allowed: requirement.allowed(), error: requirement.error(), rule }
}

/// Whether a request is over the bound. A failed one is, and one without a
/// token has no time to first token to be short of it. `None` where a completed
/// request has no TPOT: it says nothing either way.
#[must_use]
pub fn is_over(requirement: &Requirement, request: &RequestRecord) -> Option<bool> {
    if !request.outcome.is_ok() {
        return Some(true);
    }
    let slo = &requirement.slo;
    match (latency_ms(slo.metric, request), slo.metric) {
        (Some(ms), _) => Some(ms > slo.limit_ms),
        (None, SloMetric::Tpot) => None,
        (None, SloMetric::Ttft | SloMetric::E2el) => Some(true),
    }
}

/// Every requirement of every engine under every load that has any.
#[must_use]
pub fn gates(run: &RunData, grouped: &[CaseRequests<'_>], cases: &[CaseSummary]) -> Vec<Gate> {
    let of_case = |case: u32| grouped.iter().find(|group| group.case == case);
    let mut gates = Vec::new();
    for cell in cells(cases) {
        let rounds: Vec<_> = cell.rounds.iter().filter_map(|case| of_case(case.case)).collect();
        let Some(first) = rounds.first() else { continue };
        let invalid = cell.rounds.len() - cell.valid().count();
        // Lines are in the order in which requests ended, and were looked at.
        let measured = |round: &&CaseRequests<'_>| {
            let case = round.case;
            run.requests.iter().filter(move |request| request.case == case && !request.warmup)
        };
        for text in &first.record.requirements {
            let gate = Gate { concurrency: cell.concurrency, ..unmeasured(first.record, text) };
            let looked_at = rounds.iter().any(|round| round.record.stop_when_decided);
            let gate = decide(gate, rounds.iter().flat_map(measured), looked_at);
            gates.push(doubt(gate, invalid, rounds.len()));
        }
    }
    for group in grouped.iter().filter(|group| group.requests.is_empty()) {
        for text in &group.record.requirements {
            let gate = unmeasured(group.record, text);
            let known = |other: &Gate| {
                other.requirement == gate.requirement
                    && other.engine == gate.engine
                    && other.experiment == gate.experiment
                    && (group.record.load.is_some() || other.concurrency == gate.concurrency)
            };
            if !gates.iter().any(known) {
                gates.push(Gate { reason: case::absence(group, run), ..gate });
            }
        }
    }
    gates
}

fn unmeasured(record: &CaseRecord, requirement: &str) -> Gate {
    Gate {
        engine: record.engine.clone(),
        experiment: record.experiment.clone(),
        concurrency: record.concurrency,
        requirement: requirement.to_owned(),
        n: 0,
        num_over: 0,
        verdict: Verdict::Undecided,
        rule: None,
        more: None,
        reason: None,
    }
}

/// The verdict over `requests`; `looked_at` if they could end with a verdict.
fn decide<'a>(
    gate: Gate,
    requests: impl Iterator<Item = &'a RequestRecord>,
    looked_at: bool,
) -> Gate {
    let Ok(requirement) = gate.requirement.parse::<Requirement>() else {
        let reason = "this version of yardstick does not understand it";
        return Gate { reason: Some(reason.to_owned()), ..gate };
    };
    let test = test(&requirement, looked_at);
    let (mut n, mut num_over, mut num_untimed) = (0, 0, 0_u64);
    let mut verdict = Verdict::Undecided;
    for request in requests {
        match is_over(&requirement, request) {
            Some(over) => {
                n += 1;
                num_over += u64::from(over);
            }
            None => num_untimed += 1,
        }
        // It was looked at after every request, so what it said first holds.
        if test.rule == Rule::Sequential && verdict == Verdict::Undecided {
            verdict = test.verdict(n, num_over);
        }
    }
    if test.rule == Rule::Binomial {
        verdict = test.verdict(n, num_over);
    }
    let undecided = verdict == Verdict::Undecided;
    Gate {
        n,
        num_over,
        verdict,
        rule: Some(test.rule),
        more: if undecided { test.more(n, num_over) } else { None },
        reason: (num_untimed > 0)
            .then(|| format!("{num_untimed} completed without a TPOT, which do not count")),
        ..gate
    }
}

/// What is no measurement can show no promise kept.
fn doubt(gate: Gate, num_invalid: usize, num_rounds: usize) -> Gate {
    if num_invalid == 0 || gate.verdict != Verdict::Met {
        return gate;
    }
    let reason = format!("{num_invalid} of {num_rounds} rounds are invalid");
    Gate { verdict: Verdict::Undecided, reason: Some(reason), ..gate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case::tests::{failed, record, request};

    /// A gate over rounds of so many requests with a TTFT of 10 ms and so many of 100.
    fn gate(requirement: &str, rounds: &[(u32, u32)], stop_when_decided: bool) -> Gate {
        let mut record = record("e", "concurrent-warm", 4);
        record.requirements = vec![requirement.parse::<Requirement>().unwrap().to_string()];
        let requests: Vec<Vec<RequestRecord>> = rounds
            .iter()
            .map(|(fast, slow)| {
                (0..fast + slow)
                    .map(|i| request(i, 0, &[if i < *fast { 10 } else { 100 }, 120]))
                    .collect()
            })
            .collect();
        let gate = unmeasured(&record, &record.requirements[0]);
        decide(gate, requests.iter().flatten(), stop_when_decided)
    }

    #[test]
    fn rounds_are_one_sample() {
        let requirement = "ttft_p90<=50ms@99%";
        assert_eq!(gate(requirement, &[(22, 0)], false).verdict, Verdict::Undecided);
        let both = gate(requirement, &[(22, 0), (22, 0)], false);
        assert_eq!((both.verdict, both.n, both.num_over), (Verdict::Met, 44, 0));
    }

    #[test]
    fn undecided_gate_says_how_many_more_requests_it_takes() {
        let gate = gate("ttft_p90<=50ms", &[(43, 1)], false);
        assert_eq!((gate.verdict, gate.num_over, gate.more), (Verdict::Undecided, 1, Some(20)));
        assert_eq!(gate.rule, Some(Rule::Binomial));
    }

    #[test]
    fn missed_gate_needs_no_more() {
        let gate = gate("ttft_p90<=50ms", &[(10, 10)], false);
        assert_eq!((gate.verdict, gate.more), (Verdict::Missed, None));
    }

    #[test]
    fn sequential_verdict_stands_whatever_comes_after_it() {
        let first = gate("ttft_p90<=50ms", &[(80, 0), (0, 20)], true);
        assert_eq!((first.verdict, first.rule), (Verdict::Met, Some(Rule::Sequential)));
        assert_eq!((first.n, first.num_over), (100, 20), "the counts are of all requests");
        // The number that is enough for the binomial is not for one that was looked at.
        assert_eq!(gate("ttft_p90<=50ms", &[(44, 0)], true).verdict, Verdict::Undecided);
    }

    #[test]
    fn failed_requests_are_over_and_those_without_a_tpot_do_not_count() {
        let requirement: Requirement = "tpot_p90<=50ms".parse().unwrap();
        assert_eq!(is_over(&requirement, &failed(0, 0)), Some(true));
        assert_eq!(is_over(&requirement, &request(0, 0, &[10])), None);
        assert_eq!(is_over(&requirement, &request(0, 0, &[10, 60])), Some(false));
        assert_eq!(is_over(&requirement, &request(0, 0, &[10, 61])), Some(true));
        let requirement: Requirement = "ttft_p90<=50ms".parse().unwrap();
        assert_eq!(is_over(&requirement, &request(0, 0, &[])), Some(true), "no token at all");
    }

    #[test]
    fn invalid_round_can_show_no_promise_kept() {
        let mut record = record("e", "concurrent-warm", 4);
        record.requirements = vec!["ttft_p90<50ms@99%".to_owned(), "nonsense".to_owned()];
        let requests: Vec<_> = (0..60).map(|i| request(i, 0, &[10, 20])).collect();
        let gate = decide(unmeasured(&record, &record.requirements[0]), requests.iter(), false);
        assert_eq!(doubt(gate.clone(), 0, 1).verdict, Verdict::Met);
        let doubted = doubt(gate, 1, 1);
        assert_eq!(doubted.verdict, Verdict::Undecided);
        assert!(doubted.reason.unwrap().contains("1 of 1 rounds are invalid"));
        let unknown = decide(unmeasured(&record, "nonsense"), requests.iter(), false);
        assert!(unknown.reason.unwrap().contains("does not understand"));
    }
}
