//! Cold starts by phase: from the spawn of an engine, or from the first request
//! to one without its model, to the first token.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::plan::Cold;
use crate::record::{JournalEvent, PageCache, RequestRecord, RunData, StartPhaseKind};
use crate::units;

use super::case::CaseRequests;
use super::distribution::{distribution, median};
use super::latency;
use super::summary::Distribution;

/// The cold starts of one kind of case, over its rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColdStart {
    /// Engine name.
    pub engine: String,
    /// Experiment name.
    pub experiment: String,
    /// Requests in flight at once.
    pub concurrency: u32,
    /// What the starts did not find in place. Starts that differ in it are
    /// never put together.
    pub cold: Vec<Cold>,
    /// Number of starts.
    pub n: u64,
    /// In their order.
    pub phases: Vec<ColdPhase>,
    /// From the start to the first token of the first request.
    pub first_token_ms: Distribution,
    /// TTFT of the request that was sent after the first had ended; absent in bursts.
    pub second_ttft_ms: Option<f64>,
    /// Phases inside the engine, as its log tells.
    pub log: Vec<LogSummary>,
    /// Share of the weight files that was in the page cache at the start, the
    /// largest over the starts; absent where the plan does not name them.
    pub page_cache_share: Option<f64>,
    /// When the first of them began, on the run's clock.
    #[serde(default)]
    pub first_at_ns: Option<Timestamp>,
    /// The most resident memory of the engine's processes from a start to its
    /// first token, the largest over the starts; absent where none was seen.
    #[serde(default)]
    pub peak_rss_bytes: Option<u64>,
}

/// An instant of a cold start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ColdPhase {
    /// Which.
    pub phase: ColdPhaseKind,
    /// Number of starts that reached it.
    pub n: u64,
    /// From the start to its end, the median.
    pub at_ms: f64,
}

/// The instants of a cold start, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColdPhaseKind {
    /// A connection was accepted.
    PortOpen,
    /// The health route answered 200.
    Healthy,
    /// The model was in the list of models.
    ModelListed,
    /// A sleeping engine said that it is awake.
    Awake,
    /// The first request was sent.
    RequestSent,
    /// The first byte of its answer's body came.
    FirstByte,
    /// Its first token came.
    FirstToken,
}

/// A phase inside the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogSummary {
    /// Which, such as `weights`.
    pub phase: String,
    /// Number of starts that tell of it.
    pub n: u64,
    /// How long it took, the median.
    pub took_ms: f64,
}

/// One cold start.
#[derive(Default)]
struct Start<'a> {
    cold: Vec<Cold>,
    at: Option<Timestamp>,
    phases: Vec<(ColdPhaseKind, Timestamp)>,
    log: Vec<(&'a str, f64)>,
    page_cache_share: Option<f64>,
    second_ttft_ms: Option<f64>,
    peak_rss_bytes: Option<u64>,
}

/// The cold starts of a run, in the manifest's order of their cases.
#[must_use]
pub fn summarise(run: &RunData, grouped: &[CaseRequests<'_>]) -> Vec<ColdStart> {
    let mut kinds: Vec<(&CaseRequests<'_>, Vec<Start<'_>>)> = Vec::new();
    for group in grouped.iter().filter(|group| group.record.cold) {
        let Some(start) = start(run, group) else { continue };
        let same = |(other, starts): &&mut (&CaseRequests<'_>, Vec<Start<'_>>)| {
            let (a, b) = (other.record, group.record);
            (&a.engine, &a.experiment, a.concurrency) == (&b.engine, &b.experiment, b.concurrency)
                && starts.iter().all(|other| other.cold == start.cold)
        };
        match kinds.iter_mut().find(same) {
            Some((_, starts)) => starts.push(start),
            None => kinds.push((group, vec![start])),
        }
    }
    kinds.into_iter().map(|(group, starts)| over_rounds(group, &starts)).collect()
}

fn start<'a>(run: &'a RunData, group: &CaseRequests<'_>) -> Option<Start<'a>> {
    let mut start = Start::default();
    for entry in &run.journal {
        match &entry.event {
            JournalEvent::MadeCold { case, cold, .. } if *case == group.case => {
                // Older runs do not say: what was made cold was the model.
                let model = [Cold::Model];
                start.cold = if cold.is_empty() { model.to_vec() } else { cold.clone() };
            }
            JournalEvent::EngineStarted { case: Some(case), cold, page_cache, .. }
                if *case == group.case =>
            {
                start.cold.clone_from(cold);
                start.at = Some(entry.at_ns);
                start.page_cache_share = page_cache.as_ref().and_then(PageCache::share);
            }
            JournalEvent::StartPhase { case: Some(case), phase, .. } if *case == group.case => {
                start.phases.push((seen(*phase), entry.at_ns));
            }
            JournalEvent::LogPhase { case: Some(case), phase, took_ns, .. }
                if *case == group.case =>
            {
                start.log.push((phase, latency::ms(*took_ns)));
            }
            _ => {}
        }
    }
    if start.cold.is_empty() {
        return None;
    }
    let mut sent: Vec<(Timestamp, &RequestRecord)> =
        group.requests.iter().filter_map(|it| Some((it.sent_at_ns?, *it))).collect();
    sent.sort_by_key(|(at, request)| (*at, request.index));
    if let Some((at, first)) = sent.first().copied() {
        // An engine that is loaded by its first request starts with it.
        start.at.get_or_insert(at);
        start.phases.push((ColdPhaseKind::RequestSent, at));
        let after = |ns: u64| at.plus(std::time::Duration::from_nanos(ns));
        let byte = first.first_byte_ns.map(after);
        start.phases.extend(byte.map(|at| (ColdPhaseKind::FirstByte, at)));
        let token = latency::token_offsets(first).next().map(after);
        start.phases.extend(token.map(|at| (ColdPhaseKind::FirstToken, at)));
        let second = sent.get(1).filter(|(at, _)| *at >= after(first.done_ns));
        let answered = second.filter(|(_, request)| request.outcome.is_ok());
        start.second_ttft_ms = answered.and_then(|(_, request)| latency::ttft_ms(request));
    }
    start.peak_rss_bytes = peak_rss(run, &start, &group.record.engine);
    Some(start)
}

/// The most that was seen of the engine's processes from the start on, until
/// the first token, or the last phase that was reached.
fn peak_rss(run: &RunData, start: &Start<'_>, engine: &str) -> Option<u64> {
    let engine = run.manifest.engines.iter().position(|it| it.spec.name == engine)?;
    let from = start.at?;
    let to = start.phases.iter().map(|(_, at)| *at).max()?;
    let looks = run.resources.iter().filter(|look| (from..=to).contains(&look.at_ns));
    let processes = looks.flat_map(|look| &look.processes);
    let own = processes.filter(|it| it.engine.is_some_and(|index| index as usize == engine));
    own.map(|process| process.rss_bytes).max()
}

const fn seen(phase: StartPhaseKind) -> ColdPhaseKind {
    match phase {
        StartPhaseKind::PortOpen => ColdPhaseKind::PortOpen,
        StartPhaseKind::Healthy => ColdPhaseKind::Healthy,
        StartPhaseKind::ModelListed => ColdPhaseKind::ModelListed,
        StartPhaseKind::Awake => ColdPhaseKind::Awake,
    }
}

fn over_rounds(group: &CaseRequests<'_>, starts: &[Start<'_>]) -> ColdStart {
    use ColdPhaseKind as Kind;
    let kinds = [
        Kind::PortOpen,
        Kind::Healthy,
        Kind::ModelListed,
        Kind::Awake,
        Kind::RequestSent,
        Kind::FirstByte,
        Kind::FirstToken,
    ];
    let reached = |kind: Kind| {
        let at = move |start: &Start<'_>| {
            let (_, at) = start.phases.iter().find(|(phase, _)| *phase == kind)?;
            Some(units::millis(at.since(start.at?)))
        };
        starts.iter().filter_map(at).collect::<Vec<f64>>()
    };
    let phase = |kind: Kind| {
        let values = reached(kind);
        Some(ColdPhase { phase: kind, n: values.len() as u64, at_ms: median(values)? })
    };
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in starts.iter().flat_map(|start| &start.log) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let told = |name: &str| {
        let found = starts.iter().flat_map(|start| &start.log).filter(|(told, _)| *told == name);
        let took: Vec<f64> = found.map(|(_, ms)| *ms).collect();
        Some(LogSummary { phase: name.to_owned(), n: took.len() as u64, took_ms: median(took)? })
    };
    ColdStart {
        engine: group.record.engine.clone(),
        experiment: group.record.experiment.clone(),
        concurrency: group.record.concurrency,
        cold: starts.first().map(|start| start.cold.clone()).unwrap_or_default(),
        n: starts.len() as u64,
        phases: kinds.into_iter().filter_map(phase).collect(),
        first_token_ms: distribution(reached(Kind::FirstToken), "no start reached a token"),
        second_ttft_ms: median(starts.iter().filter_map(|start| start.second_ttft_ms)),
        log: names.into_iter().filter_map(told).collect(),
        page_cache_share: starts.iter().filter_map(|start| start.page_cache_share).reduce(f64::max),
        first_at_ns: starts.first().and_then(|start| start.at),
        peak_rss_bytes: starts.iter().filter_map(|start| start.peak_rss_bytes).max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CaseRecord, JournalEntry};
    use crate::stats::case::{group, tests};

    const MS: u64 = 1_000_000;

    /// A run of cold cases of one engine, a round each.
    fn run(
        rounds: u32,
        journal: Vec<(u64, JournalEvent)>,
        requests: Vec<RequestRecord>,
    ) -> RunData {
        let record = |round| CaseRecord { round, ..tests::record("e", "sequential-cold", 1) };
        let journal = journal
            .into_iter()
            .map(|(ms, event)| JournalEntry { at_ns: Timestamp::from_nanos(ms * MS), event })
            .collect();
        RunData {
            requests,
            journal,
            ..tests::run(&["e:openai"], (0..rounds).map(record).collect())
        }
    }

    fn started(case: u32, cold: &[Cold]) -> JournalEvent {
        let cold = cold.to_vec();
        JournalEvent::EngineStarted { engine: 0, case: Some(case), cold, page_cache: None }
    }

    fn made_cold(cold: Vec<Cold>) -> JournalEvent {
        JournalEvent::MadeCold { case: 0, took_ns: 5, cold, seen: None }
    }

    fn phase(case: u32, phase: StartPhaseKind) -> JournalEvent {
        JournalEvent::StartPhase { engine: 0, case: Some(case), phase }
    }

    fn request(case: u32, index: u32, sent_ms: u64, tokens_ms: &[u64]) -> RequestRecord {
        let first_byte_ns = tokens_ms.first().map(|ms| (ms - 1) * MS);
        RequestRecord { case, first_byte_ns, ..tests::request(index, sent_ms, tokens_ms) }
    }

    fn of(run: &RunData) -> Vec<ColdStart> {
        summarise(run, &group(run))
    }

    fn at(cold: &ColdStart) -> Vec<(ColdPhaseKind, f64)> {
        cold.phases.iter().map(|phase| (phase.phase, phase.at_ms)).collect()
    }

    #[test]
    fn phases_count_from_the_spawn_to_the_first_token() {
        let run = run(
            1,
            vec![
                (100, started(0, &[Cold::Process])),
                (130, phase(0, StartPhaseKind::PortOpen)),
                (170, phase(0, StartPhaseKind::Healthy)),
                (172, phase(0, StartPhaseKind::ModelListed)),
            ],
            vec![request(0, 0, 180, &[50, 60]), request(0, 1, 300, &[20])],
        );
        let [cold] = of(&run).try_into().unwrap();
        assert_eq!(
            at(&cold),
            [
                (ColdPhaseKind::PortOpen, 30.0),
                (ColdPhaseKind::Healthy, 70.0),
                (ColdPhaseKind::ModelListed, 72.0),
                (ColdPhaseKind::RequestSent, 80.0),
                (ColdPhaseKind::FirstByte, 129.0),
                (ColdPhaseKind::FirstToken, 130.0),
            ]
        );
        assert_eq!((cold.n, cold.second_ttft_ms), (1, Some(20.0)));
        assert_eq!(cold.first_token_ms.p50, Some(130.0));
    }

    #[test]
    fn model_that_the_first_request_loads_starts_with_that_request() {
        let made = made_cold(Vec::new());
        let run = run(1, vec![(10, made)], vec![request(0, 0, 20, &[400])]);
        let [cold] = of(&run).try_into().unwrap();
        assert_eq!(cold.cold, [Cold::Model]);
        assert_eq!(cold.first_token_ms.p50, Some(400.0));
        assert_eq!(cold.second_ttft_ms, None);
    }

    #[test]
    fn service_without_instances_starts_with_the_request_that_makes_one() {
        let made = made_cold(vec![Cold::Instance]);
        let requests = vec![request(0, 0, 20, &[9000]), request(0, 1, 9500, &[30])];
        let [cold] = of(&run(1, vec![(10, made)], requests)).try_into().unwrap();
        assert_eq!(cold.cold, [Cold::Instance]);
        let kinds =
            [ColdPhaseKind::RequestSent, ColdPhaseKind::FirstByte, ColdPhaseKind::FirstToken];
        assert_eq!(at(&cold).iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), kinds);
        assert_eq!((cold.first_token_ms.p50, cold.second_ttft_ms), (Some(9000.0), Some(30.0)));
    }

    #[test]
    fn memory_of_a_start_is_that_of_its_engine_until_the_first_token() {
        let mut run = run(
            1,
            vec![(100, started(0, &[Cold::Process])), (130, phase(0, StartPhaseKind::PortOpen))],
            vec![request(0, 0, 180, &[50, 60])],
        );
        let look = |ms: u64, engine, rss_bytes| crate::record::ResourceRecord {
            at_ns: Timestamp::from_nanos(ms * MS),
            processes: vec![crate::record::ProcessSample {
                engine,
                rss_bytes,
                ..Default::default()
            }],
            ..Default::default()
        };
        run.resources = vec![
            look(90, Some(0), 900),
            look(110, Some(0), 300),
            look(120, Some(0), 200),
            look(125, None, 800),
            look(240, Some(0), 700),
        ];
        let [cold] = of(&run).try_into().unwrap();
        assert_eq!(cold.peak_rss_bytes, Some(300));
        assert_eq!(cold.first_at_ns, Some(Timestamp::from_nanos(100 * MS)));
    }

    #[test]
    fn rounds_are_pooled_and_other_kinds_of_cold_kept_apart() {
        let both = [Cold::Process, Cold::PageCache];
        let run = run(
            3,
            vec![
                (0, started(0, &[Cold::Process])),
                (1000, started(1, &[Cold::Process])),
                (2000, started(2, &both)),
            ],
            vec![request(0, 0, 10, &[10]), request(1, 0, 1030, &[10]), request(2, 0, 2090, &[10])],
        );
        let found = of(&run);
        let first_tokens: Vec<_> =
            found.iter().map(|cold| (cold.n, cold.first_token_ms.p50)).collect();
        assert_eq!(first_tokens, [(2, Some(30.0)), (1, Some(100.0))]);
        assert_eq!(found[1].cold, both);
    }

    #[test]
    fn second_request_of_a_burst_is_no_second_request() {
        let made = made_cold(Vec::new());
        let requests = vec![request(0, 0, 20, &[400]), request(0, 1, 20, &[500])];
        let [cold] = of(&run(1, vec![(0, made)], requests)).try_into().unwrap();
        assert_eq!(cold.second_ttft_ms, None);
    }
}
