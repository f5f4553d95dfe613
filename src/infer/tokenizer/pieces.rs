//! The bytes that each token stands for. Characters may span tokens, bytes do
//! not: decoding is concatenation.

use std::collections::HashMap;

use serde_json::Value;

/// Text bytes of every token of a vocabulary, special ones without any.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// `[vocab_size + 1]`, piece `i` is `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    kinds: Vec<Kind>,
    strips_leading_space: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No token has this id.
    Absent,
    Text,
    Special,
}

/// How a tokenizer's tokens spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's alphabet: a printable character for each byte.
    ByteLevel,
    /// SentencePiece: `▁` for a space, `<0xE2>` for a byte.
    SentencePiece,
}

impl Pieces {
    /// Reads the vocabulary of a tokenizer whose decoder is one of the two
    /// known kinds.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, String> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|e| e.to_string())?;
        let spelling = Spelling::of(&decoder)?;
        let added = tokenizer.get_added_tokens_decoder();
        let vocabulary = tokenizer.get_vocab(true);
        let len = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        if len == 0 {
            return Err("the tokenizer's vocabulary is empty".to_owned());
        }
        // Ids come from the file: a lone huge one must not size an allocation.
        if len > 4 * vocabulary.len() + 1024 {
            return Err(format!(
                "the tokenizer has {} tokens with ids up to {}",
                vocabulary.len(),
                len - 1
            ));
        }
        let mut tokens: Vec<Option<String>> = vec![None; len];
        for (token, id) in vocabulary {
            tokens[id as usize] = Some(token);
        }
        let from_char = byte_level_alphabet();
        let mut pieces = Self::empty(spelling == Spelling::SentencePiece);
        for (token, id) in tokens.into_iter().zip(0..) {
            match token {
                None => pieces.push(&[], Kind::Absent),
                Some(_) if added.get(&id).is_some_and(|token| token.special) => {
                    pieces.push(&[], Kind::Special);
                }
                Some(token) => pieces.push(&spelling.bytes(&token, &from_char), Kind::Text),
            }
        }
        Ok(pieces)
    }

    /// A table of given texts; `None` is a special token.
    pub(super) fn from_texts(texts: impl Iterator<Item = Option<String>>) -> Self {
        let mut pieces = Self::empty(true);
        for text in texts {
            match text {
                Some(text) => pieces.push(text.as_bytes(), Kind::Text),
                None => pieces.push(&[], Kind::Special),
            }
        }
        pieces
    }

    fn empty(strips_leading_space: bool) -> Self {
        Self { bytes: Vec::new(), starts: vec![0], kinds: Vec::new(), strips_leading_space }
    }

    fn push(&mut self, bytes: &[u8], kind: Kind) {
        self.bytes.extend_from_slice(bytes);
        self.starts.push(self.bytes.len());
        self.kinds.push(kind);
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Bytes of a token, none for a special one; `None` for an unknown id.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        match self.kinds.get(index)? {
            Kind::Absent => None,
            Kind::Text | Kind::Special => {
                Some(&self.bytes[self.starts[index]..self.starts[index + 1]])
            }
        }
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Special)
    }

    /// Whether a text's first space is an artefact of the encoding.
    pub(super) const fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }
}

impl Spelling {
    fn of(decoder: &Value) -> Result<Self, String> {
        let kinds: Vec<&str> = match (decoder["type"].as_str(), &decoder["decoders"]) {
            (Some("Sequence"), Value::Array(steps)) => {
                steps.iter().filter_map(|step| step["type"].as_str()).collect()
            }
            (Some(kind), _) => vec![kind],
            (None, _) => return Err("the tokenizer has no decoder".to_owned()),
        };
        match kinds.as_slice() {
            ["ByteLevel"] => Ok(Self::ByteLevel),
            ["Metaspace"]
            | ["Replace", "ByteFallback", "Fuse"]
            | ["Replace", "ByteFallback", "Fuse", "Strip"] => Ok(Self::SentencePiece),
            other => Err(format!(
                "the tokenizer's decoder {} is not supported, expected ByteLevel or \
                 SentencePiece's",
                other.join("+")
            )),
        }
    }

    fn bytes(self, token: &str, from_char: &HashMap<char, u8>) -> Vec<u8> {
        match self {
            // A token with other characters was added as it is, as tokenizers has it.
            Self::ByteLevel => token
                .chars()
                .map(|c| from_char.get(&c).copied())
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
        }
    }
}

/// The byte of a token like `<0xE2>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the
/// others for the characters from U+0100 on, in order.
pub(super) fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut shifted = 0x100_u32;
    (0..=u8::MAX)
        .filter_map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let c = if printable {
                char::from(byte)
            } else {
                shifted += 1;
                char::from_u32(shifted - 1)?
            };
            Some((c, byte))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_alphabet_is_that_of_tokenizers() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert!(theirs.iter().all(|c| alphabet.contains_key(c)));
        assert_eq!(alphabet[&'Ġ'], b' ');
        assert_eq!(alphabet[&'Ċ'], b'\n');
    }

    #[test]
    fn byte_tokens_are_two_hex_digits() {
        assert_eq!(byte_token("<0xE2>"), Some(0xE2));
        assert_eq!(byte_token("<0xE2F>"), None);
        assert_eq!(byte_token("<0x+1>"), None);
        assert_eq!(byte_token("<0x>"), None);
    }
}
