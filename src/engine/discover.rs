//! Engines that already run on this machine, at the ports their projects chose.
//! A port that does not answer is no error: there is simply no engine.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::http::Endpoint;
use super::openai::{Flavor, flavor_of};
use super::{EngineKind, EngineSpec};
use crate::clock::Clock;

/// Longest time that looking takes, all ports together.
const LIMIT: Duration = Duration::from_millis(300);

/// What identifies a server, whatever else it answers.
#[derive(Deserialize)]
struct Version {
    #[expect(dead_code, reason = "that it is there identifies the server")]
    version: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    owned_by: Option<String>,
}

#[derive(Deserialize)]
struct Props {
    #[expect(dead_code, reason = "that it is there identifies the server")]
    default_generation_settings: Value,
}

/// The engines found at the default ports, named after what they are.
pub async fn running(clock: &Clock) -> Vec<EngineSpec> {
    let urls = ["http://127.0.0.1:11434", "http://127.0.0.1:8000", "http://127.0.0.1:8080"];
    running_at(clock, urls, LIMIT).await
}

/// The same at other URLs, of Ollama, of vLLM and of llama.cpp's server, with
/// `limit` for all of them together.
pub async fn running_at(
    clock: &Clock,
    [ollama, vllm, llama]: [&str; 3],
    limit: Duration,
) -> Vec<EngineSpec> {
    let (ollama, vllm, llama) = tokio::join!(
        timeout(limit, find_ollama(clock, ollama)),
        timeout(limit, find_openai(clock, vllm)),
        timeout(limit, find_openai(clock, llama)),
    );
    let mut found: Vec<EngineSpec> = Vec::new();
    for spec in [ollama, vllm, llama].into_iter().flat_map(Result::ok).flatten() {
        let taken = found.iter().any(|earlier| earlier.name == spec.name);
        let port = spec.url.as_ref().and_then(url::Url::port).unwrap_or_default();
        let name = if taken { format!("{}-{port}", spec.name) } else { spec.name.clone() };
        found.push(EngineSpec { name, ..spec });
    }
    found
}

async fn find_ollama(clock: &Clock, url: &str) -> Option<EngineSpec> {
    let spec = spec("ollama", EngineKind::Ollama, url)?;
    let endpoint = Endpoint::new(&spec, false, clock).ok()?;
    endpoint.probe_json::<Version>("/api/version").await.ok()??;
    Some(spec)
}

async fn find_openai(clock: &Clock, url: &str) -> Option<EngineSpec> {
    let generic = spec("openai", EngineKind::Openai, url)?;
    let endpoint = Endpoint::new(&generic, true, clock).ok()?;
    let (models, version, props) = tokio::join!(
        endpoint.probe_json::<Models>("/v1/models"),
        endpoint.probe_json::<Version>("/version"),
        endpoint.probe_json::<Props>("/props"),
    );
    let models = models.ok()??.data;
    let owner = models.first().and_then(|model| model.owned_by.as_deref());
    let has_version = matches!(version, Ok(Some(_)));
    match flavor_of(EngineKind::Openai, owner, has_version) {
        Flavor::Vllm => spec("vllm", EngineKind::Vllm, url),
        Flavor::LlamaCpp => spec("llama-server", EngineKind::Openai, url),
        Flavor::Yardstick => spec("yardstick-serve", EngineKind::Openai, url),
        Flavor::Other if matches!(props, Ok(Some(_))) => {
            spec("llama-server", EngineKind::Openai, url)
        }
        Flavor::Other => Some(generic),
    }
}

fn spec(name: &str, kind: EngineKind, url: &str) -> Option<EngineSpec> {
    EngineSpec::new(Some(name), kind, Some(url), BTreeMap::new()).ok()
}
