//! What is sent.

use tokio_util::sync::CancellationToken;
use yardstick::engine::{GenerateRequest, Prompt};

use super::{ADAPTERS, Adapter, LLAMA, OLLAMA, VLLM, chat, failure, request};
use crate::support::scripted::{answer, chunked};

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
