//! Prompts of an exact number of tokens whose text encodes to exactly those
//! tokens, made of words that are one token each.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Tokenizer;
use crate::infer::InferError;

/// Words kept of a vocabulary: enough for distinct prompts, few enough to
/// check each of them.
const MAX_WORDS: usize = 4096;
/// Letters of an ordinary word.
const ORDINARY: std::ops::RangeInclusive<usize> = 3..=12;
/// With at least so many ordinary words, shorter and longer ones are left out.
const ENOUGH: usize = 256;
/// Below so many words no two prompts could be told apart.
const MIN_WORDS: usize = 8;
/// Draws until a text encodes to its own ids.
const ATTEMPTS: u64 = 16;
/// Longest prompt.
const MAX_TOKENS: usize = 1 << 20;

/// Words of a vocabulary that are one token where they stand.
pub(super) struct Words {
    /// At the start of a text.
    first: Vec<(u32, String)>,
    /// After a space.
    next: Vec<(u32, String)>,
}

impl Words {
    /// Tries the vocabulary's alphabetic tokens, in the order of their ids.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let candidates: Vec<(u32, &str)> = (0..)
            .take(tokenizer.vocab_size())
            .filter(|id| !tokenizer.is_special(*id))
            .filter_map(|id| Some((id, word(tokenizer.0.pieces.get(id)?)?)))
            .collect();
        let ordinary: Vec<_> = candidates
            .iter()
            .filter(|(_, word)| ORDINARY.contains(&word.trim_start().len()))
            .copied()
            .collect();
        let candidates = if ordinary.len() >= ENOUGH { ordinary } else { candidates };
        let single = |text: &str| match tokenizer.encode(text, false) {
            Ok(ids) if ids.len() == 1 => Some(ids[0]),
            _ => None,
        };
        let first: Vec<(u32, String)> = candidates
            .iter()
            .filter_map(|(id, piece)| {
                let text = piece.trim_start();
                (single(text)? == *id).then(|| (*id, text.to_owned()))
            })
            .take(MAX_WORDS)
            .collect();
        let Some((anchor, anchor_text)) = first.first().cloned() else {
            return Self { first, next: Vec::new() };
        };
        let next = candidates
            .iter()
            .filter(|(_, piece)| piece.starts_with(' '))
            .filter(|(id, piece)| {
                let pair = tokenizer.encode(&format!("{anchor_text}{piece}"), false);
                pair.is_ok_and(|ids| ids == [anchor, *id])
            })
            .map(|(id, piece)| (*id, (*piece).to_owned()))
            .take(MAX_WORDS)
            .collect();
        Self { first, next }
    }

    /// The prompt number `index` under `seed`.
    pub(super) fn prompt(
        &self,
        tokenizer: &Tokenizer,
        num_tokens: usize,
        seed: u64,
        index: u64,
    ) -> Result<(Vec<u32>, String), InferError> {
        if !(1..=MAX_TOKENS).contains(&num_tokens) {
            return Err(InferError::Request(format!(
                "a prompt of {num_tokens} tokens cannot be made, expected 1 to {MAX_TOKENS}"
            )));
        }
        if self.first.len() < MIN_WORDS || self.next.len() < MIN_WORDS {
            return Err(InferError::Request(format!(
                "the tokenizer has {} words that can begin a prompt and {} that can go on, \
                 synthetic prompts need {MIN_WORDS} of each",
                self.first.len(),
                self.next.len()
            )));
        }
        for attempt in 0..ATTEMPTS {
            let (ids, text) = self.draw(num_tokens, seed, index, attempt);
            if tokenizer.encode(&text, false)? == ids {
                return Ok((ids, text));
            }
        }
        Err(InferError::Request(format!(
            "no text of {num_tokens} tokens encodes to exactly its own tokens"
        )))
    }

    fn draw(&self, num_tokens: usize, seed: u64, index: u64, attempt: u64) -> (Vec<u32>, String) {
        let mut order: Vec<usize> = (0..self.first.len()).collect();
        order.shuffle(&mut generator(&[seed]));
        let turn = usize::try_from(index % order.len() as u64).unwrap_or(0);
        let (id, word) = &self.first[order[turn]];
        let (mut ids, mut text) = (vec![*id], word.clone());
        let mut draws = generator(&[seed, index, attempt]);
        for _ in 1..num_tokens {
            let (id, word) = &self.next[draws.random_range(0..self.next.len())];
            ids.push(*id);
            text.push_str(word);
        }
        (ids, text)
    }
}

/// Letters with at most one space in front: `the`, ` The`.
fn word(piece: &[u8]) -> Option<&str> {
    let letters = piece.strip_prefix(b" ").unwrap_or(piece);
    let (first, rest) = letters.split_first()?;
    let plain = first.is_ascii_alphabetic() && rest.iter().all(u8::is_ascii_lowercase);
    plain.then(|| std::str::from_utf8(piece).ok())?
}

/// A generator of its own for every combination of numbers.
fn generator(numbers: &[u64]) -> ChaCha8Rng {
    let mut key = [0_u8; 32];
    for (part, number) in key.chunks_exact_mut(8).zip(numbers) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    key[31] = u8::try_from(numbers.len()).unwrap_or(u8::MAX);
    ChaCha8Rng::from_seed(key)
}
