//! Ollama over its native API, never over its `/v1`: that one ignores
//! `num_ctx`, applies a template to raw prompts and hides the durations.

mod answer;
mod identity;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use super::http::Endpoint;
use super::stream::Streaming;
use super::{
    Engine, EngineError, EngineInfo, EngineSpec, ErrorClass, GenerateRequest, ModelHint, Prepared,
    Prompt,
};
use crate::clock::Clock;

pub(super) use answer::AnswerDialect;

/// Longest wait for a model to leave memory.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks at what is in memory.
const UNLOAD_POLL: Duration = Duration::from_millis(25);

/// The adapter for [`super::EngineKind::Ollama`].
pub(super) struct Ollama {
    spec: EngineSpec,
    hint: ModelHint,
    endpoint: Arc<Endpoint>,
    /// The tag in use, once it is known to be there.
    model: Mutex<Option<String>>,
}

/// Body of `/api/chat` and of `/api/generate`.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Message<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    /// No template, no system prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<bool>,
    stream: bool,
    /// Refuse a prompt beyond the context instead of cutting it silently...
    truncate: bool,
    /// ...and end at the context's end instead of forgetting the beginning.
    /// Servers that know neither field ignore both.
    shift: bool,
    options: Options,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

/// All that changes what is drawn is sent, also where it is neutral: Ollama's
/// own defaults are top-k 40, top-p 0.9 and, before 2025, repeat penalty 1.1.
#[derive(Serialize)]
struct Options {
    num_predict: u32,
    seed: u64,
    temperature: f64,
    top_k: u32,
    top_p: f64,
    min_p: f64,
    repeat_penalty: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_ctx: Option<usize>,
}

impl Ollama {
    /// An adapter for `spec`; opens nothing.
    ///
    /// # Errors
    /// When the URL or the key cannot be used.
    pub(super) fn new(
        spec: &EngineSpec,
        clock: &Clock,
        hint: &ModelHint,
    ) -> Result<Self, EngineError> {
        let endpoint = Arc::new(Endpoint::new(spec, false, clock)?);
        Ok(Self { spec: spec.clone(), hint: hint.clone(), endpoint, model: Mutex::new(None) })
    }

    async fn model(&self) -> Result<String, EngineError> {
        let known = self.model.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(model) = known {
            return Ok(model);
        }
        let model = identity::choose(&self.endpoint, &self.spec, &self.hint).await?;
        *self.model.lock().unwrap_or_else(PoisonError::into_inner) = Some(model.clone());
        Ok(model)
    }

    fn body<'a>(&self, request: &'a GenerateRequest, model: &'a str) -> (&'static str, Body<'a>) {
        let (route, messages, prompt) = match &request.prompt {
            Prompt::Chat(_) | Prompt::Dialogue(_) => {
                let messages = request.prompt.messages().unwrap_or_default();
                let message = |(role, content)| Message { role, content };
                ("/api/chat", Some(messages.into_iter().map(message).collect()), None)
            }
            Prompt::Raw(text) | Prompt::Tokens { text, .. } => {
                ("/api/generate", None, Some(text.as_str()))
            }
        };
        let options = Options {
            num_predict: request.max_tokens,
            seed: request.sampling.short_seed(),
            temperature: request.sampling.temperature,
            top_k: request.sampling.top_k.unwrap_or(0),
            top_p: request.sampling.top_p,
            min_p: 0.0,
            repeat_penalty: 1.0,
            num_ctx: self.spec.number("num_ctx"),
        };
        let raw = prompt.is_some().then_some(true);
        let (stream, truncate, shift) = (true, false, false);
        (route, Body { model, messages, prompt, raw, stream, truncate, shift, options })
    }
}

#[async_trait]
impl Engine for Ollama {
    fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        let model = identity::choose(&self.endpoint, &self.spec, &self.hint).await?;
        *self.model.lock().unwrap_or_else(PoisonError::into_inner) = Some(model.clone());
        identity::describe(&self.endpoint, &self.spec, model).await
    }

    async fn prepare(&self, request: &GenerateRequest) -> Result<Box<dyn Prepared>, EngineError> {
        let model = self.model().await?;
        let (route, body) = self.body(request, &model);
        let request = self.endpoint.post(route, &body).await?;
        let dialect = AnswerDialect::new(model);
        Ok(Box::new(Streaming::prepare(Arc::clone(&self.endpoint), request, dialect).await?))
    }

    async fn make_cold(&self) -> Result<Duration, EngineError> {
        #[derive(Serialize)]
        struct Unload<'a> {
            model: &'a str,
            keep_alive: u32,
            stream: bool,
        }
        let model = self.model().await?;
        let begun = self.endpoint.clock.now();
        let body = Unload { model: &model, keep_alive: 0, stream: false };
        self.endpoint.post_json::<Value>("/api/generate", &body).await?;
        loop {
            let loaded = identity::loaded(&self.endpoint, &model).await?.is_some();
            let waited = self.endpoint.clock.now().since(begun);
            if !loaded {
                return Ok(waited);
            }
            if waited > UNLOAD_TIMEOUT {
                let what = format!("still holds {model} in memory after {UNLOAD_TIMEOUT:?}");
                return Err(self
                    .endpoint
                    .error(ErrorClass::Timeout, what)
                    .with_hint("is another client using it?"));
            }
            tokio::time::sleep(UNLOAD_POLL).await;
        }
    }
}
