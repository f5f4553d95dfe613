//! HTTP/1.1 to one engine, or to an API beside it: where it listens, how a
//! request is written, what an error status or a broken connection means.
//! Knows nobody's fields.
//!
//! Each request has a connection of its own while it lasts, which is there before
//! anything is timed. A burst then leaves from sockets that wait, and no request
//! queues for another's connection inside the client, which other harnesses
//! report as latency of the server.

use std::io;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use url::Url;

use super::credential::{Credentials, Token};
use super::link::{Link, LinkError, Outgoing};
use super::parked::Parked;
use super::socket;
use super::words::{io_reason, quote, server_message};
use super::{EngineError, EngineSpec, ErrorClass};
use crate::clock::{Clock, Timestamp};

/// Longest wait for a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the next byte of an answer, unless `timeout_s` says otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest time for a question about the engine itself.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer to such a question, in bytes.
const MAX_ANSWER: usize = 8 << 20;

/// Where an engine listens, and how to speak to it.
pub(super) struct Endpoint {
    /// `NAME at URL`, the subject of every message about it.
    label: String,
    host: String,
    port: u16,
    tls: bool,
    /// Path before every route, without a slash at its end.
    base: String,
    authority: HeaderValue,
    credentials: Credentials,
    /// Header lines that every request carries.
    extra: &'static str,
    /// Longest time for a question.
    limit: Duration,
    /// The run's clock.
    pub(super) clock: Clock,
    /// Longest wait for the next byte.
    pub(super) idle: Duration,
    /// Connections for measured requests to come.
    pub(super) parked: Parked,
}

/// A whole answer to a question.
pub(super) struct Answer {
    /// Its status.
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    /// Its date, as the server wrote it, and the instant at which its head came.
    pub(super) date: Option<(String, Timestamp)>,
}

impl Endpoint {
    /// The endpoint that `spec` names. `versioned` says that the adapter's
    /// routes begin with `/v1`, which users also put at the end of the URL.
    ///
    /// # Errors
    /// When the URL cannot be used or the key's variable is not set.
    pub(super) fn new(
        spec: &EngineSpec,
        versioned: bool,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let url = spec.url.as_ref().ok_or_else(|| {
            let what = format!("engine {}: it has no URL", spec.name);
            EngineError::new(ErrorClass::Unreachable, what)
        })?;
        let credentials = Credentials::of(spec, url, clock)?;
        let endpoint = Self::at(&spec.name, url, credentials, clock)?;
        let base = endpoint.base.as_str();
        let base = if versioned { base.strip_suffix("/v1").unwrap_or(base) } else { base };
        let (base, label) = (base.to_owned(), label(&spec.name, url, base));
        let idle = spec.number("timeout_s").map_or(IDLE_TIMEOUT, |s| Duration::from_secs(s as u64));
        Ok(Self { base, label, idle, ..endpoint })
    }

    /// The endpoint at `url`, called `name` in messages.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub(super) fn at(
        name: &str,
        url: &Url,
        credentials: Credentials,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let bad = |what: &str| {
            EngineError::new(ErrorClass::Unreachable, format!("engine {name}: {what}"))
        };
        let host = url.host_str().ok_or_else(|| bad("its URL names no host"))?.to_owned();
        let port = url.port_or_known_default().ok_or_else(|| bad("its URL names no port"))?;
        let base = url.path().trim_end_matches('/').to_owned();
        let authority = HeaderValue::from_str(&format!("{host}{}", explicit_port(url)))
            .map_err(|_| bad("its host cannot be sent in a header"))?;
        Ok(Self {
            label: label(name, url, &base),
            host,
            port,
            tls: url.scheme() == "https",
            base,
            authority,
            credentials,
            extra: "",
            limit: QUESTION_TIMEOUT,
            clock: clock.clone(),
            idle: IDLE_TIMEOUT,
            parked: Parked::default(),
        })
    }

    /// The same with `extra` header lines, each with its end, in every request.
    pub(super) fn with_headers(self, extra: &'static str) -> Self {
        Self { extra, ..self }
    }

    /// The same with another limit on how long a question may take.
    pub(super) fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// An error about this engine; `what` continues "NAME at URL ...".
    pub(super) fn error(&self, class: ErrorClass, what: impl AsRef<str>) -> EngineError {
        self.about(EngineError::new(class, what.as_ref()))
    }

    /// Puts the engine's name before an error that a decoder made, and takes
    /// the key out of it, should the server have repeated it.
    pub(super) fn about(&self, error: EngineError) -> EngineError {
        let message = self.credentials.redact(&format!("{} {}", self.label, error.message));
        EngineError { message, ..error }
    }

    /// Opens a connection on which nothing has been sent.
    ///
    /// # Errors
    /// [`ErrorClass::Unreachable`], or [`ErrorClass::Timeout`] after 5 s.
    pub(super) async fn open(&self) -> Result<Link, EngineError> {
        let opening = socket::open(&self.host, self.port, self.tls);
        let socket = match timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                let what = format!("is unreachable: {}", io_reason(&error));
                // What rustls refuses: a certificate, or bytes that are no TLS.
                let hint = if self.tls && error.kind() == io::ErrorKind::InvalidData {
                    "if it speaks no TLS give its http:// URL; if it does, name its certificate's \
                     root in SSL_CERT_FILE"
                } else {
                    "start it, or check the URL"
                };
                return Err(self.error(ErrorClass::Unreachable, what).with_hint(hint));
            }
            Err(_) => {
                let what = format!("accepted no connection within {CONNECT_TIMEOUT:?}");
                return Err(self
                    .error(ErrorClass::Timeout, what)
                    .with_hint("check the URL and the network between here and there"));
            }
        };
        Ok(Link::new(socket, self.clock.clone(), self.idle))
    }

    /// A POST of `body` as JSON, with credentials that are valid now.
    ///
    /// # Errors
    /// When there are none, or the body cannot be written.
    pub(super) async fn post(
        &self,
        route: &str,
        body: &impl Serialize,
    ) -> Result<Outgoing, EngineError> {
        let body = serde_json::to_vec(body).map_err(|error| {
            self.error(ErrorClass::Protocol, format!("cannot be sent this request: {error}"))
        })?;
        self.request("POST", route, &body).await
    }

    /// Head and body in one piece, so that they leave with one write.
    ///
    /// # Errors
    /// When no credentials can be had.
    pub(super) async fn request(
        &self,
        method: &str,
        route: &str,
        body: &[u8],
    ) -> Result<Outgoing, EngineError> {
        let tokens = self.credentials.tokens().await?;
        Ok(self.written(method, route, body, &tokens))
    }

    fn written(&self, method: &str, route: &str, body: &[u8], tokens: &[Token]) -> Outgoing {
        const AGENT: &str = concat!("yardstick/", env!("CARGO_PKG_VERSION"));
        let path = format!("{}{route}", self.base);
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: ").into_bytes();
        bytes.extend_from_slice(self.authority.as_bytes());
        bytes.extend_from_slice(format!("\r\nuser-agent: {AGENT}\r\naccept: */*\r\n").as_bytes());
        if !body.is_empty() {
            let length = format!("content-length: {}\r\n", body.len());
            bytes.extend_from_slice(b"content-type: application/json\r\n");
            bytes.extend_from_slice(length.as_bytes());
        }
        bytes.extend_from_slice(self.extra.as_bytes());
        for token in tokens {
            token.write(&mut bytes);
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        Outgoing { path, bytes }
    }

    /// Sends a question and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When no complete answer comes within the limit, 10 s unless it was set.
    pub(super) async fn ask(&self, request: &Outgoing) -> Result<Answer, EngineError> {
        let route = &request.path;
        let asking = async {
            let mut link = self.open().await?;
            let broken = |error| self.broken(&error, true);
            let head = link.send(request).await.map_err(broken)?;
            let date = head.date.and_then(|date| String::from_utf8(date).ok()).zip(link.head_at());
            let (body, whole) = link.read_body(MAX_ANSWER).await.map_err(broken)?;
            if !whole {
                let what = format!("answered {route} with more than {MAX_ANSWER} bytes");
                return Err(self.error(ErrorClass::Protocol, what));
            }
            Ok(Answer { status: head.status, body, date })
        };
        timeout(self.limit, asking).await.unwrap_or_else(|_| {
            let what = format!("did not answer {route} within {:?}", self.limit);
            Err(self.error(ErrorClass::Timeout, what))
        })
    }

    /// The answer to a GET, whatever its status.
    ///
    /// # Errors
    /// See [`Endpoint::ask`].
    pub(super) async fn get(&self, route: &str) -> Result<Answer, EngineError> {
        self.ask(&self.request("GET", route, b"").await?).await
    }

    /// The JSON answer to a GET.
    ///
    /// # Errors
    /// As [`Endpoint::ask`], and when the status is an error or the body is not that JSON.
    pub(super) async fn get_json<T: DeserializeOwned>(
        &self,
        route: &str,
    ) -> Result<T, EngineError> {
        self.decode(route, &self.get(route).await?)
    }

    /// The JSON answer to a POST.
    ///
    /// # Errors
    /// As [`Endpoint::get_json`].
    pub(super) async fn post_json<T: DeserializeOwned>(
        &self,
        route: &str,
        body: &impl Serialize,
    ) -> Result<T, EngineError> {
        self.decode(route, &self.ask(&self.post(route, body).await?).await?)
    }

    /// The JSON answer to a GET, or `None` where the engine has no such route.
    /// A page instead of JSON counts as no such route: single-page front ends
    /// answer any path with one.
    ///
    /// # Errors
    /// See [`Endpoint::ask`].
    pub(super) async fn probe_json<T: DeserializeOwned>(
        &self,
        route: &str,
    ) -> Result<Option<T>, EngineError> {
        let answer = self.get(route).await?;
        Ok(if answer.status.is_success() {
            serde_json::from_slice(&answer.body).ok()
        } else {
            None
        })
    }

    /// The text that a GET answers, or `None` where the engine has no such route.
    ///
    /// # Errors
    /// See [`Endpoint::ask`].
    pub(super) async fn get_text(&self, route: &str) -> Result<Option<String>, EngineError> {
        let answer = self.get(route).await?;
        let found = answer.status.is_success();
        Ok(found.then(|| String::from_utf8_lossy(&answer.body).into_owned()))
    }

    /// The JSON of an answer to `route`.
    ///
    /// # Errors
    /// When the status is an error or the body is not that JSON.
    pub(super) fn decode<T: DeserializeOwned>(
        &self,
        route: &str,
        answer: &Answer,
    ) -> Result<T, EngineError> {
        if !answer.status.is_success() {
            return Err(self.status_error(answer.status, &answer.body));
        }
        serde_json::from_slice(&answer.body).map_err(|error| {
            let got = quote(&answer.body);
            let what = format!("answered {route} with something unexpected ({error}): {got}");
            self.error(ErrorClass::Protocol, what).with_hint("is it another kind of server?")
        })
    }

    /// What an error status means, with the server's own words.
    pub(super) fn status_error(&self, status: StatusCode, body: &[u8]) -> EngineError {
        let class = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ErrorClass::Busy,
            status if status.is_redirection() => ErrorClass::Protocol,
            _ => ErrorClass::Rejected,
        };
        let words = server_message(body);
        let error = self.error(class, format!("answered HTTP {}: {words}", status.as_u16()));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                error.with_hint(self.credentials.advice())
            }
            status if status.is_redirection() => {
                error.with_hint("redirects are not followed: give the final URL")
            }
            _ => error,
        }
    }

    /// What a connection that broke means. `sent` says whether any of the
    /// request had left: before that the engine has refused, not failed.
    pub(super) fn broken(&self, error: &LinkError, sent: bool) -> EngineError {
        let why = match error {
            LinkError::Idle | LinkError::Stalled => {
                let what = if matches!(error, LinkError::Idle) { "byte" } else { "whole event" };
                let what = format!("sent no {what} for {} s", self.idle.as_secs());
                return self
                    .error(ErrorClass::Timeout, what)
                    .with_hint("see whether it is stuck, or raise timeout_s");
            }
            LinkError::Garbled(why) => return self.garbled(why),
            // TLS says so where the bytes are not what it expects.
            LinkError::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
                ) =>
            {
                return self.garbled(&error.to_string());
            }
            LinkError::Io(error) => io_reason(error),
            LinkError::Closed => "connection closed".to_owned(),
        };
        if sent {
            self.error(ErrorClass::Truncated, format!("ended its answer too early: {why}"))
        } else {
            self.error(ErrorClass::Unreachable, format!("is unreachable: {why}"))
                .with_hint("start it, or check the URL")
        }
    }

    fn garbled(&self, why: &str) -> EngineError {
        self.error(ErrorClass::Protocol, format!("does not speak HTTP/1.1: {why}"))
    }
}

/// `NAME at URL`. The query is left out: users put tokens there.
fn label(name: &str, url: &Url, base: &str) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{name} at {}://{host}{}{base}", url.scheme(), explicit_port(url))
}

fn explicit_port(url: &Url) -> String {
    url.port().map(|port| format!(":{port}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_and_routes_follow_the_url() {
        let endpoint = |text: &str| {
            let spec = text.parse::<EngineSpec>().unwrap();
            Endpoint::new(&spec, true, &Clock::manual()).unwrap()
        };
        let plain = endpoint("vllm=http://127.0.0.1:8000");
        assert_eq!(plain.label, "vllm at http://127.0.0.1:8000");
        let based = endpoint("x:openai=https://host/proxy/v1/");
        assert_eq!((based.label.as_str(), based.port), ("x at https://host/proxy", 443));
        let request = based.written("POST", "/v1/completions", b"{}", &[]);
        assert_eq!(request.path, "/proxy/v1/completions");
        let text = String::from_utf8(request.bytes).unwrap();
        assert!(text.starts_with("POST /proxy/v1/completions HTTP/1.1\r\nhost: host\r\n"));
        assert!(text.ends_with("content-length: 2\r\n\r\n{}"), "{text}");
    }

    #[test]
    fn key_that_is_not_there_is_named_with_its_remedy() {
        let spec: EngineSpec = "vllm?api_key_env=YARDSTICK_NO_SUCH_KEY".parse().unwrap();
        let error = Endpoint::new(&spec, true, &Clock::manual()).err().unwrap();
        assert!(error.message.contains("YARDSTICK_NO_SUCH_KEY is not set"), "{error}");
        assert!(error.hint.unwrap().contains("export YARDSTICK_NO_SUCH_KEY"));
    }
}
