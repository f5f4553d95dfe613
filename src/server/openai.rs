//! The routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};

use super::MAX_BODY_BYTES;
use super::answer::Answer;
use super::error::ApiError;
use super::generate::submit;
use super::request::Ask;
use super::response::{Envelope, Shape};
use crate::clock::Clock;
use crate::infer::EngineHost;

/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

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
        let (stream, num_samples) = (ask.stream, ask.n);
        let mut answer = Answer {
            envelope: self.envelope(shape, number),
            tokenizer: self.host.tokenizer().clone(),
            logprobs: ask.logprobs,
            prompt_logprobs: ask.prompt_logprobs,
            echo: ask.echo.then(|| ask.input.clone()),
            include_usage: ask.include_usage,
            continuous_usage: ask.continuous_usage,
            num_chars: Vec::new(),
        };
        // Seeds that clients leave to us differ from request to request.
        let follower = submit(&self.host, ask, number).await?;
        // Only now is their number known to be within bounds.
        answer.num_chars = vec![0; num_samples];
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

fn unix_seconds() -> u64 {
    Clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
