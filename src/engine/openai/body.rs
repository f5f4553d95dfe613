//! The request as each flavor of server takes it. Every sampling parameter is
//! sent, also where it is neutral: servers fill in defaults of their own
//! (llama.cpp: top-k 40, min-p 0.05; vLLM: the model's `generation_config`),
//! and engines that sample differently are not comparable.

use serde::Serialize;

use super::Flavor;
use crate::engine::{GenerateRequest, Prompt};

/// Body of `/v1/chat/completions` and of `/v1/completions`.
#[derive(Debug, Serialize)]
pub(super) struct Body<'a> {
    model: &'a str,
    #[serde(flatten)]
    input: Input<'a>,
    max_tokens: u32,
    temperature: f64,
    top_p: f64,
    seed: u64,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_eos: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_prompt: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Input<'a> {
    Chat { messages: Vec<Message<'a>> },
    Text { prompt: &'a str },
    Ids { prompt: &'a [u32] },
}

#[derive(Debug, Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
    /// vLLM: a running count on every chunk, which tells how many tokens it carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    continuous_usage_stats: Option<bool>,
}

/// The route and the body for `request`.
pub(super) fn write<'a>(
    request: &'a GenerateRequest,
    model: &'a str,
    flavor: Flavor,
) -> (&'static str, Body<'a>) {
    let (route, input) = match &request.prompt {
        Prompt::Chat(_) | Prompt::Dialogue(_) => {
            let messages = request.prompt.messages().unwrap_or_default();
            let messages = messages.into_iter().map(|(role, content)| Message { role, content });
            ("/v1/chat/completions", Input::Chat { messages: messages.collect() })
        }
        Prompt::Raw(prompt) => ("/v1/completions", Input::Text { prompt }),
        Prompt::Tokens { ids, .. } if takes_ids(flavor) => {
            ("/v1/completions", Input::Ids { prompt: ids })
        }
        Prompt::Tokens { text, .. } => ("/v1/completions", Input::Text { prompt: text }),
    };
    let ignore_eos = (request.ignore_eos && takes_ignore_eos(flavor)).then_some(true);
    let is = |wanted: Flavor| flavor == wanted;
    let body = Body {
        model,
        input,
        max_tokens: request.max_tokens,
        temperature: request.sampling.temperature,
        top_p: request.sampling.top_p,
        seed: request.sampling.short_seed(),
        stream: true,
        stream_options: StreamOptions {
            include_usage: true,
            continuous_usage_stats: is(Flavor::Vllm).then_some(true),
        },
        top_k: top_k(request.sampling.top_k, flavor),
        min_p: (is(Flavor::Vllm) || is(Flavor::LlamaCpp)).then_some(0.0),
        repetition_penalty: is(Flavor::Vllm).then_some(1.0),
        repeat_penalty: is(Flavor::LlamaCpp).then_some(1.0),
        ignore_eos,
        min_tokens: ignore_eos.filter(|_| is(Flavor::Vllm)).map(|_| request.max_tokens),
        // A slot that still holds an earlier prompt would skip its prefill.
        cache_prompt: is(Flavor::LlamaCpp).then_some(false),
    };
    (route, body)
}

/// Whether the server takes a prompt as an array of token ids.
pub(super) const fn takes_ids(flavor: Flavor) -> bool {
    matches!(flavor, Flavor::Vllm | Flavor::LlamaCpp | Flavor::Yardstick)
}

/// Whether the server can be told to generate past an end-of-sequence token.
pub(super) const fn takes_ignore_eos(flavor: Flavor) -> bool {
    matches!(flavor, Flavor::Vllm | Flavor::LlamaCpp | Flavor::Yardstick)
}

/// "All tokens" in each server's words. A server that is not known is told
/// nothing it might refuse, unless the user asks for a bound.
fn top_k(asked: Option<u32>, flavor: Flavor) -> Option<i64> {
    match (asked, flavor) {
        (Some(k), _) => Some(i64::from(k)),
        (None, Flavor::Vllm) => Some(-1),
        (None, Flavor::LlamaCpp) => Some(0),
        (None, Flavor::Yardstick | Flavor::Other) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::Sampling;

    fn request(prompt: Prompt) -> GenerateRequest {
        let sampling = Sampling { temperature: 0.5, top_p: 0.9, top_k: None, seed: 1 << 40 | 7 };
        GenerateRequest { prompt, max_tokens: 64, sampling, ignore_eos: true }
    }

    fn written(request: &GenerateRequest, flavor: Flavor) -> (&'static str, Value) {
        let (route, body) = write(request, "m", flavor);
        (route, serde_json::to_value(body).unwrap())
    }

    #[test]
    fn each_flavor_gets_its_own_words_for_the_same_request() {
        let request = request(Prompt::Tokens { ids: vec![5, 6], text: "ab".to_owned() });
        let (route, vllm) = written(&request, Flavor::Vllm);
        assert_eq!(route, "/v1/completions");
        assert_eq!(vllm["prompt"], json!([5, 6]));
        assert_eq!((&vllm["ignore_eos"], &vllm["min_tokens"]), (&json!(true), &json!(64)));
        assert_eq!((&vllm["top_k"], &vllm["seed"]), (&json!(-1), &json!(7)));
        let (_, llama) = written(&request, Flavor::LlamaCpp);
        assert_eq!((&llama["cache_prompt"], &llama["min_tokens"]), (&json!(false), &Value::Null));
        assert_eq!((&llama["top_k"], &llama["ignore_eos"]), (&json!(0), &json!(true)));
        let (_, other) = written(&request, Flavor::Other);
        assert_eq!(other["prompt"], json!("ab"));
        for field in ["ignore_eos", "min_tokens", "top_k", "min_p", "cache_prompt"] {
            assert_eq!(other.get(field), None, "an unknown server is not sent {field}");
        }
        assert_eq!(other["stream_options"], json!({"include_usage": true}));
    }

    #[test]
    fn chat_is_one_user_message() {
        let (route, body) = written(&request(Prompt::Chat("hi".to_owned())), Flavor::Other);
        assert_eq!(route, "/v1/chat/completions");
        assert_eq!(body["messages"], json!([{"role": "user", "content": "hi"}]));
        let message =
            |role, content: &str| crate::engine::Message { role, content: content.to_owned() };
        let turns = vec![
            message(crate::engine::Role::User, "hi"),
            message(crate::engine::Role::Assistant, "hello"),
            message(crate::engine::Role::User, "more"),
        ];
        let (_, body) = written(&request(Prompt::Dialogue(turns)), Flavor::Other);
        assert_eq!(body["messages"][1], json!({"role": "assistant", "content": "hello"}));
        assert_eq!(body["messages"][2], json!({"role": "user", "content": "more"}));
    }
}
