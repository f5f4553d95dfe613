//! Which engine did better in an experiment, said no more surely than the
//! intervals allow. Knows medians and intervals, no format.

use crate::stats::compare::verdict::percent;
use crate::stats::compare::{Comparison, Verdict as Said};
use crate::stats::distribution::median;
use crate::stats::http_cost::overlap;
use crate::stats::summary::{CaseSummary, Distribution, Interval};
use crate::stats::window::CommonWindow;
use crate::units::format_significant;

use super::comparison::{write_interval, write_p, write_ratio};
use super::numbers::write_latency;
use super::prose::list;

/// Values without intervals that are nearer than this are not told apart.
const NEAR: f64 = 1.05;

/// Values without intervals that are nearer than this could differ by chance: on shared machines
/// two runs of the same thing have been seen to differ by a fifth.
const CLEAR: f64 = 1.5;

/// A value and its interval, where it has one.
type Estimate<'a> = (f64, Option<&'a Interval>);

/// One finding about one metric of an experiment at one concurrency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What was compared, such as `TTFT`.
    pub metric: String,
    /// The engine that did better, where that can be said.
    pub best: Option<String>,
    /// Its value with unit.
    pub value: String,
    /// How it compares with the next one, and how surely.
    pub sentence: String,
}

/// What can be said of the cases of one experiment at one concurrency: by the
/// comparisons over rounds, where there are any, else by one measurement each.
#[must_use]
pub fn verdicts(
    cases: &[&CaseSummary],
    comparisons: &[Comparison],
    windows: &[CommonWindow],
) -> Vec<Verdict> {
    let over_rounds = comparisons.iter().filter(|comparison| {
        cases.iter().any(|case| {
            case.experiment == comparison.experiment && case.concurrency == comparison.concurrency
        })
    });
    let over_rounds: Vec<_> = over_rounds.map(over_rounds_verdict).collect();
    if over_rounds.is_empty() { of_one_measurement(cases, windows) } else { over_rounds }
}

/// A comparison in a sentence.
fn over_rounds_verdict(comparison: &Comparison) -> Verdict {
    let (base, candidate) = (&comparison.base, &comparison.candidate);
    let ratio = write_ratio(comparison.ratio);
    let within = write_interval(comparison).map_or(String::new(), |range| format!(" ({range})"));
    let said = match comparison.verdict {
        Said::Same => format!("the same within {}", percent(comparison.margin)),
        Said::Different => {
            let better = comparison.winning_name().unwrap_or_default();
            format!("{better} is better, p = {}", write_p(comparison.p))
        }
        Said::Undecided => format!("undecided: {}", comparison.reason),
    };
    Verdict {
        metric: comparison.metric.label(),
        best: comparison.winning_engine().map(str::to_owned),
        value: format!(
            "{} {} {}",
            candidate.engine,
            format_significant(candidate.value),
            comparison.unit
        ),
        sentence: format!("{ratio} times {}{within}, {said}", base.engine),
    }
}

/// Compares single measurements, output over the common beginnings where answers
/// differ in length. Invalid cases do not compete.
fn of_one_measurement(cases: &[&CaseSummary], windows: &[CommonWindow]) -> Vec<Verdict> {
    let sound = || cases.iter().copied().filter(|case| case.invalid.is_empty() && case.n > 0);
    let is_cut = windows.iter().any(|window| cases.iter().any(|case| is_of(window, case)));
    let entries = |of: fn(&CaseSummary) -> Option<Estimate<'_>>| {
        sound()
            .filter_map(|case| {
                let (value, interval) = of(case)?;
                Some(Entry { engine: &case.engine, value, interval })
            })
            .collect::<Vec<_>>()
    };
    let ttft = entries(|case| Some((case.ttft_ms.p50?, across_runs(case, &case.ttft_ms))));
    let decode = entries(|case| {
        let rate = &case.decode_tokens_per_s;
        Some((rate.p50?, across_runs(case, rate)))
    });
    let output = sound()
        .filter_map(|case| {
            let value = if is_cut {
                let rounds = windows.iter().filter(|window| is_of(window, case));
                median(rounds.filter_map(|window| window.output_tokens_per_s))?
            } else {
                case.output_tokens_per_s?
            };
            Some(Entry { engine: &case.engine, value, interval: None })
        })
        .collect();
    let of_output = if is_cut { "output of the common beginnings" } else { "output of the case" };
    let rate = |value: f64| format!("{} tok/s", format_significant(value));
    [
        judge("TTFT", ttft, Better::Lower, write_latency),
        judge("decode per stream", decode, Better::Higher, rate),
        judge(of_output, output, Better::Higher, rate),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn is_of(window: &CommonWindow, case: &CaseSummary) -> bool {
    (&window.engine, &window.experiment, window.concurrency)
        == (&case.engine, &case.experiment, case.concurrency)
}

/// The interval that another measurement of the same case could be held to.
/// Requests that ran together shared their steps: how they differed from each
/// other says nothing of how the next burst would differ from this one.
fn across_runs<'a>(case: &CaseSummary, metric: &'a Distribution) -> Option<&'a Interval> {
    metric.interval.as_ref().filter(|_| case.concurrency == 1 || case.num_rounds.is_some())
}

struct Entry<'a> {
    engine: &'a str,
    value: f64,
    interval: Option<&'a Interval>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    Lower,
    Higher,
}

fn judge(
    metric: &str,
    mut entries: Vec<Entry<'_>>,
    better: Better,
    write: impl Fn(f64) -> String,
) -> Option<Verdict> {
    entries.sort_by(|a, b| match better {
        Better::Lower => a.value.total_cmp(&b.value),
        Better::Higher => b.value.total_cmp(&a.value),
    });
    let (best, rest) = entries.split_first()?;
    if rest.is_empty() || entries.iter().any(|entry| entry.value <= 0.0) {
        return None;
    }
    let ratio = |other: &Entry<'_>| other.value.max(best.value) / other.value.min(best.value);
    let tied = |other: &&Entry<'_>| match (best.interval, other.interval) {
        (Some(a), Some(b)) => overlap(a, b),
        _ => ratio(other) < NEAR,
    };
    let equals: Vec<String> = rest.iter().filter(tied).map(|e| e.engine.to_owned()).collect();
    let mut parts = Vec::new();
    if !equals.is_empty() {
        parts.push(format!("not told apart from {}", list(&equals)));
    }
    if let Some(next) = rest.iter().find(|other| !tied(other)) {
        let distance = match better {
            Better::Lower => format!("{} takes {:.2} times as long", next.engine, ratio(next)),
            Better::Higher => format!("{:.2} times {}", ratio(next), next.engine),
        };
        let surely = match (best.interval, next.interval) {
            (Some(_), Some(_)) => "intervals apart",
            _ if ratio(next) < CLEAR => "one measurement each, so perhaps by chance",
            _ => "one measurement each",
        };
        parts.push(format!("{distance}, {surely}"));
    }
    Some(Verdict {
        metric: metric.to_owned(),
        best: equals.is_empty().then(|| best.engine.to_owned()),
        value: format!("{} {}", best.engine, write(best.value)),
        sentence: parts.join("; "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(low: f64, high: f64) -> Interval {
        Interval { of: "p50".to_owned(), level: 0.95, low, high }
    }

    fn ttft(entries: Vec<Entry<'_>>) -> Option<Verdict> {
        judge("TTFT", entries, Better::Lower, write_latency)
    }

    #[test]
    fn overlapping_intervals_have_no_best() {
        let (a, b, c) = (interval(19.0, 22.0), interval(20.0, 23.0), interval(39.0, 41.0));
        let found = ttft(vec![
            Entry { engine: "slow", value: 40.0, interval: Some(&c) },
            Entry { engine: "a", value: 20.0, interval: Some(&a) },
            Entry { engine: "b", value: 21.0, interval: Some(&b) },
        ])
        .unwrap();
        assert_eq!(found.best, None);
        assert_eq!(
            found.sentence,
            "not told apart from b; slow takes 2.00 times as long, intervals apart"
        );
    }

    #[test]
    fn values_without_intervals_are_ranked_with_a_doubt() {
        let entry = |engine, value| Entry { engine, value, interval: None };
        let found =
            judge("output", vec![entry("a", 100.0), entry("b", 140.0)], Better::Higher, |v| {
                format!("{v}")
            })
            .unwrap();
        assert_eq!(found.best.as_deref(), Some("b"));
        assert_eq!(found.sentence, "1.40 times a, one measurement each, so perhaps by chance");
        let near = ttft(vec![entry("a", 100.0), entry("b", 104.0)]).unwrap();
        assert_eq!((near.best, near.sentence.as_str()), (None, "not told apart from b"));
    }

    #[test]
    fn rounds_are_believed_before_one_measurement_each() {
        use crate::stats::case;
        use crate::stats::case::tests::{group, record, request};
        let requests = [request(0, 0, &[20, 25])];
        let of = |engine: &str| {
            case::summarise(&group(&record(engine, "concurrent-warm", 1), &requests), &[])
        };
        let (a, b) = (of("a"), of("b"));
        let mut comparison = crate::stats::compare::tests::comparison(
            "ttft_p50",
            "concurrent-warm",
            1,
            Some((0.7, 0.9)),
        );
        (comparison.verdict, comparison.winner) =
            (Said::Different, Some(crate::stats::compare::Side::Candidate));
        let found = verdicts(&[&a, &b], &[comparison], &[]);
        assert_eq!((found.len(), found[0].best.as_deref()), (1, Some("b")));
        assert_eq!(found[0].sentence, "0.794 times a (0.700–0.900), b is better, p = 0.010");
        let other = crate::stats::compare::tests::comparison("ttft_p50", "batched-warm", 1, None);
        assert!(verdicts(&[&a, &b], &[other], &[])[0].sentence.contains("not told apart"));
    }

    #[test]
    fn one_engine_alone_is_not_judged() {
        assert_eq!(ttft(vec![Entry { engine: "a", value: 1.0, interval: None }]), None);
    }
}
