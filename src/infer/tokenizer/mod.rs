//! Text to token ids and back, with the model's chat template. Knows no
//! weights and no request.

mod detokenizer;
mod files;
mod guard;
mod made_up;
mod pieces;
mod rebuilt;
mod synthetic;
mod template;

use std::sync::{Arc, OnceLock};

pub use self::detokenizer::Detokenizer;
use self::guard::guarded;
use self::made_up::MadeUp;
use self::pieces::Pieces;
pub(crate) use self::rebuilt::GgufVocabulary;
use self::synthetic::Words;
use self::template::ChatTemplate;
use super::{InferError, ModelConfig};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A model's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    encoder: Encoder,
    pieces: Pieces,
    template: Option<ChatTemplate>,
    added_bos: Option<u32>,
    words: OnceLock<Words>,
}

enum Encoder {
    /// What `tokenizer.json` or GGUF metadata describe.
    Real(Box<tokenizers::Tokenizer>),
    /// For shapes without a vocabulary.
    MadeUp(MadeUp),
}

impl Tokenizer {
    /// A tokenizer for a shape that has none: every id has a word of its own,
    /// so that `encode(decode(ids)) == ids`, and any text has ids. What a
    /// vocabulary should be like it does not claim.
    #[must_use]
    pub fn made_up(config: &ModelConfig) -> Self {
        let made_up = MadeUp::new(config);
        Self(Arc::new(Inner {
            pieces: made_up.pieces(),
            template: Some(ChatTemplate::plain()),
            encoder: Encoder::MadeUp(made_up),
            added_bos: None,
            words: OnceLock::new(),
        }))
    }

    fn real(
        tokenizer: tokenizers::Tokenizer,
        template: Option<ChatTemplate>,
    ) -> Result<Self, String> {
        let pieces = Pieces::of(&tokenizer)?;
        let empty = guarded(|| tokenizer.encode_fast("", true))?;
        if let Some(id) = empty.get_ids().iter().find(|id| pieces.get(**id).is_none()) {
            return Err(format!(
                "it adds token id {id} to every text, which is not in its vocabulary of {} tokens",
                pieces.len()
            ));
        }
        let added_bos = empty.get_ids().first().copied();
        let encoder = Encoder::Real(Box::new(tokenizer));
        Ok(Self(Arc::new(Inner { encoder, pieces, template, added_bos, words: OnceLock::new() })))
    }

    /// Token ids of `text`. `add_special_tokens` adds what the model wants at
    /// the start of a sequence (BOS), if anything: for raw prompts, not for
    /// what [`Tokenizer::apply_chat_template`] returns, which has it already.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, InferError> {
        match &self.0.encoder {
            Encoder::Real(tokenizer) => guarded(|| tokenizer.encode_fast(text, add_special_tokens))
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|e| InferError::Request(format!("the text cannot be tokenized: {e}"))),
            Encoder::MadeUp(made_up) => Ok(made_up.encode(text)),
        }
    }

    /// Text of `ids`; special tokens are left out, invalid UTF-8 is replaced.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, InferError> {
        let mut bytes = Vec::new();
        for id in ids {
            let Some(piece) = self.0.pieces.get(*id) else {
                return Err(InferError::Request(format!(
                    "token id {id} is not in the vocabulary of {} tokens",
                    self.vocab_size()
                )));
            };
            bytes.extend_from_slice(piece);
        }
        if self.0.pieces.strips_leading_space() && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The conversation as the model expects it, ending where the assistant
    /// begins. It spells out its special tokens: encode it without adding them.
    ///
    /// # Errors
    /// When the model has no chat template, or the template fails.
    pub fn apply_chat_template(&self, messages: &[ChatMessage]) -> Result<String, InferError> {
        let Some(template) = &self.0.template else {
            return Err(InferError::Request(
                "the model has no chat template: send a raw prompt".to_owned(),
            ));
        };
        template
            .render(messages)
            .map_err(|e| InferError::Request(format!("the chat template failed: {e}")))
    }

    /// Whether [`Tokenizer::apply_chat_template`] can work.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.0.template.is_some()
    }

    /// Rows of the vocabulary, special tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.len()
    }

    /// Tokens that mean something to the model and nothing to a reader.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.0.pieces.is_special(id)
    }

    /// The token that `encode(.., true)` puts first, if any.
    #[must_use]
    pub fn added_bos(&self) -> Option<u32> {
        self.0.added_bos
    }

    /// A decoder for one stream of tokens, which never splits a character.
    #[must_use]
    pub fn stream(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.0))
    }

    /// A synthetic prompt of exactly `num_tokens` tokens: ids, and a text of
    /// ordinary words that encodes to exactly these ids (without special
    /// tokens). Under one `seed`, prompts of different `index` differ from
    /// their first token on for as long as the vocabulary has words to begin
    /// with, and within the next few beyond that: no prefix cache can help.
    /// Equal arguments give equal prompts.
    ///
    /// # Errors
    /// When `num_tokens` is 0, or the vocabulary has too few whole words.
    pub fn exact_prompt(
        &self,
        num_tokens: usize,
        seed: u64,
        index: u64,
    ) -> Result<(Vec<u32>, String), InferError> {
        let words = self.0.words.get_or_init(|| Words::of(self));
        words.prompt(self, num_tokens, seed, index)
    }
}
