//! Text to token ids and back, with the model's chat template.

use super::InferError;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A model's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Token ids of `text`. `add_special_tokens` adds what the model wants at
    /// the start of a sequence (BOS), if anything.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, InferError> {
        let _ = (text, add_special_tokens);
        unimplemented!()
    }

    /// Text of `ids`; special tokens are left out.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, InferError> {
        let _ = ids;
        unimplemented!()
    }

    /// The conversation as the model expects it, ending where the assistant begins.
    ///
    /// # Errors
    /// When the model has no chat template, or the template fails.
    pub fn apply_chat_template(&self, messages: &[ChatMessage]) -> Result<String, InferError> {
        let _ = messages;
        unimplemented!()
    }

    /// A synthetic prompt of exactly `num_tokens` ids and its text.
    ///
    /// # Errors
    /// When no such text can be made.
    pub fn exact_prompt(
        &self,
        num_tokens: usize,
        seed: u64,
        index: u64,
    ) -> Result<(Vec<u32>, String), InferError> {
        let _ = (num_tokens, seed, index);
        unimplemented!()
    }

    /// Rows of the vocabulary, special tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        unimplemented!()
    }

    /// Tokens that mean something to the model and nothing to a reader.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        let _ = id;
        unimplemented!()
    }

    /// A decoder for one stream of tokens, which never splits a character.
    #[must_use]
    pub fn stream(&self) -> Detokenizer {
        unimplemented!()
    }
}

/// Incremental decoding of one sequence.
pub struct Detokenizer {}

impl Detokenizer {
    /// Takes the next token; returns the text that became complete, maybe none.
    pub fn push(&mut self, id: u32) -> String {
        let _ = id;
        unimplemented!()
    }

    /// What is still pending at the end, invalid bytes replaced.
    pub fn finish(&mut self) -> String {
        unimplemented!()
    }
}
