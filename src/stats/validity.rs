//! Whether a case measured what was asked for. One that did not is shown with
//! its reason, and neither compared nor averaged with others.

use std::collections::BTreeMap;

use crate::engine::EngineKind;
use crate::infer::device::is_emulated;
use crate::record::{JournalEvent, RequestRecord, RunData};

use super::case::{self, CaseRequests, LoadKey};
use super::contract::cached_share;
use super::summary::{CaseSummary, Invalid};
use super::warnings::WarningClass;

/// Failed requests beyond this share leave survivors, not a sample.
const MAX_FAILED: f64 = 0.01;
/// A synthetic prompt counted as less than this of its length was cut, as more than the
/// inverse was made into something else.
const MIN_PROMPT: f64 = 0.9;
/// The same for prompts under chat templates, which differ among engines by their own words;
/// only where another engine counted so many tokens that no template explains the rest.
const MIN_CHAT_PROMPT: f64 = 0.5;
const LONG_CHAT_PROMPT: u32 = 256;
/// Synthetic prompts share nothing: whatever a cache holds of them, it has seen them before.
const MAX_CACHED: f64 = 0.02;
/// Distinct questions share the words of the chat template alone.
const MAX_CACHED_CHAT: f64 = 0.9;
/// Answers shorter than this share of the others' are another load.
const MIN_OUTPUT: f64 = 0.25;

/// Says of every case why its numbers may not be compared, where they may not.
pub fn judge(run: &RunData, groups: &[CaseRequests<'_>], cases: &mut [CaseSummary]) {
    let longest = longest_chat_prompts(groups);
    let outputs = mean_outputs(groups, cases);
    for case in cases {
        let Some(group) = groups.iter().find(|group| group.case == case.case) else { continue };
        case.invalid = [
            failures(case),
            incomplete(run, case),
            emulated(run, group),
            truncated_context(group, &longest),
            lengthened_prompts(group),
            cached(group),
            short_outputs(case, group, &outputs),
        ]
        .into_iter()
        .flatten()
        .collect();
    }
}

fn invalid(class: WarningClass, reason: String) -> Option<Invalid> {
    Some(Invalid { class, reason })
}

#[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
fn failures(case: &CaseSummary) -> Option<Invalid> {
    let failed = case.n - case.num_ok;
    let too_many = failed as f64 > MAX_FAILED * case.n as f64;
    let reason = || format!("{failed} of {} requests failed", case.n);
    too_many.then(|| invalid(WarningClass::Failures, reason())).flatten()
}

/// A case that was begun and not ended: what is there is of an unknown part of its load.
fn incomplete(run: &RunData, case: &CaseSummary) -> Option<Invalid> {
    let noted = |wanted: fn(&JournalEvent, u32) -> bool| {
        run.journal.iter().any(|entry| wanted(&entry.event, case.case))
    };
    let begun =
        noted(|event, case| matches!(event, JournalEvent::CaseStarted { case: c } if *c == case));
    let ended = noted(
        |event, case| matches!(event, JournalEvent::CaseFinished { case: c, .. } if *c == case),
    );
    if !begun || ended {
        return None;
    }
    let why = case::failure(case.case, &run.journal).unwrap_or("the run ended in it");
    invalid(WarningClass::Incomplete, format!("it did not reach its end: {why}"))
}

fn emulated(run: &RunData, group: &CaseRequests<'_>) -> Option<Invalid> {
    let engine = run.manifest.engines.iter().find(|e| e.spec.name == group.record.engine)?;
    let gpu = engine.info.as_ref()?.settings.get("gpu")?;
    let emulated = engine.spec.kind == EngineKind::Embedded && is_emulated(gpu);
    emulated.then(|| invalid(WarningClass::EmulatedGpu, format!("it ran on {gpu}"))).flatten()
}

/// The most tokens that any engine counted of each prompt without a length of its own.
fn longest_chat_prompts<'a>(groups: &[CaseRequests<'a>]) -> BTreeMap<&'a str, u32> {
    let mut longest = BTreeMap::new();
    for request in groups.iter().flat_map(CaseRequests::completed) {
        let counted =
            request.num_prompt_tokens.filter(|_| request.requested_prompt_tokens.is_none());
        if let Some(tokens) = counted {
            let most = longest.entry(request.prompt_sha256.as_str()).or_insert(0);
            *most = tokens.max(*most);
        }
    }
    longest
}

fn truncated_context(group: &CaseRequests<'_>, longest: &BTreeMap<&str, u32>) -> Option<Invalid> {
    let cut = |request: &RequestRecord| {
        let got = request.num_prompt_tokens?;
        let asked = request.requested_prompt_tokens;
        let chat = || {
            let most = longest.get(request.prompt_sha256.as_str()).copied()?;
            (most >= LONG_CHAT_PROMPT).then_some((most, MIN_CHAT_PROMPT))
        };
        let (whole, least) = asked.map(|asked| (asked, MIN_PROMPT)).or_else(chat)?;
        (f64::from(got) < least * f64::from(whole)).then_some((got, whole))
    };
    let cuts: Vec<_> = group.completed().filter_map(cut).collect();
    let (got, whole) = cuts.iter().min_by_key(|(got, _)| *got)?;
    invalid(
        WarningClass::ContextTruncated,
        format!(
            "{} of {} prompts were cut, one of {whole} tokens to {got}",
            cuts.len(),
            group.completed().count(),
        ),
    )
}

fn lengthened_prompts(group: &CaseRequests<'_>) -> Option<Invalid> {
    let longer = |request: &RequestRecord| {
        let (got, asked) = (request.num_prompt_tokens?, request.requested_prompt_tokens?);
        (f64::from(asked) < MIN_PROMPT * f64::from(got)).then_some((asked, got))
    };
    let all: Vec<_> = group.completed().filter_map(longer).collect();
    let (asked, got) = all.iter().max_by_key(|(_, got)| *got)?;
    let of = group.completed().count();
    invalid(
        WarningClass::UnequalPrompts,
        format!("{} of {of} prompts became longer, one of {asked} tokens {got}", all.len()),
    )
}

/// Hits that the prompts themselves do not explain. Loads that are meant to
/// share (equal prompts, prefixes, conversations, traces) are left out.
fn cached(group: &CaseRequests<'_>) -> Option<Invalid> {
    let shares = group.record.load.as_ref().is_some_and(|load| {
        load.prefix_tokens.is_some() || load.turns.is_some() || load.source.is_some()
    });
    let mut prompts: Vec<_> = group.completed().map(|request| &request.prompt_sha256).collect();
    let sent = prompts.len();
    prompts.sort_unstable();
    prompts.dedup();
    if shares || prompts.len() < sent {
        return None;
    }
    let is_synthetic = group.completed().all(|request| request.requested_prompt_tokens.is_some());
    let most = if is_synthetic { MAX_CACHED } else { MAX_CACHED_CHAT };
    let share = cached_share(group.completed()).unwrap_or(0.0);
    (share > most)
        .then(|| {
            let percent = share * 100.0;
            let reason = format!(
                "{percent:.0} % of its prompt tokens came from a prefix cache, which has seen these \
                 prompts before"
            );
            invalid(WarningClass::PrefixCacheHit, reason)
        })
        .flatten()
}

/// Of each load, the longest mean answer that an engine gave.
fn mean_outputs<'a>(
    groups: &[CaseRequests<'a>],
    cases: &[CaseSummary],
) -> BTreeMap<LoadKey<'a>, f64> {
    let mut longest = BTreeMap::new();
    for case in cases {
        let group = groups.iter().find(|group| group.case == case.case);
        if let (Some(group), Some(mean)) = (group, case.mean_output_tokens) {
            let most = longest.entry(group.load_key()).or_insert(0.0);
            *most = mean.max(*most);
        }
    }
    longest
}

fn short_outputs(
    case: &CaseSummary,
    group: &CaseRequests<'_>,
    longest: &BTreeMap<LoadKey<'_>, f64>,
) -> Option<Invalid> {
    let (mean, most) = (case.mean_output_tokens?, *longest.get(&group.load_key())?);
    let reason = || {
        format!(
            "its answers have {mean:.1} tokens on average, another engine's to the same prompts {most:.1}"
        )
    };
    (mean < MIN_OUTPUT * most).then(|| invalid(WarningClass::ShortOutputs, reason())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::{CaseRecord, JournalEntry, LoadRecord};
    use crate::stats::case::tests::{failed, group, record, request};

    /// What is said of cases of one load, an engine each.
    fn judged(
        cases: &[(&str, Vec<RequestRecord>)],
        load: Option<&LoadRecord>,
        journal: &[JournalEvent],
    ) -> Vec<Vec<WarningClass>> {
        let record = |engine: &str| CaseRecord {
            load: load.cloned(),
            ..record(engine, "concurrent-warm", 2)
        };
        let records: Vec<_> = cases.iter().map(|(engine, _)| record(engine)).collect();
        let groups: Vec<_> = (0..)
            .zip(records.iter().zip(cases))
            .map(|(case, (record, (_, requests)))| CaseRequests { case, ..group(record, requests) })
            .collect();
        let entry = |event: &JournalEvent| JournalEntry {
            at_ns: Timestamp::from_nanos(0),
            event: event.clone(),
        };
        let run = RunData {
            journal: journal.iter().map(entry).collect(),
            ..crate::stats::case::tests::run(&[], Vec::new())
        };
        let mut summaries: Vec<_> =
            groups.iter().map(|group| case::summarise(group, &run.journal)).collect();
        judge(&run, &groups, &mut summaries);
        let classes = |case: &CaseSummary| case.invalid.iter().map(|i| i.class).collect();
        summaries.iter().map(classes).collect()
    }

    fn answers(change: impl Fn(&mut RequestRecord)) -> Vec<RequestRecord> {
        let mut requests: Vec<_> = (0..2).map(|i| request(i, 0, &[20, 25, 30, 35])).collect();
        requests.iter_mut().for_each(change);
        requests
    }

    fn alone(change: impl Fn(&mut RequestRecord)) -> Vec<WarningClass> {
        judged(&[("e", answers(change))], None, &[]).remove(0)
    }

    #[test]
    fn case_that_did_what_was_asked_is_valid() {
        assert!(alone(|_| {}).is_empty());
        assert!(alone(|r| r.requested_prompt_tokens = Some(31)).is_empty());
    }

    #[test]
    fn survivors_are_no_sample() {
        let mut requests = answers(|_| {});
        requests.push(failed(2, 0));
        assert_eq!(judged(&[("e", requests)], None, &[]), [[WarningClass::Failures]]);
    }

    #[test]
    fn case_that_was_begun_and_not_ended_is_invalid() {
        let begun = JournalEvent::CaseStarted { case: 0 };
        let ended = JournalEvent::CaseFinished { case: 0, client_cpu_ns: 1 };
        let of = |journal: &[JournalEvent]| judged(&[("e", answers(|_| {}))], None, journal);
        assert_eq!(of(std::slice::from_ref(&begun)), [[WarningClass::Incomplete]]);
        assert!(of(&[begun, ended])[0].is_empty());
    }

    #[test]
    fn synthetic_prompts_have_their_length() {
        let cut = alone(|request| request.requested_prompt_tokens = Some(40));
        assert_eq!(cut, [WarningClass::ContextTruncated]);
        let longer = alone(|request| request.requested_prompt_tokens = Some(24));
        assert_eq!(longer, [WarningClass::UnequalPrompts]);
        // A token or two of the tokenizer's own are no other prompt.
        assert!(alone(|request| request.requested_prompt_tokens = Some(30)).is_empty());
    }

    #[test]
    fn chat_that_one_engine_cuts_to_less_than_half_is_told_by_the_other() {
        let with = |tokens| answers(move |r| r.num_prompt_tokens = Some(tokens));
        let found = judged(&[("a", with(4_000)), ("b", with(1_026))], None, &[]);
        assert_eq!(found, [vec![], vec![WarningClass::ContextTruncated]]);
        // Short chats differ by their templates.
        let short = judged(&[("a", with(60)), ("b", with(14))], None, &[]);
        assert!(short.iter().all(Vec::is_empty));
    }

    #[test]
    fn prompts_that_share_nothing_are_in_no_cache() {
        let hit = |r: &mut RequestRecord| {
            (r.requested_prompt_tokens, r.num_cached_tokens) = (Some(31), Some(16));
        };
        assert_eq!(alone(hit), [WarningClass::PrefixCacheHit]);
        // A chat template is shared by all questions; a whole prompt is not.
        assert!(alone(|request| request.num_cached_tokens = Some(20)).is_empty());
        assert_eq!(alone(|r| r.num_cached_tokens = Some(30)), [WarningClass::PrefixCacheHit]);
        let load =
            LoadRecord { prefix_tokens: Some(16), ..crate::stats::open_loop::tests::load(&[]) };
        assert!(judged(&[("e", answers(hit))], Some(&load), &[])[0].is_empty(), "meant to share");
    }

    #[test]
    fn answers_of_another_length_are_another_load() {
        let short = answers(|request| {
            request.events.truncate(1);
            request.num_output_tokens = Some(1);
        });
        let long = |r: &mut RequestRecord| r.num_output_tokens = Some(8);
        let found = judged(&[("a", answers(long)), ("b", short.clone())], None, &[]);
        assert_eq!(found, [vec![], vec![WarningClass::ShortOutputs]]);
        assert!(judged(&[("b", short)], None, &[])[0].is_empty(), "nobody to differ from");
    }
}
