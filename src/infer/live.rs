//! A request that the engine works on, followed from its submission to its
//! last event: texts, stop texts, scores and times. Knows no scheduler.

use std::time::Duration;

use tokio::sync::mpsc;

use super::core::{DrawnToken, PromptScores};
use super::generation::{GenerationEvent, RequestTimings, TokenLogprobs};
use super::stop::{Shown, StopMatcher};
use super::tokenizer::{Detokenizer, Tokenizer};
use super::{InferRequest, StopReason};
use crate::clock::Timestamp;

/// A request on its way to the engine.
pub(super) struct Submission {
    pub request: InferRequest,
    /// Has room for every event of the request. Closed when its reader is gone,
    /// which aborts the request.
    pub events: mpsc::Sender<GenerationEvent>,
    pub submitted_at: Timestamp,
}

/// A request that the engine works on.
pub(super) struct Live {
    events: mpsc::Sender<GenerationEvent>,
    samples: Vec<Sample>,
    /// Scores still missing; `None` where none were asked for or all are sent.
    scores: Option<Scores>,
    num_prompt_tokens: usize,
    num_cached_tokens: usize,
    submitted_at: Timestamp,
    load: Duration,
    first_scheduled_at: Option<Timestamp>,
    prefilled_at: Option<Timestamp>,
    first_token_at: Option<Timestamp>,
    last_token_at: Option<Timestamp>,
}

/// One sample's text.
struct Sample {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    num_output_tokens: usize,
    ended: Option<StopReason>,
}

/// The scores of a prompt, as far as they are known.
struct Scores {
    found: Vec<TokenLogprobs>,
    needed: usize,
}

/// What a token did to its request.
pub(super) struct Taken {
    /// To be sent.
    pub event: GenerationEvent,
    /// A stop text ended the sample; the engine does not know of it yet.
    pub stopped_by_text: bool,
}

impl Live {
    pub(super) fn new(submission: Submission, load: Duration, tokenizer: &Tokenizer) -> Self {
        let Submission { request, events, submitted_at } = submission;
        let sample = |_| Sample {
            detokenizer: tokenizer.stream(),
            stop: StopMatcher::new(request.stop.clone()),
            num_output_tokens: 0,
            ended: None,
        };
        let num_prompt_tokens = request.prompt_ids.len();
        let needed = num_prompt_tokens.saturating_sub(1);
        Self {
            events,
            samples: (0..request.n.max(1)).map(sample).collect(),
            scores: request.prompt_logprobs.map(|_| Scores { found: Vec::new(), needed }),
            num_prompt_tokens,
            num_cached_tokens: 0,
            submitted_at,
            load,
            first_scheduled_at: None,
            prefilled_at: None,
            first_token_at: None,
            last_token_at: None,
        }
    }

    /// Where its events go.
    pub(super) const fn events(&self) -> &mpsc::Sender<GenerationEvent> {
        &self.events
    }

    /// Samples it was asked for: the seats that it takes.
    pub(super) const fn num_samples(&self) -> usize {
        self.samples.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Notes when it first took part in a step, and what it found in the cache.
    pub(super) fn note_scheduled(&mut self, at: Timestamp, num_cached_tokens: usize) {
        self.first_scheduled_at.get_or_insert(at);
        // Samples after the first share its blocks and have no count of their own.
        self.num_cached_tokens = self.num_cached_tokens.max(num_cached_tokens);
    }

    /// Takes scores of a stretch of its prompt; the event, once all are there.
    pub(super) fn take_scores(
        &mut self,
        scores: PromptScores,
        at: Timestamp,
    ) -> Option<GenerationEvent> {
        self.note_scheduled(scores.first_scheduled_at, 0);
        if let Some(reason) = scores.stop {
            self.end(reason);
        }
        let wanted = self.scores.as_mut()?;
        let known = (wanted.found.len() + 1).saturating_sub(scores.first_position);
        wanted.found.extend(scores.logprobs.into_iter().skip(known));
        let complete = wanted.found.len() >= wanted.needed;
        let scores = self.scores.take_if(|_| complete)?;
        self.prefilled_at.get_or_insert(at);
        Some(GenerationEvent::PromptLogprobs { at, logprobs: scores.found })
    }

    /// Notes a token; `None` for a sample that has ended or never was. The last
    /// one carries what was still held back.
    pub(super) fn take_token(
        &mut self,
        sample: usize,
        drawn: DrawnToken,
        is_eos: bool,
        at: Timestamp,
    ) -> Option<Taken> {
        let state = self.samples.get_mut(sample).filter(|state| state.ended.is_none())?;
        self.prefilled_at.get_or_insert(at);
        self.first_token_at.get_or_insert(at);
        self.last_token_at = Some(at);
        state.num_output_tokens += 1;
        let mut piece = if is_eos { String::new() } else { state.detokenizer.push(drawn.id) };
        if drawn.stop.is_some() {
            piece.push_str(&state.detokenizer.finish());
        }
        let Shown { mut text, stopped } = state.stop.push(&piece);
        if drawn.stop.is_some() && !stopped {
            text.push_str(&state.stop.finish());
        }
        state.ended = if stopped { Some(StopReason::Stop) } else { drawn.stop };
        Some(Taken {
            event: GenerationEvent::Token {
                at,
                sample,
                id: drawn.id,
                text,
                logprobs: drawn.logprobs,
                stop: state.ended,
            },
            stopped_by_text: stopped && drawn.stop.is_none(),
        })
    }

    /// Whether every sample has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.samples.iter().all(|sample| sample.ended.is_some())
    }

    /// Ends what is left, for `reason`.
    fn end(&mut self, reason: StopReason) {
        for sample in &mut self.samples {
            sample.ended.get_or_insert(reason);
        }
    }

    /// The last event.
    pub(super) fn done(&self, reason: StopReason, at: Timestamp) -> GenerationEvent {
        let between = |start: Option<Timestamp>, end: Option<Timestamp>| match (start, end) {
            (Some(start), Some(end)) => end.since(start),
            _ => Duration::ZERO,
        };
        GenerationEvent::Done {
            at,
            reason,
            num_prompt_tokens: self.num_prompt_tokens,
            num_cached_tokens: self.num_cached_tokens,
            num_output_tokens: self.samples.iter().map(|sample| sample.num_output_tokens).sum(),
            timings: RequestTimings {
                queue: self.first_scheduled_at.unwrap_or(at).since(self.submitted_at),
                load: self.load,
                prefill: between(self.first_scheduled_at, self.prefilled_at),
                decode: between(self.first_token_at, self.last_token_at),
            },
        }
    }
}
