//! Whether the engines did the same work, engine by engine: what reached each
//! of them, what it answered, and in what state it was, as measured or as it
//! says itself.

use serde::{Deserialize, Serialize};

use crate::record::{EngineRecord, RequestRecord, RunData};

use super::case::CaseRequests;

/// The work of one engine over all measured requests that completed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Engine name.
    pub engine: String,
    /// How prompts were sent; absent where none was.
    pub prompts_as: Option<PromptForm>,
    /// Fewest and most prompt tokens of a request, as counted.
    pub prompt_tokens: Option<(u32, u32)>,
    /// Fewest and most output tokens of a request, as counted.
    pub output_tokens: Option<(u32, u32)>,
    /// Fewest and most output tokens that a request asked for.
    pub asked_output_tokens: Option<(u32, u32)>,
    /// Share of the prompt tokens that a prefix cache had; absent where the engine does not say.
    pub cached_share: Option<f64>,
    /// Type of the weights, as the engine says.
    pub precision: Option<String>,
    /// Longest sequence, as the engine says.
    pub max_model_len: Option<u32>,
    /// Requests that it serves at once, as it says.
    pub parallel_slots: Option<u32>,
}

/// How a prompt reaches an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptForm {
    /// Token ids: the same for every engine that takes them.
    Ids,
    /// Text without a template, which the engine tokenizes.
    Text,
    /// Messages, to which the engine applies its chat template.
    Chat,
}

impl PromptForm {
    /// The word used in files and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ids => "ids",
            Self::Text => "text",
            Self::Chat => "chat",
        }
    }
}

/// One entry an engine that completed a request, in the manifest's order.
#[must_use]
pub fn works(run: &RunData, groups: &[CaseRequests<'_>]) -> Vec<Work> {
    let of = |engine: &EngineRecord| {
        let requests: Vec<&RequestRecord> = groups
            .iter()
            .filter(|group| group.record.engine == engine.spec.name)
            .flat_map(CaseRequests::completed)
            .collect();
        (!requests.is_empty()).then(|| work(engine, &requests))
    };
    run.manifest.engines.iter().filter_map(of).collect()
}

fn work(engine: &EngineRecord, requests: &[&RequestRecord]) -> Work {
    let info = engine.info.as_ref();
    let span = |of: fn(&RequestRecord) -> Option<u32>| {
        let counts = || requests.iter().filter_map(|request| of(request));
        Some((counts().min()?, counts().max()?))
    };
    Work {
        engine: engine.spec.name.clone(),
        prompts_as: requests.first().map(|first| {
            let takes_ids = info.is_some_and(|info| info.capabilities.token_id_prompts.is_yes());
            match first.requested_prompt_tokens {
                None => PromptForm::Chat,
                Some(_) if takes_ids => PromptForm::Ids,
                Some(_) => PromptForm::Text,
            }
        }),
        prompt_tokens: span(|request| request.num_prompt_tokens),
        output_tokens: span(|request| request.num_output_tokens),
        asked_output_tokens: span(|request| Some(request.max_tokens)),
        cached_share: cached_share(requests.iter().copied()),
        precision: info.and_then(|info| info.precision.clone()),
        max_model_len: info.and_then(|info| info.max_model_len),
        parallel_slots: parallel_slots(engine),
    }
}

/// Share of the prompt tokens that a prefix cache had, of the requests that tell;
/// `None` where none does.
#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
pub(super) fn cached_share<'a>(requests: impl Iterator<Item = &'a RequestRecord>) -> Option<f64> {
    let told = requests.filter_map(|r| r.num_cached_tokens.zip(r.num_prompt_tokens));
    let (cached, prompt) = told.fold((0_u64, 0_u64), |(cached, prompt), (c, p)| {
        (cached + u64::from(c), prompt + u64::from(p))
    });
    (prompt > 0).then(|| cached as f64 / prompt as f64)
}

/// Requests that an engine serves at once, by the setting that says so:
/// llama-server's slots, the sequences of a step of ours and of vLLM.
#[must_use]
pub fn parallel_slots(engine: &EngineRecord) -> Option<u32> {
    let settings = &engine.info.as_ref()?.settings;
    ["total_slots", "max_num_seqs"].iter().find_map(|name| settings.get(*name)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case::tests::request;

    #[test]
    fn cached_share_is_of_the_requests_that_tell() {
        let mut told = request(0, 0, &[20]);
        (told.num_prompt_tokens, told.num_cached_tokens) = (Some(40), Some(10));
        let silent = request(1, 0, &[20]);
        assert_eq!(cached_share([&told, &silent].into_iter()), Some(0.25));
        assert_eq!(cached_share([&silent].into_iter()), None);
    }
}
