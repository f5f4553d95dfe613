//! Whether the measurement itself can be trusted: enough of it, undisturbed,
//! counted by an authority, to its end.

use std::collections::BTreeMap;

use super::{Facts, about, count, name_cases};
use crate::engine::ErrorClass;
use crate::record::{CountSource, EngineRecord, JournalEvent, Outcome};
use crate::stats::order_statistics::smallest_n;
use crate::stats::summary::CaseSummary;
use crate::stats::warnings::{Warning, WarningClass};
use crate::stats::{case, latency};
use crate::units::format_significant;

/// Tokens per event above which gaps between events are not gaps between tokens.
const MANY_TOKENS_PER_EVENT: f64 = 1.1;
/// Spread of a burst, as a share of the median TTFT, above which it was no burst.
const MAX_SPREAD_SHARE: f64 = 0.01;
/// Load average per processor above which the machine was not ours.
const BUSY_LOAD: f64 = 0.25;
/// Characters of an error message that are quoted.
const MAX_MESSAGE: usize = 160;

pub(super) fn incomplete(facts: &Facts<'_>, complete: bool) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !complete {
        let journal = &facts.run.journal;
        let interrupted = journal.iter().any(|entry| entry.event == JournalEvent::Interrupted);
        let how = if interrupted { "was interrupted" } else { "did not reach its end" };
        let measured = facts.grouped.iter().filter(|group| !group.requests.is_empty()).count();
        let meant = facts.grouped.iter().filter(|group| group.record.absent.is_none()).count();
        warnings.push(about(
            WarningClass::Incomplete,
            None,
            format!("the run {how}: {measured} of {} begun", count(meant, "case")),
            "what is here was measured as it stands; run it again for the rest",
        ));
    }
    for group in facts.grouped.iter().filter(|group| !group.requests.is_empty()) {
        let Some(message) = case::failure(group.case, &facts.run.journal) else { continue };
        let mut warning = about(
            WarningClass::Incomplete,
            None,
            format!(
                "C = {} ended after {} of {}: {message}",
                group.record.concurrency,
                group.requests.len(),
                count(group.record.num_requests as usize, "request"),
            ),
            "its numbers are of the requests before that; run it again",
        );
        warning.engine = Some(group.record.engine.clone());
        warning.experiment = Some(group.record.experiment.clone());
        warnings.push(warning);
    }
    let known = facts.run.manifest.cases.len();
    let strays = facts.run.requests.iter().filter(|r| r.case as usize >= known).count();
    if strays > 0 {
        warnings.push(about(
            WarningClass::Incomplete,
            None,
            format!("{} of no case in the manifest left out", count(strays, "request record")),
            "the run directory was changed or damaged; do not rely on it",
        ));
    }
    warnings
}

pub(super) fn few_samples(facts: &Facts<'_>) -> Option<Warning> {
    let lacking = |given: fn(&CaseSummary) -> bool| {
        facts.cases.iter().filter(move |case| case.num_ok > 0 && !given(case))
    };
    let (no_median, no_p90, no_p99) = (
        lacking(|case| case.ttft_ms.interval.is_some()),
        lacking(|case| case.ttft_ms.p90.is_some()),
        lacking(|case| case.ttft_ms.p99.is_some()),
    );
    let measured = facts.cases.iter().filter(|case| case.num_ok > 0).count();
    let mut parts = Vec::new();
    for (what, q, cases) in [
        ("no interval of the median", 0.5, no_median.collect::<Vec<_>>()),
        ("no p90", 0.9, no_p90.collect()),
        ("no p99", 0.99, no_p99.collect()),
    ] {
        if !cases.is_empty() {
            let which = if cases.len() == measured {
                "every case".to_owned()
            } else {
                name_cases(cases.into_iter())
            };
            parts.push(format!("{what} (n < {}) in {which}", smallest_n(q)));
        }
    }
    (!parts.is_empty()).then(|| {
        about(
            WarningClass::FewSamples,
            None,
            format!("too few requests for some statistics of TTFT: {}", parts.join("; ")),
            format!(
                "--requests {} gives each case a p90 with an interval, {} a p99",
                smallest_n(0.9),
                smallest_n(0.99)
            ),
        )
    })
}

pub(super) fn failures(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let mut classes: BTreeMap<ErrorClass, (usize, &str)> = BTreeMap::new();
    for request in facts.requests_of(engine) {
        if let Outcome::Error { class, message } = &request.outcome {
            classes.entry(*class).or_insert((0, message)).0 += 1;
        }
    }
    let failed: usize = classes.values().map(|(number, _)| number).sum();
    let (main, _) = classes.iter().max_by_key(|(_, (number, _))| *number)?;
    let named: Vec<_> = classes
        .iter()
        .map(|(class, (number, message))| format!("{number} {class} (first: {})", short(message)))
        .collect();
    let cases = facts.cases_of(engine).filter(|case| !case.errors.is_empty());
    Some(about(
        WarningClass::Failures,
        Some(engine),
        format!(
            "{failed} of {} failed in {}: {}",
            count(facts.requests_of(engine).count(), "request"),
            name_cases(cases),
            named.join("; "),
        ),
        format!("latencies are those of the survivors, and are not compared; {}", remedy(*main)),
    ))
}

/// A server's words, cut to what a sentence can carry.
fn short(message: &str) -> String {
    let mut cut: String = message.chars().take(MAX_MESSAGE).collect();
    if cut.len() < message.len() {
        cut.push('…');
    }
    cut
}

fn remedy(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Unreachable => "see that the engine is running and the URL is right",
        ErrorClass::Timeout => "raise the engine's timeout_s, or lower the concurrency",
        ErrorClass::Protocol => "see that the engine's kind and URL match what listens there",
        ErrorClass::Rejected => "read the engine's message above and its log",
        ErrorClass::Busy => "the engine's queue is full: lower the concurrency, or enlarge it",
        ErrorClass::Truncated => "look into the engine's log for a crash or a proxy's limit",
        ErrorClass::Cancelled => "the run was stopped: run it again",
        ErrorClass::Engine => "look into the engine's log",
    }
}

pub(super) fn multi_token_chunks(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let worst = facts
        .cases_of(engine)
        .filter_map(|case| case.tokens_per_event)
        .filter(|tokens| *tokens > MANY_TOKENS_PER_EVENT)
        .max_by(f64::total_cmp);
    let heavy_first = facts
        .completed_of(engine)
        .filter_map(latency::first_chunk_tokens)
        .filter(|tokens| *tokens > 1)
        .collect::<Vec<_>>();
    if worst.is_none() && heavy_first.is_empty() {
        return None;
    }
    let mut parts = Vec::new();
    if let Some(tokens) = worst {
        parts.push(format!("a chunk carries up to {tokens:.2} tokens on average"));
    }
    if let Some(most) = heavy_first.iter().max() {
        parts.push(format!(
            "{} began with several tokens in the first chunk, at most {most}",
            count(heavy_first.len(), "answer")
        ));
    }
    Some(about(
        WarningClass::MultiTokenChunks,
        Some(engine),
        parts.join("; "),
        "ITL is the gap between chunks, not tokens, and tokens of a first chunk cost TPOT \
         nothing: compare E2EL, and TPOT over long answers",
    ))
}

pub(super) fn count_source(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let of = |source| facts.completed_of(engine).filter(|r| r.count_source == source).count();
    let (ours, nobody) = (of(CountSource::Tokenizer), of(CountSource::None));
    let total = facts.completed_of(engine).count();
    let (message, advice) = match (ours, nobody) {
        (0, 0) => return None,
        (_, 0) => (
            format!(
                "output tokens of {ours} of {} counted by our tokenizer",
                count(total, "answer")
            ),
            "the engine reported no usage; the count is that of the text, without special tokens",
        ),
        _ => (
            format!("output tokens of {nobody} of {} counted by nobody", count(total, "answer")),
            "TPOT and throughput are absent for them; make the engine report usage, or name a \
             model whose tokenizer yardstick has",
        ),
    };
    Some(about(WarningClass::CountSource, Some(engine), message, advice))
}

pub(super) fn send_spread(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let share = |case: &CaseSummary| {
        Some(case.send_spread_us? / 1e3 / case.ttft_ms.p50.filter(|ttft| *ttft > 0.0)?)
    };
    let wide: Vec<_> = facts
        .cases_of(engine)
        .filter_map(|case| Some((share(case)?, case)))
        .filter(|(share, _)| *share > MAX_SPREAD_SHARE)
        .collect();
    let (worst, case) = wide.iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(about(
        WarningClass::SendSpread,
        Some(engine),
        format!(
            "requests of a burst were sent up to {} µs apart, {:.1} % of the median TTFT, in {}",
            format_significant(case.send_spread_us.unwrap_or_default()),
            worst * 100.0,
            name_cases(wide.iter().map(|(_, case)| *case)),
        ),
        "the burst was not simultaneous on this engine's scale: free processors, or read TTFT of \
         these cases with that error",
    ))
}

pub(super) fn busy_machine(facts: &Facts<'_>) -> Option<Warning> {
    let machine = &facts.run.manifest.machine;
    let load = f64::from(machine.load_average_percent?) / 100.0;
    (load > BUSY_LOAD * f64::from(machine.num_cpus)).then(|| {
        about(
            WarningClass::BusyMachine,
            None,
            format!(
                "the load average was {load:.2} on {} as the run began",
                count(machine.num_cpus as usize, "processor")
            ),
            "something else was running, a build perhaps: wait until the machine is idle and \
             measure again",
        )
    })
}
