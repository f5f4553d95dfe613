//! A request's samples on their way to the client, whole or as a stream.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::error::ApiError;
use super::generate::{Counts, Follower, Step};
use super::logprobs::{CompletionLogprobs, Logprobs, prompt_positions};
use super::request::Input;
use super::response::{Envelope, Sample, Shape, event};
use crate::infer::Tokenizer;
use crate::infer::host::TokenLogprobs;

/// The last event of every stream.
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// An answer on its way.
pub(super) struct Answer {
    pub(super) envelope: Envelope,
    pub(super) tokenizer: Tokenizer,
    /// Most likely tokens to report with each drawn one.
    pub(super) logprobs: Option<usize>,
    /// Most likely tokens to report at each position of the prompt.
    pub(super) prompt_logprobs: Option<usize>,
    /// What each sample's text begins with.
    pub(super) echo: Option<Input>,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    /// Characters shown so far, by sample.
    pub(super) num_chars: Vec<usize>,
}

impl Answer {
    pub(super) async fn whole(mut self, mut follower: Follower) -> Result<Response, ApiError> {
        let shape = self.envelope.shape;
        let sample = |_: &usize| Sample {
            text: String::new(),
            logprobs: self.logprobs.map(|_| Logprobs::new(shape)),
            finish_reason: "",
        };
        let mut samples: Vec<_> = self.num_chars.iter().map(sample).collect();
        let mut scores = None;
        loop {
            match follower.next().await {
                Some(Step::Prompt { logprobs }) => {
                    let (text, echoed) = self.echoed(&follower.prompt_ids, &logprobs);
                    for sample in &mut samples {
                        sample.text.push_str(&text);
                        if echoed.is_some() {
                            sample.logprobs.clone_from(&echoed);
                        }
                    }
                    scores = Some(logprobs);
                }
                Some(Step::Text { sample, text, token }) => {
                    let offset = self.advance(sample, &text);
                    let Some(sample) = samples.get_mut(sample) else { continue };
                    if let (Some(logprobs), Some((id, token))) = (&mut sample.logprobs, token) {
                        logprobs.push(&self.tokenizer, id, &token, offset);
                    }
                    sample.text.push_str(&text);
                }
                Some(Step::SampleEnd { sample, reason }) => {
                    if let Some(sample) = samples.get_mut(sample) {
                        sample.finish_reason = reason;
                    }
                }
                Some(Step::End) => break,
                Some(Step::Failed(error)) => return Err(error),
                None => return Err(ApiError::bad_request("the request has ended already")),
            }
        }
        let positions = self.prompt_logprobs.map(|top| {
            let scores = scores.as_deref().unwrap_or_default();
            prompt_positions(&self.tokenizer, &follower.prompt_ids, scores, top)
        });
        let body = self.envelope.whole(&samples, positions.as_deref(), follower.counts);
        Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
    }

    pub(super) fn stream(self, follower: Follower) -> Response {
        let begun = vec![false; self.num_chars.len()];
        let events =
            Events { answer: self, follower, waiting: VecDeque::new(), begun, ended: false };
        // Dropping this, as hyper does when the client goes away, drops the generation.
        let events = stream::unfold(events, |mut events| async move {
            let event = events.next().await?;
            Some((Ok::<Bytes, Infallible>(event), events))
        });
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Body::from_stream(events)).into_response()
    }

    /// What each sample begins with, and where it stands then.
    fn echoed(&mut self, ids: &[u32], scores: &[TokenLogprobs]) -> (String, Option<Logprobs>) {
        let text = match &self.echo {
            None => return (String::new(), None),
            Some(Input::Text(text)) => text.clone(),
            Some(Input::Ids(_) | Input::Chat(_)) => self.tokenizer.decode(ids).unwrap_or_default(),
        };
        let num_chars = text.chars().count();
        self.num_chars.fill(num_chars);
        let logprobs = self.logprobs.map(|top| {
            let wire = CompletionLogprobs::of_prompt(&self.tokenizer, ids, scores, top);
            Logprobs::Completion(wire)
        });
        (text, logprobs)
    }

    /// Counts a sample's text; the characters before it.
    fn advance(&mut self, sample: usize, text: &str) -> usize {
        let Some(num_chars) = self.num_chars.get_mut(sample) else { return 0 };
        let before = *num_chars;
        *num_chars += text.chars().count();
        before
    }

    fn continuous(&self, counts: Counts) -> Option<Counts> {
        self.continuous_usage.then_some(counts)
    }
}

/// The server-sent events of an answer.
struct Events {
    answer: Answer,
    follower: Follower,
    waiting: VecDeque<Bytes>,
    /// By sample: a chat's role has gone out.
    begun: Vec<bool>,
    ended: bool,
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        while self.waiting.is_empty() && !self.ended {
            let step = self.follower.next().await;
            self.push(step);
        }
        self.waiting.pop_front()
    }

    /// The events of one step. A token that completes no text has none.
    fn push(&mut self, step: Option<Step>) {
        let counts = self.follower.counts;
        match step {
            Some(Step::Prompt { logprobs }) => {
                let (text, echoed) = self.answer.echoed(&self.follower.prompt_ids, &logprobs);
                if self.answer.echo.is_some() {
                    for index in 0..self.begun.len() {
                        self.chunk(index, &text, echoed.as_ref(), None);
                    }
                }
            }
            Some(Step::Text { sample, text, token }) => {
                self.begin(sample);
                let offset = self.answer.advance(sample, &text);
                let logprobs = token.map(|(id, token)| {
                    let mut logprobs = Logprobs::new(self.answer.envelope.shape);
                    logprobs.push(&self.answer.tokenizer, id, &token, offset);
                    logprobs
                });
                if !text.is_empty() || logprobs.is_some() {
                    self.chunk(sample, &text, logprobs.as_ref(), None);
                }
            }
            Some(Step::SampleEnd { sample, reason }) => {
                self.begin(sample);
                self.chunk(sample, "", None, Some(reason));
            }
            Some(Step::End) => {
                if self.answer.include_usage {
                    self.waiting.push_back(self.answer.envelope.usage_chunk(counts));
                }
                self.end();
            }
            Some(Step::Failed(error)) => {
                self.waiting.push_back(event(error.body().to_string().as_bytes()));
                self.end();
            }
            None => self.end(),
        }
    }

    /// As vLLM has it: the role goes out with the first token, not before.
    fn begin(&mut self, sample: usize) {
        let is_chat = self.answer.envelope.shape == Shape::Chat;
        if let Some(begun) = self.begun.get_mut(sample)
            && !std::mem::replace(begun, true)
            && is_chat
        {
            let counts = Counts { num_output_tokens: 0, ..self.follower.counts };
            let usage = self.answer.continuous(counts);
            self.waiting.push_back(self.answer.envelope.role_chunk(sample, usage));
        }
    }

    fn chunk(
        &mut self,
        sample: usize,
        text: &str,
        logprobs: Option<&Logprobs>,
        reason: Option<&'static str>,
    ) {
        let usage = self.answer.continuous(self.follower.counts);
        let chunk = self.answer.envelope.chunk(sample, text, logprobs, reason, usage);
        self.waiting.push_back(chunk);
    }

    fn end(&mut self) {
        self.waiting.push_back(DONE);
        self.ended = true;
    }
}
