//! Whether a case measured what was asked for. One that did not is shown with
//! its reason, and neither compared nor averaged with others.

use std::collections::BTreeMap;

use crate::engine::EngineKind;
use crate::infer::device::is_emulated;
use crate::record::{JournalEvent, RequestRecord, RunData};

use super::case::{self, CaseRequests, LoadKey};
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
    let outputs = mean_outputs(groups);
    for case in cases {
        let Some(group) = groups.iter().find(|group| group.case == case.case) else { continue };
        case.invalid = [
            failures(case),
            incomplete(run, case),
            emulated(run, group),
            truncated_context(group, &longest),
            lengthened_prompts(group),
            cached(group),
            short_outputs(group, &outputs),
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
#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
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
    let counted = || {
        let both =
            |request: &RequestRecord| request.num_cached_tokens.zip(request.num_prompt_tokens);
        group.completed().filter_map(both)
    };
    let hits = counted().fold(0_u64, |sum, (cached, _)| sum + u64::from(cached));
    let tokens = counted().fold(0_u64, |sum, (_, prompt)| sum + u64::from(prompt));
    let is_synthetic = group.completed().all(|request| request.requested_prompt_tokens.is_some());
    let most = if is_synthetic { MAX_CACHED } else { MAX_CACHED_CHAT };
    let share = hits as f64 / tokens.max(1) as f64;
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
fn mean_outputs<'a>(groups: &[CaseRequests<'a>]) -> BTreeMap<LoadKey<'a>, f64> {
    let mut longest = BTreeMap::new();
    for group in groups {
        if let Some(mean) = mean_output(group) {
            let most = longest.entry(group.load_key()).or_insert(0.0);
            *most = mean.max(*most);
        }
    }
    longest
}

fn mean_output(group: &CaseRequests<'_>) -> Option<f64> {
    let counts: Vec<f64> =
        group.completed().filter_map(|r| r.num_output_tokens).map(f64::from).collect();
    super::distribution::mean(&counts)
}

fn short_outputs(
    group: &CaseRequests<'_>,
    longest: &BTreeMap<LoadKey<'_>, f64>,
) -> Option<Invalid> {
    let (mean, most) = (mean_output(group)?, *longest.get(&group.load_key())?);
    let reason = || {
        format!(
            "its answers have {mean:.1} tokens on average, another engine's to the same prompts {most:.1}"
        )
    };
    (mean < MIN_OUTPUT * most).then(|| invalid(WarningClass::ShortOutputs, reason())).flatten()
}
