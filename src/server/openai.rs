//! The routes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};

use super::MAX_BODY_BYTES;
use super::error::ApiError;
use super::generate::{Counts, Follower, Step, submit};
use super::request::Ask;
use super::response::{Envelope, Logprobs, Shape, event};
use crate::clock::Clock;
use crate::infer::{EngineHost, Tokenizer};

/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The last event of every stream.
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

struct Service {
    host: EngineHost,
    model: String,
    created: u64,
    num_requests: AtomicU64,
}

type Shared = Arc<Service>;

/// All routes over `host`, which is offered as `model_name`.
pub(super) fn router(host: EngineHost, model_name: &str) -> Router {
    let service = Service {
        host,
        model: model_name.to_owned(),
        created: unix_seconds(),
        num_requests: AtomicU64::new(0),
    };
    Router::new()
        .route("/health", get(|| async { StatusCode::OK }))
        .route("/version", get(version))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is no such route") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this route takes another method")
        })
        .with_state(Arc::new(service))
}

async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn models(State(service): State<Shared>) -> Json<Value> {
    Json(json!({
        "object": "list",
        "data": [{
            "id": service.model,
            "object": "model",
            "created": service.created,
            "owned_by": "yardstick",
            "root": service.model,
            "parent": null,
            "max_model_len": service.host.max_model_len(),
            "precision": service.host.precision(),
            "dummy_weights": service.host.is_dummy(),
        }],
    }))
}

async fn completions(
    State(service): State<Shared>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let ask = Ask::completion(&body(request).await?)?;
    service.answer(Shape::Completion, ask).await
}

async fn chat(State(service): State<Shared>, request: Request<Body>) -> Result<Response, ApiError> {
    let ask = Ask::chat(&body(request).await?)?;
    service.answer(Shape::Chat, ask).await
}

/// The whole body, within bounds of size and time.
async fn body(request: Request<Body>) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {MAX_BODY_BYTES} bytes"),
        )
    };
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    let limited = Limited::new(request.into_body(), MAX_BODY_BYTES);
    match tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(ApiError::bad_request(format!("the body ended before it was complete: {error}")))
        }
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body was not complete after {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}

impl Service {
    async fn answer(self: Arc<Self>, shape: Shape, ask: Ask) -> Result<Response, ApiError> {
        if let Some(model) = ask.model.as_ref().filter(|model| **model != self.model) {
            let message = format!("the model `{model}` does not exist, this is `{}`", self.model);
            return Err(ApiError::new(StatusCode::NOT_FOUND, message));
        }
        let number = self.num_requests.fetch_add(1, Ordering::Relaxed);
        let answer = Answer {
            envelope: self.envelope(shape, number),
            tokenizer: self.host.tokenizer().clone(),
            wants_logprobs: ask.logprobs.is_some(),
            include_usage: ask.include_usage,
            continuous_usage: ask.continuous_usage,
            num_chars: 0,
        };
        let stream = ask.stream;
        // Seeds that clients leave to us differ from request to request.
        let follower = submit(&self.host, ask, number).await?;
        if stream { Ok(answer.stream(follower)) } else { answer.whole(follower).await }
    }

    fn envelope(&self, shape: Shape, number: u64) -> Envelope {
        let prefix = match shape {
            Shape::Completion => "cmpl",
            Shape::Chat => "chatcmpl",
        };
        Envelope {
            shape,
            id: format!("{prefix}-{:x}-{number:x}", self.created),
            created: unix_seconds(),
            model: self.model.clone(),
        }
    }
}

/// An answer on its way.
struct Answer {
    envelope: Envelope,
    tokenizer: Tokenizer,
    wants_logprobs: bool,
    include_usage: bool,
    continuous_usage: bool,
    /// Characters shown so far.
    num_chars: usize,
}

impl Answer {
    async fn whole(mut self, mut follower: Follower) -> Result<Response, ApiError> {
        let mut text = String::new();
        let mut logprobs = self.wants_logprobs.then(|| Logprobs::new(self.envelope.shape));
        let reason = loop {
            match follower.next().await {
                Some(Step::Text { text: shown, token }) => {
                    if let (Some(logprobs), Some((id, token))) = (&mut logprobs, token) {
                        logprobs.push(&self.tokenizer, id, &token, self.num_chars);
                    }
                    self.num_chars += shown.chars().count();
                    text.push_str(&shown);
                }
                Some(Step::End { reason }) => break reason,
                Some(Step::Failed(error)) => return Err(error),
                None => return Err(ApiError::bad_request("the request has ended already")),
            }
        };
        let body = self.envelope.whole(&text, logprobs.as_ref(), reason, follower.counts);
        Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
    }

    fn stream(self, follower: Follower) -> Response {
        let events =
            Events { answer: self, follower, waiting: VecDeque::new(), begun: false, ended: false };
        // Dropping this, as hyper does when the client goes away, drops the generation.
        let events = stream::unfold(events, |mut events| async move {
            let event = events.next().await?;
            Some((Ok::<Bytes, Infallible>(event), events))
        });
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Body::from_stream(events)).into_response()
    }

    /// The events of one step. A token that completes no text has none.
    fn push(&mut self, step: Option<Step>, counts: Counts, waiting: &mut VecDeque<Bytes>) {
        match step {
            Some(Step::Text { text, token }) => {
                let logprobs = token.map(|(id, token)| {
                    let mut logprobs = Logprobs::new(self.envelope.shape);
                    logprobs.push(&self.tokenizer, id, &token, self.num_chars);
                    logprobs
                });
                self.num_chars += text.chars().count();
                if !text.is_empty() || logprobs.is_some() {
                    let usage = self.continuous(counts);
                    waiting.push_back(self.envelope.chunk(&text, logprobs.as_ref(), None, usage));
                }
            }
            Some(Step::End { reason }) => {
                let usage = self.continuous(counts);
                waiting.push_back(self.envelope.chunk("", None, Some(reason), usage));
                if self.include_usage {
                    waiting.push_back(self.envelope.usage_chunk(counts));
                }
                waiting.push_back(DONE);
            }
            Some(Step::Failed(error)) => {
                waiting.push_back(event(error.body().to_string().as_bytes()));
                waiting.push_back(DONE);
            }
            None => waiting.push_back(DONE),
        }
    }

    fn continuous(&self, counts: Counts) -> Option<Counts> {
        self.continuous_usage.then_some(counts)
    }
}

/// The server-sent events of an answer.
struct Events {
    answer: Answer,
    follower: Follower,
    waiting: VecDeque<Bytes>,
    begun: bool,
    ended: bool,
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        while self.waiting.is_empty() && !self.ended {
            let step = self.follower.next().await;
            let counts = self.follower.counts;
            // As vLLM has it: the role goes out with the first token, not before.
            if !self.begun && self.answer.envelope.shape == Shape::Chat {
                let usage = self.answer.continuous(Counts { num_output_tokens: 0, ..counts });
                self.waiting.push_back(self.answer.envelope.role_chunk(usage));
            }
            self.begun = true;
            self.ended = !matches!(step, Some(Step::Text { .. }));
            self.answer.push(step, counts, &mut self.waiting);
        }
        self.waiting.pop_front()
    }
}

fn unix_seconds() -> u64 {
    Clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
