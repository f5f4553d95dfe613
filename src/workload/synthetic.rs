//! Prompts made of words, of an exact number of tokens where the model's
//! tokenizer is at hand, alone or of segments that other prompts share.

use rand::Rng;

use super::Workload;
use crate::engine::Prompt;
use crate::infer::{InferError, Tokenizer};
use crate::plan::Lengths;
use crate::workload::source::BLOCK_TOKENS;

/// Numbers of shared segments have this bit, those of requests do not.
const SHARED: u64 = 1 << 62;

/// A stretch of a prompt: the first `tokens` words of the text with that number.
#[derive(Debug, Clone, Copy)]
struct Segment {
    number: u64,
    tokens: u32,
}

impl Workload {
    /// The prompt with that number.
    pub(super) fn synthetic(&self, num_tokens: u32, number: u64) -> Result<Prompt, InferError> {
        self.join(&[Segment { number, tokens: num_tokens }])
    }

    /// A prompt behind the prefix of group `group`.
    pub(super) fn behind_prefix(
        &self,
        (group, prefix_tokens): (u32, u32),
        num_tokens: u32,
        number: u64,
    ) -> Result<Prompt, InferError> {
        let prefix = Segment { number: SHARED | u64::from(group), tokens: prefix_tokens };
        self.join(&[prefix, Segment { number, tokens: num_tokens }])
    }

    /// A prompt of blocks: equal ids are equal tokens. Without ids it is of its own.
    pub(super) fn of_blocks(
        &self,
        blocks: &[u64],
        num_tokens: u32,
        number: u64,
    ) -> Result<Prompt, InferError> {
        if blocks.is_empty() {
            return self.synthetic(num_tokens, number);
        }
        let mut left = num_tokens;
        let mut segments = Vec::new();
        for id in blocks {
            let tokens = left.min(BLOCK_TOKENS);
            left -= tokens;
            // Ids are small numbers in every trace; the bit keeps them apart from prefixes.
            segments.push(Segment { number: SHARED | (1 << 61) | (id & !(7 << 61)), tokens });
        }
        self.join(&segments)
    }

    /// A length of that distribution, the same for the same number.
    pub(super) fn length(&self, lengths: &Lengths, number: u64, what: u64) -> u32 {
        super::lengths::draw(lengths, &mut self.generator(number | (what << 62)))
    }

    fn join(&self, segments: &[Segment]) -> Result<Prompt, InferError> {
        let Some(tokenizer) = &self.tokenizer else {
            let texts = segments.iter().map(|segment| self.words(segment.tokens, segment.number));
            return Ok(Prompt::Raw(texts.collect()));
        };
        let (mut ids, mut text) = (Vec::new(), String::new());
        for segment in segments {
            let (more, words) = cut(tokenizer, self.seed, *segment, ids.is_empty())?;
            ids.extend(more);
            text.push_str(&words);
        }
        // Each segment was checked alone; words that meet at a seam could merge.
        if segments.len() > 1 && tokenizer.encode(&text, false)? != ids {
            return Err(InferError::Request(format!(
                "a prompt of {} joined segments does not encode to its own tokens",
                segments.len()
            )));
        }
        Ok(Prompt::Tokens { ids, text })
    }

    /// About one token a word in every common vocabulary.
    fn words(&self, num_words: u32, number: u64) -> String {
        const WORDS: [&str; 16] = [
            "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child",
            "world", "school", "state", "family", "group", "country",
        ];
        let mut generator = self.generator(number);
        let mut text = String::new();
        for _ in 0..num_words {
            text.push(' ');
            text.push_str(WORDS[generator.random_range(0..WORDS.len())]);
        }
        text
    }
}

/// Ids and text of a segment. One that goes on after another has no word that
/// could only begin a text: it is drawn one longer and loses its first word.
fn cut(
    tokenizer: &Tokenizer,
    seed: u64,
    segment: Segment,
    begins: bool,
) -> Result<(Vec<u32>, String), InferError> {
    let tokens = segment.tokens as usize;
    if begins {
        return tokenizer.exact_prompt(tokens, seed, segment.number);
    }
    let (mut ids, text) = tokenizer.exact_prompt(tokens + 1, seed, segment.number)?;
    ids.remove(0);
    let from = text.find(' ').unwrap_or(text.len());
    Ok((ids, text[from..].to_owned()))
}
