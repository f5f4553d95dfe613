//! What came of a generation: samples collected as their tokens come, and the
//! object and the line that tell of them.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::infer::host::{RequestTimings, TokenLogprobs};
use crate::infer::{StopReason, Tokenizer};
use crate::units::{format_ms, format_significant, millis};

/// The object of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) model: String,
    pub(super) origin: String,
    /// Precision that the weights are computed in.
    pub(super) weights: String,
    pub(super) dummy_weights: bool,
    /// Name of the GPU that computed, where one did.
    pub(super) gpu: Option<String>,
    pub(super) max_model_len: usize,
    pub(super) prompt_ids: Vec<u32>,
    /// Prompt tokens taken from the prefix cache.
    pub(super) num_cached_tokens: Option<usize>,
    /// The first sample.
    #[serde(flatten)]
    pub(super) first: SampleRow,
    /// All samples, where more than one was asked for.
    pub(super) samples: Option<Vec<SampleRow>>,
    pub(super) timings: Timings,
}

/// One sample.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct SampleRow {
    /// Ids that were drawn, the end-of-sequence token and those of a stop text included.
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
    pub(super) finish_reason: &'static str,
    /// One entry a token; absent unless asked for.
    pub(super) logprobs: Option<Vec<TokenRow>>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct TokenRow {
    id: u32,
    logprob: f32,
    top: Vec<TopRow>,
}

/// One of the most likely tokens at a position.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TopRow {
    pub(super) id: u32,
    pub(super) token: String,
    pub(super) logprob: f32,
}

/// Milliseconds; absent where the generation did not get so far, or where an
/// emulated device computed.
#[derive(Debug, Default, Serialize)]
pub(super) struct Timings {
    /// Weights read and laid out, before the prompt was sent.
    load_ms: Option<f64>,
    /// Sent to first scheduled.
    queue_ms: Option<f64>,
    /// Sent to first token, with warm weights.
    ttft_ms: Option<f64>,
    /// First scheduled to first token.
    prefill_ms: Option<f64>,
    /// First token to last.
    decode_ms: Option<f64>,
    /// Tokens after the first over `decode_ms`; with several samples, those of
    /// the first sample.
    decode_tokens_per_s: Option<f64>,
}

/// What came of the generation so far.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) samples: Vec<Sample>,
    pub(super) done: Option<Done>,
}

/// The engine's last word.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) timings: RequestTimings,
    pub(super) num_cached_tokens: usize,
}

/// One sample so far.
#[derive(Default)]
pub(super) struct Sample {
    tokens: Vec<u32>,
    pub(super) text: String,
    logprobs: Vec<TokenLogprobs>,
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    stop: Option<StopReason>,
}

/// A token as the engine tells of it.
pub(super) struct Token {
    pub(super) at: Timestamp,
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) logprobs: Option<TokenLogprobs>,
    pub(super) stop: Option<StopReason>,
}

impl Collected {
    pub(super) fn new(num_samples: usize) -> Self {
        Self { samples: (0..num_samples).map(|_| Sample::default()).collect(), done: None }
    }

    pub(super) fn push(&mut self, sample: usize, token: Token) {
        let Some(sample) = self.samples.get_mut(sample) else { return };
        sample.tokens.push(token.id);
        sample.text.push_str(&token.text);
        sample.logprobs.extend(token.logprobs);
        sample.first_at.get_or_insert(token.at);
        sample.last_at = Some(token.at);
        sample.stop = token.stop;
    }

    /// The samples in their order; at least one.
    pub(super) fn rows(&self, tokenizer: Option<&Tokenizer>) -> Vec<SampleRow> {
        self.samples.iter().map(|sample| sample.row(tokenizer)).collect()
    }

    pub(super) fn timings(&self, load: Duration, sent_at: Timestamp) -> Timings {
        let first = self.samples.first();
        let first_at = first.and_then(|sample| sample.first_at);
        let last_at = first.and_then(|sample| sample.last_at);
        let decode = first_at.zip(last_at).map(|(first, last)| last.since(first));
        let num_tokens = first.map_or(0, |sample| sample.tokens.len());
        let reported = self.done.map(|done| done.timings);
        Timings {
            load_ms: Some(millis(load)),
            queue_ms: reported.map(|timings| millis(timings.queue)),
            ttft_ms: first_at.map(|at| millis(at.since(sent_at))),
            prefill_ms: reported.map(|timings| millis(timings.prefill)),
            decode_ms: decode.map(millis),
            decode_tokens_per_s: decode.and_then(|decode| rate(num_tokens, decode)),
        }
    }
}

impl Sample {
    /// `tokenizer` where log-probabilities are wanted.
    fn row(&self, tokenizer: Option<&Tokenizer>) -> SampleRow {
        let row = |tokenizer: &Tokenizer, id: u32, logprobs: &TokenLogprobs| TokenRow {
            id,
            logprob: logprobs.logprob,
            top: top_rows(tokenizer, &logprobs.top),
        };
        let tokens = || self.tokens.iter().zip(&self.logprobs);
        SampleRow {
            tokens: self.tokens.clone(),
            text: self.text.clone(),
            finish_reason: match self.stop {
                Some(StopReason::Stop) => "stop",
                Some(StopReason::Length) => "length",
                Some(StopReason::Aborted) | None => "cancelled",
            },
            logprobs: tokenizer.map(|tokenizer| {
                tokens().map(|(id, logprobs)| row(tokenizer, *id, logprobs)).collect()
            }),
        }
    }
}

/// The most likely tokens with their texts.
pub(super) fn top_rows(tokenizer: &Tokenizer, top: &[(u32, f32)]) -> Vec<TopRow> {
    let row = |&(id, logprob): &(u32, f32)| TopRow {
        id,
        token: tokenizer.decode(&[id]).unwrap_or_default(),
        logprob,
    };
    top.iter().map(row).collect()
}

/// Tokens after the first, per second; absent below two tokens.
fn rate(num_tokens: usize, decode: Duration) -> Option<f64> {
    let intervals = u32::try_from(num_tokens.checked_sub(1)?).ok().filter(|n| *n > 0)?;
    Some(f64::from(intervals) / decode.as_secs_f64()).filter(|rate| rate.is_finite())
}

impl Answer {
    pub(super) fn timing_line(&self) -> String {
        let timings = &self.timings;
        let part = |name: &str, ms: Option<f64>| {
            ms.map_or_else(String::new, |ms| format!(", {name} {} ms", format_ms(ms)))
        };
        let num_tokens = self.first.tokens.len();
        let speed = timings.decode_tokens_per_s.map_or_else(String::new, |rate| {
            format!(", decode {} tokens/s (n = {})", format_significant(rate), num_tokens - 1)
        });
        let cached = self.num_cached_tokens.filter(|cached| *cached > 0);
        let cached =
            cached.map_or_else(String::new, |cached| format!(" ({cached} from the cache)"));
        let samples = self.samples.as_ref().map_or(1, Vec::len);
        let tokens = if samples > 1 {
            let total: usize = self.samples.iter().flatten().map(|row| row.tokens.len()).sum();
            format!("{total} tokens in {samples} samples")
        } else {
            format!("{num_tokens} tokens ({})", self.first.finish_reason)
        };
        let gpu = self.gpu.as_ref().map_or_else(String::new, |gpu| format!(" on {gpu}"));
        format!(
            "{} prompt tokens{cached}, {tokens}, {}{gpu}{}{}{speed}",
            self.prompt_ids.len(),
            self.weights,
            part("load", timings.load_ms),
            part("TTFT", timings.ttft_ms),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_has_no_decode_rate() {
        assert_eq!(rate(0, Duration::from_secs(1)), None);
        assert_eq!(rate(1, Duration::from_secs(1)), None);
        assert_eq!(rate(3, Duration::from_secs(1)), Some(2.0));
        assert_eq!(rate(3, Duration::ZERO), None);
    }

    #[test]
    fn generation_that_was_cut_short_keeps_what_came() {
        let mut collected = Collected::new(1);
        for (at, id, text) in [(3_000_000, 7, "a"), (5_000_000, 8, "b")] {
            let (at, text) = (Timestamp::from_nanos(at), text.to_owned());
            collected.push(0, Token { at, id, text, logprobs: None, stop: None });
        }
        let timings = collected.timings(Duration::ZERO, Timestamp::from_nanos(1_000_000));
        assert_eq!(collected.rows(None)[0].finish_reason, "cancelled");
        assert_eq!(timings.ttft_ms, Some(2.0));
        assert_eq!(timings.decode_tokens_per_s, Some(500.0));
        assert_eq!(timings.queue_ms, None);
    }
}
