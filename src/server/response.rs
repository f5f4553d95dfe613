//! Answers as OpenAI clients read them, whole and in chunks, in the shapes
//! that vLLM gives them.

use axum::body::Bytes;
use serde::Serialize;

use super::generate::Counts;
use crate::infer::Tokenizer;
use crate::infer::host::TokenLogprobs;

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

#[derive(Serialize)]
struct Message<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageWire>,
}

#[derive(Serialize)]
struct UsageWire {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<&'a CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
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
    index: u32,
    message: Delta<'a>,
    logprobs: Option<&'a ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Log-probabilities of a piece of an answer, in the shape of its route.
pub(super) enum Logprobs {
    Completion(CompletionLogprobs),
    Chat(ChatLogprobs),
}

#[derive(Serialize, Default)]
pub(super) struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    /// Token text to log-probability, best first.
    top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Serialize, Default)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatTokenLogprob>,
}

#[derive(Serialize)]
struct ChatTokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatTopLogprob>,
}

#[derive(Serialize)]
struct ChatTopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Logprobs {
    pub(super) fn new(shape: Shape) -> Self {
        match shape {
            Shape::Completion => Self::Completion(CompletionLogprobs::default()),
            Shape::Chat => Self::Chat(ChatLogprobs::default()),
        }
    }

    /// Adds the token that begins `offset` characters into the answer.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        logprobs: &TokenLogprobs,
        offset: usize,
    ) {
        // Special tokens decode to nothing; their ids are in range by construction.
        let text = |id: u32| tokenizer.decode(&[id]).unwrap_or_default();
        match self {
            Self::Completion(wire) => {
                let top = logprobs.top.iter();
                wire.text_offset.push(offset);
                wire.token_logprobs.push(logprobs.logprob);
                wire.tokens.push(text(id));
                wire.top_logprobs
                    .push(top.map(|(id, logprob)| (text(*id), (*logprob).into())).collect());
            }
            Self::Chat(wire) => {
                let top = |&(id, logprob): &(u32, f32)| {
                    let token = text(id);
                    ChatTopLogprob { bytes: token.clone().into_bytes(), token, logprob }
                };
                let token = text(id);
                wire.content.push(ChatTokenLogprob {
                    bytes: token.clone().into_bytes(),
                    token,
                    logprob: logprobs.logprob,
                    top_logprobs: logprobs.top.iter().map(top).collect(),
                });
            }
        }
    }

    fn completion(&self) -> Option<&CompletionLogprobs> {
        match self {
            Self::Completion(wire) => Some(wire),
            Self::Chat(_) => None,
        }
    }

    fn chat(&self) -> Option<&ChatLogprobs> {
        match self {
            Self::Chat(wire) => Some(wire),
            Self::Completion(_) => None,
        }
    }
}

impl Envelope {
    /// The first chunk of a chat: the role, and no token.
    pub(super) fn role_chunk(&self, usage: Option<Counts>) -> Bytes {
        let delta = Delta { role: Some("assistant"), content: "" };
        let choice = ChunkChoice { index: 0, delta, logprobs: None, finish_reason: None };
        self.event("chat.completion.chunk", &[choice], usage)
    }

    /// A chunk of text, or with a finish reason the last one.
    pub(super) fn chunk(
        &self,
        text: &str,
        logprobs: Option<&Logprobs>,
        finish_reason: Option<&'static str>,
        usage: Option<Counts>,
    ) -> Bytes {
        match self.shape {
            Shape::Completion => {
                let logprobs = logprobs.and_then(Logprobs::completion);
                let choice = CompletionChoice { index: 0, text, logprobs, finish_reason };
                self.event("text_completion", &[choice], usage)
            }
            Shape::Chat => {
                let delta = Delta { role: None, content: text };
                let logprobs = logprobs.and_then(Logprobs::chat);
                let choice = ChunkChoice { index: 0, delta, logprobs, finish_reason };
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
        text: &str,
        logprobs: Option<&Logprobs>,
        reason: &'static str,
        counts: Counts,
    ) -> Bytes {
        let (index, finish_reason) = (0, Some(reason));
        match self.shape {
            Shape::Completion => {
                let logprobs = logprobs.and_then(Logprobs::completion);
                let choice = CompletionChoice { index, text, logprobs, finish_reason };
                self.json("text_completion", &[choice], Some(counts)).into()
            }
            Shape::Chat => {
                let message = Delta { role: Some("assistant"), content: text };
                let logprobs = logprobs.and_then(Logprobs::chat);
                let choice = ChatChoice { index, message, logprobs, finish_reason };
                self.json("chat.completion", &[choice], Some(counts)).into()
            }
        }
    }

    fn event<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: Option<Counts>,
    ) -> Bytes {
        event(&self.json(object, choices, usage))
    }

    fn json<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: Option<Counts>,
    ) -> Vec<u8> {
        let usage = usage.map(|counts| UsageWire {
            prompt_tokens: counts.num_prompt_tokens,
            total_tokens: counts.num_prompt_tokens + counts.num_output_tokens,
            completion_tokens: counts.num_output_tokens,
        });
        let message = Message {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
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
