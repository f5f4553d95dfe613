//! Real servers, driven through the adapters. Only where `YARDSTICK_PEERS`
//! names them: `llama.cpp` installs the package `xllamacpp` into
//! `target/peers`, `vllm` attaches to `YARDSTICK_VLLM_URL`. Elsewhere each
//! test says why it does nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio_util::sync::CancellationToken;
use yardstick::catalog::{LocateOptions, locate};
use yardstick::clock::Clock;
use yardstick::engine::{
    Engine, EngineSpec, ErrorClass, EventKind, Exchange, FinishReason, GenerateRequest, ModelHint,
    Prompt, Sampling, connect,
};
use yardstick::infer::ModelSource;
use yardstick::units::millis;

const PACKAGE: &str = "xllamacpp==2026.10.11549";

/// Serves until its standard input ends, so that no server outlives its test.
const SERVER: &str = "
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
# One thread: two of them spin against each other where a core is shared.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.n_parallel = 4
params.n_ctx = 4096
server = xllamacpp.Server(params)
print('listening', server.listening_address, flush=True)
sys.stdin.read()
";

fn asked_for(peer: &str) -> bool {
    let peers = std::env::var("YARDSTICK_PEERS").unwrap_or_default();
    let asked = peers.split(',').any(|name| name.trim() == peer);
    if !asked {
        eprintln!("skipped: YARDSTICK_PEERS does not name {peer}");
    }
    asked
}

/// A Python interpreter that has the package; made on first use.
fn interpreter() -> PathBuf {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("peers/llama.cpp");
    let python = venv.join("bin/python");
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    }
    // Without network access when it is there already.
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PACKAGE]));
    python
}

struct LlamaServer {
    url: String,
    child: Child,
}

impl LlamaServer {
    fn start(model: &Path) -> Self {
        let mut child = Command::new(interpreter())
            .args(["-c", SERVER])
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line =
            lines.find_map(|line| line.unwrap().strip_prefix("listening ").map(str::to_owned));
        Self { url: line.unwrap(), child }
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Either it is gone by itself or it is ended here; both are fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(prompt: Prompt, max_tokens: u32) -> GenerateRequest {
    GenerateRequest { prompt, max_tokens, sampling: Sampling::default(), ignore_eos: true }
}

async fn generate(engine: &dyn Engine, prompt: Prompt, max_tokens: u32) -> Exchange {
    let prepared = engine.prepare(&request(prompt, max_tokens)).await.unwrap();
    let exchange = prepared.run(CancellationToken::new()).await;
    assert_eq!(exchange.outcome, Ok(()));
    exchange
}

/// "The capital of France is" in the model's own ids.
fn capital() -> Prompt {
    Prompt::Tokens {
        ids: vec![504, 3575, 282, 4649, 314],
        text: "The capital of France is".to_owned(),
    }
}

/// What must hold of any real server that takes ids and `ignore_eos`.
async fn check(engine: &dyn Engine) {
    let info = engine.describe().await.unwrap();
    eprintln!("{info:#?}");
    assert!(info.capabilities.ignore_eos.is_yes() && info.capabilities.token_id_prompts.is_yes());

    let exchange = generate(engine, capital(), 24).await;
    let usage = exchange.usage.unwrap();
    assert_eq!((usage.num_prompt_tokens, usage.num_output_tokens), (Some(5), Some(24)));
    assert_eq!(exchange.finish_reason, Some(FinishReason::Length));
    assert!(exchange.text.starts_with(" Paris"), "{}", exchange.text);
    let tokens: Vec<_> = exchange.events.iter().filter(|event| event.kind.is_token()).collect();
    let ttft = tokens[0].at.since(exchange.sent_at.unwrap());
    eprintln!(
        "ids: TTFT {:.1} ms, {} text events for 24 tokens, {:.1} ms in all, server {:?}",
        millis(ttft),
        tokens.len(),
        millis(exchange.done_at.since(exchange.sent_at.unwrap())),
        exchange.server
    );

    let question = "What is the capital of France? Answer in one sentence.";
    let exchange = generate(engine, Prompt::Chat(question.to_owned()), 24).await;
    assert!(exchange.text.contains("Paris"), "{}", exchange.text);
    eprintln!("chat: first event {:?}, {:?}", exchange.events[0].kind, exchange.text);

    let prepared = engine.prepare(&request(Prompt::Raw("Once upon a time".into()), 1000)).await;
    let cancel = CancellationToken::new();
    let running = tokio::spawn(prepared.unwrap().run(cancel.clone()));
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    cancel.cancel();
    let exchange = running.await.unwrap();
    assert_eq!(exchange.outcome.unwrap_err().class, ErrorClass::Cancelled);
    let again = generate(engine, capital(), 8).await;
    assert!(again.text.starts_with(" Paris"), "serves on after a cancel");
}

#[tokio::test]
async fn llama_server_of_a_package_is_driven() {
    if !asked_for("llama.cpp") {
        return;
    }
    let found = locate("smollm2-135m-instruct", &LocateOptions::default(), &mut |_| {}).unwrap();
    let ModelSource::Gguf(model) = found.source else { panic!("no GGUF: {}", found.origin) };
    let server = LlamaServer::start(&model);
    let spec: EngineSpec = format!("llama-server:openai={}", server.url).parse().unwrap();
    let engine = connect(&spec, &Clock::real(), &ModelHint::default()).unwrap();
    check(&*engine).await;

    let info = engine.describe().await.unwrap();
    assert_eq!((info.precision.as_deref(), info.max_model_len), (Some("Q4_1"), Some(1024)));
    let twice = generate(&*engine, capital(), 4).await;
    assert_eq!(twice.usage.unwrap().num_cached_tokens, Some(0), "the prompt cache is off");
    assert!(twice.server["prompt_ms"] > 0.0);
    let chat = generate(&*engine, Prompt::Chat("Hello".to_owned()), 4).await;
    assert_eq!(chat.events[0].kind, EventKind::Empty, "its first chunk is a role");
    let long = request(Prompt::Raw("word ".repeat(3000)), 4);
    let refused = engine.prepare(&long).await.unwrap().run(CancellationToken::new()).await;
    let error = refused.outcome.unwrap_err();
    eprintln!("too long: {error}");
    assert_eq!(error.class, ErrorClass::Rejected);
}

#[tokio::test]
async fn vllm_that_runs_is_driven() {
    if !asked_for("vllm") {
        return;
    }
    let Ok(url) = std::env::var("YARDSTICK_VLLM_URL") else {
        eprintln!("skipped: YARDSTICK_VLLM_URL is not set");
        return;
    };
    let spec: EngineSpec = format!("vllm={url}").parse().unwrap();
    let engine = connect(&spec, &Clock::real(), &ModelHint::default()).unwrap();
    check(&*engine).await;
    let info = engine.describe().await.unwrap();
    assert!(info.version.is_some() && info.max_model_len.is_some());
    let exchange = generate(&*engine, capital(), 8).await;
    let counted: u32 = exchange.events.iter().filter_map(|event| event.num_tokens).sum();
    assert_eq!(counted, 8, "its running usage counts every token");
}
