//! Which Ollama answers, which of its models is measured, and what it says of
//! that model on disk and in memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::http::Endpoint;
use crate::engine::{
    Capabilities, Capability, EngineError, EngineInfo, EngineSpec, ErrorClass, ModelHint,
};

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// `/api/tags` and `/api/ps`.
#[derive(Deserialize)]
struct Models {
    models: Option<Vec<Model>>,
}

/// A model on disk or in memory.
#[derive(Deserialize)]
pub(super) struct Model {
    name: String,
    /// In memory: tokens that its KV cache was made for.
    context_length: Option<u32>,
    /// In memory: bytes in all.
    size: Option<u64>,
    /// In memory: bytes on the GPU. Left out where zero.
    size_vram: Option<u64>,
}

/// `/api/show`.
#[derive(Deserialize)]
struct Show {
    #[serde(default)]
    details: Details,
    #[serde(default)]
    model_info: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
struct Details {
    format: Option<String>,
    family: Option<String>,
    parameter_size: Option<String>,
    quantization_level: Option<String>,
}

/// The tag that is measured: the specification's, else the model card's, else
/// the only one there is.
///
/// # Errors
/// When Ollama cannot be reached, does not have it, or leaves a choice.
pub(super) async fn choose(
    endpoint: &Endpoint,
    spec: &EngineSpec,
    hint: &ModelHint,
) -> Result<String, EngineError> {
    let listed = endpoint.get_json::<Models>("/api/tags").await?.models.unwrap_or_default();
    let names = || {
        let names = listed.iter().take(20).map(|model| model.name.as_str()).collect::<Vec<_>>();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    if let Some(asked) = spec.setting("model").or(hint.ollama_tag.as_deref()) {
        if listed.iter().any(|model| same_tag(&model.name, asked)) {
            return Ok(asked.to_owned());
        }
        let what = format!("does not have model `{asked}`: it has {}", names());
        let named = spec.setting("model").is_some();
        let otherwise = if named { "" } else { ", or name another in the setting `model`" };
        return Err(endpoint
            .error(ErrorClass::Rejected, what)
            .with_hint(format!("ollama pull {asked}{otherwise}")));
    }
    match listed.as_slice() {
        [only] => Ok(only.name.clone()),
        _ => {
            let what = format!("was given no model: it has {}", names());
            Err(endpoint
                .error(ErrorClass::Rejected, what)
                .with_hint("name a tag in the setting `model`"))
        }
    }
}

/// A tag without a version is `latest`.
fn same_tag(listed: &str, asked: &str) -> bool {
    let full = |tag: &str| {
        let versioned = tag.rsplit('/').next().is_some_and(|name| name.contains(':'));
        if versioned { tag.to_owned() } else { format!("{tag}:latest") }
    };
    full(listed) == full(asked)
}

/// The model as it stands in memory, if it does.
///
/// # Errors
/// When Ollama does not answer.
pub(super) async fn loaded(endpoint: &Endpoint, model: &str) -> Result<Option<Model>, EngineError> {
    let running = endpoint.get_json::<Models>("/api/ps").await?.models.unwrap_or_default();
    Ok(running.into_iter().find(|running| same_tag(&running.name, model)))
}

/// Version, settings and capabilities.
///
/// # Errors
/// When Ollama does not answer.
pub(super) async fn describe(
    endpoint: &Endpoint,
    spec: &EngineSpec,
    model: String,
) -> Result<EngineInfo, EngineError> {
    #[derive(Serialize)]
    struct Ask<'a> {
        model: &'a str,
    }
    let version = endpoint.get_json::<Version>("/api/version").await?.version;
    let show = endpoint.post_json::<Show>("/api/show", &Ask { model: &model }).await?;
    let running = loaded(endpoint, &model).await?;
    let mut settings = BTreeMap::new();
    let mut keep = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            settings.insert(name.to_owned(), value);
        }
    };
    keep("format", show.details.format);
    keep("family", show.details.family);
    keep("parameter_size", show.details.parameter_size);
    let trained = show.model_info.iter().find(|(name, _)| name.ends_with(".context_length"));
    keep("model_context_length", trained.map(|(_, value)| value.to_string()));
    let asked = spec.number("num_ctx");
    keep("num_ctx", asked.map(|tokens| tokens.to_string()));
    let context = running.as_ref().and_then(|running| running.context_length);
    if let Some(running) = running {
        keep("context_length", running.context_length.map(|tokens| tokens.to_string()));
        keep("size", running.size.map(|bytes| bytes.to_string()));
        keep("size_vram", Some(running.size_vram.unwrap_or(0).to_string()));
    }
    Ok(EngineInfo {
        version: Some(version),
        model,
        precision: show.details.quantization_level.filter(|level| !level.is_empty()),
        max_model_len: asked.and_then(|tokens| u32::try_from(tokens).ok()).or(context),
        dummy_weights: false,
        settings,
        capabilities: Capabilities {
            token_id_prompts: Capability::no(
                "Ollama takes text only; the prompt's text is sent raw",
            ),
            ignore_eos: Capability::no(
                "Ollama has no ignore_eos: an answer may end before max_tokens",
            ),
            cold: Capability::Yes,
            server_timings: Capability::Yes,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_without_version_is_latest() {
        assert!(same_tag("llama3.2:latest", "llama3.2"));
        assert!(same_tag("host:5000/a/llama3.2:latest", "host:5000/a/llama3.2"));
        assert!(!same_tag("llama3.2:3b", "llama3.2"));
    }
}
