//! From a specification to the adapter that drives it, for the kinds that are
//! reached over HTTP.

use super::ollama::Ollama;
use super::openai::OpenAi;
use super::{Engine, EngineError, EngineKind, EngineSpec, ErrorClass};
use crate::clock::Clock;

/// What the run's model is called elsewhere, for engines whose specification
/// names no model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelHint {
    /// In Ollama's library.
    pub ollama_tag: Option<String>,
    /// Names under which a server may list it, the likeliest first.
    pub served: Vec<String>,
}

/// The adapter for `spec`; opens nothing. All its instants are `clock`'s.
///
/// # Errors
/// When the URL cannot be used, when the variable that `api_key_env` names is
/// not set, or when `spec` is the embedded engine, which has no URL.
pub fn connect(
    spec: &EngineSpec,
    clock: &Clock,
    hint: &ModelHint,
) -> Result<Box<dyn Engine>, EngineError> {
    match spec.kind {
        EngineKind::Ollama => Ok(Box::new(Ollama::new(spec, clock, hint)?)),
        EngineKind::Vllm | EngineKind::Openai => Ok(Box::new(OpenAi::new(spec, clock, hint)?)),
        EngineKind::Embedded => Err(EngineError::new(
            ErrorClass::Unreachable,
            format!("engine {} runs in this process and has no URL to connect to", spec.name),
        )),
    }
}
