//! Incremental decoding of one stream of tokens.

use std::sync::Arc;

use super::Inner;

/// Incremental decoding of one sequence. Text comes out as soon as its
/// characters are whole; the texts of all calls together are those of
/// [`super::Tokenizer::decode`], but that a first space is kept: a stream goes
/// on where its prompt ended.
pub struct Detokenizer {
    tokenizer: Arc<Inner>,
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(super) const fn new(tokenizer: Arc<Inner>) -> Self {
        Self { tokenizer, pending: Vec::new() }
    }

    /// Takes the next token; returns the text that became complete, maybe
    /// none. An id without a token (models pad their embeddings) has no text.
    pub fn push(&mut self, id: u32) -> String {
        if let Some(piece) = self.tokenizer.pieces.get(id) {
            self.pending.extend_from_slice(piece);
        }
        take_complete(&mut self.pending)
    }

    /// What is still pending at the end, invalid bytes replaced.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Removes and returns all whole characters; invalid bytes become U+FFFD as
/// `String::from_utf8_lossy` has it, an unfinished character stays.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(pending) {
            Ok(valid) => {
                text.push_str(valid);
                pending.clear();
                return text;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&pending[..valid]));
                let Some(invalid) = error.error_len() else {
                    pending.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                pending.drain(..valid + invalid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_split_of_any_bytes_gives_the_lossy_text(
            chunks in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..4),
                    "\\PC{0,2}".prop_map(|text| text.into_bytes()),
                ],
                0..20,
            )
        ) {
            let mut pending = Vec::new();
            let mut text = String::new();
            for chunk in &chunks {
                pending.extend_from_slice(chunk);
                text.push_str(&take_complete(&mut pending));
                prop_assert!(pending.len() < 4);
            }
            text.push_str(&String::from_utf8_lossy(&pending));
            prop_assert_eq!(text, String::from_utf8_lossy(&chunks.concat()).into_owned());
        }
    }
}
