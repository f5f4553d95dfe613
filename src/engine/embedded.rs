//! The embedded engine as a thing that is compared: in process over a channel,
//! or over HTTP through its own server on loopback, so that what HTTP costs
//! can be measured. Knows the engine's handle, not its inside.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    Capabilities, Capability, Engine, EngineError, EngineInfo, EngineKind, EngineSpec, ErrorClass,
    EventKind, Exchange, FinishReason, GenerateRequest, ModelHint, Prepared, Prompt, TokenEvent,
    Usage, connect,
};
use crate::clock::Clock;
use crate::infer::telemetry::{ResidentBytes, Telemetry};
use crate::infer::{
    ChatMessage, ComputeDtype, EngineConfig, EngineHost, Generation, GenerationEvent, InferError,
    InferRequest, KvBudget, ModelSource, SamplingParams, StopReason,
};
use crate::server::Server;
use crate::units::parse_bytes;

/// The adapter for [`EngineKind::Embedded`].
pub struct EmbeddedEngine {
    spec: EngineSpec,
    model_name: String,
    host: EngineHost,
    clock: Clock,
    transport: Transport,
}

enum Transport {
    /// Requests go to the engine's queue as they are.
    Channel,
    /// Requests go through the server. The client is dropped before the server.
    Http { client: Box<dyn Engine>, _server: Server },
}

impl EmbeddedEngine {
    /// Opens the model with the specification's settings; weights are loaded
    /// by the first request. With `transport=http` the server runs from now on.
    ///
    /// # Errors
    /// When the files are damaged, the settings do not fit the model, or no
    /// port can be had.
    pub fn open(
        spec: &EngineSpec,
        source: &ModelSource,
        model_name: &str,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let host = EngineHost::open(source, engine_config(spec)?, clock.clone())?;
        let transport = match spec.setting("transport") {
            None | Some("channel") => Transport::Channel,
            Some("http") => over_http(spec, &host, model_name, clock)?,
            Some(other) => {
                let message = format!("transport is `{other}`, expected channel or http");
                return Err(EngineError::new(ErrorClass::Engine, message));
            }
        };
        let model_name = model_name.to_owned();
        Ok(Self { spec: spec.clone(), model_name, host, clock: clock.clone(), transport })
    }

    /// The engine behind the adapter.
    #[must_use]
    pub const fn host(&self) -> &EngineHost {
        &self.host
    }

    fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
        let tokenizer = self.host.tokenizer();
        Ok(match prompt {
            Prompt::Chat(_) | Prompt::Dialogue(_) => {
                let messages = prompt.messages().unwrap_or_default().into_iter();
                let message = |(role, content): (&str, &str)| ChatMessage {
                    role: role.to_owned(),
                    content: content.to_owned(),
                };
                let messages: Vec<_> = messages.map(message).collect();
                tokenizer.encode(&tokenizer.apply_chat_template(&messages)?, false)?
            }
            Prompt::Raw(text) => tokenizer.encode(text, true)?,
            Prompt::Tokens { ids, .. } => ids.clone(),
        })
    }
}

fn over_http(
    spec: &EngineSpec,
    host: &EngineHost,
    model_name: &str,
    clock: &Clock,
) -> Result<Transport, EngineError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(host.clone(), address, model_name)
        .map_err(|error| EngineError::new(ErrorClass::Engine, error.to_string()))?;
    let internal = |error: super::spec::SpecError| {
        EngineError::new(ErrorClass::Engine, format!("engine {}: {error}", spec.name))
    };
    let settings = [("model".to_owned(), model_name.to_owned())].into();
    let url = server.url();
    let client_spec = EngineSpec::new(Some(&spec.name), EngineKind::Openai, Some(&url), settings)
        .map_err(internal)?;
    let client = connect(&client_spec, clock, &ModelHint::default())?;
    Ok(Transport::Http { client, _server: server })
}

/// The engine's configuration from the specification's settings, whose values
/// were checked when it was made.
///
/// # Errors
/// [`EngineError`] for settings that contradict each other.
pub fn engine_config(spec: &EngineSpec) -> Result<EngineConfig, EngineError> {
    let default = EngineConfig::default();
    let number = |key: &str, default: usize| spec.number(key).unwrap_or(default);
    let kv = match (spec.number("kv_blocks"), spec.setting("kv_memory")) {
        (Some(_), Some(_)) => {
            return Err(refused(spec, "kv_blocks and kv_memory say the same thing twice"));
        }
        (Some(blocks), None) => KvBudget::Blocks(blocks),
        (None, Some(size)) => {
            KvBudget::Bytes(parse_bytes(size).map_err(|error| refused(spec, &error))?)
        }
        (None, None) => default.kv,
    };
    let dtype = match spec.setting("dtype") {
        None | Some("auto") => None,
        Some("f32") => Some(ComputeDtype::F32),
        Some("bf16") => Some(ComputeDtype::Bf16),
        Some("f16") => Some(ComputeDtype::F16),
        Some("quantized") => Some(ComputeDtype::Quantized),
        Some(other) => return Err(refused(spec, &format!("dtype `{other}` is not known"))),
    };
    let device = match spec.setting("device") {
        None | Some("auto") => None,
        Some(name) => Some(name.parse().map_err(|error: String| refused(spec, &error))?),
    };
    let switch = |key: &str, default| spec.setting(key).map_or(default, |value| value == "true");
    Ok(EngineConfig {
        max_model_len: spec.number("max_model_len"),
        block_size: number("block_size", default.block_size),
        kv,
        max_num_seqs: number("max_num_seqs", default.max_num_seqs),
        max_num_batched_tokens: number("max_num_batched_tokens", default.max_num_batched_tokens),
        enable_prefix_caching: switch("enable_prefix_caching", default.enable_prefix_caching),
        cuda_graphs: switch("cuda_graphs", default.cuda_graphs),
        gpu_memory_utilization: spec
            .setting("gpu_memory_utilization")
            .and_then(|share| share.parse().ok())
            .unwrap_or(default.gpu_memory_utilization),
        device,
        threads: spec.number("threads"),
        dtype,
        ..default
    })
}

fn refused(spec: &EngineSpec, why: &str) -> EngineError {
    EngineError::new(ErrorClass::Rejected, format!("engine {}: {why}", spec.name))
}

impl From<InferError> for EngineError {
    fn from(error: InferError) -> Self {
        let class = match &error {
            InferError::Config(_) | InferError::Request(_) => ErrorClass::Rejected,
            InferError::Busy { .. } => ErrorClass::Busy,
            InferError::Load { .. } | InferError::Internal(_) => ErrorClass::Engine,
        };
        let hint = match &error {
            InferError::Load { hint, .. } => hint.clone(),
            InferError::Config(_)
            | InferError::Request(_)
            | InferError::Busy { .. }
            | InferError::Internal(_) => None,
        };
        Self { class, message: error.to_string(), hint }
    }
}

#[async_trait]
impl Engine for EmbeddedEngine {
    fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let mut settings = self.host.settings();
        let capabilities = match &self.transport {
            Transport::Channel => Capabilities {
                token_id_prompts: Capability::Yes,
                ignore_eos: Capability::Yes,
                cold: Capability::Yes,
                server_timings: Capability::Yes,
            },
            Transport::Http { client, .. } => {
                // The weights are behind our own handle, whatever a client can do.
                Capabilities { cold: Capability::Yes, ..client.describe().await?.capabilities }
            }
        };
        let transport = match self.transport {
            Transport::Channel => "channel",
            Transport::Http { .. } => "http",
        };
        settings.insert("transport".to_owned(), transport.to_owned());
        Ok(EngineInfo {
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            model: self.model_name.clone(),
            precision: Some(self.host.precision()),
            max_model_len: u32::try_from(self.host.max_model_len()).ok(),
            dummy_weights: self.host.is_dummy(),
            settings,
            capabilities,
        })
    }

    async fn prepare(&self, request: &GenerateRequest) -> Result<Box<dyn Prepared>, EngineError> {
        if let Transport::Http { client, .. } = &self.transport {
            return client.prepare(request).await;
        }
        // Tokenized here, so that a burst is released together. Servers pay for
        // it after the request was sent, hence it is kept beside their timings.
        let begun = self.clock.now();
        let prompt_ids = self.prompt_ids(&request.prompt)?;
        let tokenize = self.clock.now().since(begun);
        let sampling = &request.sampling;
        let request = InferRequest {
            sampling: SamplingParams {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k.map(|k| k as usize),
                seed: sampling.seed,
            },
            ignore_eos: request.ignore_eos,
            ..InferRequest::new(prompt_ids, request.max_tokens as usize)
        };
        let (host, clock) = (self.host.clone(), self.clock.clone());
        Ok(Box::new(Submission { host, clock, request, tokenize }))
    }

    async fn make_cold(&self) -> Result<Duration, EngineError> {
        let begun = self.clock.now();
        let host = self.host.clone();
        let unloaded = tokio::task::spawn_blocking(move || {
            host.unload();
            host.status().loaded
        });
        let still_loaded = unloaded.await.map_err(|error| {
            EngineError::new(ErrorClass::Engine, format!("unloading the weights failed: {error}"))
        })?;
        if still_loaded {
            let message = format!("engine {} is still loaded after an unload", self.spec.name);
            return Err(EngineError::new(ErrorClass::Engine, message));
        }
        Ok(self.clock.now().since(begun))
    }

    fn observe(&self, resident: ResidentBytes) -> Option<Telemetry> {
        // An engine whose thread has ended has nothing to tell; its requests say why.
        self.host.observe(resident).ok()
    }
}

/// A request that waits for its release into the engine's queue.
struct Submission {
    host: EngineHost,
    clock: Clock,
    request: InferRequest,
    tokenize: Duration,
}

#[async_trait]
impl Prepared for Submission {
    async fn run(self: Box<Self>, cancel: CancellationToken) -> Exchange {
        let Self { host, clock, request, tokenize } = *self;
        let mut exchange = Exchange::begun(clock.now());
        exchange.server.insert("tokenize_ns".to_owned(), nanos(tokenize));
        exchange.sent_at = Some(clock.now());
        exchange.outcome = match host.submit(request) {
            Ok(generation) => follow(generation, &clock, &cancel, &mut exchange).await,
            Err(error) => Err(error.into()),
        };
        exchange.done_at = clock.now();
        exchange
    }
}

/// Follows a generation to its end, or to `cancel`; dropping it aborts it.
async fn follow(
    mut generation: Generation,
    clock: &Clock,
    cancel: &CancellationToken,
    exchange: &mut Exchange,
) -> Result<(), EngineError> {
    loop {
        let event = tokio::select! {
            biased;
            event = generation.next() => event,
            () = cancel.cancelled() => {
                return Err(EngineError::new(ErrorClass::Cancelled, "cancelled"));
            }
        };
        let at = clock.now();
        match event {
            Some(GenerationEvent::Token { text, .. }) => {
                exchange.first_byte_at.get_or_insert(at);
                exchange.push(TokenEvent { at, kind: EventKind::Content, num_tokens: Some(1) });
                exchange.text.push_str(&text);
            }
            Some(GenerationEvent::PromptLogprobs { .. }) => {}
            Some(GenerationEvent::Done {
                reason,
                num_prompt_tokens,
                num_cached_tokens,
                num_output_tokens,
                timings,
                ..
            }) => {
                exchange.push(TokenEvent { at, kind: EventKind::Finish, num_tokens: None });
                exchange.usage = Some(Usage {
                    num_prompt_tokens: u32::try_from(num_prompt_tokens).ok(),
                    num_output_tokens: u32::try_from(num_output_tokens).ok(),
                    num_cached_tokens: u32::try_from(num_cached_tokens).ok(),
                });
                for (name, duration) in [
                    ("queue_ns", timings.queue),
                    ("load_ns", timings.load),
                    ("prefill_ns", timings.prefill),
                    ("decode_ns", timings.decode),
                ] {
                    exchange.server.insert(name.to_owned(), nanos(duration));
                }
                return finished(reason, exchange);
            }
            Some(GenerationEvent::Failed(error)) => return Err(error.into()),
            None => {
                let message = "the embedded engine ended without an answer";
                return Err(EngineError::new(ErrorClass::Truncated, message));
            }
        }
    }
}

fn finished(reason: StopReason, exchange: &mut Exchange) -> Result<(), EngineError> {
    let reason = match reason {
        StopReason::Stop => FinishReason::Stop,
        StopReason::Length => FinishReason::Length,
        StopReason::Aborted => {
            let message = "the embedded engine gave the request up";
            return Err(EngineError::new(ErrorClass::Truncated, message));
        }
    };
    exchange.finish_reason = Some(reason);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 ns, a hundred days")]
fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Sampling;
    use crate::infer::ModelConfig;

    fn config_of(text: &str) -> Result<EngineConfig, EngineError> {
        engine_config(&text.parse().unwrap())
    }

    #[test]
    fn settings_become_the_engines_configuration() {
        let config = config_of(
            "embedded?max_model_len=64&block_size=8&kv_memory=1MiB&max_num_seqs=3&dtype=quantized\
             &enable_prefix_caching=false&threads=3",
        )
        .unwrap();
        assert_eq!((config.max_model_len, config.block_size), (Some(64), 8));
        assert_eq!(config.kv, KvBudget::Bytes(1 << 20));
        assert_eq!((config.max_num_seqs, config.dtype), (3, Some(ComputeDtype::Quantized)));
        assert_eq!((config.enable_prefix_caching, config.threads), (false, Some(3)));
        assert_eq!(config_of("embedded").unwrap(), EngineConfig::default());
        assert_eq!(config_of("embedded?dtype=auto").unwrap(), EngineConfig::default());
    }

    #[test]
    fn two_sizes_for_one_pool_are_refused() {
        let error = config_of("embedded?kv_blocks=4&kv_memory=1MiB").unwrap_err();
        assert!(error.message.contains("kv_memory"), "{error}");
    }

    fn engine(text: &str) -> EmbeddedEngine {
        let config = ModelConfig {
            vocab_size: 128,
            intermediate_size: 64,
            max_position_embeddings: 4096,
            eos_token_ids: vec![2],
            ..ModelConfig::tiny()
        };
        let source = ModelSource::Dummy { config: Box::new(config), seed: 3, tokenizer: None };
        EmbeddedEngine::open(&text.parse().unwrap(), &source, "tiny", &Clock::real()).unwrap()
    }

    fn request(max_tokens: u32) -> GenerateRequest {
        let prompt = Prompt::Tokens { ids: vec![5, 6, 7], text: String::new() };
        GenerateRequest { prompt, max_tokens, sampling: Sampling::default(), ignore_eos: true }
    }

    async fn run(engine: &EmbeddedEngine, max_tokens: u32) -> Exchange {
        let prepared = engine.prepare(&request(max_tokens)).await.unwrap();
        prepared.run(CancellationToken::new()).await
    }

    fn num_token_events(exchange: &Exchange) -> usize {
        exchange.events.iter().filter(|event| event.kind.is_token()).count()
    }

    #[tokio::test]
    async fn both_transports_give_the_same_answer() {
        let channel = engine("embedded");
        let http = engine("embedded?transport=http");
        let (in_process, over_http) = (run(&channel, 9).await, run(&http, 9).await);
        assert_eq!((&in_process.outcome, &over_http.outcome), (&Ok(()), &Ok(())));
        assert_eq!(in_process.text, over_http.text);
        for exchange in [&in_process, &over_http] {
            assert_eq!(num_token_events(exchange), 9);
            assert_eq!(exchange.finish_reason, Some(FinishReason::Length));
            let usage = exchange.usage.unwrap();
            assert_eq!((usage.num_prompt_tokens, usage.num_output_tokens), (Some(3), Some(9)));
        }
        let (channel, http) = (channel.describe().await.unwrap(), http.describe().await.unwrap());
        assert!(channel.dummy_weights && http.dummy_weights);
        assert!(channel.capabilities.cold.is_yes() && http.capabilities.cold.is_yes());
        assert_eq!(channel.precision, http.precision);
        assert_eq!(http.settings["transport"], "http");
    }

    #[tokio::test]
    async fn cold_engine_loads_within_the_next_request() {
        for text in ["embedded", "embedded?transport=http"] {
            let engine = engine(text);
            assert_eq!(run(&engine, 2).await.outcome, Ok(()));
            assert!(engine.host().status().loaded);
            engine.make_cold().await.unwrap();
            assert!(!engine.host().status().loaded, "{text}");
            assert_eq!(run(&engine, 2).await.outcome, Ok(()));
        }
        let engine = engine("embedded");
        let cold = run(&engine, 2).await;
        let warm = run(&engine, 2).await;
        assert!(cold.server["load_ns"] > 0.0 && warm.server["load_ns"] == 0.0);
        assert!(cold.server["queue_ns"] >= cold.server["load_ns"]);
    }

    #[tokio::test]
    async fn cancelled_request_keeps_its_tokens_and_no_blocks() {
        let engine = engine("embedded");
        let cancel = CancellationToken::new();
        let prepared = engine.prepare(&request(4000)).await.unwrap();
        let running = tokio::spawn(prepared.run(cancel.clone()));
        while engine.host().status().num_running == 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
        let exchange = running.await.unwrap();
        assert_eq!(exchange.outcome.unwrap_err().class, ErrorClass::Cancelled);
        assert!(exchange.usage.is_none());
        while engine.host().status().num_running > 0 {
            tokio::task::yield_now().await;
        }
        let status = engine.host().status();
        assert_eq!(status.num_free_blocks, status.num_blocks);
    }

    #[tokio::test]
    async fn request_that_cannot_fit_is_rejected_with_its_numbers() {
        let engine = engine("embedded?max_model_len=32");
        let prompt = Prompt::Tokens { ids: vec![5; 40], text: String::new() };
        let prepared = engine.prepare(&GenerateRequest { prompt, ..request(4) }).await.unwrap();
        let error = prepared.run(CancellationToken::new()).await.outcome.unwrap_err();
        assert_eq!(error.class, ErrorClass::Rejected);
        assert!(error.message.contains("40") && error.message.contains("32"), "{error}");
    }
}
