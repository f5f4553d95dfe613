//! Log-probabilities as OpenAI clients read them, in the shape of each route,
//! and those of a prompt in the shape that vLLM gives them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::response::Shape;
use crate::infer::Tokenizer;
use crate::infer::host::TokenLogprobs;

/// Log-probabilities of a piece of an answer, in the shape of its route.
#[derive(Clone)]
pub(super) enum Logprobs {
    Completion(CompletionLogprobs),
    Chat(ChatLogprobs),
}

/// An entry is null for the first token of an echoed prompt, which has nothing before it.
#[derive(Serialize, Default, Clone)]
pub(super) struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    /// Token text to log-probability, best first.
    top_logprobs: Vec<Option<Map<String, Value>>>,
}

#[derive(Serialize, Default, Clone)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatTokenLogprob>,
}

#[derive(Serialize, Clone)]
struct ChatTokenLogprob {
    #[serde(flatten)]
    token: ChatTopLogprob,
    top_logprobs: Vec<ChatTopLogprob>,
}

#[derive(Serialize, Clone)]
struct ChatTopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// One position of a prompt: token id to what is known of it; null for the first.
pub(super) type PromptPosition = Option<BTreeMap<u32, PromptToken>>;

#[derive(Serialize)]
pub(super) struct PromptToken {
    logprob: f32,
    /// From 1; null for a prompt token that is not among the most likely.
    rank: Option<usize>,
    decoded_token: String,
}

/// Text of one token. Special ones have none; ids are in range by construction.
fn text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode(&[id]).unwrap_or_default()
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
        match self {
            Self::Completion(wire) => wire.push(tokenizer, id, Some(logprobs), offset),
            Self::Chat(wire) => {
                let token = |&(id, logprob): &(u32, f32)| {
                    let token = text(tokenizer, id);
                    ChatTopLogprob { bytes: token.clone().into_bytes(), token, logprob }
                };
                wire.content.push(ChatTokenLogprob {
                    token: token(&(id, logprobs.logprob)),
                    top_logprobs: logprobs.top.iter().map(token).collect(),
                });
            }
        }
    }

    pub(super) fn completion(&self) -> Option<&CompletionLogprobs> {
        match self {
            Self::Completion(wire) => Some(wire),
            Self::Chat(_) => None,
        }
    }

    pub(super) fn chat(&self) -> Option<&ChatLogprobs> {
        match self {
            Self::Chat(wire) => Some(wire),
            Self::Completion(_) => None,
        }
    }
}

impl CompletionLogprobs {
    /// Those of an echoed prompt, whose scores begin at its second token and
    /// have `top` most likely tokens each.
    pub(super) fn of_prompt(
        tokenizer: &Tokenizer,
        ids: &[u32],
        scores: &[TokenLogprobs],
        top: usize,
    ) -> Self {
        let mut wire = Self::default();
        let mut stream = tokenizer.stream();
        let mut offset = 0;
        let cut = |score: &TokenLogprobs| TokenLogprobs {
            logprob: score.logprob,
            top: score.top.iter().take(top).copied().collect(),
        };
        let scores = std::iter::once(None).chain(scores.iter().map(|score| Some(cut(score))));
        for (id, score) in ids.iter().zip(scores) {
            wire.push(tokenizer, *id, score.as_ref(), offset);
            offset += stream.push(*id).chars().count();
        }
        wire
    }

    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        logprobs: Option<&TokenLogprobs>,
        offset: usize,
    ) {
        let top = |logprobs: &TokenLogprobs| {
            logprobs
                .top
                .iter()
                .map(|(id, logprob)| (text(tokenizer, *id), (*logprob).into()))
                .collect()
        };
        self.text_offset.push(offset);
        self.token_logprobs.push(logprobs.map(|logprobs| logprobs.logprob));
        self.tokens.push(text(tokenizer, id));
        self.top_logprobs.push(logprobs.map(top));
    }
}

/// vLLM's `prompt_logprobs`: an entry a prompt token, the first one null.
pub(super) fn prompt_positions(
    tokenizer: &Tokenizer,
    ids: &[u32],
    scores: &[TokenLogprobs],
    top: usize,
) -> Vec<PromptPosition> {
    let position = |(id, score): (&u32, &TokenLogprobs)| {
        let token = |id: u32, logprob: f32, rank: Option<usize>| {
            (id, PromptToken { logprob, rank, decoded_token: text(tokenizer, id) })
        };
        let ranked = (1..).zip(score.top.iter().take(top));
        let mut position: BTreeMap<_, _> =
            ranked.map(|(rank, (id, logprob))| token(*id, *logprob, Some(rank))).collect();
        let own = || {
            let rank = score.top.iter().position(|(known, _)| known == id);
            token(*id, score.logprob, rank.map(|at| at + 1)).1
        };
        position.entry(*id).or_insert_with(own);
        Some(position)
    };
    std::iter::once(None).chain(ids.iter().skip(1).zip(scores).map(position)).collect()
}
