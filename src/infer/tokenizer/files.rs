//! `tokenizer.json` with its neighbours `tokenizer_config.json` and
//! `chat_template.jinja`.

use std::path::Path;

use serde::Deserialize;

use super::guard::guarded;
use super::template::ChatTemplate;
use super::{InferError, Tokenizer};
use crate::infer::weights::{load_error, read_text};

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Added { content: String },
}

impl TokenText {
    fn into_text(self) -> String {
        match self {
            Self::Plain(text) | Self::Added { content: text } => text,
        }
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, from the same folder, the chat template and
    /// the texts of the special tokens that it uses.
    ///
    /// # Errors
    /// [`InferError::Load`] for files that are damaged or of an unknown kind.
    pub fn from_file(path: &Path) -> Result<Self, InferError> {
        if !path.exists() {
            return Err(InferError::Load {
                path: path.to_owned(),
                reason: "the tokenizer is not there".to_owned(),
                hint: Some("a model folder needs tokenizer.json beside its weights".to_owned()),
            });
        }
        let json = read_text(path)?;
        let mut tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(&json))
            .map_err(|reason| load_error(path, format!("not a tokenizer: {reason}")))?;
        // Files ask for padding and truncation for training's sake.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| load_error(path, e.to_string()))?;
        let template = read_template(path.parent().unwrap_or_else(|| Path::new("")))?;
        Self::real(tokenizer, template).map_err(|reason| load_error(path, reason))
    }
}

/// `chat_template.jinja` goes before the config's own, as in transformers.
fn read_template(folder: &Path) -> Result<Option<ChatTemplate>, InferError> {
    let config_path = folder.join("tokenizer_config.json");
    let config: TokenizerConfig = if config_path.exists() {
        serde_json::from_str(&read_text(&config_path)?)
            .map_err(|e| load_error(&config_path, e.to_string()))?
    } else {
        TokenizerConfig::default()
    };
    let jinja_path = folder.join("chat_template.jinja");
    let (source, path) = if jinja_path.exists() {
        (Some(read_text(&jinja_path)?), jinja_path)
    } else {
        let source = match config.chat_template {
            None => None,
            Some(Templates::One(source)) => Some(source),
            Some(Templates::Named(all)) => {
                all.into_iter().find(|t| t.name == "default").map(|t| t.template)
            }
        };
        (source, config_path)
    };
    let bos = config.bos_token.map_or_else(String::new, TokenText::into_text);
    let eos = config.eos_token.map_or_else(String::new, TokenText::into_text);
    source
        .map(|source| ChatTemplate::compile(source, bos, eos))
        .transpose()
        .map_err(|e| load_error(&path, format!("the chat template does not compile: {e}")))
}
