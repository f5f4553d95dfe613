//! One case: its measured requests gathered, and everything derived from them.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::record::{CaseRecord, JournalEntry, JournalEvent, Outcome, RequestRecord, RunData};
use crate::units;

use super::distribution::{distribution, mean};
use super::staircase::{self, Stream};
use super::summary::{CaseSummary, WarmUpSummary};
use super::{latency, open_loop, throughput};

/// Experiment, concurrency, round, and whether it is the second arm.
pub type LoadKey<'a> = (&'a str, u32, u32, bool);

/// A case with its measured requests in order of their index; warm-up left out.
#[derive(Debug, Clone)]
pub struct CaseRequests<'a> {
    /// Index in the manifest.
    pub case: u32,
    /// What was to be measured.
    pub record: &'a CaseRecord,
    /// What was.
    pub requests: Vec<&'a RequestRecord>,
}

impl<'a> CaseRequests<'a> {
    /// The requests that completed.
    pub fn completed(&self) -> impl Iterator<Item = &'a RequestRecord> {
        self.requests.iter().copied().filter(|request| request.outcome.is_ok())
    }

    /// Which load of which round and arm: cases that share it meet the same prompts. The
    /// concurrency of an open loop is no part of it.
    #[must_use]
    pub fn load_key(&self) -> LoadKey<'a> {
        let record = self.record;
        let is_open = record.load.as_ref().is_some_and(crate::record::LoadRecord::is_open);
        let concurrency = if is_open { 0 } else { record.concurrency };
        (&record.experiment, concurrency, record.round, record.again)
    }

    /// The requests released together at the opening of the case.
    #[must_use]
    pub fn opening_burst(&self) -> Vec<&'a RequestRecord> {
        let first = self.requests.iter().map(|request| request.intended_at_ns).min();
        self.requests.iter().copied().filter(|r| Some(r.intended_at_ns) == first).collect()
    }
}

/// The cases of a run, in the manifest's order, each with its requests.
#[must_use]
pub fn group(run: &RunData) -> Vec<CaseRequests<'_>> {
    let mut by_case: BTreeMap<u32, Vec<&RequestRecord>> = BTreeMap::new();
    for request in run.requests.iter().filter(|request| !request.warmup) {
        by_case.entry(request.case).or_default().push(request);
    }
    (0..)
        .zip(&run.manifest.cases)
        .map(|(case, record)| {
            let mut requests = by_case.remove(&case).unwrap_or_default();
            requests.sort_by_key(|request| request.index);
            CaseRequests { case, record, requests }
        })
        .collect()
}

/// Why a case was not measured at all; `None` if it was.
#[must_use]
pub fn absence(group: &CaseRequests<'_>, run: &RunData) -> Option<String> {
    if let Some(reason) = &group.record.absent {
        return Some(reason.clone());
    }
    if !group.requests.is_empty() {
        return None;
    }
    let interrupted = run.journal.iter().any(|entry| entry.event == JournalEvent::Interrupted);
    Some(match failure(group.case, &run.journal) {
        Some(message) => message.to_owned(),
        None if interrupted => "the run was interrupted before it".to_owned(),
        None => "no request of it was recorded".to_owned(),
    })
}

/// Why a case ended early, as the journal says.
#[must_use]
pub fn failure(case: u32, journal: &[JournalEntry]) -> Option<&str> {
    journal.iter().find_map(|entry| match &entry.event {
        JournalEvent::CaseFailed { case: failed, message } if *failed == case => {
            Some(message.as_str())
        }
        JournalEvent::CaseSkipped { case: skipped, reason } if *skipped == case => {
            Some(reason.as_str())
        }
        _ => None,
    })
}

/// From the beginning of a case to its end, or to the last line of the journal
/// where it has none; `None` of a case that never began.
#[must_use]
pub fn span(case: u32, journal: &[JournalEntry]) -> Option<(Timestamp, Timestamp)> {
    let begins = |entry: &&JournalEntry| entry.event == JournalEvent::CaseStarted { case };
    let ends = |entry: &&JournalEntry| {
        matches!(entry.event, JournalEvent::CaseFinished { case: ended, .. }
            | JournalEvent::CaseFailed { case: ended, .. } if ended == case)
    };
    let from = journal.iter().find(begins)?.at_ns;
    let last = || journal.iter().map(|entry| entry.at_ns).max();
    let to = journal.iter().find(ends).map(|entry| entry.at_ns).or_else(last)?;
    Some((from, to.max(from)))
}

/// Whether a case was left out as the run went.
#[must_use]
pub fn was_skipped(case: u32, journal: &[JournalEntry]) -> bool {
    let skips = |event: &JournalEvent| matches!(event, JournalEvent::CaseSkipped { case: skipped, .. } if *skipped == case);
    journal.iter().any(|entry| skips(&entry.event))
}

/// Derives a case's numbers.
#[must_use]
pub fn summarise(group: &CaseRequests<'_>, journal: &[JournalEntry]) -> CaseSummary {
    let record = group.record;
    let completed: Vec<_> = group.completed().collect();
    let none = if completed.is_empty() { "no request completed" } else { "no token arrived" };
    let untimed = if completed.is_empty() {
        "no request completed"
    } else {
        "no request has two counted tokens at different instants"
    };
    let values = |of: fn(&RequestRecord) -> Option<f64>| {
        completed.iter().filter_map(|request| of(request)).collect::<Vec<_>>()
    };
    let tpot = values(latency::tpot_ms);
    let decode = tpot.iter().map(|ms| 1e3 / ms).collect();
    let itl = completed.iter().flat_map(|request| latency::itl_ms(request)).collect();
    let is_open = record.load.as_ref().is_some_and(crate::record::LoadRecord::is_open);
    let steady = if is_open {
        Err("in an open loop no number of streams is meant to generate at once".to_owned())
    } else {
        throughput::steady_tokens_per_s(&group.requests, record.concurrency)
    };
    let burst = group.opening_burst();
    CaseSummary {
        case: group.case,
        engine: record.engine.clone(),
        experiment: record.experiment.clone(),
        concurrency: record.concurrency,
        round: record.round,
        num_rounds: None,
        again: record.again,
        invalid: Vec::new(),
        cold: record.cold,
        n: group.requests.len() as u64,
        num_ok: completed.len() as u64,
        errors: errors(&group.requests),
        ttft_ms: distribution(values(latency::ttft_ms), none),
        tpot_ms: distribution(tpot, untimed),
        itl_ms: distribution(itl, none),
        e2el_ms: distribution(values(latency::e2el_ms), none),
        decode_tokens_per_s: distribution(decode, untimed),
        cold_ttft_ms: if record.cold { cold_ttft_ms(&group.requests) } else { None },
        output_tokens_per_s: throughput::output_tokens_per_s(&group.requests),
        steady_absent: steady.as_ref().err().cloned(),
        steady_output_tokens_per_s: steady.ok(),
        requests_per_s: throughput::requests_per_s(&group.requests),
        send_spread_us: if record.concurrency > 1 && !is_open {
            send_spread_us(&burst)
        } else {
            None
        },
        tokens_per_event: tokens_per_event(&completed),
        mean_prompt_tokens: mean_count(&completed, |request| request.num_prompt_tokens),
        mean_output_tokens: mean_count(&completed, |request| request.num_output_tokens),
        client_cpu_share: client_cpu_share(group.case, journal),
        staircase: staircase::detect(&streams(&burst)),
        warm_up: warm_up(group.case, journal),
        stopped_early: stopped_early(group.case, journal),
        under_load: open_loop::summarise(record, &group.requests),
    }
}

fn warm_up(of: u32, journal: &[JournalEntry]) -> Option<WarmUpSummary> {
    journal.iter().find_map(|entry| match &entry.event {
        JournalEvent::WarmedUp { case, num_bursts, num_requests, took_ns, settled, reason }
            if *case == of =>
        {
            Some(WarmUpSummary {
                num_bursts: *num_bursts,
                num_requests: *num_requests,
                took_ms: latency::ms(*took_ns),
                settled: *settled,
                reason: reason.clone(),
            })
        }
        _ => None,
    })
}

fn stopped_early(of: u32, journal: &[JournalEntry]) -> Option<String> {
    journal.iter().find_map(|entry| match &entry.event {
        JournalEvent::StoppedEarly { case, reason, .. } if *case == of => Some(reason.clone()),
        _ => None,
    })
}

fn errors(requests: &[&RequestRecord]) -> BTreeMap<crate::engine::ErrorClass, u64> {
    let mut errors = BTreeMap::new();
    for request in requests {
        if let Outcome::Error { class, .. } = &request.outcome {
            *errors.entry(*class).or_insert(0) += 1;
        }
    }
    errors
}

/// TTFT of the request that was sent first to the cold engine; absent if that
/// one failed, since a later one no longer met it cold.
fn cold_ttft_ms(requests: &[&RequestRecord]) -> Option<f64> {
    requests
        .iter()
        .filter(|request| request.cold && request.sent_at_ns.is_some())
        .min_by_key(|request| request.sent_at_ns)
        .filter(|request| request.outcome.is_ok())
        .and_then(|request| latency::ttft_ms(request))
}

fn send_spread_us(burst: &[&RequestRecord]) -> Option<f64> {
    let sent = || burst.iter().filter_map(|request| request.sent_at_ns);
    let (first, last) = (sent().min()?, sent().max()?);
    (sent().count() > 1).then(|| units::micros(last.since(first)))
}

/// Completed streams of a burst on one time axis, which begins at the first send.
fn streams(burst: &[&RequestRecord]) -> Vec<Stream> {
    let origin = burst.iter().filter_map(|request| request.sent_at_ns).min();
    let late = |sent: Timestamp| origin.map_or(0.0, |origin| units::millis(sent.since(origin)));
    burst
        .iter()
        .filter(|request| request.outcome.is_ok())
        .filter_map(|request| {
            let late = late(request.sent_at_ns?);
            Some(Stream {
                first_ms: late + latency::ttft_ms(request)?,
                done_ms: late + latency::ms(request.done_ns),
            })
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "token and event counts are far below 2^52")]
fn tokens_per_event(completed: &[&RequestRecord]) -> Option<f64> {
    let (mut tokens, mut events) = (0_u64, 0_usize);
    for request in completed {
        if let Some(count) = request.num_output_tokens {
            tokens += u64::from(count);
            events += latency::token_offsets(request).count();
        }
    }
    (events > 0).then(|| tokens as f64 / events as f64)
}

fn mean_count(
    completed: &[&RequestRecord],
    of: impl Fn(&RequestRecord) -> Option<u32>,
) -> Option<f64> {
    let counts: Vec<f64> = completed.iter().filter_map(|r| of(r)).map(f64::from).collect();
    mean(&counts)
}

fn client_cpu_share(case: u32, journal: &[JournalEntry]) -> Option<f64> {
    let started = journal.iter().rev().find_map(|entry| match entry.event {
        JournalEvent::CaseStarted { case: started } if started == case => Some(entry.at_ns),
        _ => None,
    })?;
    journal.iter().rev().find_map(|entry| match entry.event {
        JournalEvent::CaseFinished { case: finished, client_cpu_ns } if finished == case => {
            let wall = latency::ms(u64::try_from(entry.at_ns.since(started).as_nanos()).ok()?);
            (wall > 0.0).then(|| latency::ms(client_cpu_ns) / wall)
        }
        _ => None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::engine::{ErrorClass, EventKind};
    use crate::record::{CountSource, EngineRecord, EventRecord, Manifest};

    const MS: u64 = 1_000_000;

    /// A request sent at `sent_ms` whose tokens arrive at these offsets, done 1 ms later.
    pub(crate) fn request(index: u32, sent_ms: u64, tokens_ms: &[u64]) -> RequestRecord {
        RequestRecord {
            case: 0,
            index,
            warmup: false,
            cold: false,
            requested_prompt_tokens: None,
            max_tokens: 64,
            prompt_sha256: format!("{index:064x}"),
            intended_at_ns: Timestamp::from_nanos(0),
            held: false,
            turn: None,
            sent_at_ns: Some(Timestamp::from_nanos(sent_ms * MS)),
            headers_ns: None,
            first_byte_ns: None,
            done_ns: (tokens_ms.last().copied().unwrap_or(0) + 1) * MS,
            events: tokens_ms
                .iter()
                .map(|at| EventRecord(at * MS, EventKind::Content, Some(1)))
                .collect(),
            num_events_dropped: 0,
            num_prompt_tokens: Some(31),
            num_output_tokens: u32::try_from(tokens_ms.len()).ok(),
            count_source: CountSource::Server,
            num_cached_tokens: None,
            finish_reason: None,
            outcome: Outcome::Ok,
            server: BTreeMap::new(),
            text: String::new(),
        }
    }

    pub(crate) fn failed(index: u32, sent_ms: u64) -> RequestRecord {
        let message = "status 500".to_owned();
        RequestRecord {
            outcome: Outcome::Error { class: ErrorClass::Rejected, message },
            num_output_tokens: None,
            ..request(index, sent_ms, &[])
        }
    }

    pub(crate) fn record(engine: &str, experiment: &str, concurrency: u32) -> CaseRecord {
        CaseRecord {
            engine: engine.to_owned(),
            experiment: experiment.to_owned(),
            round: 0,
            again: false,
            concurrency,
            num_requests: concurrency,
            cold: experiment.ends_with("cold"),
            absent: None,
            load: None,
            requirements: Vec::new(),
            stop_when_decided: false,
        }
    }

    /// A run of these engines, as on the command line, in which nothing has happened yet.
    pub(crate) fn run(engines: &[&str], cases: Vec<CaseRecord>) -> RunData {
        let mut manifest: Manifest = serde_json::from_value(serde_json::json!({
            "schema_version": 1, "yardstick_version": "", "name": "", "started_at": "",
            "machine": {
                "os": "", "cpu": null, "num_cpus": 1, "memory_bytes": null,
                "load_average_percent": null, "cpu_features": [], "gpus": [],
                "gpu_absent": null, "notes": {},
            },
            "model": "", "seed": 0, "plan": "", "plan_sha256": "", "engines": [], "cases": [],
        }))
        .unwrap();
        let engine =
            |spec: &&str| EngineRecord { spec: spec.parse().unwrap(), info: None, error: None };
        manifest.engines = engines.iter().map(engine).collect();
        manifest.cases = cases;
        RunData {
            manifest,
            requests: Vec::new(),
            journal: Vec::new(),
            steps: Vec::new(),
            calibration: Vec::new(),
            resources: Vec::new(),
        }
    }

    pub(crate) fn group<'a>(
        record: &'a CaseRecord,
        requests: &'a [RequestRecord],
    ) -> CaseRequests<'a> {
        CaseRequests { case: 0, record, requests: requests.iter().collect() }
    }

    fn entry(at_ms: u64, event: JournalEvent) -> JournalEntry {
        JournalEntry { at_ns: Timestamp::from_nanos(at_ms * MS), event }
    }

    #[test]
    fn failed_requests_count_in_n_and_not_in_latencies() {
        let requests = [request(0, 0, &[20, 25]), failed(1, 0)];
        let record = record("e", "concurrent-warm", 2);
        let case = summarise(&group(&record, &requests), &[]);
        assert_eq!((case.n, case.num_ok, case.ttft_ms.n), (2, 1, 1));
        assert_eq!(case.errors, BTreeMap::from([(ErrorClass::Rejected, 1)]));
    }

    #[test]
    fn send_spread_is_of_the_opening_burst_alone() {
        let mut requests = [request(0, 0, &[20]), request(1, 3, &[20]), request(2, 500, &[20])];
        requests[2].intended_at_ns = Timestamp::from_nanos(400 * MS);
        let burst = record("e", "concurrent-warm", 2);
        let case = summarise(&group(&burst, &requests), &[]);
        assert_eq!(case.send_spread_us, Some(3_000.0));
        let alone = record("e", "sequential-cold", 1);
        assert_eq!(summarise(&group(&alone, &requests), &[]).send_spread_us, None);
    }

    #[test]
    fn cold_ttft_is_that_of_the_first_request_sent_cold() {
        let mut requests = [request(0, 5, &[90]), request(1, 2, &[400]), request(2, 9, &[30])];
        requests[0].cold = true;
        requests[1].cold = true;
        let cold = record("e", "concurrent-cold", 3);
        assert_eq!(summarise(&group(&cold, &requests), &[]).cold_ttft_ms, Some(400.0));
        let warm = record("e", "concurrent-warm", 3);
        assert_eq!(summarise(&group(&warm, &requests), &[]).cold_ttft_ms, None);
        requests[1].outcome = failed(1, 0).outcome;
        assert_eq!(summarise(&group(&cold, &requests), &[]).cold_ttft_ms, None);
    }

    #[test]
    fn processor_share_comes_from_the_journal() {
        let requests = [request(0, 0, &[20])];
        let record = record("e", "concurrent-warm", 1);
        let journal = [
            entry(100, JournalEvent::CaseStarted { case: 0 }),
            entry(300, JournalEvent::CaseFinished { case: 0, client_cpu_ns: 50 * MS }),
        ];
        let case = summarise(&group(&record, &requests), &journal);
        assert_eq!(case.client_cpu_share, Some(0.25));
    }

    #[test]
    fn staircase_of_a_burst_is_found_from_records() {
        let requests: Vec<_> = (0..6)
            .map(|k| {
                let first = 10 + u64::from(k / 2) * 1_000;
                request(k, 0, &(0..10).map(|i| first + i * 100).collect::<Vec<_>>())
            })
            .collect();
        let record = record("e", "concurrent-warm", 6);
        let case = summarise(&group(&record, &requests), &[]);
        assert_eq!(case.staircase.map(|stair| stair.slots), Some(2));
        assert!(case.steady_absent.is_some_and(|reason| reason.contains("at most 2 of 6")));
    }
}
