//! What our own client adds to the times that it reports: its records beside
//! what a scripted server really did, on one clock. Knows no engine and no case.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::distribution::{distribution, median};
use super::latency;
use super::summary::Distribution;
use crate::record::{CalibrationRecord, EventRecord, JournalEntry, JournalEvent, RunData};

/// The client's own error, as measured in the run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ClientErrors {
    /// One entry a measurement: before and after the cases.
    pub measured: Vec<ClientError>,
    /// Why one is missing, by its name.
    pub absent: BTreeMap<String, String>,
}

/// One measurement of the client against the scripted server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientError {
    /// `before` or `after` the cases, or a scenario's name.
    pub part: String,
    /// Requests at once.
    pub concurrency: u32,
    /// Requests, failed ones included.
    pub n: u64,
    /// Requests that did not complete, or that the server does not know as complete.
    pub num_failed: u64,
    /// Token events that the server wrote in answers that completed.
    pub num_token_events: u64,
    /// Events, by kind and answer, that one side has and the other has not.
    pub num_events_lost: u64,
    /// TTFT as recorded minus as it was.
    pub ttft_error_ms: Distribution,
    /// Gap between token events as recorded minus as it was, without its sign.
    pub itl_error_ms: Distribution,
    /// TPOT as recorded minus as it was, without its sign.
    pub tpot_error_ms: Distribution,
    /// Last minus first send of a burst, the median over bursts; null for one request at a time.
    pub send_spread_us: Option<f64>,
    /// Share of one processor that this process used, the scripted server left out.
    pub cpu_share: Option<f64>,
    /// Processor time of this process for each token event, records on disk included.
    pub cpu_us_per_token_event: Option<f64>,
}

impl ClientErrors {
    /// The measurement with the largest of what `of` takes from it.
    pub fn worst(&self, of: impl Fn(&ClientError) -> Option<f64>) -> Option<f64> {
        self.measured.iter().filter_map(of).max_by(f64::total_cmp)
    }
}

/// The client's own error in a run; `None` for a run of before there was such a measurement.
#[must_use]
pub fn find(run: &RunData) -> Option<ClientErrors> {
    let mut found = ClientErrors::default();
    for entry in &run.journal {
        match &entry.event {
            JournalEvent::Calibrated { part, .. } => {
                found.measured.push(measure(part, &run.calibration, &run.journal));
            }
            JournalEvent::NotCalibrated { part, reason } => {
                found.absent.insert(part.clone(), reason.clone());
            }
            _ => {}
        }
    }
    (found != ClientErrors::default()).then_some(found)
}

/// The error of one part, from its pairs.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts and durations are far below 2^52")]
pub fn measure(part: &str, records: &[CalibrationRecord], journal: &[JournalEntry]) -> ClientError {
    let records: Vec<_> = records.iter().filter(|record| record.part == part).collect();
    let mut values = Values::default();
    for record in &records {
        values.add(record);
    }
    let noted = journal.iter().find_map(|entry| match &entry.event {
        JournalEvent::Calibrated { part: noted, concurrency, took_ns, client_cpu_ns }
            if noted == part =>
        {
            Some((*concurrency, *took_ns, *client_cpu_ns))
        }
        _ => None,
    });
    let (concurrency, took_ns, cpu_ns) = noted.unwrap_or((0, 0, None));
    let per = |whole: u64| cpu_ns.filter(|_| whole > 0).map(|cpu| cpu as f64 / whole as f64);
    let none = "no request completed";
    ClientError {
        part: part.to_owned(),
        concurrency,
        n: records.len() as u64,
        num_failed: values.num_failed,
        num_token_events: values.num_token_events,
        num_events_lost: values.num_events_lost,
        ttft_error_ms: distribution(values.ttft, none),
        itl_error_ms: distribution(values.itl, "no answer has two token events"),
        tpot_error_ms: distribution(values.tpot, "no answer has two token events"),
        send_spread_us: spread_us(&records),
        cpu_share: per(took_ns),
        cpu_us_per_token_event: per(values.num_token_events).map(|nanos| nanos / 1e3),
    }
}

#[derive(Default)]
struct Values {
    ttft: Vec<f64>,
    itl: Vec<f64>,
    tpot: Vec<f64>,
    num_failed: u64,
    num_token_events: u64,
    num_events_lost: u64,
}

impl Values {
    #[expect(clippy::cast_precision_loss, reason = "answers have far fewer events than 2^52")]
    fn add(&mut self, record: &CalibrationRecord) {
        let CalibrationRecord { truth, request, .. } = record;
        let Some(truth) = truth.as_ref().filter(|_| request.outcome.is_ok()) else {
            self.num_failed += 1;
            return;
        };
        let was = tokens(&truth.events);
        let got = tokens(&request.events);
        self.num_token_events += was.len() as u64;
        self.num_events_lost += differing(&truth.events, &request.events);
        let (Some(first), Some(first_got)) = (was.first(), got.first()) else { return };
        self.ttft.push(signed_ms(*first_got, *first));
        // Otherwise nothing says which event is which.
        if was.len() != got.len() || was.len() < 2 {
            return;
        }
        let gaps = |at: &[u64]| -> Vec<u64> {
            at.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect()
        };
        let pairs = gaps(&got).into_iter().zip(gaps(&was));
        self.itl.extend(pairs.map(|(got, was)| signed_ms(got, was).abs()));
        let whole = |at: &[u64]| at[at.len() - 1].saturating_sub(at[0]);
        self.tpot.push(signed_ms(whole(&got), whole(&was)).abs() / (was.len() - 1) as f64);
    }
}

fn tokens(events: &[EventRecord]) -> Vec<u64> {
    events.iter().filter(|event| event.1.is_token()).map(|event| event.0).collect()
}

/// Events that one side has more of, by kind.
fn differing(was: &[EventRecord], got: &[EventRecord]) -> u64 {
    let mut counts: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for event in was {
        counts.entry(event.1).or_default().0 += 1;
    }
    for event in got {
        counts.entry(event.1).or_default().1 += 1;
    }
    counts.values().map(|(was, got)| was.abs_diff(*got)).sum()
}

fn signed_ms(value: u64, less: u64) -> f64 {
    latency::ms(value) - latency::ms(less)
}

/// Median over the bursts: requests that one instant released.
fn spread_us(records: &[&CalibrationRecord]) -> Option<f64> {
    let mut bursts: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for record in records {
        if let Some(sent_at) = record.request.sent_at_ns {
            bursts.entry(record.request.intended_at_ns).or_default().push(sent_at.as_nanos());
        }
    }
    let spread = |sent: &Vec<u64>| {
        let (first, last) = (sent.iter().min()?, sent.iter().max()?);
        (sent.len() > 1).then(|| latency::ms(last - first) * 1e3)
    };
    median(bursts.values().filter_map(spread))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::engine::EventKind;
    use crate::record::{JournalEntry, TruthRecord};
    use crate::stats::case::tests::request;

    fn pair(sent_at_ms: u64, truth_ms: &[u64], got_ms: &[u64]) -> CalibrationRecord {
        let events = |at: &[u64]| -> Vec<EventRecord> {
            at.iter().map(|ms| EventRecord(ms * 1_000_000, EventKind::Content, Some(1))).collect()
        };
        let mut request = request(0, 0, &[]);
        request.intended_at_ns = Timestamp::from_nanos(0);
        request.sent_at_ns = Some(Timestamp::from_nanos(sent_at_ms * 1_000_000));
        request.events = events(got_ms);
        let received_at_ns = Timestamp::from_nanos(1);
        let truth = Some(TruthRecord { received_at_ns, events: events(truth_ms) });
        CalibrationRecord { part: "before".to_owned(), truth, request }
    }

    fn calibrated(part: &str) -> JournalEntry {
        let event = JournalEvent::Calibrated {
            part: part.to_owned(),
            concurrency: 2,
            took_ns: 1_000_000,
            client_cpu_ns: Some(60_000),
        };
        JournalEntry { at_ns: Timestamp::from_nanos(9), event }
    }

    #[test]
    fn errors_are_what_was_recorded_minus_what_was() {
        let pairs = [pair(0, &[20, 25, 30], &[21, 27, 30]), pair(3, &[20, 25, 30], &[21, 26, 31])];
        let found = measure("before", &pairs, &[calibrated("before")]);
        assert_eq!(found.ttft_error_ms.p50, Some(1.0));
        // Gaps 6 and 3 for 5 and 5; 5 and 5.
        assert_eq!((found.itl_error_ms.n, found.itl_error_ms.max), (4, Some(2.0)));
        // 9 for 10 over two gaps, and 10 for 10.
        assert_eq!(found.tpot_error_ms.max, Some(0.5));
        assert_eq!(found.send_spread_us, Some(3000.0));
        assert_eq!((found.concurrency, found.cpu_share), (2, Some(0.06)));
        assert_eq!(found.cpu_us_per_token_event, Some(10.0));
        assert_eq!((found.n, found.num_failed, found.num_events_lost), (2, 0, 0));
    }

    #[test]
    fn lost_event_is_counted_and_no_gap_is_made_up_for_it() {
        let pairs = [pair(0, &[20, 25, 30], &[21, 31])];
        let found = measure("before", &pairs, &[]);
        assert_eq!((found.num_events_lost, found.itl_error_ms.n), (1, 0));
        let mut unknown = pairs[0].clone();
        unknown.truth = None;
        assert_eq!(measure("before", &[unknown], &[]).num_failed, 1);
        assert_eq!(measure("after", &pairs, &[]).n, 0);
    }
}
