//! vLLM, llama.cpp's server and other servers that speak OpenAI's completions
//! over server-sent events. Which of them answers decides what may be asked.

mod body;
mod chunk;
mod identity;
mod pattern;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::http::Endpoint;
use super::stream::Streaming;
use super::{
    Engine, EngineError, EngineInfo, EngineKind, EngineSpec, ErrorClass, GenerateRequest,
    ModelHint, Prepared,
};
use crate::clock::Clock;
use identity::{Identity, identify};

pub(super) use chunk::ChunkDialect;
pub(super) use identity::flavor_of;

/// What a server takes beyond the protocol that all of them share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavor {
    /// vLLM.
    Vllm,
    /// llama.cpp's `llama-server`.
    LlamaCpp,
    /// `yardstick serve`.
    Yardstick,
    /// A server that yardstick knows nothing more about.
    Other,
}

/// The adapter for [`EngineKind::Vllm`] and [`EngineKind::Openai`].
pub(super) struct OpenAi {
    spec: EngineSpec,
    hint: ModelHint,
    endpoint: Arc<Endpoint>,
    /// Who answered last; asked once more by every `describe`.
    identity: Mutex<Option<Arc<Identity>>>,
}

impl OpenAi {
    /// An adapter for `spec`; opens nothing.
    ///
    /// # Errors
    /// When the URL or the key cannot be used.
    pub(super) fn new(
        spec: &EngineSpec,
        clock: &Clock,
        hint: &ModelHint,
    ) -> Result<Self, EngineError> {
        let endpoint = Arc::new(Endpoint::new(spec, true, clock)?);
        Ok(Self { spec: spec.clone(), hint: hint.clone(), endpoint, identity: Mutex::new(None) })
    }

    async fn ask_identity(&self) -> Result<Arc<Identity>, EngineError> {
        let identity = Arc::new(identify(&self.endpoint, &self.spec, &self.hint).await?);
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::clone(&identity));
        Ok(identity)
    }

    async fn identity(&self) -> Result<Arc<Identity>, EngineError> {
        let known = self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(identity) => Ok(identity),
            None => self.ask_identity().await,
        }
    }
}

#[async_trait]
impl Engine for OpenAi {
    fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    async fn describe(&self) -> Result<EngineInfo, EngineError> {
        Ok(self.ask_identity().await?.info.clone())
    }

    async fn prepare(&self, request: &GenerateRequest) -> Result<Box<dyn Prepared>, EngineError> {
        let identity = self.identity().await?;
        let (route, body) = body::write(request, &identity.served, identity.flavor);
        let request = self.endpoint.post(route, &body).await?;
        let dialect = ChunkDialect::new(identity.flavor == Flavor::Vllm);
        let endpoint = Arc::clone(&self.endpoint);
        Ok(Box::new(Streaming::prepare(endpoint, request, dialect).await?))
    }

    async fn make_cold(&self) -> Result<Duration, EngineError> {
        Err(self.endpoint.error(
            ErrorClass::Engine,
            format!("cannot be made cold: {}", cold_reason(self.spec.kind)),
        ))
    }
}

fn cold_reason(kind: EngineKind) -> String {
    format!("yardstick cannot make an external {kind} server cold: start it anew")
}
