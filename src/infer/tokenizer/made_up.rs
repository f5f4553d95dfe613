//! A vocabulary for shapes that have none at hand. Knows no language.

use super::pieces::Pieces;
use crate::infer::ModelConfig;

/// Every id has a word of `width` letters; words are separated by spaces.
pub(super) struct MadeUp {
    vocab_size: u32,
    width: usize,
    special: Vec<u32>,
}

const LETTERS: u32 = 26;

impl MadeUp {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let vocab_size = u32::try_from(config.vocab_size).unwrap_or(u32::MAX);
        let mut width = 1;
        while LETTERS.checked_pow(width).is_some_and(|words| words < vocab_size) {
            width += 1;
        }
        let mut special = config.eos_token_ids.clone();
        special.extend(config.bos_token_id);
        Self { vocab_size, width: width as usize, special }
    }

    /// The text of every id, with a space in front; none for special ones.
    pub(super) fn pieces(&self) -> Pieces {
        Pieces::from_texts(
            (0..self.vocab_size)
                .map(|id| (!self.special.contains(&id)).then(|| format!(" {}", self.word(id)))),
        )
    }

    /// Ids of any text: its own words are themselves, other words are cut in
    /// pieces of a word's width and hashed.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for word in text.split_whitespace() {
            if let Some(id) = self.id(word) {
                ids.push(id);
                continue;
            }
            let chars: Vec<char> = word.chars().collect();
            ids.extend(chars.chunks(self.width).filter_map(|piece| self.hashed(piece)));
        }
        ids
    }

    fn word(&self, mut id: u32) -> String {
        let mut letters = vec![b'a'; self.width];
        for letter in letters.iter_mut().rev() {
            *letter += (id % LETTERS) as u8;
            id /= LETTERS;
        }
        letters.into_iter().map(char::from).collect()
    }

    fn id(&self, word: &str) -> Option<u32> {
        if word.len() != self.width || !word.bytes().all(|b| b.is_ascii_lowercase()) {
            return None;
        }
        let id = word.bytes().try_fold(0_u32, |id, letter| {
            id.checked_mul(LETTERS)?.checked_add(u32::from(letter - b'a'))
        })?;
        (id < self.vocab_size && !self.special.contains(&id)).then_some(id)
    }

    /// FNV-1a, moved past special ids; `None` if there are no others.
    fn hashed(&self, piece: &[char]) -> Option<u32> {
        let hash = piece
            .iter()
            .fold(0x811c_9dc5_u32, |hash, c| (hash ^ u32::from(*c)).wrapping_mul(0x0100_0193));
        let first = hash % self.vocab_size.max(1);
        (first..self.vocab_size).chain(0..first).find(|id| !self.special.contains(id))
    }
}
