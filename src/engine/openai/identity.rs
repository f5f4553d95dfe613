//! Who answers behind an OpenAI-compatible URL: which server, which version,
//! which models, and what follows for what it can do.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Flavor, body, cold_reason};
use crate::engine::http::Endpoint;
use crate::engine::{
    Capabilities, Capability, EngineError, EngineInfo, EngineKind, EngineSpec, ErrorClass,
    ModelHint,
};

/// What a `describe` found out.
pub(super) struct Identity {
    pub(super) flavor: Flavor,
    /// The model's name as the server lists it; `info` has it without a folder.
    pub(super) served: String,
    pub(super) info: EngineInfo,
}

/// `/v1/models`.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    /// `vllm`, `llamacpp`, `yardstick`, or whose ever it is.
    owned_by: Option<String>,
    /// vLLM and yardstick: tokens that prompt and answer may have together.
    max_model_len: Option<u32>,
    /// yardstick: type of the weights in memory.
    precision: Option<String>,
    /// yardstick: the weights are seeded noise.
    #[serde(default)]
    dummy_weights: bool,
    /// llama.cpp: facts about the file.
    meta: Option<BTreeMap<String, Value>>,
}

/// `/version` of vLLM.
#[derive(Deserialize)]
struct Version {
    version: String,
}

/// `/props` of llama.cpp.
#[derive(Deserialize)]
struct Props {
    default_generation_settings: Generation,
    total_slots: Option<u32>,
    model_path: Option<String>,
    /// Type of most weights.
    model_ftype: Option<String>,
    build_info: Option<String>,
}

#[derive(Deserialize)]
struct Generation {
    /// Context of one slot, in tokens.
    n_ctx: Option<u32>,
}

/// Asks the server who it is.
///
/// # Errors
/// When it cannot be reached, is still loading, lists no models, or lacks the
/// one that `spec` names.
pub(super) async fn identify(
    endpoint: &Endpoint,
    spec: &EngineSpec,
    hint: &ModelHint,
) -> Result<Identity, EngineError> {
    check_health(endpoint).await?;
    let asked = spec.setting("model");
    let listed = listed(endpoint, asked).await?;
    let model = choose(endpoint, &listed, asked, hint)?;
    let version = endpoint.probe_json::<Version>("/version").await?.map(|found| found.version);
    let mut flavor = flavor_of(spec.kind, model.owned_by.as_deref(), version.is_some());
    let mut info = EngineInfo {
        version,
        model: file_name(&model.id).to_owned(),
        precision: model.precision.clone(),
        max_model_len: model.max_model_len,
        dummy_weights: model.dummy_weights,
        settings: BTreeMap::new(),
        capabilities: Capabilities {
            token_id_prompts: Capability::Yes,
            ignore_eos: Capability::Yes,
            cold: Capability::no(cold_reason(spec.kind)),
            server_timings: Capability::Yes,
        },
    };
    if let Some(owner) = &model.owned_by {
        info.settings.insert("owned_by".to_owned(), owner.clone());
    }
    if matches!(flavor, Flavor::LlamaCpp | Flavor::Other)
        && let Some(props) = endpoint.probe_json::<Props>("/props").await?
    {
        flavor = Flavor::LlamaCpp;
        add_props(&mut info, props, model.meta.as_ref());
    }
    if flavor == Flavor::Vllm {
        add_cache_config(&mut info, endpoint).await?;
    }
    info.capabilities = capabilities(spec.kind, flavor);
    Ok(Identity { flavor, served: model.id.clone(), info })
}

/// An engine that is still loading says 503 here and would fail every request.
async fn check_health(endpoint: &Endpoint) -> Result<(), EngineError> {
    let answer = endpoint.get("/health").await?;
    if answer.status.as_u16() == 503 {
        return Err(endpoint
            .error(ErrorClass::Busy, "is not ready: /health answered HTTP 503")
            .with_hint("wait until it has loaded its model"));
    }
    Ok(())
}

/// What `/v1/models` lists. A server without that route is taken at the user's
/// word for the model it serves.
async fn listed(endpoint: &Endpoint, asked: Option<&str>) -> Result<Vec<Model>, EngineError> {
    let route = "/v1/models";
    let answer = endpoint.get(route).await?;
    if !matches!(answer.status.as_u16(), 404 | 405 | 501) {
        return Ok(endpoint.decode::<Models>(route, &answer)?.data);
    }
    let named = asked.map(|id| Model {
        id: id.to_owned(),
        owned_by: None,
        max_model_len: None,
        precision: None,
        dummy_weights: false,
        meta: None,
    });
    named.map(|model| vec![model]).ok_or_else(|| {
        endpoint
            .error(ErrorClass::Rejected, format!("has no {route} to learn the model's name from"))
            .with_hint(
                "name it in the setting `model`, or check that the URL is that of the engine",
            )
    })
}

/// The model asked for; else the only one, the one the run's model card names, or the first.
fn choose<'a>(
    endpoint: &Endpoint,
    listed: &'a [Model],
    asked: Option<&str>,
    hint: &ModelHint,
) -> Result<&'a Model, EngineError> {
    let names = || {
        let names = listed.iter().take(20).map(|model| file_name(&model.id)).collect::<Vec<_>>();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    if let Some(asked) = asked {
        let is = |model: &&Model| model.id == asked || file_name(&model.id) == asked;
        return listed.iter().find(is).ok_or_else(|| {
            let what = format!("does not serve model `{asked}`: it lists {}", names());
            endpoint
                .error(ErrorClass::Rejected, what)
                .with_hint("name one of those in the setting `model`, or serve that model")
        });
    }
    let hinted = || {
        let mut served = hint.served.iter();
        served.find_map(|name| listed.iter().find(|model| same_model(&model.id, name)))
    };
    match listed {
        [only] => Ok(only),
        _ => hinted().or(listed.first()).ok_or_else(|| {
            endpoint
                .error(ErrorClass::Rejected, "lists no model at /v1/models")
                .with_hint("start it with a model")
        }),
    }
}

/// llama.cpp lists a model by the path of its file. The folder is the server's
/// own business and would end up in tables and run files.
fn file_name(id: &str) -> &str {
    let is_path = id.starts_with('/') || id.get(1..3).is_some_and(|drive| drive == ":\\");
    if is_path { id.rsplit(['/', '\\']).next().unwrap_or(id) } else { id }
}

/// Names differ by case and by the organisation before the slash.
fn same_model(served: &str, wanted: &str) -> bool {
    let base = |name: &str| name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    base(served) == base(wanted)
}

/// What the server calls itself counts before what its routes look like.
pub(in crate::engine) fn flavor_of(
    kind: EngineKind,
    owner: Option<&str>,
    has_version: bool,
) -> Flavor {
    match owner {
        _ if kind == EngineKind::Vllm => Flavor::Vllm,
        Some("vllm") => Flavor::Vllm,
        Some("llamacpp") => Flavor::LlamaCpp,
        Some("yardstick") => Flavor::Yardstick,
        _ if has_version => Flavor::Vllm,
        _ => Flavor::Other,
    }
}

fn capabilities(kind: EngineKind, flavor: Flavor) -> Capabilities {
    let known = |taken: bool, what: &str| {
        if taken {
            return Capability::Yes;
        }
        Capability::no(format!(
            "{what} only to vLLM and llama.cpp, and this server is neither (no /version, no /props)"
        ))
    };
    let timings = match flavor {
        Flavor::LlamaCpp => Capability::Yes,
        Flavor::Vllm => {
            Capability::no("vLLM reports durations for all requests together, in /metrics")
        }
        Flavor::Yardstick => Capability::no("yardstick serve reports no durations yet"),
        Flavor::Other => Capability::no("the OpenAI protocol has no durations"),
    };
    Capabilities {
        token_id_prompts: known(
            body::takes_ids(flavor),
            "yardstick sends token ids instead of text",
        ),
        ignore_eos: known(body::takes_ignore_eos(flavor), "yardstick sends ignore_eos"),
        cold: Capability::no(cold_reason(kind)),
        server_timings: timings,
    }
}

fn add_props(info: &mut EngineInfo, props: Props, meta: Option<&BTreeMap<String, Value>>) {
    info.max_model_len = info.max_model_len.or(props.default_generation_settings.n_ctx);
    info.version = info.version.take().or(props.build_info);
    if let Some(slots) = props.total_slots {
        info.settings.insert("total_slots".to_owned(), slots.to_string());
    }
    if let Some(path) = &props.model_path {
        info.settings.insert("model_file".to_owned(), file_name(path).to_owned());
    }
    for (name, value) in meta.into_iter().flatten() {
        match value {
            Value::Number(number) => {
                info.settings.insert(format!("meta.{name}"), number.to_string())
            }
            Value::String(text) => info.settings.insert(format!("meta.{name}"), text.clone()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
    }
    let of_file = || meta?.get("ftype")?.as_str().map(str::to_owned);
    info.precision = info.precision.take().or(props.model_ftype).or_else(of_file);
}

/// vLLM tells its KV cache only as labels of a metric.
async fn add_cache_config(info: &mut EngineInfo, endpoint: &Endpoint) -> Result<(), EngineError> {
    const KEPT: [&str; 8] = [
        "block_size",
        "cache_dtype",
        "enable_prefix_caching",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "kv_cache_size_tokens",
        "num_gpu_blocks",
        "sliding_window",
    ];
    let Some(page) = endpoint.get_text("/metrics").await? else { return Ok(()) };
    let Some(labels) = page.lines().find_map(|line| line.strip_prefix("vllm:cache_config_info{"))
    else {
        return Ok(());
    };
    // Values of the kept labels hold neither commas nor quotes.
    for label in labels.split(',') {
        if let Some((name, value)) = label.split_once('=')
            && KEPT.contains(&name)
        {
            let value = value.split('"').nth(1).unwrap_or_default();
            if value != "None" {
                info.settings.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn listed(ids: &[&str]) -> Vec<Model> {
        let model = |id: &&str| serde_json::from_value(serde_json::json!({"id": id})).unwrap();
        ids.iter().map(model).collect()
    }

    fn chosen(ids: &[&str], asked: Option<&str>, hint: &[&str]) -> Result<String, EngineError> {
        let spec: EngineSpec = "openai=http://127.0.0.1:1".parse().unwrap();
        let endpoint = Endpoint::new(&spec, true, &Clock::manual()).unwrap();
        let served = hint.iter().map(|name| (*name).to_owned()).collect();
        let hint = ModelHint { ollama_tag: None, served };
        choose(&endpoint, &listed(ids), asked, &hint).map(|model| model.id.clone())
    }

    #[test]
    fn model_is_the_one_asked_for_or_an_error_that_lists_the_others() {
        assert_eq!(chosen(&["a", "b"], Some("b"), &[]).unwrap(), "b");
        let error = chosen(&["a", "b"], Some("c"), &["a"]).unwrap_err();
        assert!(error.message.contains("does not serve model `c`: it lists a, b"), "{error}");
        assert!(chosen(&[], None, &[]).is_err());
    }

    #[test]
    fn model_not_asked_for_follows_the_card_when_there_is_a_choice() {
        assert_eq!(chosen(&["only"], None, &["other"]).unwrap(), "only");
        let ids = ["x", "Org/SmolLM2-135M-Instruct"];
        assert_eq!(chosen(&ids, None, &["smollm2-135m-instruct"]).unwrap(), ids[1]);
        assert_eq!(chosen(&ids, None, &["nothing"]).unwrap(), "x");
    }
}
