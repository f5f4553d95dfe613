//! What a request proves itself with: keys and tokens from variables of this
//! process, tokens from Google's metadata server, renewed before they expire.
//! Nothing here has `Debug` or `Serialize` over a secret: no log or file can
//! take one in.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::byte_serialize;

use super::http::{Answer, Endpoint};
use super::{EngineError, EngineSpec, ErrorClass};
use crate::clock::{Clock, Timestamp};

/// The header of keys, and of tokens where there is no key.
const AUTHORIZATION: &str = "authorization";
/// Taken by Cloud Run before `authorization`, which is then left to the engine.
const SERVERLESS: &str = "x-serverless-authorization";
/// A token is renewed this long before it expires, or after half of its life.
const MARGIN: Duration = Duration::from_secs(300);
/// Life of a token that does not say when it expires: the metadata server hands
/// out none that has less.
const UNKNOWN_LIFE: Duration = Duration::from_secs(300);
/// Longest token, in bytes.
const MAX_TOKEN: usize = 16 << 10;
/// So much of a token is enough to know it by.
const KNOWN_BY: usize = 16;

/// Where a bearer token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A variable of this process; it is never renewed.
    Variable {
        /// The variable.
        name: String,
        /// The setting that names it, for messages.
        setting: &'static str,
    },
    /// The metadata server of a machine in Google Cloud.
    Metadata {
        /// Where it is.
        server: Url,
        /// Which token.
        kind: TokenKind,
    },
}

/// A token of Google's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind {
    /// For Google's own APIs.
    Access,
    /// Says who asks, to whoever the audience is.
    Identity {
        /// URL of the service that it is for.
        audience: String,
    },
}

/// A header line with a secret.
#[derive(Clone)]
pub(super) struct Token {
    secret: String,
    header: &'static str,
    value: HeaderValue,
}

impl Token {
    fn new(header: &'static str, secret: &str) -> Option<Self> {
        let secret = secret.trim().to_owned();
        let mut value = HeaderValue::from_str(&format!("Bearer {secret}")).ok()?;
        value.set_sensitive(true);
        (!secret.is_empty() && secret.len() <= MAX_TOKEN).then_some(Self { secret, header, value })
    }

    /// Appends the header line.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.header.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(self.value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
}

/// Everything that requests to one endpoint prove themselves with.
#[derive(Default)]
pub(super) struct Credentials {
    fixed: Vec<Token>,
    renewed: Option<Box<Renewed>>,
    advice: Option<String>,
}

impl Credentials {
    /// An engine's key, and its identity token, as its settings say.
    ///
    /// # Errors
    /// When a variable that is named is not set, or the metadata server's URL is none.
    pub(super) fn of(spec: &EngineSpec, url: &Url, clock: &Clock) -> Result<Self, EngineError> {
        let mut credentials = Self::default();
        if let Some(name) = spec.setting("api_key_env") {
            credentials.fixed.push(from_variable(name, "api_key_env", AUTHORIZATION)?);
        }
        let header = if credentials.fixed.is_empty() { AUTHORIZATION } else { SERVERLESS };
        if let Some(source) = identity(spec, url)? {
            credentials.take(source, header, clock)?;
            let what = "its identity token needs the role roles/run.invoker on the service, and \
                        the service's URL as its audience";
            credentials.advice = Some(what.to_owned());
        }
        Ok(credentials)
    }

    /// One token, with what to do where it is refused.
    ///
    /// # Errors
    /// As [`Credentials::of`].
    pub(super) fn from_source(
        source: TokenSource,
        advice: &str,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let mut credentials = Self { advice: Some(advice.to_owned()), ..Self::default() };
        credentials.take(source, AUTHORIZATION, clock)?;
        Ok(credentials)
    }

    fn take(
        &mut self,
        source: TokenSource,
        header: &'static str,
        clock: &Clock,
    ) -> Result<(), EngineError> {
        match source {
            TokenSource::Variable { name, setting } => {
                self.fixed.push(from_variable(&name, setting, header)?);
            }
            TokenSource::Metadata { server, kind } => {
                self.renewed = Some(Box::new(Renewed::new(&server, kind, header, clock)?));
            }
        }
        Ok(())
    }

    /// The tokens to send now.
    ///
    /// # Errors
    /// When one cannot be renewed.
    pub(super) async fn tokens(&self) -> Result<Vec<Token>, EngineError> {
        let mut tokens = self.fixed.clone();
        if let Some(renewed) = &self.renewed {
            tokens.push(renewed.token().await?);
        }
        Ok(tokens)
    }

    /// What to do where the server refuses them.
    pub(super) fn advice(&self) -> String {
        let key = || "name the variable that holds its key: api_key_env=VARIABLE".to_owned();
        self.advice.clone().unwrap_or_else(key)
    }

    /// `text` without any of them, should a server have repeated one, also in part.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let renewed = self.renewed.iter().flat_map(|renewed| renewed.lock().secrets.clone());
        for secret in self.fixed.iter().map(|token| token.secret.clone()).chain(renewed) {
            let known: String = secret.chars().take(KNOWN_BY).collect();
            let mut from = 0;
            while let Some(found) = text[from..].find(&known) {
                let start = from + found;
                let rest = text[start..].char_indices();
                // As much as follows of it: a quotation may have been cut.
                let same = rest.zip(secret.chars()).take_while(|((_, a), b)| a == b);
                let length = same.map(|((at, a), _)| at + a.len_utf8()).last().unwrap_or(0);
                text.replace_range(start..start + length, "[key]");
                from = start + "[key]".len();
            }
        }
        text
    }
}

/// Where an engine's identity token comes from, if it wants one.
fn identity(spec: &EngineSpec, url: &Url) -> Result<Option<TokenSource>, EngineError> {
    let setting = "identity_token_env";
    if let Some(name) = spec.setting(setting) {
        return Ok(Some(TokenSource::Variable { name: name.to_owned(), setting }));
    }
    let Some(server) = spec.setting("identity_from") else { return Ok(None) };
    let server = server.parse().map_err(|error| {
        let what = format!("engine {}: identity_from `{server}` is no URL: {error}", spec.name);
        EngineError::new(ErrorClass::Unreachable, what)
    })?;
    let audience = url.origin().ascii_serialization();
    Ok(Some(TokenSource::Metadata { server, kind: TokenKind::Identity { audience } }))
}

fn from_variable(name: &str, setting: &str, header: &'static str) -> Result<Token, EngineError> {
    let bad = |what: &str| {
        let how = match setting {
            "identity_token_env" => " of `gcloud auth print-identity-token`",
            "access_token_env" => " of `gcloud auth print-access-token`",
            _ => "",
        };
        let what = format!("environment variable {name} {what}");
        let hint = if how.is_empty() {
            format!("export {name} with the engine's key, or leave {setting} out")
        } else {
            format!(
                "export {name} with the output{how}, or leave {setting} out where there is a metadata server"
            )
        };
        EngineError::new(ErrorClass::Rejected, what).with_hint(hint)
    };
    let secret =
        std::env::var(name).map_err(|_| bad(&format!("is not set, but {setting} names it")))?;
    if secret.trim().is_empty() {
        return Err(bad(&format!("is empty, but {setting} names it")));
    }
    Token::new(header, &secret).ok_or_else(|| bad("holds characters that no header can carry"))
}

/// A token of the metadata server's, and when the next one is fetched.
struct Renewed {
    endpoint: Endpoint,
    kind: TokenKind,
    header: &'static str,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<(Token, Timestamp)>,
    /// Every one that was ever sent.
    secrets: Vec<String>,
}

#[derive(Deserialize)]
struct AccessToken {
    access_token: String,
    /// Seconds.
    expires_in: Option<u64>,
}

impl Renewed {
    fn new(
        server: &Url,
        kind: TokenKind,
        header: &'static str,
        clock: &Clock,
    ) -> Result<Self, EngineError> {
        let endpoint = Endpoint::at("the metadata server", server, Credentials::default(), clock)?
            .with_headers("metadata-flavor: Google\r\n");
        Ok(Self { endpoint, kind, header, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn token(&self) -> Result<Token, EngineError> {
        let now = self.endpoint.clock.now();
        if let Some((token, until)) = &self.lock().token
            && now < *until
        {
            return Ok(token.clone());
        }
        let (secret, life) = self.fetch().await.map_err(|error| self.explain(error))?;
        let token = Token::new(self.header, &secret).ok_or_else(|| {
            let what = "answered with something that is no token";
            self.explain(self.endpoint.error(ErrorClass::Protocol, what))
        })?;
        let use_for = life.saturating_sub(MARGIN).max(life / 2);
        let mut state = self.lock();
        state.token = Some((token.clone(), now.plus(use_for)));
        if !state.secrets.contains(&token.secret) {
            state.secrets.push(token.secret.clone());
        }
        Ok(token)
    }

    /// A token, and how long it lives.
    async fn fetch(&self) -> Result<(String, Duration), EngineError> {
        let account = "/computeMetadata/v1/instance/service-accounts/default";
        match &self.kind {
            TokenKind::Access => {
                let route = format!("{account}/token");
                // Not a word of the answer may stand in an error: it may be a token.
                let answer = self.ask(&route).await?;
                let token: AccessToken = serde_json::from_slice(&answer.body).map_err(|_| {
                    self.endpoint.error(ErrorClass::Protocol, "answered with no access token")
                })?;
                let life = token.expires_in.map_or(UNKNOWN_LIFE, Duration::from_secs);
                Ok((token.access_token, life))
            }
            TokenKind::Identity { audience } => {
                let audience: String = byte_serialize(audience.as_bytes()).collect();
                let answer = self.ask(&format!("{account}/identity?audience={audience}")).await?;
                let life = life_of(&answer).unwrap_or(UNKNOWN_LIFE);
                Ok((String::from_utf8_lossy(&answer.body).trim().to_owned(), life))
            }
        }
    }

    async fn ask(&self, route: &str) -> Result<Answer, EngineError> {
        // Boxed: an endpoint asks for credentials, and these ask an endpoint.
        let answer = Box::pin(self.endpoint.get(route)).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(self.endpoint.status_error(answer.status, &answer.body))
    }

    fn explain(&self, error: EngineError) -> EngineError {
        let (setting, command) = match self.kind {
            TokenKind::Access => ("access_token_env", "print-access-token"),
            TokenKind::Identity { .. } => ("identity_token_env", "print-identity-token"),
        };
        // Where there is no such server, asking again helps nobody.
        let is_busy = error.class == ErrorClass::Busy;
        let class = if is_busy { ErrorClass::Busy } else { ErrorClass::Rejected };
        EngineError { class, ..error }.with_hint(format!(
            "outside Google Cloud name a variable in {setting} that holds the output of \
             `gcloud auth {command}`"
        ))
    }
}

/// How long a JWT lives from its answer's date on.
fn life_of(answer: &Answer) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let token = std::str::from_utf8(&answer.body).ok()?;
    let claims = base64url(token.trim().split('.').nth(1)?)?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let now = http_date(&answer.date.as_ref()?.0)?.as_second();
    let seconds = u64::try_from(claims.exp.saturating_sub(now)).unwrap_or(0);
    Some(Duration::from_secs(seconds))
}

/// The instant of a `date` header (RFC 9110, 5.6.7).
pub(super) fn http_date(text: &str) -> Option<jiff::Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// Base64 with the URL's alphabet (RFC 4648, 5), without padding.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut num_bits) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.extend(u8::try_from((bits >> num_bits) & 0xff));
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_that_of_the_rfc() {
        assert_eq!(base64url("Zm9vYg").unwrap(), b"foob");
        assert_eq!(base64url("Zm9vYmFy").unwrap(), b"foobar");
        assert_eq!(base64url("-_8").unwrap(), [0xfb, 0xff]);
        assert_eq!(base64url("a b"), None);
    }

    #[test]
    fn date_is_read_as_servers_write_it() {
        let date = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(date.as_second(), 784_111_777);
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn life_of_a_token_ends_with_its_claim() {
        // {"exp":784111837}
        let body = b"e30.eyJleHAiOjc4NDExMTgzN30.x".to_vec();
        let date = ("Sun, 06 Nov 1994 08:49:37 GMT".to_owned(), Timestamp::from_nanos(0));
        let answer =
            |body| Answer { status: hyper::StatusCode::OK, body, date: Some(date.clone()) };
        assert_eq!(life_of(&answer(body)), Some(Duration::from_secs(60)));
        assert_eq!(life_of(&answer(b"not.a.token".to_vec())), None);
        assert_eq!(life_of(&answer(b"opaque".to_vec())), None);
    }

    #[test]
    fn part_of_a_secret_is_taken_out_too() {
        let token = Token::new(AUTHORIZATION, "0123456789abcdef-and-more").unwrap();
        let credentials = Credentials { fixed: vec![token], ..Credentials::default() };
        let text = "you sent 0123456789abcdef-and-more, 0123456789abcdef-an... and nothing";
        assert_eq!(credentials.redact(text), "you sent [key], [key]... and nothing");
        assert_eq!(credentials.redact("0123"), "0123");
    }

    #[test]
    fn key_and_identity_travel_in_headers_of_their_own() {
        let spec: EngineSpec =
            "vllm=https://x.run.app?api_key_env=PATH&identity_token_env=HOME".parse().unwrap();
        let credentials =
            Credentials::of(&spec, spec.url.as_ref().unwrap(), &Clock::manual()).unwrap();
        let headers: Vec<_> = credentials.fixed.iter().map(|token| token.header).collect();
        assert_eq!(headers, [AUTHORIZATION, SERVERLESS]);
    }
}
