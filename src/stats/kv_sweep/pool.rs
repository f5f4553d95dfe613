//! What was seen of an engine's KV pool while a case was measured: from the
//! steps that an engine in this process tells, else from an engine's own word.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::record::{EngineWord, RunData, StepRecord};
use crate::stats::case::span;
use crate::stats::distribution::mean;
use crate::stats::latency::ms;
use crate::units::millis;

/// Why an engine elsewhere has no number that only steps tell.
const NO_STEPS: &str = "only engines in this process tell of their steps";
/// Why a counter has no growth.
const NO_WORD: &str = "the engine did not say it before and after the case";

/// The pool over the rounds of one case.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct PoolUse {
    pub(super) num_blocks: Option<u64>,
    pub(super) kv_tokens: Option<u64>,
    pub(super) kv_bytes: Option<u64>,
    pub(super) model_bytes: Option<u64>,
    pub(super) peak_use: Option<f64>,
    pub(super) mean_use: Option<f64>,
    pub(super) mean_running: Option<f64>,
    pub(super) waste_share: Option<f64>,
    pub(super) peak_waste_slots: Option<u64>,
    pub(super) num_preemptions: Option<u64>,
    /// Prompt tokens looked up in the prefix cache, and found, by the engine's word.
    pub(super) prefix: Option<(u64, u64)>,
    /// Field to why it is absent.
    pub(super) reasons: BTreeMap<String, String>,
}

/// Looks at `cases`, the rounds of one, on the engine of index `engine`, in
/// blocks of `block_size` tokens where that is known.
pub(super) fn seen(run: &RunData, engine: u32, cases: &[u32], block_size: Option<u64>) -> PoolUse {
    let spans: Vec<_> = cases.iter().filter_map(|case| span(*case, &run.journal)).collect();
    let holds = |at: Timestamp| spans.iter().any(|(from, to)| (*from..=*to).contains(&at));
    let all = run.steps.iter().filter(|step| step.engine == engine);
    let mut steps: Vec<&StepRecord> = all.filter(|step| holds(step.at_ns)).collect();
    steps.sort_by_key(|step| step.at_ns);
    if !steps.is_empty() {
        return of_steps(&steps, &spans, block_size);
    }
    let words = run.resources.iter().filter_map(|look| Some((look.at_ns, look.word.as_ref()?)));
    let mut words: Vec<_> = words.filter(|(_, word)| word.engine == engine).collect();
    words.sort_by_key(|(at, _)| *at);
    of_words(&words, &spans)
}

fn of_steps(
    steps: &[&StepRecord],
    spans: &[(Timestamp, Timestamp)],
    block_size: Option<u64>,
) -> PoolUse {
    let blocks = |step: &StepRecord| step.num_used_blocks.saturating_add(step.num_free_blocks);
    let num_blocks = steps.iter().map(|step| blocks(step)).max().unwrap_or(0);
    let share = |step: &StepRecord| step.num_used_blocks as f64 / num_blocks.max(1) as f64;
    let weights = times_left_so(steps, spans);
    let over_time = |of: &dyn Fn(&StepRecord) -> f64| {
        steps.iter().zip(&weights).map(|(step, weight)| of(step) * weight).sum::<f64>()
    };
    let all = over_time(&|_| 1.0);
    let took = steps.iter().map(|step| ms(step.took_ns)).sum::<f64>();
    let running = steps.iter().map(|step| step.num_seqs as f64 * ms(step.took_ns)).sum::<f64>();
    let slots = block_size.map(|size| over_time(&|step| step.num_used_blocks as f64 * size as f64));
    let waste = over_time(&|step| step.num_waste_slots as f64);
    let mut reasons = BTreeMap::new();
    if block_size.is_none() {
        let why = "the engine does not say how many tokens a block has".to_owned();
        reasons.insert("waste_share".to_owned(), why);
    }
    PoolUse {
        num_blocks: Some(num_blocks),
        kv_tokens: block_size.and_then(|size| size.checked_mul(num_blocks)),
        peak_use: steps.iter().map(|step| share(step)).reduce(f64::max),
        mean_use: (all > 0.0).then(|| over_time(&share) / all),
        mean_running: (took > 0.0).then(|| running / took),
        waste_share: slots.filter(|slots| *slots > 0.0).map(|slots| waste / slots),
        peak_waste_slots: steps.iter().map(|step| step.num_waste_slots).max(),
        num_preemptions: Some(
            steps.iter().fold(0, |sum: u64, step| sum.saturating_add(step.num_preemptions)),
        ),
        reasons,
        ..PoolUse::default()
    }
}

/// How long, in ms, the pool was as each step left it: from its beginning, when
/// its blocks are reserved, until the next one of the same round began. Between
/// rounds the engine may not even be loaded.
fn times_left_so(steps: &[&StepRecord], spans: &[(Timestamp, Timestamp)]) -> Vec<f64> {
    let round =
        |step: &StepRecord| spans.iter().position(|(from, to)| (*from..=*to).contains(&step.at_ns));
    let until = |(i, step): (usize, &&StepRecord)| {
        let next = steps.get(i + 1).filter(|next| round(next) == round(step));
        next.map_or(ms(step.took_ns), |next| millis(next.at_ns.since(step.at_ns)))
    };
    steps.iter().enumerate().map(until).collect()
}

fn of_words(words: &[(Timestamp, &EngineWord)], spans: &[(Timestamp, Timestamp)]) -> PoolUse {
    let holds = |at: &Timestamp| spans.iter().any(|(from, to)| (*from..=*to).contains(at));
    let inside: Vec<&EngineWord> =
        words.iter().filter(|(at, _)| holds(at)).map(|(_, word)| *word).collect();
    let most = |of: fn(&EngineWord) -> Option<u64>| inside.iter().filter_map(|word| of(word)).max();
    let all = |of: fn(&EngineWord) -> Option<f64>| -> Vec<f64> {
        inside.iter().filter_map(|word| of(word)).collect()
    };
    let counted = |of: fn(&EngineWord) -> Option<u64>| {
        let growth = |(from, to): &(Timestamp, Timestamp)| {
            let before = words.iter().rfind(|(at, _)| at <= from).and_then(|(_, word)| of(word))?;
            let after = words.iter().find(|(at, _)| at >= to).and_then(|(_, word)| of(word))?;
            after.checked_sub(before)
        };
        spans.iter().map(growth).reduce(|sum, more| sum?.checked_add(more?)).flatten()
    };
    let usage = all(|word| word.kv_usage);
    let found = PoolUse {
        num_blocks: most(|word| word.kv_blocks),
        kv_tokens: most(|word| word.kv_tokens),
        kv_bytes: most(|word| word.kv_bytes),
        model_bytes: most(|word| word.model_bytes),
        peak_use: usage.iter().copied().reduce(f64::max),
        mean_use: mean(&usage),
        mean_running: mean(&all(|word| Some(word.num_running? as f64))),
        num_preemptions: counted(|word| word.preemptions),
        prefix: counted(|word| word.prefix_queries).zip(counted(|word| word.prefix_hits)),
        ..PoolUse::default()
    };
    let unsaid = "the engine does not say it of itself, or nobody asked it";
    let reasons = [
        ("num_blocks", found.num_blocks.is_some(), unsaid),
        ("kv_tokens", found.kv_tokens.is_some(), unsaid),
        ("peak_kv_use", found.peak_use.is_some(), unsaid),
        ("mean_kv_use", found.mean_use.is_some(), unsaid),
        ("mean_running", found.mean_running.is_some(), unsaid),
        ("waste_share", false, NO_STEPS),
        ("peak_waste_slots", false, NO_STEPS),
        ("num_preemptions", found.num_preemptions.is_some(), NO_WORD),
    ];
    let absent = reasons.into_iter().filter(|(_, there, _)| !there);
    let reasons = absent.map(|(field, _, why)| (field.to_owned(), why.to_owned())).collect();
    PoolUse { reasons, ..found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{JournalEntry, JournalEvent, ResourceRecord};

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * MS)
    }

    fn run() -> RunData {
        let entry = |ms, event| JournalEntry { at_ns: at(ms), event };
        let journal = vec![
            entry(100, JournalEvent::CaseStarted { case: 0 }),
            entry(200, JournalEvent::CaseFinished { case: 0, client_cpu_ns: 0 }),
        ];
        RunData { journal, ..crate::stats::case::tests::run(&["e:embedded", "v:vllm"], Vec::new()) }
    }

    fn step(ms: u64, used: u64, waste: u64, seqs: u64) -> StepRecord {
        StepRecord {
            engine: 0,
            at_ns: at(ms),
            took_ns: 10 * MS,
            num_tokens: seqs,
            num_prefill_tokens: 0,
            num_seqs: seqs,
            num_waiting: 0,
            num_used_blocks: used,
            num_free_blocks: 10 - used,
            num_cached_blocks: 0,
            num_waste_slots: waste,
            num_preemptions: 1,
            rss_bytes: None,
            num_decode_kv_tokens: None,
            num_prefill_pairs: None,
        }
    }

    #[test]
    fn use_is_weighted_by_how_long_it_lasted_and_warm_up_is_no_part_of_it() {
        // Ten blocks of eight slots: 5 held for 10 ms, 2 for 30 ms, none for 10 ms.
        let steps =
            vec![step(50, 9, 9, 9), step(110, 5, 4, 3), step(120, 2, 4, 1), step(150, 0, 0, 1)];
        let seen = seen(&RunData { steps, ..run() }, 0, &[0], Some(8));
        assert_eq!(
            (seen.num_blocks, seen.kv_tokens, seen.peak_use),
            (Some(10), Some(80), Some(0.5))
        );
        assert!((seen.mean_use.unwrap() - (5.0 * 10.0 + 2.0 * 30.0) / 500.0).abs() < 1e-12);
        assert!(
            (seen.waste_share.unwrap() - (4.0 * 40.0) / (40.0 * 10.0 + 16.0 * 30.0)).abs() < 1e-12
        );
        assert_eq!((seen.num_preemptions, seen.peak_waste_slots), (Some(3), Some(4)));
        assert_eq!(seen.mean_running, Some(5.0 / 3.0));
    }

    #[test]
    fn time_between_rounds_is_no_part_of_the_mean() {
        let mut run = run();
        let entry = |ms, event| JournalEntry { at_ns: at(ms), event };
        run.journal.extend([
            entry(900, JournalEvent::CaseStarted { case: 1 }),
            entry(990, JournalEvent::CaseFinished { case: 1, client_cpu_ns: 0 }),
        ]);
        run.steps = vec![step(110, 5, 4, 3), step(120, 3, 4, 1), step(910, 5, 4, 3)];
        let seen = seen(&run, 0, &[0, 1], Some(8));
        assert!((seen.mean_use.unwrap() - 13.0 / 30.0).abs() < 1e-12, "{:?}", seen.mean_use);
    }

    #[test]
    fn engine_elsewhere_is_taken_at_its_word() {
        let word = |ms, preemptions, usage, running| ResourceRecord {
            at_ns: at(ms),
            word: Some(EngineWord {
                engine: 1,
                kv_blocks: Some(64),
                kv_tokens: Some(1024),
                kv_usage: Some(usage),
                num_running: Some(running),
                preemptions: Some(preemptions),
                ..EngineWord::default()
            }),
            ..ResourceRecord::default()
        };
        let resources = vec![
            word(90, 3, 0.0, 0),
            word(120, 4, 0.5, 2),
            word(160, 6, 1.0, 4),
            word(210, 8, 0.0, 0),
        ];
        let seen = seen(&RunData { resources, ..run() }, 1, &[0], None);
        assert_eq!((seen.num_blocks, seen.kv_tokens), (Some(64), Some(1024)));
        assert_eq!(
            (seen.peak_use, seen.mean_use, seen.mean_running),
            (Some(1.0), Some(0.75), Some(3.0))
        );
        assert_eq!(seen.num_preemptions, Some(5));
        assert_eq!((seen.waste_share, seen.prefix), (None, None));
        assert!(seen.reasons["waste_share"].contains("in this process"));
        assert!(!seen.reasons.contains_key("num_preemptions"));
    }

    #[test]
    fn engine_that_says_nothing_has_a_reason_for_every_number() {
        let seen = seen(&run(), 1, &[0], None);
        for field in ["num_blocks", "peak_kv_use", "mean_running", "num_preemptions", "waste_share"]
        {
            assert!(seen.reasons.contains_key(field), "{field}");
        }
    }
}
