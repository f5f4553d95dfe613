//! Conversations in ShareGPT's format: a JSON array of objects with
//! `conversations`, a list of `from` (`human` or `user`, `gpt` or `assistant`)
//! and `value`. What precedes the first human turn is left out, and so is a
//! human turn without an answer. Of a large file an even sample is kept.

use std::fmt;
use std::io::Read;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde::de::{Deserializer as _, SeqAccess, Visitor};

use super::{Conversation, SourceError, Turn, open};

/// Conversations kept of a larger file.
const MAX_KEPT: usize = 20_000;
/// Largest file in bytes that is read.
const MAX_BYTES: u64 = 4 << 30;
/// Longest message in bytes; a conversation with a longer one is left out.
const MAX_MESSAGE: usize = 1 << 20;

#[derive(Deserialize)]
struct WireConversation {
    #[serde(default, alias = "conversation")]
    conversations: Vec<WireMessage>,
}

#[derive(Deserialize)]
struct WireMessage {
    #[serde(default, alias = "role")]
    from: String,
    #[serde(default, alias = "content")]
    value: String,
}

pub(super) fn read(path: &Path) -> Result<Vec<Conversation>, SourceError> {
    let reader = open(path)?.take(MAX_BYTES);
    let mut json = serde_json::Deserializer::from_reader(reader);
    json.deserialize_seq(Sample).map_err(|error| SourceError::Line {
        path: path.to_owned(),
        line: error.line().max(1),
        reason: error.to_string(),
    })
}

/// Takes one conversation after the other, so that no more than the sample is in memory.
struct Sample;

impl<'de> Visitor<'de> for Sample {
    type Value = Vec<Conversation>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of conversations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut kept: Vec<Conversation> = Vec::new();
        // Always the same draws: which sample is kept does not depend on the run.
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        let mut seen = 0_usize;
        while let Some(wire) = sequence.next_element::<WireConversation>()? {
            let Some(conversation) = conversation(wire) else { continue };
            seen += 1;
            if kept.len() < MAX_KEPT {
                kept.push(conversation);
            } else if let Some(place) = kept.get_mut(generator.random_range(0..seen)) {
                *place = conversation;
            }
        }
        Ok(kept)
    }
}

fn conversation(wire: WireConversation) -> Option<Conversation> {
    let mut messages = wire
        .conversations
        .into_iter()
        .skip_while(|message| !is_human(&message.from))
        .take_while(|message| message.value.len() <= MAX_MESSAGE);
    let mut turns = Vec::new();
    while let (Some(human), Some(answer)) = (messages.next(), messages.next()) {
        let in_turn = is_human(&human.from) && is_answer(&answer.from);
        if !in_turn || human.value.trim().is_empty() || answer.value.trim().is_empty() {
            break;
        }
        turns.push(Turn::Text { prompt: human.value, answer: answer.value });
    }
    (!turns.is_empty()).then_some(Conversation { turns, ..Conversation::default() })
}

fn is_human(from: &str) -> bool {
    matches!(from, "human" | "user")
}

fn is_answer(from: &str) -> bool {
    matches!(from, "gpt" | "assistant" | "chatgpt" | "bing" | "bard")
}
