//! `models/*.toml`, embedded in the binary: a model's shapes, its name in each
//! engine, and where its weights come from.

use crate::infer::ModelConfig;

/// Name of the model that is measured unless another is asked for.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// One model card.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCard {
    /// Name on the command line.
    pub name: String,
    /// One line about it.
    pub description: String,
    /// Whether the hub asks for a licence to be accepted.
    pub gated: bool,
    /// SPDX name or the licence's own.
    pub license: String,
    /// Architecture numbers.
    pub config: ModelConfig,
    /// Parameters, tied embeddings counted once.
    pub num_parameters: u64,
    /// The same model in Ollama's library.
    pub ollama_tag: Option<String>,
    /// The same model for vLLM: a hub repository.
    pub vllm_id: Option<String>,
}

/// Every card, by name.
#[must_use]
pub fn cards() -> &'static [ModelCard] {
    unimplemented!()
}

/// The card of that name.
#[must_use]
pub fn find_card(name: &str) -> Option<&'static ModelCard> {
    cards().iter().find(|card| card.name == name)
}
