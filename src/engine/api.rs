//! A JSON API beside the engines: bounded answers, whatever their status, with
//! the server's own date. Knows no route.

use std::time::Duration;

use serde_json::Value;
use url::Url;

use super::credential::{Credentials, TokenSource, http_date};
use super::http::Endpoint;
use super::{EngineError, EngineKind, EngineSpec, ErrorClass};
use crate::clock::{Clock, Timestamp};

/// One API.
pub struct Api(Endpoint);

/// What it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// At most 8 MiB.
    pub body: Vec<u8>,
    /// The server's own time, to the second, and the instant at which it came.
    pub date: Option<(jiff::Timestamp, Timestamp)>,
}

impl Api {
    /// The API at `url`, called `name` in messages; opens nothing. `advice`
    /// says what to do where it refuses the token.
    ///
    /// # Errors
    /// When the URL cannot be used or the token's variable is not set.
    pub fn new(
        name: &str,
        url: &Url,
        token: TokenSource,
        advice: &str,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let credentials = Credentials::from_source(token, advice, clock)?;
        Ok(Self(Endpoint::at(name, url, credentials, clock)?))
    }

    /// An engine's own routes, each of which may take `limit` to answer.
    ///
    /// # Errors
    /// As [`Api::new`].
    pub fn of_engine(
        spec: &EngineSpec,
        limit: Duration,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let versioned = spec.kind != EngineKind::Ollama;
        Ok(Self(Endpoint::new(spec, versioned, clock)?.with_limit(limit)))
    }

    /// What it answers to a GET.
    ///
    /// # Errors
    /// When no complete answer comes, or no token can be had.
    pub async fn get(&self, route: &str) -> Result<Reply, EngineError> {
        self.ask("GET", route, b"").await
    }

    /// What it answers to a PATCH of `body`.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn patch(&self, route: &str, body: &Value) -> Result<Reply, EngineError> {
        self.ask("PATCH", route, body.to_string().as_bytes()).await
    }

    async fn ask(&self, method: &str, route: &str, body: &[u8]) -> Result<Reply, EngineError> {
        let answer = self.0.ask(&self.0.request(method, route, body).await?).await?;
        let date = answer.date.and_then(|(text, at)| Some((http_date(&text)?, at)));
        Ok(Reply { status: answer.status.as_u16(), body: answer.body, date })
    }

    /// What an error status means, with the API's own words and the remedy.
    #[must_use]
    pub fn refusal(&self, reply: &Reply) -> EngineError {
        let status = hyper::StatusCode::from_u16(reply.status);
        self.0.status_error(status.unwrap_or(hyper::StatusCode::BAD_GATEWAY), &reply.body)
    }

    /// An error about this API; `what` continues "NAME at URL ...".
    #[must_use]
    pub fn error(&self, class: ErrorClass, what: &str) -> EngineError {
        self.0.error(class, what)
    }
}
