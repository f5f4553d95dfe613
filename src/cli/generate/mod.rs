//! `yardstick generate`: one prompt through the embedded engine.

mod answer;
mod score;

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use tokio_util::sync::CancellationToken;

use self::answer::{Answer, Collected, Done, Timings, Token};
use self::score::Scored;
use super::embedded::{self, EmbeddedArgs, Opened};
use super::{ExitStatus, Failure, Global, interrupt, output};
use crate::clock::{Clock, Timestamp};
use crate::infer::device::CudaDevice;
use crate::infer::{
    ChatMessage, Generation, GenerationEvent, InferRequest, SamplingParams, Tokenizer, stop,
};
use crate::units::millis;

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
    /// End the output at this text, which is not part of it; repeatable, up to 16
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Samples drawn from the same prompt; sample i is seeded with --seed plus i
    #[arg(short, value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=128))]
    n: u8,
    /// Generate nothing: print the log-probability of each token of the prompt
    /// given all before it, the most likely token in its place, and the perplexity
    #[arg(long, conflicts_with_all = ["n", "stop", "ignore_eos", "max_tokens"])]
    score: bool,
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

/// Loaded, and about to send.
struct Ready {
    opened: Opened,
    prompt_ids: Vec<u32>,
    load_time: Duration,
    sent_at: Timestamp,
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

impl Generate {
    /// Generates, or scores, and prints.
    ///
    /// # Errors
    /// When the model cannot be opened, the prompt does not fit, or the engine fails.
    pub fn execute(self, _global: &Global) -> anyhow::Result<ExitStatus> {
        let clock = Clock::real();
        let cancel = interrupt::token()?;
        stop::check(&self.stop)?;
        let opened = self.engine.open(&clock)?;
        let prompt_ids = self.prompt_ids(opened.host.tokenizer())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .context("cannot start the runtime")?;
        let begun = clock.now();
        let loaded = runtime.block_on(embedded::load(&opened.host, &cancel));
        let load_time = clock.now().since(begun);
        if !loaded? {
            // Loading cannot be cut short: leave it to the end of the process.
            runtime.shutdown_background();
            return Ok(ExitStatus::Interrupted);
        }
        let sent_at = clock.now();
        let ready = Ready { opened, prompt_ids, load_time, sent_at };
        if self.score {
            runtime.block_on(self.score(ready, &clock, &cancel))
        } else {
            runtime.block_on(self.generate(ready, &cancel))
        }
    }

    async fn generate(
        &self,
        ready: Ready,
        cancel: &CancellationToken,
    ) -> anyhow::Result<ExitStatus> {
        let Ready { opened: Opened { host, origin }, prompt_ids, load_time, sent_at } = ready;
        let generation = host.submit(self.request(prompt_ids.clone()))?;
        let num_samples = usize::from(self.n);
        let mut collected = Collected::new(num_samples);
        let ended = self.follow(generation, cancel, &mut collected).await;
        let tokenizer = self.sampling.logprobs.map(|_| host.tokenizer());
        let rows = collected.rows(tokenizer);
        let gpu = host.gpu();
        let is_emulated = gpu.as_ref().is_some_and(CudaDevice::is_emulated);
        let answer = Answer {
            model: self.engine.model().to_owned(),
            origin,
            weights: host.precision(),
            dummy_weights: host.is_dummy(),
            gpu: gpu.map(|gpu| gpu.name),
            max_model_len: host.max_model_len(),
            prompt_ids,
            num_cached_tokens: collected.done.map(|done| done.num_cached_tokens),
            first: rows.first().cloned().unwrap_or_default(),
            samples: (num_samples > 1).then_some(rows),
            timings: if is_emulated {
                Timings::default()
            } else {
                collected.timings(load_time, sent_at)
            },
        };
        self.print(&answer)?;
        ended
    }

    async fn score(
        &self,
        ready: Ready,
        clock: &Clock,
        cancel: &CancellationToken,
    ) -> anyhow::Result<ExitStatus> {
        let Ready { opened: Opened { host, origin }, prompt_ids, load_time, sent_at } = ready;
        let request = InferRequest {
            prompt_logprobs: Some(self.sampling.logprobs.map_or(1, usize::from)),
            ..InferRequest::new(prompt_ids.clone(), 0)
        };
        let mut generation = host.submit(request)?;
        let scores = loop {
            let event = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(ExitStatus::Interrupted),
                event = generation.next() => event,
            };
            match event {
                Some(GenerationEvent::PromptLogprobs { logprobs, .. }) => break logprobs,
                Some(GenerationEvent::Token { .. }) => {}
                Some(GenerationEvent::Failed(error)) => return Err(error.into()),
                Some(GenerationEvent::Done { .. }) | None => {
                    anyhow::bail!("the engine ended without a score")
                }
            }
        };
        let (total_logprob, perplexity) = score::total(&scores);
        let scored = Scored {
            model: self.engine.model().to_owned(),
            origin,
            weights: host.precision(),
            dummy_weights: host.is_dummy(),
            tokens: score::tokens(host.tokenizer(), &prompt_ids, &scores),
            num_scored: scores.len(),
            total_logprob,
            perplexity,
            load_ms: millis(load_time),
            score_ms: millis(clock.now().since(sent_at)),
        };
        if self.json {
            output::print_json(&scored)?;
        } else {
            scored.print()?;
            warn_of_dummy(scored.dummy_weights);
        }
        Ok(ExitStatus::Success)
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
            n: usize::from(self.n),
            stop: self.stop.clone(),
            ..InferRequest::new(prompt_ids, self.max_tokens.get() as usize)
        }
    }

    /// Collects tokens to the end, or to `cancel`; prints the texts of a single
    /// sample as they come unless JSON is wanted.
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
                Some(GenerationEvent::Token { at, sample, id, text, logprobs, stop }) => {
                    if !self.json && self.n == 1 {
                        output::print(&text)?;
                    }
                    collected.push(sample, Token { at, id, text, logprobs, stop });
                }
                Some(GenerationEvent::PromptLogprobs { .. }) => {}
                Some(GenerationEvent::Done { timings, num_cached_tokens, .. }) => {
                    collected.done = Some(Done { timings, num_cached_tokens });
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
        match &answer.samples {
            None => end_line(&answer.first.text)?,
            Some(samples) => {
                for (number, sample) in (1..).zip(samples) {
                    output::print(&format!("[{number}] {}", sample.text))?;
                    end_line(&format!("[{number}] {}", sample.text))?;
                }
            }
        }
        warn_of_dummy(answer.dummy_weights);
        output::note(&answer.timing_line());
        Ok(())
    }
}

/// Ends the line that `text` was printed on.
fn end_line(text: &str) -> anyhow::Result<()> {
    if text.is_empty() || text.ends_with('\n') { Ok(()) } else { output::print("\n") }
}

fn warn_of_dummy(dummy: bool) {
    if dummy {
        output::warn("dummy weights: speeds are real, the text is noise");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_numbers_out_of_range_are_refused() {
        assert!(temperature("-1").is_err() && temperature("nan").is_err());
        assert!(top_p("0").is_err() && top_p("1.5").is_err() && top_p("NaN").is_err());
        assert_eq!((temperature("0.7"), top_p("1")), (Ok(0.7), Ok(1.0)));
    }
}
