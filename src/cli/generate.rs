//! `yardstick generate`: one prompt through the embedded engine.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::embedded::{self, EmbeddedArgs, Opened};
use super::{ExitStatus, Failure, Global, interrupt, output};
use crate::clock::{Clock, Timestamp};
use crate::infer::host::{RequestTimings, TokenLogprobs};
use crate::infer::{
    ChatMessage, Generation, GenerationEvent, InferRequest, SamplingParams, StopReason, Tokenizer,
};
use crate::units::{format_ms, format_significant, millis};

/// Send one prompt through the embedded engine, streaming its answer to stdout.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("input").required(true))]
pub struct Generate {
    /// What to ask, through the model's chat template unless --raw is given
    #[arg(long, value_name = "TEXT", group = "input")]
    prompt: Option<String>,
    /// Token ids to continue, used as they are
    #[arg(long, value_name = "ID,...", group = "input", value_delimiter = ',')]
    prompt_ids: Option<Vec<u32>>,
    /// Continue --prompt as it stands, without the chat template
    #[arg(long, conflicts_with = "prompt_ids")]
    raw: bool,
    /// Bound on generated tokens
    #[arg(long, value_name = "N", default_value = "128")]
    max_tokens: NonZeroU32,
    /// Go on past end-of-sequence tokens, up to --max-tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object instead, when all is done
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EmbeddedArgs,
}

/// How the next token is drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling options")]
struct SamplingArgs {
    /// Sampling temperature, 0 is greedy
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature)]
    #[arg(allow_negative_numbers = true)]
    temperature: f64,
    /// Nucleus mass, 1 keeps everything
    #[arg(long, value_name = "P", default_value = "1", value_parser = top_p)]
    #[arg(allow_negative_numbers = true)]
    top_p: f64,
    /// Keep the K most likely tokens [default: all]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Seed of the sampler
    #[arg(long, value_name = "S", default_value = "0")]
    seed: u64,
    /// Report this many most likely tokens with each drawn one, in --json
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(0..=100))]
    #[arg(requires = "json")]
    logprobs: Option<u16>,
}

fn temperature(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    let sound = value.is_finite() && value >= 0.0;
    sound.then_some(value).ok_or_else(|| "expected a number from 0 up".to_owned())
}

fn top_p(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    let sound = value > 0.0 && value <= 1.0;
    sound.then_some(value).ok_or_else(|| "expected a number above 0 and up to 1".to_owned())
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Answer {
    model: String,
    origin: String,
    /// Precision that the weights are computed in.
    weights: String,
    dummy_weights: bool,
    max_model_len: usize,
    prompt_ids: Vec<u32>,
    /// Ids that were drawn, the end-of-sequence token included.
    tokens: Vec<u32>,
    text: String,
    finish_reason: &'static str,
    /// One entry a token; absent unless asked for.
    logprobs: Option<Vec<TokenRow>>,
    timings: Timings,
}

#[derive(Debug, Serialize)]
struct TokenRow {
    id: u32,
    logprob: f32,
    top: Vec<TopRow>,
}

#[derive(Debug, Serialize)]
struct TopRow {
    id: u32,
    token: String,
    logprob: f32,
}

/// Milliseconds; absent where the generation did not get so far.
#[derive(Debug, Serialize)]
struct Timings {
    /// Weights read and laid out, before the prompt was sent.
    load_ms: f64,
    /// Sent to first scheduled.
    queue_ms: Option<f64>,
    /// Sent to first token, with warm weights.
    ttft_ms: Option<f64>,
    /// First scheduled to first token.
    prefill_ms: Option<f64>,
    /// First token to last.
    decode_ms: Option<f64>,
    /// Tokens after the first over `decode_ms`.
    decode_tokens_per_s: Option<f64>,
}

/// What came of the generation so far.
#[derive(Default)]
struct Collected {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprobs>,
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    done: Option<(StopReason, RequestTimings)>,
}

impl Generate {
    /// Generates and prints.
    ///
    /// # Errors
    /// When the model cannot be opened, the prompt does not fit, or the engine fails.
    pub fn execute(self, _global: &Global) -> anyhow::Result<ExitStatus> {
        let clock = Clock::real();
        let cancel = interrupt::token()?;
        let Opened { host, origin } = self.engine.open(&clock)?;
        let prompt_ids = self.prompt_ids(host.tokenizer())?;
        let request = self.request(prompt_ids.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .context("cannot start the runtime")?;
        let begun = clock.now();
        let loaded = runtime.block_on(embedded::load(&host, &cancel));
        let load_time = clock.now().since(begun);
        if !loaded? {
            // Loading cannot be cut short: leave it to the end of the process.
            runtime.shutdown_background();
            return Ok(ExitStatus::Interrupted);
        }
        let sent_at = clock.now();
        let generation = host.submit(request)?;
        let mut collected = Collected::default();
        let ended = runtime.block_on(self.follow(generation, &cancel, &mut collected));
        let answer = Answer {
            model: self.engine.model().to_owned(),
            origin,
            weights: host.precision(),
            dummy_weights: host.is_dummy(),
            max_model_len: host.max_model_len(),
            prompt_ids,
            finish_reason: collected.finish_reason(),
            logprobs: self.sampling.logprobs.is_some().then(|| collected.rows(host.tokenizer())),
            timings: collected.timings(load_time, sent_at),
            tokens: collected.tokens,
            text: collected.text,
        };
        self.print(&answer)?;
        ended
    }

    fn prompt_ids(&self, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
        match (&self.prompt_ids, &self.prompt) {
            (Some(ids), _) => Ok(ids.clone()),
            (None, Some(text)) if self.raw => Ok(tokenizer.encode(text, true)?),
            (None, Some(text)) => {
                let message = ChatMessage { role: "user".to_owned(), content: text.clone() };
                let text = tokenizer.apply_chat_template(&[message])?;
                Ok(tokenizer.encode(&text, false)?)
            }
            (None, None) => Err(Failure::new("there is no prompt").into()),
        }
    }

    fn request(&self, prompt_ids: Vec<u32>) -> InferRequest {
        InferRequest {
            sampling: SamplingParams {
                temperature: self.sampling.temperature,
                top_p: self.sampling.top_p,
                top_k: self.sampling.top_k.map(|k| k as usize),
                seed: self.sampling.seed,
            },
            ignore_eos: self.ignore_eos,
            logprobs: self.sampling.logprobs.map(usize::from),
            ..InferRequest::new(prompt_ids, self.max_tokens.get() as usize)
        }
    }

    /// Collects tokens to the end, or to `cancel`; prints texts as they come unless JSON is wanted.
    async fn follow(
        &self,
        mut generation: Generation,
        cancel: &CancellationToken,
        collected: &mut Collected,
    ) -> anyhow::Result<ExitStatus> {
        loop {
            let event = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(ExitStatus::Interrupted),
                event = generation.next() => event,
            };
            match event {
                Some(GenerationEvent::Token { at, id, text, logprobs }) => {
                    if !self.json {
                        output::print(&text)?;
                    }
                    collected.push(at, id, &text, logprobs);
                }
                Some(GenerationEvent::Done { reason, timings, .. }) => {
                    collected.done = Some((reason, timings));
                    return Ok(ExitStatus::Success);
                }
                Some(GenerationEvent::Failed(error)) => return Err(error.into()),
                None => anyhow::bail!("the engine ended without an answer"),
            }
        }
    }

    fn print(&self, answer: &Answer) -> anyhow::Result<()> {
        if self.json {
            return output::print_json(answer);
        }
        if !answer.text.is_empty() && !answer.text.ends_with('\n') {
            output::print("\n")?;
        }
        if answer.dummy_weights {
            output::warn("dummy weights: speeds are real, the text is noise");
        }
        output::note(&answer.timing_line());
        Ok(())
    }
}

impl Collected {
    fn push(&mut self, at: Timestamp, id: u32, text: &str, logprobs: Option<TokenLogprobs>) {
        self.tokens.push(id);
        self.text.push_str(text);
        self.logprobs.extend(logprobs);
        self.first_at.get_or_insert(at);
        self.last_at = Some(at);
    }

    fn finish_reason(&self) -> &'static str {
        match self.done {
            Some((StopReason::Stop, _)) => "stop",
            Some((StopReason::Length, _)) => "length",
            Some((StopReason::Aborted, _)) | None => "cancelled",
        }
    }

    fn rows(&self, tokenizer: &Tokenizer) -> Vec<TokenRow> {
        let top = |&(id, logprob): &(u32, f32)| TopRow {
            id,
            token: tokenizer.decode(&[id]).unwrap_or_default(),
            logprob,
        };
        let row = |(id, logprobs): (&u32, &TokenLogprobs)| TokenRow {
            id: *id,
            logprob: logprobs.logprob,
            top: logprobs.top.iter().map(top).collect(),
        };
        self.tokens.iter().zip(&self.logprobs).map(row).collect()
    }

    fn timings(&self, load: Duration, sent_at: Timestamp) -> Timings {
        let decode = match (self.first_at, self.last_at) {
            (Some(first), Some(last)) => Some(last.since(first)),
            _ => None,
        };
        let reported = self.done.map(|(_, timings)| timings);
        Timings {
            load_ms: millis(load),
            queue_ms: reported.map(|timings| millis(timings.queue)),
            ttft_ms: self.first_at.map(|at| millis(at.since(sent_at))),
            prefill_ms: reported.map(|timings| millis(timings.prefill)),
            decode_ms: decode.map(millis),
            decode_tokens_per_s: decode.and_then(|decode| rate(self.tokens.len(), decode)),
        }
    }
}

/// Tokens after the first, per second; absent below two tokens.
fn rate(num_tokens: usize, decode: Duration) -> Option<f64> {
    let intervals = u32::try_from(num_tokens.checked_sub(1)?).ok().filter(|n| *n > 0)?;
    Some(f64::from(intervals) / decode.as_secs_f64()).filter(|rate| rate.is_finite())
}

impl Answer {
    fn timing_line(&self) -> String {
        let timings = &self.timings;
        let part = |name: &str, ms: Option<f64>| {
            ms.map_or_else(String::new, |ms| format!(", {name} {} ms", format_ms(ms)))
        };
        let speed = timings.decode_tokens_per_s.map_or_else(String::new, |rate| {
            format!(
                ", decode {} tokens/s (n = {})",
                format_significant(rate),
                self.tokens.len() - 1
            )
        });
        format!(
            "{} prompt tokens, {} tokens ({}), {}{}{}{speed}",
            self.prompt_ids.len(),
            self.tokens.len(),
            self.finish_reason,
            self.weights,
            part("load", Some(timings.load_ms)),
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
    fn sampling_numbers_out_of_range_are_refused() {
        assert!(temperature("-1").is_err() && temperature("nan").is_err());
        assert!(top_p("0").is_err() && top_p("1.5").is_err() && top_p("NaN").is_err());
        assert_eq!((temperature("0.7"), top_p("1")), (Ok(0.7), Ok(1.0)));
    }

    #[test]
    fn generation_that_was_cut_short_keeps_what_came() {
        let mut collected = Collected::default();
        collected.push(Timestamp::from_nanos(3_000_000), 7, "a", None);
        collected.push(Timestamp::from_nanos(5_000_000), 8, "b", None);
        let timings = collected.timings(Duration::ZERO, Timestamp::from_nanos(1_000_000));
        assert_eq!(collected.finish_reason(), "cancelled");
        assert_eq!(timings.ttft_ms, Some(2.0));
        assert_eq!(timings.decode_tokens_per_s, Some(500.0));
        assert_eq!(timings.queue_ms, None);
    }
}
