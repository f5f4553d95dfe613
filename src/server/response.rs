//! Answers as OpenAI clients read them, whole and in chunks, in the shapes
//! that vLLM gives them.

use axum::body::Bytes;
use serde::Serialize;

use super::generate::Counts;
use super::logprobs::{ChatLogprobs, CompletionLogprobs, Logprobs, PromptPosition};

/// Which of the two routes is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Completion,
    Chat,
}

/// What is the same in every chunk of an answer.
pub(super) struct Envelope {
    pub(super) shape: Shape,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
}

/// A sample that has ended.
pub(super) struct Sample {
    pub(super) text: String,
    pub(super) logprobs: Option<Logprobs>,
    pub(super) finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Of a chat's prompt; a completion has them in its choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<&'a [PromptPosition]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageWire>,
}

#[derive(Serialize)]
struct UsageWire {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<&'a CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<&'a [PromptPosition]>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<&'a ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: Delta<'a>,
    logprobs: Option<&'a ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

impl Envelope {
    /// The first chunk of a chat's sample: the role, and no token.
    pub(super) fn role_chunk(&self, index: usize, usage: Option<Counts>) -> Bytes {
        let delta = Delta { role: Some("assistant"), content: "" };
        let choice = ChunkChoice { index, delta, logprobs: None, finish_reason: None };
        self.event("chat.completion.chunk", &[choice], usage)
    }

    /// A chunk of a sample's text, or with a finish reason its last one.
    pub(super) fn chunk(
        &self,
        index: usize,
        text: &str,
        logprobs: Option<&Logprobs>,
        finish_reason: Option<&'static str>,
        usage: Option<Counts>,
    ) -> Bytes {
        match self.shape {
            Shape::Completion => {
                let logprobs = logprobs.and_then(Logprobs::completion);
                let prompt_logprobs = None;
                let choice =
                    CompletionChoice { index, text, logprobs, finish_reason, prompt_logprobs };
                self.event("text_completion", &[choice], usage)
            }
            Shape::Chat => {
                let delta = Delta { role: None, content: text };
                let logprobs = logprobs.and_then(Logprobs::chat);
                let choice = ChunkChoice { index, delta, logprobs, finish_reason };
                self.event("chat.completion.chunk", &[choice], usage)
            }
        }
    }

    /// The chunk of `stream_options.include_usage`: no choices.
    pub(super) fn usage_chunk(&self, counts: Counts) -> Bytes {
        let none: &[CompletionChoice<'_>] = &[];
        let object = match self.shape {
            Shape::Completion => "text_completion",
            Shape::Chat => "chat.completion.chunk",
        };
        self.event(object, none, Some(counts))
    }

    /// The whole answer.
    pub(super) fn whole(
        &self,
        samples: &[Sample],
        prompt_logprobs: Option<&[PromptPosition]>,
        counts: Counts,
    ) -> Bytes {
        let numbered = || samples.iter().enumerate();
        match self.shape {
            Shape::Completion => {
                let choices: Vec<_> = numbered()
                    .map(|(index, sample)| CompletionChoice {
                        index,
                        text: &sample.text,
                        logprobs: sample.logprobs.as_ref().and_then(Logprobs::completion),
                        finish_reason: Some(sample.finish_reason),
                        prompt_logprobs,
                    })
                    .collect();
                self.json("text_completion", &choices, None, Some(counts)).into()
            }
            Shape::Chat => {
                let choices: Vec<_> = numbered()
                    .map(|(index, sample)| ChatChoice {
                        index,
                        message: Delta { role: Some("assistant"), content: &sample.text },
                        logprobs: sample.logprobs.as_ref().and_then(Logprobs::chat),
                        finish_reason: Some(sample.finish_reason),
                    })
                    .collect();
                self.json("chat.completion", &choices, prompt_logprobs, Some(counts)).into()
            }
        }
    }

    fn event<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: Option<Counts>,
    ) -> Bytes {
        event(&self.json(object, choices, None, usage))
    }

    fn json<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        prompt_logprobs: Option<&[PromptPosition]>,
        usage: Option<Counts>,
    ) -> Vec<u8> {
        let usage = usage.map(|counts| UsageWire {
            prompt_tokens: counts.num_prompt_tokens,
            total_tokens: counts.num_prompt_tokens + counts.num_output_tokens,
            completion_tokens: counts.num_output_tokens,
            prompt_tokens_details: counts
                .num_cached_tokens
                .map(|cached_tokens| PromptTokensDetails { cached_tokens }),
        });
        let message = Message {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            prompt_logprobs,
            usage,
        };
        #[expect(clippy::expect_used, reason = "strings and numbers always serialise")]
        serde_json::to_vec(&message).expect("strings and numbers always serialise")
    }
}

/// One server-sent event.
pub(super) fn event(data: &[u8]) -> Bytes {
    [b"data: ", data, b"\n\n"].concat().into()
}
