//! `--engine` specifications: `[NAME:]KIND[=URL][?KEY=VALUE&...]`. Knows the
//! settings each kind takes and refuses any other.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::Url;

use crate::infer::ComputeDevice;

const API_KEY_ENV: (&str, &str) = ("api_key_env", "environment variable that holds a bearer token");
const IDENTITY_TOKEN_ENV: (&str, &str) = (
    "identity_token_env",
    "environment variable that holds an identity token of Google's, for Cloud Run",
);
const IDENTITY_FROM: (&str, &str) = (
    "identity_from",
    "metadata server that hands out such tokens, as http://metadata.google.internal",
);

/// The kinds of engine that yardstick drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// The candle engine in this process.
    Embedded,
    /// Ollama over its native API.
    Ollama,
    /// vLLM over its OpenAI-compatible API.
    Vllm,
    /// Any other OpenAI-compatible server.
    Openai,
}

impl EngineKind {
    /// Every kind, in the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::Embedded, Self::Ollama, Self::Vllm, Self::Openai];

    /// The word used in specifications and files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Ollama => "ollama",
            Self::Vllm => "vllm",
            Self::Openai => "openai",
        }
    }

    /// Where it listens unless the specification says otherwise.
    #[must_use]
    pub const fn default_url(self) -> Option<&'static str> {
        match self {
            Self::Embedded => None,
            Self::Ollama => Some("http://127.0.0.1:11434"),
            Self::Vllm => Some("http://127.0.0.1:8000"),
            Self::Openai => Some("http://127.0.0.1:8080"),
        }
    }

    /// The settings it takes, each with what it means.
    #[must_use]
    pub const fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Embedded => &[
                ("transport", "channel (in process) or http (through serve on loopback)"),
                ("max_model_len", "longest sequence in tokens"),
                ("block_size", "tokens in a KV block"),
                ("kv_blocks", "KV pool in blocks"),
                ("kv_memory", "KV pool in bytes, such as 512MiB"),
                ("max_num_seqs", "sequences in one step"),
                ("max_num_batched_tokens", "tokens in one step"),
                ("enable_prefix_caching", "true (default), or false to compute every prompt whole"),
                ("threads", "threads that compute, one for each core if absent"),
                ("device", "auto (default, a GPU where there is one), cpu, cuda, or cuda:N"),
                (
                    "dtype",
                    "auto (default, as the weights are stored), f32, bf16, f16, or quantized",
                ),
                ("gpu_memory_utilization", "share of a GPU's memory that may be in use, 0.9"),
                ("cuda_graphs", "true (default), or false to submit every operation of a step"),
                ("load_format", "auto, or dummy for seeded weights of the right shapes"),
                ("model", "card name or path, if not the run's"),
            ],
            Self::Ollama => &[
                ("model", "tag, if not the model card's"),
                ("num_ctx", "context length in tokens"),
                API_KEY_ENV,
                IDENTITY_TOKEN_ENV,
                IDENTITY_FROM,
                ("timeout_s", "longest wait for the next byte, and for a whole event"),
            ],
            Self::Vllm | Self::Openai => &[
                ("model", "served name, if not the first one the server lists"),
                API_KEY_ENV,
                IDENTITY_TOKEN_ENV,
                IDENTITY_FROM,
                ("timeout_s", "longest wait for the next byte, and for a whole event"),
            ],
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One engine to measure, as the user named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSpec {
    /// Label in tables and files; unique within a run.
    pub name: String,
    /// Which adapter drives it.
    pub kind: EngineKind,
    /// Where it listens; `None` for the embedded engine.
    pub url: Option<Url>,
    /// Settings of its kind, checked against [`EngineKind::settings`].
    pub settings: BTreeMap<String, String>,
    /// Which point of a sweep over KV settings it is; `None` for an engine that was named as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_point: Option<KvPoint>,
}

/// One point of a sweep over KV settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvPoint {
    /// Name of the engine that is swept.
    pub of: String,
    /// What was varied, at this point.
    pub settings: BTreeMap<String, String>,
}

/// Why a specification was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// No such kind.
    #[error("unknown engine kind `{0}`: expected embedded, ollama, vllm or openai")]
    UnknownKind(String),
    /// No such setting for this kind.
    #[error("engine kind `{kind}` has no setting `{key}`: expected one of {}", names(*.kind))]
    UnknownSetting {
        /// The kind asked for.
        kind: EngineKind,
        /// The key that it does not take.
        key: String,
    },
    /// A value that the setting does not take.
    #[error("setting `{key}` is `{value}`: expected {expected}")]
    BadValue {
        /// The setting.
        key: String,
        /// What was given.
        value: String,
        /// What is taken.
        expected: String,
    },
    /// The URL is none, or not http(s).
    #[error("`{url}` is no http:// or https:// URL: {reason}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting without a value.
    #[error("`{0}` is no KEY=VALUE setting")]
    BadSetting(String),
    /// The name has characters that file and table cells cannot carry.
    #[error("engine name `{0}` must be 1 to 40 of a-z, A-Z, 0-9, `-`, `_` and `.`")]
    BadName(String),
}

fn names(kind: EngineKind) -> String {
    kind.settings().iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ")
}

impl EngineSpec {
    /// A specification checked for kind, URL and settings.
    ///
    /// # Errors
    /// [`SpecError`] names the part that is wrong.
    pub fn new(
        name: Option<&str>,
        kind: EngineKind,
        url: Option<&str>,
        settings: BTreeMap<String, String>,
    ) -> Result<Self, SpecError> {
        for key in settings.keys() {
            if !kind.settings().iter().any(|(known, _)| known == key) {
                return Err(SpecError::UnknownSetting { kind, key: key.clone() });
            }
        }
        let name = match name {
            Some(name) => name.to_owned(),
            None if settings.get("transport").is_some_and(|t| t == "http") => {
                format!("{kind}-http")
            }
            None => kind.to_string(),
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 40 || !name.chars().all(named) {
            return Err(SpecError::BadName(name));
        }
        let url = match (kind.default_url(), url) {
            (None, Some(url)) => {
                return Err(SpecError::BadUrl {
                    url: url.to_owned(),
                    reason: "the embedded engine has no URL, it runs in this process".to_owned(),
                });
            }
            (None, None) => None,
            (Some(default), given) => Some(parse_url(given.unwrap_or(default))?),
        };
        let spec = Self { name, kind, url, settings, kv_point: None };
        spec.check_values()?;
        Ok(spec)
    }

    /// A setting as text.
    #[must_use]
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// Whether it is the embedded engine behind its own HTTP server.
    #[must_use]
    pub fn is_embedded_over_http(&self) -> bool {
        self.kind == EngineKind::Embedded && self.setting("transport") == Some("http")
    }

    /// A setting that is a positive whole number; checked when the specification was made.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<usize> {
        self.setting(key).and_then(|value| value.parse().ok())
    }

    fn check_values(&self) -> Result<(), SpecError> {
        self.settings.iter().try_for_each(|(key, value)| check_value(key, value))
    }
}

/// Checks one setting's value, whatever engine it is of.
///
/// # Errors
/// [`SpecError::BadValue`] says what is taken.
pub fn check_value(key: &str, value: &str) -> Result<(), SpecError> {
    let expected = match key {
        "max_model_len"
        | "block_size"
        | "kv_blocks"
        | "max_num_seqs"
        | "max_num_batched_tokens"
        | "threads"
        | "num_ctx"
        | "timeout_s" => {
            let positive = value.parse::<u32>().is_ok_and(|number| number > 0);
            (!positive).then(|| "a positive whole number".to_owned())
        }
        "kv_memory" => crate::units::parse_bytes(value).err(),
        "enable_prefix_caching" | "cuda_graphs" => one_of(value, &["true", "false"]),
        "gpu_memory_utilization" => {
            let share = value.parse::<f64>().is_ok_and(|share| share > 0.0 && share <= 1.0);
            (!share).then(|| "a number above 0, at most 1".to_owned())
        }
        "device" => {
            let known = value == "auto" || value.parse::<ComputeDevice>().is_ok();
            (!known).then(|| "auto, cpu, cuda, or cuda:N".to_owned())
        }
        "transport" => one_of(value, &["channel", "http"]),
        "dtype" => one_of(value, &["auto", "f32", "bf16", "f16", "quantized"]),
        "load_format" => one_of(value, &["auto", "dummy"]),
        "identity_from" => {
            parse_url(value).is_err().then(|| "an http:// or https:// URL".to_owned())
        }
        _ => value.is_empty().then(|| "a value that is not empty".to_owned()),
    };
    expected.map_or(Ok(()), |expected| {
        let (key, value) = (key.to_owned(), value.to_owned());
        Err(SpecError::BadValue { key, value, expected })
    })
}

fn one_of(value: &str, known: &[&str]) -> Option<String> {
    (!known.contains(&value)).then(|| known.join(" or "))
}

fn parse_url(text: &str) -> Result<Url, SpecError> {
    let bad = |reason: String| SpecError::BadUrl { url: text.to_owned(), reason };
    let url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad(format!("scheme is `{}`", url.scheme())));
    }
    if url.host_str().is_none() {
        return Err(bad("it names no host".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(
            "it carries credentials, which would end up in the run files; use api_key_env"
                .to_owned(),
        ));
    }
    Ok(url)
}

impl FromStr for EngineSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        // The settings are split off at the last `?`, the URL at the first `=`
        // before it, and the name at a `:` before that, so that `:` in a URL is no name.
        let (head, query) = match text.split_once('?') {
            Some((head, query)) => (head, Some(query)),
            None => (text, None),
        };
        let (label, url) = match head.split_once('=') {
            Some((label, url)) => (label, Some(url)),
            None => (head, None),
        };
        let (name, kind) = match label.split_once(':') {
            Some((name, kind)) => (Some(name), kind),
            None => (None, label),
        };
        let kind = EngineKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(|| SpecError::UnknownKind(kind.to_owned()))?;
        let mut settings = BTreeMap::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| SpecError::BadSetting(pair.to_owned()))?;
            settings.insert(key.to_owned(), value.to_owned());
        }
        Self::new(name, kind, url, settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<EngineSpec, SpecError> {
        text.parse()
    }

    #[test]
    fn name_kind_url_and_settings_are_told_apart() {
        let spec = spec("ours:embedded?max_model_len=8192&kv_blocks=512").unwrap();
        assert_eq!((spec.name.as_str(), spec.kind), ("ours", EngineKind::Embedded));
        assert_eq!(spec.number("kv_blocks"), Some(512));
        let spec = "vllm=http://host:8000?model=a/b".parse::<EngineSpec>().unwrap();
        assert_eq!(spec.url.unwrap().as_str(), "http://host:8000/");
        assert_eq!(spec.settings["model"], "a/b");
    }

    #[test]
    fn default_urls_are_the_engines_own() {
        assert_eq!(spec("ollama").unwrap().url.unwrap().port(), Some(11434));
        assert_eq!(spec("embedded?transport=http").unwrap().name, "embedded-http");
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        assert_eq!(spec("sglang"), Err(SpecError::UnknownKind("sglang".to_owned())));
        assert!(spec("ollama?kv_blocks=3").unwrap_err().to_string().contains("num_ctx"));
        assert!(matches!(spec("vllm=ftp://x"), Err(SpecError::BadUrl { .. })));
        assert!(matches!(spec("vllm=http://u:p@x"), Err(SpecError::BadUrl { .. })));
        assert!(matches!(spec("embedded=http://x"), Err(SpecError::BadUrl { .. })));
        assert!(matches!(spec("embedded?kv_blocks=0"), Err(SpecError::BadValue { .. })));
        assert!(matches!(spec("a b:ollama"), Err(SpecError::BadName(_))));
    }
}
