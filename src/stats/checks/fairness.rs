//! Whether the engines did the same work: precision, prompts, caches, lengths.

use std::collections::{BTreeMap, BTreeSet};

use super::{Facts, about, count};
use crate::catalog::find_card;
use crate::engine::FinishReason;
use crate::record::EngineRecord;
use crate::stats::warnings::{Warning, WarningClass};

/// Prompt counts that differ by less than this are the same work.
const PROMPT_TOLERANCE: f64 = 0.01;
/// A cache that saved less than this of the prompt tokens flatters nobody.
const CACHED_TOLERANCE: f64 = 0.02;

pub(super) fn unequal_precision(facts: &Facts<'_>) -> Option<Warning> {
    let mut named = Vec::new();
    let mut kinds = BTreeSet::new();
    for (engine, info) in facts.described() {
        let precision = info.precision.as_deref().unwrap_or("not reported");
        kinds.insert(precision.to_lowercase());
        named.push(format!("{engine} {precision}"));
    }
    (kinds.len() > 1).then(|| {
        about(
            WarningClass::UnequalPrecision,
            None,
            format!("weights differ in precision: {}", named.join(", ")),
            "decoding is bound by the bytes of the weights, so part of any difference is \
             precision and not engine; compare engines that run the same one",
        )
    })
}

pub(super) fn unequal_prompts(facts: &Facts<'_>) -> Option<Warning> {
    // Prompt hash -> engine -> tokens it counted.
    let mut counted: BTreeMap<&str, BTreeMap<&str, u32>> = BTreeMap::new();
    for group in facts.grouped {
        for request in group.completed() {
            if let Some(tokens) = request.num_prompt_tokens {
                let by_engine = counted.entry(&request.prompt_sha256).or_default();
                by_engine.insert(&group.record.engine, tokens);
            }
        }
    }
    let differs = |by_engine: &&BTreeMap<&str, u32>| {
        let most = by_engine.values().max().copied().unwrap_or(0);
        let least = by_engine.values().min().copied().unwrap_or(0);
        f64::from(most - least) > PROMPT_TOLERANCE * f64::from(most)
    };
    let different: Vec<_> = counted.values().filter(differs).collect();
    let example = different.first()?;
    let example: Vec<_> =
        example.iter().map(|(engine, tokens)| format!("{engine} {tokens}")).collect();
    Some(about(
        WarningClass::UnequalPrompts,
        None,
        format!(
            "{} counted differently by the engines, one of them as {} tokens",
            match different.len() {
                1 => "1 prompt was".to_owned(),
                many => format!("{many} prompts were"),
            },
            example.join(", "),
        ),
        "chat templates add tokens of their own; use --prompt-tokens for token-exact prompts, \
         and read TTFT with the difference in mind",
    ))
}

/// Only for models with a card, which says by what names engines know them.
pub(super) fn other_model(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let asked = &facts.run.manifest.model;
    let card = find_card(asked)?;
    let served = &engine.info.as_ref()?.model;
    // A file or a tag says more than the model: a quantization, an author.
    let last = |name: &str| name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let known = [Some(&card.name), card.ollama_tag.as_ref(), card.vllm_id.as_ref()];
    let is_known = known.into_iter().flatten().any(|name| last(served).contains(&last(name)));
    (!is_known).then(|| {
        about(
            WarningClass::OtherModel,
            Some(engine),
            format!("serves `{served}`, the run's model is `{asked}`"),
            "its numbers are those of another model: serve the same one, or name it with the \
             engine's setting `model`",
        )
    })
}

pub(super) fn dummy_weights(engine: &EngineRecord) -> Option<Warning> {
    engine.info.as_ref().filter(|info| info.dummy_weights).map(|_| {
        about(
            WarningClass::DummyWeights,
            Some(engine),
            "weights are seeded noise of the model's shapes".to_owned(),
            "speeds are those of the real shapes, texts mean nothing; say so wherever you quote \
             these numbers",
        )
    })
}

pub(super) fn short_outputs(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let (mut total, mut stopped) = (0, 0);
    let mut shortest: Option<(u32, u32)> = None;
    let mut short = 0;
    for request in facts.completed_of(engine) {
        let Some(tokens) = request.num_output_tokens else { continue };
        total += 1;
        if tokens < request.max_tokens {
            short += 1;
            stopped += usize::from(request.finish_reason == Some(FinishReason::Stop));
            if shortest.is_none_or(|(least, _)| tokens < least) {
                shortest = Some((tokens, request.max_tokens));
            }
        }
    }
    let (least, asked) = shortest?;
    Some(about(
        WarningClass::ShortOutputs,
        Some(engine),
        format!(
            "{short} of {} ended before max_tokens, the shortest with {least} of {asked} tokens; \
             {stopped} by the engine's own stop",
            count(total, "answer"),
        ),
        "E2EL and throughput are of shorter answers than the others'; compare TPOT and TTFT, or \
         choose a prompt that runs to max_tokens",
    ))
}

pub(super) fn prefix_cache_hit(facts: &Facts<'_>, engine: &EngineRecord) -> Option<Warning> {
    let (mut hits, mut total, mut cached, mut prompt) = (0, 0, 0_u64, 0_u64);
    let mut prompts = BTreeSet::new();
    let mut is_repeated = false;
    for request in facts.completed_of(engine) {
        is_repeated |= !prompts.insert(&request.prompt_sha256);
        let (Some(from_cache), Some(tokens)) =
            (request.num_cached_tokens, request.num_prompt_tokens)
        else {
            continue;
        };
        total += 1;
        hits += usize::from(from_cache > 0);
        cached += u64::from(from_cache);
        prompt += u64::from(tokens);
    }
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    let share = cached as f64 / prompt.max(1) as f64;
    let (why, advice) = if is_repeated {
        (
            "prompts were sent more than once",
            "TTFT is flattered; use distinct prompts (no --same-prompt), or switch the engine's \
             prefix cache off",
        )
    } else {
        (
            "the prompts are distinct, and begin alike: a chat template puts the same words before \
             each",
            "TTFT is that of a prompt shorter by so much, and an engine whose cache keeps more or \
             less of it gains more or less; --prompt-tokens N makes prompts that share nothing",
        )
    };
    (share > CACHED_TOLERANCE).then(|| {
        about(
            WarningClass::PrefixCacheHit,
            Some(engine),
            format!(
                "{hits} of {} took prompt tokens from a prefix cache, {:.0} % of all prompt \
                 tokens; {why}",
                count(total, "request"),
                share * 100.0,
            ),
            advice,
        )
    })
}
