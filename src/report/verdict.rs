//! Which engine did better in an experiment, said no more surely than the
//! intervals allow. Knows medians and intervals, no format.

use crate::stats::http_cost::overlap;
use crate::stats::summary::{CaseSummary, Interval};
use crate::units::format_significant;

use super::numbers::write_latency;

/// Values without intervals that are nearer than this are not ranked.
const NEAR: f64 = 1.05;

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

/// Compares the cases of one experiment at one concurrency. Engines with
/// failed requests do not compete: their latencies are those of survivors.
#[must_use]
pub fn verdicts(cases: &[&CaseSummary]) -> Vec<Verdict> {
    let sound = || cases.iter().copied().filter(|case| case.num_ok == case.n && case.n > 0);
    let entries = |of: fn(&CaseSummary) -> Option<Estimate<'_>>| {
        sound()
            .filter_map(|case| {
                let (value, interval) = of(case)?;
                Some(Entry { engine: &case.engine, value, interval })
            })
            .collect::<Vec<_>>()
    };
    let ttft = entries(|case| Some((case.ttft_ms.p50?, case.ttft_ms.interval.as_ref())));
    let decode = entries(|case| {
        Some((case.decode_tokens_per_s.p50?, case.decode_tokens_per_s.interval.as_ref()))
    });
    let output = entries(|case| Some((case.output_tokens_per_s?, None)));
    let rate = |value: f64| format!("{} tok/s", format_significant(value));
    [
        judge("TTFT", ttft, Better::Lower, write_latency),
        judge("decode per stream", decode, Better::Higher, rate),
        judge("output of the case", output, Better::Higher, rate),
    ]
    .into_iter()
    .flatten()
    .collect()
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
    let [best, next, ..] = entries.as_slice() else { return None };
    let (high, low) = (best.value.max(next.value), best.value.min(next.value));
    if low <= 0.0 {
        return None;
    }
    let ratio = high / low;
    let distance = match better {
        Better::Lower => format!("{} takes {ratio:.2} times as long", next.engine),
        Better::Higher => format!("{ratio:.2} times {}", next.engine),
    };
    let (named, sentence) = match (best.interval, next.interval) {
        (Some(a), Some(b)) if overlap(a, b) => {
            (false, format!("cannot be told from {}: the intervals overlap", next.engine))
        }
        (Some(_), Some(_)) => (true, format!("{distance}; the intervals are apart")),
        _ if ratio < NEAR => (false, format!("close to {}: no intervals to tell by", next.engine)),
        _ => (true, format!("{distance}; no intervals, so it may be chance")),
    };
    Some(Verdict {
        metric: metric.to_owned(),
        best: named.then(|| best.engine.to_owned()),
        value: format!("{} {}", best.engine, write(best.value)),
        sentence,
    })
}
