//! What was reported of a scripted answer beside what was true, and whether
//! that is a misreading. Reads one part of `calibration.jsonl`.

use serde::{Deserialize, Serialize};

use super::client_error::{self, ClientError};
use super::distribution::median;
use super::latency;
use crate::engine::EventKind;
use crate::record::{CalibrationRecord, CountSource, EventRecord, JournalEntry, RequestRecord};

/// Errors of a median below this are no misreading, however short the time is.
const SMALLEST_ERROR_MS: f64 = 1.0;

/// One scenario, read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Name of the scenario.
    pub scenario: String,
    /// Median TTFT.
    pub ttft_ms: Pair,
    /// Median TPOT; absent where nobody counted tokens.
    pub tpot_ms: Pair,
    /// The longest gap between token events, the median over answers.
    pub longest_gap_ms: Pair,
    /// Output tokens of an answer; reported only where the server counted them.
    pub output_tokens: Pair,
    /// Token events of an answer, on average.
    pub token_events: Pair,
    /// Of those, events of reasoning.
    pub reasoning_events: Pair,
    /// Time errors in full.
    pub client_error: ClientError,
    /// What is misreported, in words; empty if everything is true.
    pub misreported: Vec<String>,
}

/// A value as it was and as it was reported.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Pair {
    /// By the server.
    pub truth: Option<f64>,
    /// By the client.
    pub reported: Option<f64>,
}

impl Reading {
    /// Whether nothing was misreported.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.misreported.is_empty()
    }
}

/// Reads `scenario` out of what was recorded; `tolerance` is the share of a
/// median above which its error is a misreading.
#[must_use]
pub fn read(
    scenario: &str,
    records: &[CalibrationRecord],
    journal: &[JournalEntry],
    tolerance: f64,
) -> Reading {
    let client_error = client_error::measure(scenario, records, journal);
    let both: Vec<_> = records
        .iter()
        .filter(|record| record.part == scenario && record.request.outcome.is_ok())
        .filter_map(|record| Some(Sides { truth: as_request(record)?, got: &record.request }))
        .collect();
    let mut reading = Reading {
        scenario: scenario.to_owned(),
        ttft_ms: of(&both, latency::ttft_ms),
        tpot_ms: of(&both, latency::tpot_ms),
        longest_gap_ms: of(&both, |request| latency::itl_ms(request).max_by(f64::total_cmp)),
        output_tokens: of(&both, |request| request.num_output_tokens.map(f64::from)),
        token_events: of(&both, |request| Some(count(request, EventKind::is_token))),
        reasoning_events: of(&both, |request| Some(count(request, is_reasoning))),
        client_error,
        misreported: Vec::new(),
    };
    reading.misreported = judge(&reading, &both, tolerance);
    reading
}

/// One request from both sides.
struct Sides<'a> {
    truth: RequestRecord,
    got: &'a RequestRecord,
}

/// The truth in the shape of a record, so that the same formulas read both.
fn as_request(record: &CalibrationRecord) -> Option<RequestRecord> {
    let truth = record.truth.as_ref()?;
    let mut request = record.request.clone();
    request.sent_at_ns = Some(truth.received_at_ns);
    request.events.clone_from(&truth.events);
    request.num_events_dropped = 0;
    request.num_output_tokens =
        Some(truth.events.iter().filter(|event| event.1.is_token()).filter_map(|e| e.2).sum());
    Some(request)
}

fn of(both: &[Sides<'_>], value: impl Fn(&RequestRecord) -> Option<f64>) -> Pair {
    Pair {
        truth: median(both.iter().filter_map(|sides| value(&sides.truth))),
        reported: median(both.iter().filter_map(|sides| value(sides.got))),
    }
}

#[expect(clippy::cast_precision_loss, reason = "answers have far fewer events than 2^52")]
fn count(request: &RequestRecord, holds: impl Fn(EventKind) -> bool) -> f64 {
    request.events.iter().filter(|event| holds(event.1)).count() as f64
}

fn is_reasoning(kind: EventKind) -> bool {
    kind == EventKind::Reasoning
}

fn judge(reading: &Reading, both: &[Sides<'_>], tolerance: f64) -> Vec<String> {
    let mut found = Vec::new();
    let error = &reading.client_error;
    if error.num_failed > 0 || both.is_empty() {
        found.push(format!("{} of {} requests failed", error.num_failed, error.n));
    }
    if error.num_events_lost > 0 {
        found.push(format!("{} events lost or made up", error.num_events_lost));
    }
    for (what, pair) in [
        ("TTFT", reading.ttft_ms),
        ("TPOT", reading.tpot_ms),
        ("longest gap", reading.longest_gap_ms),
    ] {
        // Where one side has none the counts below say why.
        let (Some(truth), Some(reported)) = (pair.truth, pair.reported) else { continue };
        if (reported - truth).abs() > (truth * tolerance).max(SMALLEST_ERROR_MS) {
            found.push(format!("{what} {reported:.1} ms for {truth:.1}"));
        }
    }
    let miscounted = both.iter().filter(|sides| !is_counted_right(sides)).count();
    if miscounted > 0 {
        found.push(format!("tokens of {miscounted} answers"));
    }
    let kinds = |request: &RequestRecord| -> Vec<EventKind> {
        let tokens = request.events.iter().filter(|event| event.1.is_token());
        tokens.map(|&EventRecord(_, kind, _)| kind).collect()
    };
    let mistaken = both.iter().filter(|sides| kinds(&sides.truth) != kinds(sides.got)).count();
    if mistaken > 0 {
        found.push(format!("reasoning and content of {mistaken} answers"));
    }
    found
}

/// Counted as it was; or, where the server counted nothing, not counted at all:
/// neither chunks nor the asked-for length are a count.
fn is_counted_right(sides: &Sides<'_>) -> bool {
    let told = sides.truth.events.iter().any(|event| event.1 == EventKind::Usage);
    let expected = sides.truth.num_output_tokens.filter(|_| told);
    let source = if told { CountSource::Server } else { CountSource::None };
    sides.got.num_output_tokens == expected && sides.got.count_source == source
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::TruthRecord;
    use crate::stats::case::tests::request;

    const MS: u64 = 1_000_000;

    fn pair() -> CalibrationRecord {
        let truth: Vec<_> = [
            (0, EventKind::Empty, 0),
            (200, EventKind::Content, 4),
            (520, EventKind::Content, 4),
            (520, EventKind::Usage, 0),
        ]
        .into_iter()
        .map(|(at, kind, tokens)| EventRecord(at * MS, kind, Some(tokens)))
        .collect();
        let mut request = request(0, 0, &[]);
        request.events = truth.iter().map(|e| EventRecord(e.0 + 1000, e.1, None)).collect();
        request.num_output_tokens = Some(8);
        request.count_source = CountSource::Server;
        let received_at_ns = Timestamp::from_nanos(5);
        let truth = Some(TruthRecord { received_at_ns, events: truth });
        CalibrationRecord { part: "x".to_owned(), truth, request }
    }

    fn reading(record: CalibrationRecord) -> Reading {
        read("x", &[record], &[], 0.05)
    }

    #[test]
    fn same_on_both_sides_is_true() {
        let found = reading(pair());
        assert!(found.is_true(), "{:?}", found.misreported);
        assert_eq!(found.ttft_ms.truth, Some(200.0));
        assert_eq!(found.longest_gap_ms.truth, Some(320.0));
        assert_eq!(
            (found.output_tokens.truth, found.output_tokens.reported),
            (Some(8.0), Some(8.0))
        );
    }

    #[test]
    fn every_kind_of_misreading_is_found() {
        type Mistake = fn(&mut CalibrationRecord);
        let mistakes: [(&str, Mistake); 6] = [
            // The role chunk is taken for a token.
            ("TTFT", |record| record.request.events[0].1 = EventKind::Content),
            ("longest gap", |record| record.request.events[1].0 = 400 * MS),
            ("tokens of 1", |record| record.request.num_output_tokens = Some(2)),
            ("lost or made up", |record| record.request.events.truncate(2)),
            ("reasoning and content", |record| record.request.events[1].1 = EventKind::Reasoning),
            ("requests failed", |record| record.truth = None),
        ];
        for (what, mistake) in mistakes {
            let mut record = pair();
            mistake(&mut record);
            let found = reading(record).misreported.join("; ");
            assert!(found.contains(what), "{what}: {found}");
        }
    }

    #[test]
    fn without_usage_the_true_count_would_be_a_guess() {
        let mut record = pair();
        record.truth.as_mut().unwrap().events.pop();
        record.request.events.pop();
        assert!(!reading(record.clone()).is_true(), "a count without a source");
        record.request.num_output_tokens = None;
        record.request.count_source = CountSource::None;
        assert!(reading(record).is_true());
    }
}
