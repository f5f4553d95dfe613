//! Every HTTP adapter against scripted servers: what the wire can do to us.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connections;
mod faults;
mod hostile;
mod identity;
mod requests;
mod streams;

use tokio_util::sync::CancellationToken;
use yardstick::clock::Clock;
use yardstick::engine::{
    Engine, EngineError, EngineSpec, EventKind, Exchange, GenerateRequest, ModelHint, Prompt,
    Sampling, connect,
};

use crate::support::scripted::{Received, Scripted, Step, answer, chunked, json};
use crate::support::wire;

const SSE: &str = "text/event-stream; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";

/// One adapter, and its dialect's words for what the tests say.
#[derive(Clone, Copy)]
struct Adapter {
    /// Of the specification.
    kind: &'static str,
    route: &'static str,
    content_type: &'static str,
    /// A chunk that carries no token.
    empty: &'static str,
    /// A chunk of text, around the text.
    text: [&'static str; 2],
    /// A chunk of reasoning, around the text.
    reasoning: [&'static str; 2],
    /// The last chunks, with usage: 5 prompt tokens, 3 output tokens.
    tail: &'static str,
    /// The last chunks, without usage.
    bare_tail: &'static str,
    /// An error in the stream that says `out of memory`.
    error: &'static str,
}

const VLLM: Adapter = Adapter {
    kind: "vllm",
    route: "/v1/chat/completions",
    content_type: SSE,
    empty: "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
    text: [
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"",
        "\"},\"finish_reason\":null}]}\n\n",
    ],
    reasoning: ["data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning\":\"", "\"}}]}\n\n"],
    tail: "data: {\"choices\":[{\"delta\":{\"content\":\"\"},\"finish_reason\":\"length\"}]}\n\n\
           data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"total_tokens\":8,\"completion_tokens\":3}}\n\n\
           data: [DONE]\n\n",
    bare_tail: "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n",
    error: "data: {\"error\":{\"message\":\"out of memory\",\"type\":\"InternalServerError\",\"code\":500}}\n\n",
};

/// llama-server, found behind the kind `openai`.
const LLAMA: Adapter = Adapter {
    kind: "openai",
    empty: "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\r\n\r\n",
    reasoning: ["data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"", "\"}}]}\r\n\r\n"],
    error: "error: {\"code\":500,\"message\":\"out of memory\",\"type\":\"server_error\"}\n\n",
    ..VLLM
};

const OLLAMA: Adapter = Adapter {
    kind: "ollama",
    route: "/api/chat",
    content_type: NDJSON,
    empty: "{\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n",
    text: ["{\"message\":{\"role\":\"assistant\",\"content\":\"", "\"},\"done\":false}\n"],
    reasoning: ["{\"message\":{\"content\":\"\",\"thinking\":\"", "\"},\"done\":false}\n"],
    tail: "{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"length\",\"total_duration\":9,\"prompt_eval_count\":5,\"eval_count\":3}\n",
    bare_tail: "{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"length\"}\n",
    error: "{\"error\":\"out of memory\"}\n",
};

const ADAPTERS: [Adapter; 3] = [VLLM, LLAMA, OLLAMA];

impl Adapter {
    fn text(&self, text: &str) -> String {
        self.text.join(text)
    }

    fn reasoning(&self, text: &str) -> String {
        self.reasoning.join(text)
    }

    /// What the server says of itself; `None` for the routes that generate.
    fn identity(&self, request: &Received) -> Option<Vec<Step>> {
        let not_found = || answer("404 Not Found", "text/plain", "404 page not found");
        Some(match (self.kind, request.path.as_str()) {
            (_, "/v1/chat/completions" | "/v1/completions" | "/api/chat" | "/api/generate") => {
                return None;
            }
            ("ollama", "/api/tags") => json(wire::OLLAMA_TAGS),
            ("ollama", "/api/ps") => json(wire::OLLAMA_PS),
            ("ollama", "/api/version") => json("{\"version\":\"0.12.3\"}"),
            ("ollama", "/api/show") => json(
                "{\"details\":{\"format\":\"gguf\",\"quantization_level\":\"Q4_1\"},\
                 \"model_info\":{\"llama.context_length\":8192}}",
            ),
            ("vllm", "/version") => json("{\"version\":\"0.32.0\"}"),
            ("vllm", "/v1/models") => json(
                "{\"object\":\"list\",\"data\":[{\"id\":\"smollm2\",\"owned_by\":\"vllm\",\"max_model_len\":2048}]}",
            ),
            ("vllm", "/metrics") => answer(
                "200 OK",
                "text/plain",
                "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size=\"128\",\
                 cache_dtype=\"auto\",num_gpu_blocks=\"364\",sliding_window=\"None\"} 1.0\n",
            ),
            ("openai", "/v1/models") => json(
                "{\"data\":[{\"id\":\"/somewhere/private/smollm2-Q4_1.gguf\",\"owned_by\":\"llamacpp\",\"meta\":{\"n_ctx_train\":8192}}]}",
            ),
            ("openai", "/props") => json(
                "{\"default_generation_settings\":{\"n_ctx\":512},\"total_slots\":10,\
                 \"model_path\":\"/somewhere/private/smollm2-Q4_1.gguf\",\"model_ftype\":\"Q4_1\",\"build_info\":\"b11434\"}",
            ),
            ("vllm" | "openai", "/health") => json("{\"status\":\"ok\"}"),
            _ => not_found(),
        })
    }

    /// A server that answers questions about itself, and generation with `steps`.
    async fn serve(self, steps: Vec<Step>) -> Scripted {
        Scripted::start(move |request| self.identity(request).unwrap_or_else(|| steps.clone()))
            .await
    }

    fn engine(&self, url: &str, settings: &str) -> Result<Box<dyn Engine>, EngineError> {
        let spec: EngineSpec = format!("{}={url}{settings}", self.kind).parse().unwrap();
        connect(&spec, &Clock::real(), &ModelHint::default())
    }

    /// What the adapter observes of one request that is answered with `steps`.
    async fn exchange(self, steps: Vec<Step>) -> Exchange {
        let server = self.serve(steps).await;
        let engine = self.engine(&server.url, "?timeout_s=1").unwrap();
        let prepared = engine.prepare(&chat()).await.unwrap();
        prepared.run(CancellationToken::new()).await
    }

    async fn stream(self, parts: &[&str]) -> Exchange {
        self.exchange(chunked(self.content_type, parts)).await
    }
}

/// A port that nobody listens on: it was free a moment ago.
async fn closed_url() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn chat() -> GenerateRequest {
    request(Prompt::Chat("What is the capital of France?".to_owned()))
}

fn request(prompt: Prompt) -> GenerateRequest {
    let sampling = Sampling { temperature: 0.7, top_p: 0.9, top_k: Some(20), seed: 3 };
    GenerateRequest { prompt, max_tokens: 8, sampling, ignore_eos: true }
}

fn kinds(exchange: &Exchange) -> Vec<EventKind> {
    exchange.events.iter().map(|event| event.kind).collect()
}

fn counts(exchange: &Exchange) -> Option<(Option<u32>, Option<u32>)> {
    exchange.usage.map(|usage| (usage.num_prompt_tokens, usage.num_output_tokens))
}

fn failure(exchange: &Exchange) -> &EngineError {
    exchange.outcome.as_ref().unwrap_err()
}

fn assert_ordered(exchange: &Exchange) {
    let mut instants = vec![exchange.sent_at, exchange.headers_at, exchange.first_byte_at];
    instants.extend(exchange.events.iter().map(|event| Some(event.at)));
    instants.push(Some(exchange.done_at));
    let instants: Vec<_> = instants.into_iter().map(Option::unwrap).collect();
    assert!(instants.is_sorted(), "{exchange:?}");
}
