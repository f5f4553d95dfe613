//! What an open loop adds to a case: latency from the intended instant, how late
//! the client was, and whether the engine kept up with what arrived.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{CaseRecord, RequestRecord};

use super::distribution::{distribution, mean, median};
use super::goodput::{Goodput, goodput};
use super::latency::{self, ms};
use super::summary::Distribution;

/// Share of what is offered that an engine must achieve to have kept up.
const KEPT_UP: f64 = 0.95;
/// Growth of latency, in seconds a second of arrivals, that is a growing queue.
/// Served in order, it is the share by which arrivals exceed what is achieved.
const GROWS: f64 = 1.0 - KEPT_UP;
/// Growth as a share of the early latency below which it may be chance.
const GROWTH_SHARE: f64 = 0.5;
/// With fewer arrivals nothing is said about keeping up.
const MIN_ARRIVALS: usize = 10;
/// Share of the events left out at each end of a rate: the ramp and the drain.
const TRIM: f64 = 0.1;

/// Numbers of a case under a load that a plan describes; all absent in the four
/// experiments.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LoadSummary {
    /// Time to first token, from the intended instant: what a user waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_from_intended_ms: Option<Distribution>,
    /// End-to-end latency, from the intended instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2el_from_intended_ms: Option<Distribution>,
    /// `sent_at` minus the intended instant, of every request that was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_delay_ms: Option<Distribution>,
    /// What arrived and what was achieved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_loop: Option<OpenLoop>,
    /// Requests a second that met every objective; absent without objectives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput_per_s: Option<f64>,
    /// Each objective, and how many requests met it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
}

/// Arrivals of a case and what became of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenLoop {
    /// Name of the load; cases of a sweep share it.
    pub load: String,
    /// Whether the load goes through several rates.
    pub sweep: bool,
    /// Arrivals a second that were asked for; absent for traces.
    pub rate_per_s: Option<f64>,
    /// Arrivals a second that there were, between the first and the last.
    pub offered_per_s: Option<f64>,
    /// Completions a second, over the middle of them.
    pub achieved_per_s: Option<f64>,
    /// Most requests that had arrived and not ended.
    pub peak_in_flight: u64,
    /// Requests that were kept back since as many as allowed were in flight.
    pub num_held: u64,
    /// Whether the engine kept up with what arrived; absent where that cannot be told.
    pub sustained: Option<bool>,
    /// Why it did not, or why that cannot be told.
    pub reason: Option<String>,
}

/// Derives the numbers of a load; nothing for the four experiments. `requests`
/// may be of several rounds: each is then a span of its own.
#[must_use]
pub fn summarise(record: &CaseRecord, requests: &[&RequestRecord]) -> LoadSummary {
    let Some(load) = &record.load else { return LoadSummary::default() };
    let goodput = goodput(load, requests);
    let of_goodput = LoadSummary {
        goodput_per_s: goodput.as_ref().and_then(|goodput| goodput.per_s),
        goodput,
        ..LoadSummary::default()
    };
    if !load.is_open() {
        return of_goodput;
    }
    let completed: Vec<_> = requests.iter().copied().filter(|r| r.outcome.is_ok()).collect();
    let none = if completed.is_empty() { "no request completed" } else { "no token arrived" };
    let values = |of: fn(&RequestRecord) -> Option<f64>, requests: &[&RequestRecord]| {
        requests.iter().filter_map(|request| of(request)).collect::<Vec<_>>()
    };
    LoadSummary {
        ttft_from_intended_ms: Some(distribution(values(ttft_from_intended_ms, &completed), none)),
        e2el_from_intended_ms: Some(distribution(values(e2el_from_intended_ms, &completed), none)),
        client_delay_ms: Some(distribution(
            values(client_delay_ms, requests),
            "no request was sent",
        )),
        open_loop: Some(open_loop(record, requests)),
        ..of_goodput
    }
}

/// Client delay: `sent_at` minus the intended instant. Absent where nothing was sent.
#[must_use]
pub fn client_delay_ms(request: &RequestRecord) -> Option<f64> {
    let delay = request.sent_at_ns?.since(request.intended_at_ns);
    u64::try_from(delay.as_nanos()).ok().map(ms)
}

/// TTFT from the intended instant.
#[must_use]
pub fn ttft_from_intended_ms(request: &RequestRecord) -> Option<f64> {
    Some(latency::ttft_ms(request)? + client_delay_ms(request)?)
}

/// E2EL from the intended instant.
#[must_use]
pub fn e2el_from_intended_ms(request: &RequestRecord) -> Option<f64> {
    Some(latency::e2el_ms(request)? + client_delay_ms(request)?)
}

/// Seconds from the clock's origin to the end of a request.
pub(super) fn ended_s(request: &RequestRecord) -> f64 {
    let origin = request.sent_at_ns.unwrap_or(request.intended_at_ns);
    ms(origin.as_nanos().saturating_add(request.done_ns)) / 1e3
}

/// Seconds from the clock's origin to the intended instant.
pub(super) fn intended_s(request: &RequestRecord) -> f64 {
    ms(request.intended_at_ns.as_nanos()) / 1e3
}

/// Requests of each round by themselves: between rounds nothing arrives.
pub(super) fn rounds<'a>(requests: &[&'a RequestRecord]) -> Vec<Vec<&'a RequestRecord>> {
    let mut rounds: BTreeMap<u32, Vec<&RequestRecord>> = BTreeMap::new();
    for request in requests {
        rounds.entry(request.case).or_default().push(request);
    }
    rounds.into_values().collect()
}

fn open_loop(record: &CaseRecord, requests: &[&RequestRecord]) -> OpenLoop {
    let rounds: Vec<Round> = rounds(requests).iter().map(|round| Round::of(round)).collect();
    let average =
        |of: fn(&Round) -> Option<f64>| mean(&rounds.iter().filter_map(of).collect::<Vec<_>>());
    let told = rounds.iter().map(Round::verdict).reduce(|a, b| match (&a, &b) {
        // One round in which it did not keep up is enough.
        ((Some(false), _), _) | ((None, _), (Some(true), _)) => a,
        _ => b,
    });
    let (sustained, reason) = told.unwrap_or((None, Some("nothing arrived".to_owned())));
    let load = record.load.as_ref();
    OpenLoop {
        load: load.map_or_else(String::new, |load| load.name.clone()),
        sweep: load.is_some_and(|load| load.sweep),
        rate_per_s: load.and_then(|load| load.rate_per_s),
        offered_per_s: average(|round| round.offered),
        achieved_per_s: average(|round| round.achieved),
        peak_in_flight: rounds.iter().map(|round| round.peak).max().unwrap_or(0),
        num_held: requests.iter().filter(|request| request.held).count() as u64,
        sustained,
        reason,
    }
}

/// One pass over the arrivals of a load.
struct Round {
    n: usize,
    conversations: bool,
    offered: Option<f64>,
    achieved: Option<f64>,
    /// Both over their middles, so that they can be compared.
    middle_offered: Option<f64>,
    /// By how many seconds latency grew, where that is a growing queue.
    growth_s: Option<f64>,
    peak: u64,
}

impl Round {
    fn of(requests: &[&RequestRecord]) -> Self {
        let mut arrived: Vec<f64> = requests.iter().map(|request| intended_s(request)).collect();
        let ok = requests.iter().filter(|request| request.outcome.is_ok());
        let mut ended: Vec<f64> = ok.map(|request| ended_s(request)).collect();
        arrived.sort_by(f64::total_cmp);
        ended.sort_by(f64::total_cmp);
        // What failed is missing from the completions, not from the time they took.
        let share = share(ended.len(), arrived.len());
        Self {
            n: arrived.len(),
            conversations: requests.iter().any(|request| request.turn.is_some()),
            offered: rate(&arrived, 0.0),
            achieved: rate(&ended, TRIM).map(|rate| rate * share.min(1.0)),
            middle_offered: rate(&arrived, TRIM),
            growth_s: growth_s(requests),
            peak: peak_in_flight(requests),
        }
    }

    fn verdict(&self) -> (Option<bool>, Option<String>) {
        let unknown = |reason: &str| (None, Some(reason.to_owned()));
        if self.conversations {
            return unknown("turns wait for answers: what arrives depends on the engine");
        }
        if self.n < MIN_ARRIVALS {
            return unknown("too few arrivals to tell whether the engine kept up");
        }
        let Some(offered) = self.middle_offered else { return unknown("all arrived at once") };
        let achieved = self.achieved.unwrap_or(0.0);
        if achieved < KEPT_UP * offered {
            let percent = achieved / offered * 100.0;
            return (Some(false), Some(format!("{percent:.0} % of what arrived was achieved")));
        }
        match self.growth_s {
            Some(seconds) => (
                Some(false),
                Some(format!("E2EL grew by {seconds:.1} s from early to late arrivals")),
            ),
            None => (Some(true), None),
        }
    }
}

/// By how much the median E2EL of the last third of arrivals exceeds that of the
/// first, where that is a queue that grows. An engine that serves all at once
/// ends many requests together when arrivals cease, so that completions alone
/// can look as if it had kept up.
fn growth_s(requests: &[&RequestRecord]) -> Option<f64> {
    let mut ended: Vec<(f64, f64)> = requests
        .iter()
        .filter(|request| request.outcome.is_ok())
        .map(|request| (intended_s(request), ended_s(request) - intended_s(request)))
        .collect();
    ended.sort_by(|a, b| a.0.total_cmp(&b.0));
    let third = ended.len() / 3;
    let (early, late) = (ended.get(..third)?, ended.get(ended.len() - third..)?);
    let middle = |part: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| median(part.iter().map(of));
    let span = middle(late, |one| one.0)? - middle(early, |one| one.0)?;
    let before = middle(early, |one| one.1)?;
    let growth = middle(late, |one| one.1)? - before;
    (growth > GROWS * span && growth > GROWTH_SHARE * before).then_some(growth)
}

#[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Events a second of sorted instants, `trim` of them left out at each end:
/// the number of gaps over the time they span.
#[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "trim is a share of the length"
)]
fn rate(sorted: &[f64], trim: f64) -> Option<f64> {
    let cut = (sorted.len() as f64 * trim) as usize;
    let middle = sorted.get(cut..sorted.len() - cut)?;
    let span = middle.last()? - middle.first()?;
    (span > 0.0).then(|| (middle.len() - 1) as f64 / span)
}

/// Most requests between their intended instant and their end.
fn peak_in_flight(requests: &[&RequestRecord]) -> u64 {
    let mut edges: Vec<(f64, i64)> = requests
        .iter()
        .flat_map(|request| [(intended_s(request), 1), (ended_s(request), -1)])
        .collect();
    // An end before an arrival of the same instant: they do not overlap.
    edges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut peak) = (0, 0);
    for (_, change) in edges {
        now += change;
        peak = peak.max(now);
    }
    u64::try_from(peak).unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::LoadRecord;
    use crate::stats::case::tests::{failed, record, request};

    const MS: u64 = 1_000_000;

    pub(in crate::stats) fn load(slos: &[&str]) -> LoadRecord {
        let text = r#"{"name": "sweep", "arrival": "constant", "sweep": true, "rate_per_s": 10.0}"#;
        let mut load: LoadRecord = serde_json::from_str(text).unwrap();
        load.slos = slos.iter().map(|slo| (*slo).to_owned()).collect();
        load
    }

    fn case(requests: &[RequestRecord]) -> LoadSummary {
        let mut record = record("e", "sweep@10", 100);
        record.load = Some(load(&[]));
        summarise(&record, &requests.iter().collect::<Vec<_>>())
    }

    /// Ten a second, each answered `took` ms after it was meant to be sent.
    fn arriving(n: u64, took: impl Fn(u64) -> u64) -> Vec<RequestRecord> {
        (0..n)
            .map(|i| {
                let mut one = request(u32::try_from(i).unwrap(), i * 100, &[took(i)]);
                one.intended_at_ns = Timestamp::from_nanos(i * 100 * MS);
                one
            })
            .collect()
    }

    #[test]
    fn latency_from_the_intended_instant_holds_what_the_client_was_late() {
        let mut requests = arriving(1, |_| 40);
        requests[0].sent_at_ns = Some(Timestamp::from_nanos(7 * MS));
        let summary = case(&requests);
        assert_eq!(summary.client_delay_ms.unwrap().p50, Some(7.0));
        assert_eq!(summary.ttft_from_intended_ms.unwrap().p50, Some(47.0));
        assert_eq!(summary.e2el_from_intended_ms.unwrap().p50, Some(48.0));
    }

    #[test]
    fn steady_latency_is_sustained_however_long_it_is() {
        let open = case(&arriving(50, |_| 3_000)).open_loop.unwrap();
        assert_eq!((open.sustained, open.reason), (Some(true), None));
        assert!((open.offered_per_s.unwrap() - 10.0).abs() < 1e-6);
        assert!((open.achieved_per_s.unwrap() - 10.0).abs() < 1e-6);
        // 3001 ms of latency and one every 100 ms.
        assert_eq!(open.peak_in_flight, 31);
    }

    #[test]
    fn growing_queue_is_not_sustained_and_says_what_was_achieved() {
        // One every 125 ms leaves: 8 a second of 10.
        let open = case(&arriving(100, |i| 100 + i * 25)).open_loop.unwrap();
        assert_eq!(open.sustained, Some(false));
        assert_eq!(open.reason.unwrap(), "80 % of what arrived was achieved");
    }

    #[test]
    fn latency_that_grows_by_more_than_chance_is_a_growing_queue() {
        let of =
            |took: &dyn Fn(u64) -> u64| growth_s(&arriving(90, took).iter().collect::<Vec<_>>());
        // Six seconds between the middles of the thirds: 8 % more each second.
        let growth = of(&|i| 100 + i * 8).unwrap();
        assert!((growth - 0.48).abs() < 1e-6, "{growth}");
        assert_eq!(of(&|i| 100 + i * 4), None, "4 % a second");
        assert_eq!(of(&|i| 2_000 + i * 8), None, "less than half of what it was");
        assert_eq!(of(&|_| 3_000), None);
    }

    #[test]
    fn failures_are_not_achieved() {
        let mut requests = arriving(100, |_| 50);
        for request in requests.iter_mut().step_by(5) {
            request.outcome = failed(0, 0).outcome;
        }
        let open = case(&requests).open_loop.unwrap();
        assert_eq!(open.sustained, Some(false), "{open:?}");
    }

    #[test]
    fn rounds_are_spans_of_their_own_and_one_that_failed_decides() {
        let mut requests = arriving(50, |_| 50);
        let mut again = arriving(50, |i| 100 + i * 50);
        for request in &mut again {
            request.case = 7;
            let late = request.intended_at_ns.as_nanos() + 3_600_000 * MS;
            request.intended_at_ns = Timestamp::from_nanos(late);
            request.sent_at_ns = Some(Timestamp::from_nanos(late));
        }
        requests.extend(again);
        let open = case(&requests).open_loop.unwrap();
        assert_eq!(open.sustained, Some(false));
        assert!((open.offered_per_s.unwrap() - 10.0).abs() < 1e-6);
    }

    #[test]
    fn few_arrivals_and_conversations_say_nothing() {
        assert_eq!(case(&arriving(9, |_| 5)).open_loop.unwrap().sustained, None);
        let mut turns = arriving(50, |_| 5);
        turns[3].turn = Some(1);
        assert_eq!(case(&turns).open_loop.unwrap().sustained, None);
    }

    #[test]
    fn experiments_have_none_of_it() {
        let record = record("e", "concurrent-warm", 2);
        assert_eq!(summarise(&record, &[&request(0, 0, &[5])]), LoadSummary::default());
    }
}
