//! HTTP/1.1 to one engine: where it listens, how a request is written, what an
//! error status or a broken connection means. Knows no engine's fields.
//!
//! There is no connection pool: each request has a connection of its own that
//! is opened before anything is timed. A burst then leaves from sockets that
//! wait, and no request queues for another's connection inside the client,
//! which other harnesses report as latency of the server.

use std::io;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::link::{Link, LinkError, Outgoing};
use super::socket;
use super::{EngineError, EngineSpec, ErrorClass};
use crate::clock::Clock;

/// Longest wait for a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the next byte of an answer, unless `timeout_s` says otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest time for a question about the engine itself.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer to such a question, in bytes.
const MAX_ANSWER: usize = 8 << 20;
/// Longest part of an engine's own words in one of our messages, in characters.
const MAX_QUOTE: usize = 300;

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
    key: Option<ApiKey>,
    /// The run's clock.
    pub(super) clock: Clock,
    /// Longest wait for the next byte.
    pub(super) idle: Duration,
}

/// A bearer token. Has no `Debug` and no `Serialize`, so that no log or file can take it in.
struct ApiKey {
    token: String,
    header: HeaderValue,
}

/// A whole answer to a question about the engine.
pub(super) struct Answer {
    /// Its status.
    pub(super) status: StatusCode,
    body: Vec<u8>,
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
        let bad = |what: &str| {
            EngineError::new(ErrorClass::Unreachable, format!("engine {}: {what}", spec.name))
        };
        let url = spec.url.as_ref().ok_or_else(|| bad("it has no URL"))?;
        let host = url.host_str().ok_or_else(|| bad("its URL names no host"))?.to_owned();
        let port = url.port_or_known_default().ok_or_else(|| bad("its URL names no port"))?;
        let path = url.path().trim_end_matches('/');
        let base = if versioned { path.strip_suffix("/v1").unwrap_or(path) } else { path };
        let explicit = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let authority = HeaderValue::from_str(&format!("{host}{explicit}"))
            .map_err(|_| bad("its host cannot be sent in a header"))?;
        // The query is left out: users put tokens there.
        let label = format!("{} at {}://{host}{explicit}{base}", spec.name, url.scheme());
        let key = spec.setting("api_key_env").map(ApiKey::from_env).transpose()?;
        let idle = spec.number("timeout_s").map_or(IDLE_TIMEOUT, |s| Duration::from_secs(s as u64));
        let tls = url.scheme() == "https";
        Ok(Self {
            label,
            host,
            port,
            tls,
            base: base.to_owned(),
            authority,
            key,
            clock: clock.clone(),
            idle,
        })
    }

    /// An error about this engine; `what` continues "NAME at URL ...".
    pub(super) fn error(&self, class: ErrorClass, what: impl AsRef<str>) -> EngineError {
        self.about(EngineError::new(class, what.as_ref()))
    }

    /// Puts the engine's name before an error that a decoder made, and takes
    /// the key out of it, should the server have repeated it.
    pub(super) fn about(&self, error: EngineError) -> EngineError {
        let mut message = format!("{} {}", self.label, error.message);
        if let Some(key) = &self.key {
            message = message.replace(&key.token, "[key]");
        }
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

    /// A POST of `body` as JSON.
    pub(super) fn post(&self, route: &str, body: &impl Serialize) -> Result<Outgoing, EngineError> {
        let body = serde_json::to_vec(body).map_err(|error| {
            self.error(ErrorClass::Protocol, format!("cannot be sent this request: {error}"))
        })?;
        Ok(self.request("POST", route, &body))
    }

    /// Head and body in one piece, so that they leave with one write.
    fn request(&self, method: &str, route: &str, body: &[u8]) -> Outgoing {
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
        if let Some(key) = &self.key {
            bytes.extend_from_slice(b"authorization: ");
            bytes.extend_from_slice(key.header.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        Outgoing { path, bytes }
    }

    /// Sends a question and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// When no complete answer comes within 10 s.
    pub(super) async fn ask(&self, request: &Outgoing) -> Result<Answer, EngineError> {
        let route = &request.path;
        let asking = async {
            let mut link = self.open().await?;
            let broken = |error| self.broken(&error, true);
            let status = link.send(request).await.map_err(broken)?.status;
            let (body, whole) = link.read_body(MAX_ANSWER).await.map_err(broken)?;
            if !whole {
                let what = format!("answered {route} with more than {MAX_ANSWER} bytes");
                return Err(self.error(ErrorClass::Protocol, what));
            }
            Ok(Answer { status, body })
        };
        timeout(QUESTION_TIMEOUT, asking).await.unwrap_or_else(|_| {
            let what = format!("did not answer {route} within {QUESTION_TIMEOUT:?}");
            Err(self.error(ErrorClass::Timeout, what))
        })
    }

    /// The answer to a GET, whatever its status.
    ///
    /// # Errors
    /// See [`Endpoint::ask`].
    pub(super) async fn get(&self, route: &str) -> Result<Answer, EngineError> {
        self.ask(&self.request("GET", route, b"")).await
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
        self.decode(route, &self.ask(&self.post(route, body)?).await?)
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
                error.with_hint("name the variable that holds its key: api_key_env=VARIABLE")
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

impl ApiKey {
    fn from_env(name: &str) -> Result<Self, EngineError> {
        let bad = |what: &str| {
            EngineError::new(ErrorClass::Rejected, format!("environment variable {name} {what}"))
                .with_hint(format!("export {name} with the engine's key, or leave api_key_env out"))
        };
        let token = std::env::var(name).map_err(|_| bad("is not set, but api_key_env names it"))?;
        let token = token.trim().to_owned();
        if token.is_empty() {
            return Err(bad("is empty, but api_key_env names it"));
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| bad("holds characters that no header can carry"))?;
        header.set_sensitive(true);
        Ok(Self { token, header })
    }
}

/// The cause of an I/O error in a few lower-case words, without its number.
fn io_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::BrokenPipe => "connection closed".to_owned(),
        io::ErrorKind::UnexpectedEof => "connection closed".to_owned(),
        _ => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            let mut letters = text.chars();
            letters
                .next()
                .map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
        }
    }
}

/// The server's own words in an error body: `{"error":{"message":..}}` (OpenAI),
/// `{"error":".."}` (Ollama), `{"message":..}` or `{"detail":..}` (FastAPI), else its text.
pub(super) fn server_message(body: &[u8]) -> String {
    let words = serde_json::from_slice::<serde_json::Value>(body).ok().and_then(|value| {
        let error = value.get("error").unwrap_or(&value);
        let found = [error.get("message"), error.get("detail"), Some(error)];
        found.into_iter().flatten().find_map(|text| text.as_str().map(str::to_owned))
    });
    words.map_or_else(|| quote(body), |words| quote(words.as_bytes()))
}

/// Foreign bytes made fit for one line of a message: bounded, no control characters.
pub(super) fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_QUOTE)]);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        return "nothing".to_owned();
    }
    match line.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_words_are_found_in_every_known_shape() {
        for (body, words) in [
            (r#"{"error":{"message":"too long","code":400}}"#, "too long"),
            (r#"{"error":"model 'nope' not found"}"#, "model 'nope' not found"),
            (r#"{"object":"error","message":"old vLLM"}"#, "old vLLM"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            ("plain\r\n text\x1b[31m", "plain text [31m"),
            (r#"{"error":{"code":3}}"#, r#"{"error":{"code":3}}"#),
            ("", "nothing"),
        ] {
            assert_eq!(server_message(body.as_bytes()), words);
        }
        assert_eq!(server_message(&[b'x'; 5000]).len(), MAX_QUOTE + 3);
    }

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
        let request = based.post("/v1/completions", &serde_json::json!({})).unwrap();
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
