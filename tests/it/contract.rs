//! Every HTTP adapter against scripted servers: what the wire can do to us.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use yardstick::clock::Clock;
use yardstick::engine::{
    Engine, EngineError, EngineSpec, ErrorClass, EventKind, Exchange, FinishReason,
    GenerateRequest, ModelHint, Prompt, Sampling, connect, discover,
};

use crate::support::scripted::{self, Received, Scripted, Step, answer, chunk, chunked, json};
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

use EventKind::{Content, Empty, Finish, Reasoning, Usage};

#[tokio::test]
async fn captured_vllm_chat_reads_as_its_tokens() {
    let exchange = VLLM.stream(&[wire::VLLM_CHAT]).await;
    assert_eq!(exchange.outcome, Ok(()));
    let expected = [[Empty].as_slice(), &[Content; 7], &[Finish, Usage]].concat();
    assert_eq!(kinds(&exchange), expected);
    assert_eq!(exchange.text, "The capital of France is Paris.");
    assert_eq!(exchange.finish_reason, Some(FinishReason::Stop));
    assert_eq!(counts(&exchange), Some((Some(37), Some(8))));
    assert_ordered(&exchange);
}

#[tokio::test]
async fn captured_vllm_completions_finish_in_their_last_text() {
    let exchange = VLLM.stream(&[wire::VLLM_COMPLETIONS]).await;
    let expected = [[Content; 8].as_slice(), &[Usage]].concat();
    assert_eq!((exchange.outcome.clone(), kinds(&exchange)), (Ok(()), expected));
    assert_eq!(exchange.text, " Paris.\n\nThe answer is:");
    assert_eq!(exchange.finish_reason, Some(FinishReason::Length));
}

#[tokio::test]
async fn captured_llama_server_keeps_its_timings() {
    let chat = LLAMA.stream(&[wire::LLAMA_CHAT]).await;
    let expected = [Empty, Content, Content, Content, Finish, Usage];
    assert_eq!((chat.outcome.clone(), kinds(&chat)), (Ok(()), expected.to_vec()));
    assert_eq!((chat.text.as_str(), counts(&chat)), ("Hello! How", Some((Some(31), Some(3)))));
    assert_eq!(chat.server["prompt_ms"], 25.776);
    let completions = LLAMA.stream(&[wire::LLAMA_COMPLETIONS]).await;
    assert_eq!(kinds(&completions), [Content, Content, Content, Finish]);
    assert_eq!(completions.usage.unwrap().num_cached_tokens, Some(4));
    assert_eq!(completions.server["cache_n"], 4.0);
    let tokens_per_event: Vec<_> = completions.events.iter().map(|e| e.num_tokens).collect();
    assert_eq!(tokens_per_event, [None; 4], "usage of the whole is not that of its last chunk");
}

#[tokio::test]
async fn captured_ollama_keeps_its_durations() {
    let chat = OLLAMA.stream(&[wire::OLLAMA_CHAT]).await;
    let expected = [[Content; 7].as_slice(), &[Finish]].concat();
    assert_eq!((chat.outcome.clone(), kinds(&chat)), (Ok(()), expected));
    assert_eq!(chat.text, "The capital of France is Paris.");
    assert_eq!(
        (chat.finish_reason.clone(), counts(&chat)),
        (Some(FinishReason::Stop), Some((Some(16), Some(8))))
    );
    assert_eq!(chat.server["load_duration"], 831_261.0);
    assert_eq!(chat.server["eval_duration"], 30_687_000.0);
    let generate = OLLAMA.stream(&[wire::OLLAMA_GENERATE]).await;
    assert_eq!(generate.text, "The sky blue is a result");
    assert_eq!(counts(&generate), Some((Some(15), Some(6))));
}

#[tokio::test]
async fn zero_usage_on_every_chunk_is_no_usage() {
    let exchange = LLAMA.stream(&[wire::OLLAMA_V1]).await;
    assert_eq!(counts(&exchange), Some((Some(14), Some(3))));
    let zero = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}\n\ndata: [DONE]\n\n";
    let exchange = LLAMA.stream(&[zero]).await;
    assert_eq!((exchange.outcome.clone(), exchange.usage), (Ok(()), None));
}

#[tokio::test]
async fn chunk_without_text_is_not_the_first_token() {
    for adapter in ADAPTERS {
        let pause = Step::Wait(Duration::from_millis(30));
        let exchange = adapter
            .exchange(vec![
                Step::Send(scripted::head(adapter.content_type)),
                Step::Send(chunk(adapter.empty)),
                pause.clone(),
                Step::Send(chunk(&adapter.text("Paris"))),
                pause,
                Step::Send(chunk(adapter.tail)),
                Step::Send(scripted::END.to_vec()),
            ])
            .await;
        assert_eq!(kinds(&exchange)[..2], [Empty, Content], "{}", adapter.kind);
        let first = exchange.events.iter().find(|event| event.kind.is_token()).unwrap();
        assert!(first.at > exchange.events[0].at, "{}", adapter.kind);
        assert!(Some(exchange.events[0].at) == exchange.first_byte_at, "{}", adapter.kind);
        assert_ordered(&exchange);
    }
}

#[tokio::test]
async fn splitting_at_every_byte_changes_nothing() {
    let answers = [(VLLM, wire::VLLM_CHAT), (LLAMA, wire::LLAMA_CHAT), (OLLAMA, wire::OLLAMA_CHAT)];
    for (adapter, captured) in answers {
        let whole = adapter.stream(&[captured]).await;
        let mut bytes = scripted::head(adapter.content_type);
        let (early, late) = captured.split_at(captured.len() / 3);
        bytes.extend([chunk(early), chunk(late), scripted::END.to_vec()].concat());
        let single = bytes.iter().map(|byte| Step::Send(vec![*byte])).collect();
        let split = adapter.exchange(single).await;
        assert_eq!(split.outcome, Ok(()), "{}", adapter.kind);
        assert_eq!(kinds(&split), kinds(&whole));
        assert_eq!((split.text.as_str(), split.usage), (whole.text.as_str(), whole.usage));
        assert_ordered(&split);
    }
}

#[tokio::test]
async fn events_of_one_read_share_its_stamp() {
    for adapter in ADAPTERS {
        let body = [adapter.empty, &adapter.text("a"), &adapter.text("b"), adapter.tail].concat();
        let bytes =
            [scripted::head(adapter.content_type), chunk(&body), scripted::END.to_vec()].concat();
        let exchange = adapter.exchange(vec![Step::Send(bytes)]).await;
        assert_eq!(exchange.outcome, Ok(()));
        assert!(exchange.events.len() >= 4);
        let at = exchange.headers_at.unwrap();
        assert!(exchange.events.iter().all(|event| event.at == at), "{exchange:?}");
        assert_eq!((exchange.first_byte_at, exchange.done_at), (Some(at), at));
    }
}

#[tokio::test]
async fn several_tokens_in_a_chunk_are_one_event_and_usage_counts() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("one two three"), adapter.tail]).await;
        let tokens = exchange.events.iter().filter(|event| event.kind.is_token()).count();
        assert_eq!((tokens, counts(&exchange)), (1, Some((Some(5), Some(3)))), "{}", adapter.kind);
    }
}

#[tokio::test]
async fn running_usage_of_vllm_tells_the_tokens_of_each_event() {
    let event = |text: &str, total: u32| {
        format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}],\
             \"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{total}}}}}\n\n"
        )
    };
    let parts = [event("", 0), event("a", 1), event("b c", 3)];
    let parts: Vec<&str> = parts.iter().map(String::as_str).chain([VLLM.tail]).collect();
    let exchange = VLLM.stream(&parts).await;
    let tokens: Vec<_> = exchange.events.iter().map(|event| event.num_tokens).collect();
    assert_eq!(tokens, [None, Some(1), Some(2), None, None]);
    assert_eq!(kinds(&exchange)[0], Empty);
}

#[tokio::test]
async fn reasoning_is_kept_apart_and_counts_as_tokens() {
    for adapter in ADAPTERS {
        let parts = [&adapter.reasoning("hmm"), &adapter.text("Paris"), adapter.tail];
        let exchange = adapter.stream(&parts).await;
        assert_eq!(kinds(&exchange)[..2], [Reasoning, Content], "{}", adapter.kind);
        assert_eq!((exchange.reasoning.as_str(), exchange.text.as_str()), ("hmm", "Paris"));
    }
}

#[tokio::test]
async fn missing_usage_stays_missing() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("Paris"), adapter.bare_tail]).await;
        assert_eq!(exchange.outcome, Ok(()), "{}", adapter.kind);
        assert_eq!(exchange.usage.and_then(|usage| usage.num_output_tokens), None);
        assert_eq!(exchange.finish_reason, Some(FinishReason::Length));
    }
}

#[tokio::test]
async fn finish_reason_without_done_line_is_complete() {
    let finish = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}";
    let exchange = LLAMA.stream(&[finish]).await;
    assert_eq!((exchange.outcome.clone(), exchange.text.as_str()), (Ok(()), "a"));
}

#[tokio::test]
async fn error_in_the_stream_keeps_its_words_and_what_came_before() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("Paris"), adapter.error]).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Rejected, "{error}");
        assert!(error.message.starts_with(&format!("{} at http://", adapter.kind)), "{error}");
        assert!(error.message.ends_with("out of memory"), "{error}");
        assert_eq!((kinds(&exchange), exchange.text.as_str()), (vec![Content], "Paris"));
    }
}

#[tokio::test]
async fn stream_that_stops_early_is_truncated_however_it_stops() {
    for adapter in ADAPTERS {
        let text = adapter.text("Paris");
        let half = &adapter.text("x")[..20];
        let start =
            || vec![Step::Send(scripted::head(adapter.content_type)), Step::Send(chunk(&text))];
        let end = Step::Send(scripted::END.to_vec());
        let clean = [start(), vec![end.clone()]].concat();
        let in_an_event = [start(), vec![Step::Send(chunk(half)), end]].concat();
        let without_last_chunk = start();
        // The pause lets the text be read: a reset throws away what waits in the buffers.
        let pause = Step::Wait(Duration::from_millis(50));
        let reset = [start(), vec![pause, Step::Reset]].concat();
        for steps in [clean, in_an_event, without_last_chunk, reset] {
            let exchange = adapter.exchange(steps.clone()).await;
            assert_eq!(failure(&exchange).class, ErrorClass::Truncated, "{steps:?} {exchange:?}");
            assert_eq!(exchange.text, "Paris");
            assert_ordered(&exchange);
        }
    }
}

#[tokio::test]
async fn connection_closed_instead_of_an_answer_is_truncated() {
    for adapter in ADAPTERS {
        for steps in [vec![], vec![Step::Reset]] {
            let exchange = adapter.exchange(steps).await;
            assert_eq!(failure(&exchange).class, ErrorClass::Truncated);
            assert!(exchange.sent_at.is_some() && exchange.headers_at.is_none());
        }
    }
}

#[tokio::test]
async fn line_without_end_is_refused() {
    for adapter in ADAPTERS {
        let part = chunk(&"x".repeat(1 << 16));
        let mut steps = vec![Step::Send(scripted::head(adapter.content_type))];
        steps.extend(std::iter::repeat_n(Step::Send(part), 40));
        let exchange = adapter.exchange(steps).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Protocol);
        assert!(error.message.contains("line of more than 1048576 bytes"), "{error}");
    }
}

#[tokio::test]
async fn head_without_end_is_refused() {
    let mut steps = vec![Step::Send(b"HTTP/1.1 200 OK\r\n".to_vec())];
    steps
        .extend(std::iter::repeat_n(Step::Send(format!("a: {}\r\n", "x".repeat(4096)).into()), 40));
    let exchange = VLLM.exchange(steps).await;
    assert_eq!(failure(&exchange).class, ErrorClass::Protocol);
}

#[tokio::test]
async fn bytes_that_are_not_the_dialect_are_quoted() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("Paris"), "data: {nonsense\n\n"]).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Protocol, "{error}");
        assert!(error.message.contains("nonsense"), "{error}");
        let exchange = adapter.exchange(vec![Step::Send(b"SSH-2.0-OpenSSH\r\n".to_vec())]).await;
        assert_eq!(failure(&exchange).class, ErrorClass::Protocol);
    }
}

#[tokio::test]
async fn page_instead_of_a_stream_is_named_as_what_it_is() {
    for adapter in ADAPTERS {
        let page = answer("200 OK", "text/html", "<html>\n<title>Sign in</title></html>");
        let exchange = adapter.exchange(page.clone()).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Protocol);
        assert!(error.message.contains("text/html"), "{error}");
        assert!(error.message.contains("<title>Sign in</title>"), "{error}");
        let server = Scripted::start(move |_| page.clone()).await;
        let error = adapter.engine(&server.url, "").unwrap().describe().await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Protocol);
        assert!(error.message.contains("Sign in") && error.hint.is_some(), "{error}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_limit() {
    let silences = ADAPTERS.map(|adapter| async move {
        let before_head = adapter.exchange(vec![Step::Hang]).await;
        assert_eq!(failure(&before_head).class, ErrorClass::Timeout);
        let error = failure(&before_head);
        assert!(error.message.ends_with("sent no byte for 1 s"), "{error}");
        assert!(error.hint.as_ref().unwrap().contains("timeout_s"));
        let text = adapter.text("Paris");
        // Longer than the limit in all, but never silent that long.
        let pause = Step::Wait(Duration::from_millis(300));
        let mut steps = vec![Step::Send(scripted::head(adapter.content_type))];
        for _ in 0..5 {
            steps.extend([Step::Send(chunk(&text)), pause.clone()]);
        }
        steps.push(Step::Hang);
        let exchange = adapter.exchange(steps).await;
        assert_eq!(failure(&exchange).class, ErrorClass::Timeout);
        assert_eq!(kinds(&exchange), [Content; 5]);
        assert_ordered(&exchange);
    });
    let [vllm, llama, ollama] = silences;
    tokio::join!(vllm, llama, ollama);
}

#[tokio::test]
async fn slow_first_token_keeps_all_instants_apart() {
    for adapter in ADAPTERS {
        let pause = || Step::Wait(Duration::from_millis(20));
        let exchange = adapter
            .exchange(vec![
                pause(),
                Step::Send(scripted::head(adapter.content_type)),
                pause(),
                Step::Send(chunk(&adapter.text("a"))),
                pause(),
                Step::Send(chunk(adapter.tail)),
                Step::Send(scripted::END.to_vec()),
            ])
            .await;
        assert_ordered(&exchange);
        let headers = exchange.headers_at;
        assert!(exchange.sent_at < headers && headers < exchange.first_byte_at);
        assert!(exchange.events[0].at < exchange.events[1].at);
    }
}

#[tokio::test]
async fn nobody_at_the_port_reads_in_one_line_with_its_remedy() {
    for adapter in ADAPTERS {
        let url = closed_url().await;
        let engine = adapter.engine(&url, "").unwrap();
        for error in
            [engine.describe().await.unwrap_err(), engine.prepare(&chat()).await.err().unwrap()]
        {
            assert_eq!(error.class, ErrorClass::Unreachable);
            let kind = adapter.kind;
            assert_eq!(
                error.message,
                format!("{kind} at {url} is unreachable: connection refused")
            );
            assert_eq!(error.hint.as_deref(), Some("start it, or check the URL"));
        }
    }
}

#[tokio::test]
async fn error_statuses_keep_their_class_and_words() {
    let statuses = [
        ("400 Bad Request", ErrorClass::Rejected),
        ("404 Not Found", ErrorClass::Rejected),
        ("429 Too Many Requests", ErrorClass::Busy),
        ("500 Internal Server Error", ErrorClass::Rejected),
        ("503 Service Unavailable", ErrorClass::Busy),
        ("302 Found", ErrorClass::Protocol),
    ];
    let bodies = [
        "{\"error\":{\"message\":\"model 'nope' not found\",\"code\":1}}",
        "{\"error\":\"model 'nope' not found\"}",
        "model 'nope' not found\n",
    ];
    for adapter in ADAPTERS {
        for (status, class) in statuses {
            for body in bodies {
                let exchange = adapter.exchange(answer(status, "application/json", body)).await;
                let error = failure(&exchange);
                assert_eq!(error.class, class, "{error}");
                let words = format!("HTTP {}: model 'nope' not found", &status[..3]);
                assert!(error.message.ends_with(&words), "{error}");
                assert_ne!(exchange.headers_at, None);
            }
        }
    }
    let missing = answer("404 Not Found", "application/json", bodies[1]);
    let exchange = OLLAMA.exchange(missing).await;
    assert_eq!(failure(&exchange).hint.as_deref(), Some("ollama pull smollm2:q4"));
}

#[tokio::test]
async fn cancelling_ends_at_once_and_keeps_what_came() {
    for adapter in ADAPTERS {
        let server = adapter
            .serve(vec![
                Step::Send(scripted::head(adapter.content_type)),
                Step::Send(chunk(&adapter.text("a"))),
                Step::Send(chunk(&adapter.text("b"))),
                Step::Hang,
            ])
            .await;
        let engine = adapter.engine(&server.url, "").unwrap();
        let prepared = engine.prepare(&chat()).await.unwrap();
        let cancel = CancellationToken::new();
        let running = tokio::spawn(prepared.run(cancel.clone()));
        // Both texts are sent then; the pause lets them be read. The idle limit is 300 s.
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, server.hanging()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
        let exchange = tokio::time::timeout(limit, running).await.unwrap().unwrap();
        assert_eq!(failure(&exchange).class, ErrorClass::Cancelled);
        assert_eq!(exchange.text, "ab");
        assert_ordered(&exchange);
        tokio::time::timeout(limit, server.deserted()).await.unwrap();
    }
}

#[tokio::test]
async fn request_cancelled_before_its_release_sends_nothing() {
    for adapter in ADAPTERS {
        let server = adapter.serve(vec![Step::Hang]).await;
        let prepared = adapter.engine(&server.url, "").unwrap().prepare(&chat()).await.unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        let exchange = prepared.run(cancel).await;
        assert_eq!((failure(&exchange).class, exchange.sent_at), (ErrorClass::Cancelled, None));
        assert!(server.received().iter().all(|request| request.path != adapter.route));
    }
}

#[tokio::test]
async fn key_goes_to_the_server_and_nowhere_else() {
    // Set by cargo, so that no test has to change the environment.
    let key = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    for adapter in ADAPTERS {
        let echo = format!("{{\"error\":\"bad key {key}\"}}");
        let server = adapter.serve(answer("401 Unauthorized", "application/json", &echo)).await;
        let engine = adapter.engine(&server.url, "?api_key_env=CARGO_MANIFEST_DIR").unwrap();
        let info = engine.describe().await.unwrap();
        let prepared = engine.prepare(&chat()).await.unwrap();
        let exchange = prepared.run(CancellationToken::new()).await;
        for request in server.received() {
            assert_eq!(request.headers["authorization"], format!("Bearer {key}"));
        }
        let hint = failure(&exchange).hint.as_deref().unwrap();
        assert!(hint.contains("api_key_env"), "{hint}");
        let kept =
            format!("{exchange:?} {info:?} {}", serde_json::to_string(engine.spec()).unwrap());
        assert!(kept.contains("bad key [key]") && !kept.contains(&key), "{kept}");
    }
}

#[tokio::test]
async fn request_carries_what_was_asked_in_the_engines_words() {
    let tokens = request(Prompt::Tokens { ids: vec![504, 3575], text: "The capital".to_owned() });
    let raw = request(Prompt::Raw("Once".to_owned()));
    let sent = |adapter: Adapter, request: GenerateRequest, path: &'static str| async move {
        let server = adapter.serve(chunked(adapter.content_type, &[adapter.tail])).await;
        let engine = adapter.engine(&server.url, "").unwrap();
        let prepared = engine.prepare(&request).await.unwrap();
        assert!(server.received().iter().all(|request| request.path != path), "sent too early");
        assert_eq!(prepared.run(CancellationToken::new()).await.outcome, Ok(()));
        let received = server.last(path);
        assert_eq!(
            (received.method.as_str(), received.headers["content-type"].as_str()),
            ("POST", "application/json")
        );
        received.json()
    };
    let vllm = sent(VLLM, tokens.clone(), "/v1/completions").await;
    assert_eq!(vllm["model"], "smollm2");
    assert_eq!(vllm["prompt"], serde_json::json!([504, 3575]));
    assert_eq!((&vllm["max_tokens"], &vllm["min_tokens"]), (&8.into(), &8.into()));
    assert_eq!((&vllm["temperature"], &vllm["top_p"]), (&0.7.into(), &0.9.into()));
    assert_eq!(
        (&vllm["top_k"], &vllm["seed"], &vllm["ignore_eos"]),
        (&20.into(), &3.into(), &true.into())
    );
    assert_eq!(
        (&vllm["stream"], &vllm["stream_options"]["include_usage"]),
        (&true.into(), &true.into())
    );
    let llama = sent(LLAMA, tokens.clone(), "/v1/completions").await;
    assert_eq!(llama["model"], "/somewhere/private/smollm2-Q4_1.gguf");
    assert_eq!(llama["prompt"], serde_json::json!([504, 3575]));
    assert_eq!((&llama["cache_prompt"], &llama["ignore_eos"]), (&false.into(), &true.into()));
    let ollama = sent(OLLAMA, tokens, "/api/generate").await;
    assert_eq!((&ollama["prompt"], &ollama["raw"]), (&"The capital".into(), &true.into()));
    let options = &ollama["options"];
    assert_eq!((&options["num_predict"], &options["seed"]), (&8.into(), &3.into()));
    assert_eq!((&options["temperature"], &options["top_k"]), (&0.7.into(), &20.into()));
    assert_eq!(options.get("num_ctx"), None, "not asked for, not sent");
    assert_eq!(sent(OLLAMA, raw.clone(), "/api/generate").await["prompt"], "Once");
    assert_eq!(sent(VLLM, raw, "/v1/completions").await["prompt"], "Once");
    for adapter in ADAPTERS {
        let body = sent(adapter, chat(), adapter.route).await;
        assert_eq!(body["messages"][0]["content"], "What is the capital of France?");
    }
}

#[tokio::test]
async fn vllm_describes_itself_with_its_cache() {
    let server = VLLM.serve(Vec::new()).await;
    let info = VLLM.engine(&server.url, "").unwrap().describe().await.unwrap();
    assert_eq!((info.version.as_deref(), info.model.as_str()), (Some("0.32.0"), "smollm2"));
    assert_eq!(info.max_model_len, Some(2048));
    assert_eq!(info.settings["num_gpu_blocks"], "364");
    assert!(!info.settings.contains_key("sliding_window"), "None is no setting");
    assert!(info.capabilities.token_id_prompts.is_yes() && info.capabilities.ignore_eos.is_yes());
    assert!(info.capabilities.cold.reason().unwrap().contains("start it anew"));
}

#[tokio::test]
async fn llama_server_is_recognised_and_its_paths_stay_its_own() {
    let server = LLAMA.serve(Vec::new()).await;
    let info = LLAMA.engine(&server.url, "").unwrap().describe().await.unwrap();
    assert_eq!((info.version.as_deref(), info.max_model_len), (Some("b11434"), Some(512)));
    assert_eq!(
        (info.model.as_str(), info.precision.as_deref()),
        ("smollm2-Q4_1.gguf", Some("Q4_1"))
    );
    assert_eq!(info.settings["model_file"], "smollm2-Q4_1.gguf");
    assert!(info.capabilities.ignore_eos.is_yes());
    assert!(!format!("{info:?}").contains("private"));
}

#[tokio::test]
async fn unknown_server_is_not_asked_for_what_it_may_not_know() {
    let server = Scripted::start(|request| match request.path.as_str() {
        "/v1/models" => json("{\"data\":[{\"id\":\"m\"}]}"),
        "/v1/completions" => chunked(SSE, &[VLLM.tail]),
        // A front end that answers every path with its page.
        _ => answer("200 OK", "text/html", "<html></html>"),
    })
    .await;
    let engine = LLAMA.engine(&server.url, "/v1?timeout_s=1").unwrap();
    let info = engine.describe().await.unwrap();
    assert!(info.capabilities.ignore_eos.reason().unwrap().contains("neither"));
    assert!(info.capabilities.token_id_prompts.reason().unwrap().contains("text"));
    let tokens = request(Prompt::Tokens { ids: vec![1], text: "a".to_owned() });
    engine.prepare(&tokens).await.unwrap().run(CancellationToken::new()).await.outcome.unwrap();
    let body = server.last("/v1/completions").json();
    assert_eq!((&body["prompt"], body.get("ignore_eos")), (&"a".into(), None));
}

#[tokio::test]
async fn server_that_lists_no_models_is_measured_with_the_one_that_is_named() {
    let server = Scripted::start(|request| match request.path.as_str() {
        "/v1/chat/completions" => chunked(SSE, &[VLLM.tail]),
        _ => answer("404 Not Found", "text/plain", "nothing here"),
    })
    .await;
    let error = LLAMA.engine(&server.url, "").unwrap().describe().await.unwrap_err();
    assert!(error.message.contains("has no /v1/models"), "{error}");
    let engine = LLAMA.engine(&server.url, "?model=mine").unwrap();
    assert_eq!(engine.describe().await.unwrap().model, "mine");
    let chat = request(Prompt::Chat("a".to_owned()));
    engine.prepare(&chat).await.unwrap().run(CancellationToken::new()).await.outcome.unwrap();
    assert_eq!(server.last("/v1/chat/completions").json()["model"], "mine");
}

#[tokio::test]
async fn server_that_still_loads_is_busy() {
    let loading = "{\"error\":{\"message\":\"Loading model\",\"code\":503}}";
    let server =
        Scripted::start(|_| answer("503 Service Unavailable", "application/json", loading)).await;
    let error = LLAMA.engine(&server.url, "").unwrap().describe().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Busy);
}

#[tokio::test]
async fn model_that_is_not_there_is_told_with_those_that_are() {
    let server = VLLM.serve(Vec::new()).await;
    let error = VLLM.engine(&server.url, "?model=nope").unwrap().describe().await.unwrap_err();
    assert!(error.message.ends_with("does not serve model `nope`: it lists smollm2"), "{error}");
    let server = OLLAMA.serve(Vec::new()).await;
    let error = OLLAMA.engine(&server.url, "?model=nope").unwrap().describe().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Rejected);
    assert!(error.message.ends_with("does not have model `nope`: it has smollm2:q4"), "{error}");
    assert_eq!(error.hint.as_deref(), Some("ollama pull nope"));
}

#[tokio::test]
async fn ollama_describes_the_model_on_disk_and_in_memory() {
    let server = OLLAMA.serve(Vec::new()).await;
    let info = OLLAMA.engine(&server.url, "").unwrap().describe().await.unwrap();
    assert_eq!(
        (info.version.as_deref(), info.precision.as_deref()),
        (Some("0.12.3"), Some("Q4_1"))
    );
    assert_eq!((info.model.as_str(), info.max_model_len), ("smollm2:q4", Some(2048)));
    assert_eq!(info.settings["size_vram"], "99971235");
    assert_eq!(info.settings["model_context_length"], "8192");
    assert!(info.capabilities.ignore_eos.reason().unwrap().contains("no ignore_eos"));
    assert!(info.capabilities.cold.is_yes());
    let engine = OLLAMA.engine(&server.url, "?num_ctx=512").unwrap();
    assert_eq!(engine.describe().await.unwrap().max_model_len, Some(512));
}

#[tokio::test]
async fn ollama_is_cold_once_the_model_has_left_memory() {
    let looks = std::sync::atomic::AtomicUsize::new(0);
    let server = Scripted::start(move |request| match request.path.as_str() {
        "/api/generate" => {
            json("{\"model\":\"smollm2:q4\",\"done\":true,\"done_reason\":\"unload\"}")
        }
        "/api/ps" if looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 => {
            json(wire::OLLAMA_PS)
        }
        "/api/ps" => json("{\"models\":[]}"),
        _ => OLLAMA.identity(request).unwrap(),
    })
    .await;
    let engine = OLLAMA.engine(&server.url, "").unwrap();
    engine.make_cold().await.unwrap();
    let body = server.last("/api/generate").json();
    assert_eq!((&body["keep_alive"], &body["model"]), (&0.into(), &"smollm2:q4".into()));
    let looks = server.received().iter().filter(|request| request.path == "/api/ps").count();
    assert_eq!(looks, 3, "asked until it was gone");
}

#[tokio::test]
async fn server_that_names_itself_is_not_taken_for_vllm_by_its_version() {
    let server = Scripted::start(|request| match request.path.as_str() {
        "/v1/models" => json("{\"data\":[{\"id\":\"m\",\"owned_by\":\"yardstick\"}]}"),
        "/version" => json("{\"version\":\"0.1.0\"}"),
        _ => answer("404 Not Found", "text/plain", ""),
    })
    .await;
    let closed = closed_url().await;
    let limit = Duration::from_secs(20);
    let found = discover::running_at(&Clock::real(), [&closed, &server.url, &closed], limit).await;
    let found: Vec<_> = found.iter().map(|spec| (spec.name.as_str(), spec.kind.as_str())).collect();
    assert_eq!(found, [("yardstick-serve", "openai")]);
}

#[tokio::test]
async fn running_engines_are_found_and_named_for_what_they_are() {
    let ollama = OLLAMA.serve(Vec::new()).await;
    let vllm = VLLM.serve(Vec::new()).await;
    let llama = LLAMA.serve(Vec::new()).await;
    let clock = Clock::real();
    let found =
        discover::running_at(&clock, [&ollama.url, &vllm.url, &llama.url], Duration::from_secs(20))
            .await;
    let names: Vec<_> = found.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, ["ollama", "vllm", "llama-server"]);
    let silent = Scripted::start(|_| vec![Step::Hang]).await;
    let page = Scripted::start(|_| answer("200 OK", "text/html", "<html>")).await;
    let found = discover::running_at(
        &clock,
        [&page.url, &silent.url, &closed_url().await],
        Duration::from_millis(200),
    )
    .await;
    assert_eq!(found, []);
}
