//! Mooncake's traces: JSON lines with `timestamp` (ms), `input_length`,
//! `output_length` (tokens) and `hash_ids`, an id for each block of 512 prompt
//! tokens; equal ids are equal prefixes. Other fields are not heeded.

use std::path::Path;

use serde::Deserialize;

use super::{
    BLOCK_TOKENS, Conversation, MAX_CONVERSATIONS, SourceError, Turn, lines, seconds, tokens,
};

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

pub(super) fn read(path: &Path) -> Result<Vec<Conversation>, SourceError> {
    let mut found = Vec::new();
    lines(path, |_, text| {
        let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
        found.push(conversation(line)?);
        Ok(found.len() < MAX_CONVERSATIONS)
    })?;
    Ok(found)
}

fn conversation(line: Line) -> Result<Conversation, String> {
    let at = seconds("timestamp", line.timestamp / 1e3)?;
    let prompt_tokens = tokens("input_length", line.input_length)?;
    let output_tokens = tokens("output_length", line.output_length)?;
    let (got, expected) = (line.hash_ids.len(), prompt_tokens.div_ceil(BLOCK_TOKENS));
    if got != 0 && got != expected as usize {
        return Err(format!(
            "`hash_ids` has {got} blocks of {BLOCK_TOKENS} tokens: expected {expected} for an \
             `input_length` of {prompt_tokens}"
        ));
    }
    let turn = Turn::Lengths { prompt_tokens, output_tokens, blocks: line.hash_ids };
    Ok(Conversation { at, turns: vec![turn] })
}
