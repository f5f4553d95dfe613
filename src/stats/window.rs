//! The beginnings that all answers to a prompt have in common. An engine that
//! cannot run past its end of sequence gives shorter answers than the others;
//! end-to-end latency and throughput are then compared over the first k tokens
//! of each answer, k being the length of the shortest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::RequestRecord;

use super::case::{CaseRequests, LoadKey};
use super::distribution::{distribution, mean};
use super::latency;
use super::summary::{CaseSummary, Distribution};
use super::throughput::{self, token_weights};

/// One case over the common beginnings of its answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommonWindow {
    /// Index of the case in the manifest.
    pub case: u32,
    /// Engine name.
    pub engine: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// Which repetition of the plan, from 0.
    pub round: u32,
    /// Answers that have a counterpart from every engine.
    pub n: u64,
    /// Mean length of the beginnings in tokens.
    pub mean_output_tokens: Option<f64>,
    /// From `sent_at` to the last token of the beginning.
    pub e2el_ms: Distribution,
    /// Tokens of the beginnings from the first send to the last of them.
    pub output_tokens_per_s: Option<f64>,
}

/// The common beginnings of every case whose load was answered at different
/// lengths; invalid cases and second arms of an engine compared with itself are left out.
#[must_use]
pub fn common(groups: &[CaseRequests<'_>], cases: &[CaseSummary]) -> Vec<CommonWindow> {
    cut(groups, cases)
        .iter()
        .map(|(group, cut)| {
            let requests: Vec<&RequestRecord> = cut.iter().collect();
            let counts = cut.iter().filter_map(|request| request.num_output_tokens);
            let counts: Vec<f64> = counts.map(f64::from).collect();
            let e2el = cut.iter().filter_map(latency::e2el_ms).collect();
            CommonWindow {
                case: group.case,
                engine: group.record.engine.clone(),
                experiment: group.record.experiment.clone(),
                concurrency: group.record.concurrency,
                round: group.record.round,
                n: cut.len() as u64,
                mean_output_tokens: mean(&counts),
                e2el_ms: distribution(e2el, "no prompt was answered by every engine"),
                output_tokens_per_s: throughput::output_tokens_per_s(&requests),
            }
        })
        .collect()
}

/// The requests of such cases, each cut to its beginning: for whoever computes
/// other numbers of them.
#[must_use]
pub fn cut<'g, 'a>(
    groups: &'g [CaseRequests<'a>],
    cases: &[CaseSummary],
) -> Vec<(&'g CaseRequests<'a>, Vec<RequestRecord>)> {
    let valid = |group: &&CaseRequests<'_>| {
        let case = cases.iter().find(|case| case.case == group.case);
        case.is_some_and(|case| case.invalid.is_empty() && !case.again)
    };
    let mut loads: BTreeMap<LoadKey<'_>, Vec<&'g CaseRequests<'a>>> = BTreeMap::new();
    for group in groups.iter().filter(valid) {
        loads.entry(group.load_key()).or_default().push(group);
    }
    let mut found = Vec::new();
    for groups in loads.into_values().filter(|groups| groups.len() > 1) {
        let lengths = shortest(&groups);
        let differs = |request: &RequestRecord| {
            let shortest = lengths.get(&request.index);
            shortest.is_some_and(|least| request.num_output_tokens != Some(*least))
        };
        if !groups.iter().flat_map(|group| group.completed()).any(differs) {
            continue;
        }
        for group in groups {
            let beginning =
                |request: &RequestRecord| truncate(request, *lengths.get(&request.index)?);
            found.push((group, group.completed().filter_map(beginning).collect()));
        }
    }
    found.sort_by_key(|(group, _)| group.case);
    found
}

/// By index of the request, the length of the shortest answer; only where every
/// engine answered the same prompt and counted.
fn shortest(groups: &[&CaseRequests<'_>]) -> BTreeMap<u32, u32> {
    let mut answers: BTreeMap<u32, Vec<(&str, u32)>> = BTreeMap::new();
    for request in groups.iter().flat_map(|group| group.completed()) {
        if let Some(tokens) = request.num_output_tokens.filter(|tokens| *tokens > 0) {
            answers.entry(request.index).or_default().push((&request.prompt_sha256, tokens));
        }
    }
    let common = |(index, answers): (u32, Vec<(&str, u32)>)| {
        let same = answers.iter().all(|(prompt, _)| *prompt == answers[0].0);
        let least = answers.iter().map(|(_, tokens)| *tokens).min()?;
        (same && answers.len() == groups.len()).then_some((index, least))
    };
    answers.into_iter().filter_map(common).collect()
}

/// The request as it was when its first `num_tokens` tokens had arrived; `None`
/// where its events cannot say when that was.
fn truncate(request: &RequestRecord, num_tokens: u32) -> Option<RequestRecord> {
    let sent = request.sent_at_ns?.as_nanos();
    let weights = token_weights(request)?;
    let mut so_far = 0.0;
    // Weights are fractions where tokens are spread over events.
    let whole = f64::from(num_tokens) - 1e-6;
    let completing = weights.iter().find(|(_, tokens)| {
        so_far += tokens;
        so_far >= whole
    });
    // A count may hold an end-of-sequence token that no event carries.
    let (at, _) = completing.or(weights.last())?;
    let last = at.saturating_sub(sent);
    Some(RequestRecord {
        events: request.events.iter().copied().filter(|event| event.0 <= last).collect(),
        num_output_tokens: Some(num_tokens),
        done_ns: last,
        text: String::new(),
        ..request.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case::{self, tests::*};

    /// Two answers of so many tokens, 10 ms apart, the first after 20 ms.
    fn answers(tokens: [u64; 2]) -> Vec<RequestRecord> {
        let request = |(index, tokens): (u32, u64)| {
            request(index, 0, &(0..tokens).map(|i| 20 + 10 * i).collect::<Vec<_>>())
        };
        (0..).zip(tokens).map(request).collect()
    }

    fn windows(of: &[(&str, [u64; 2])]) -> Vec<CommonWindow> {
        let made: Vec<_> = of
            .iter()
            .map(|(engine, tokens)| (record(engine, "concurrent-warm", 2), answers(*tokens)))
            .collect();
        let groups: Vec<_> = (0..)
            .zip(&made)
            .map(|(case, (record, requests))| CaseRequests { case, ..group(record, requests) })
            .collect();
        let cases: Vec<_> = groups.iter().map(|group| case::summarise(group, &[])).collect();
        common(&groups, &cases)
    }

    #[test]
    fn answers_are_compared_over_the_tokens_that_all_engines_gave() {
        let found = windows(&[("ollama", [4, 10]), ("vllm", [10, 7])]);
        assert_eq!(found.len(), 2);
        for window in &found {
            // The shortest are 4 and 7 tokens: 20 + 3 * 10 and 20 + 6 * 10 ms.
            assert_eq!((window.e2el_ms.min, window.e2el_ms.max), (Some(50.0), Some(80.0)));
            assert_eq!(window.mean_output_tokens, Some(5.5));
            assert!((window.output_tokens_per_s.unwrap() - 11.0 / 0.080).abs() < 1e-9);
        }
    }

    #[test]
    fn answers_of_one_length_need_no_window() {
        assert!(windows(&[("a", [10, 10]), ("b", [10, 10])]).is_empty());
        assert!(windows(&[("a", [4, 10])]).is_empty(), "nothing to compare with");
    }

    #[test]
    fn truncated_request_ends_with_the_event_that_completes_the_count() {
        let mut whole = request(0, 5, &[20, 30, 40, 50]);
        whole.num_output_tokens = Some(8);
        for event in &mut whole.events {
            event.2 = Some(2);
        }
        let cut = truncate(&whole, 3).unwrap();
        assert_eq!(
            (cut.events.len(), cut.done_ns, cut.num_output_tokens),
            (2, 30_000_000, Some(3))
        );
    }
}
