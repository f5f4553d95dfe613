//! What servers say of themselves, and how they are found.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use yardstick::clock::Clock;
use yardstick::engine::{ErrorClass, Prompt, discover};

use super::{LLAMA, OLLAMA, SSE, VLLM, closed_url, request};
use crate::support::scripted::{Scripted, Step, answer, chunked, json};
use crate::support::wire;

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
