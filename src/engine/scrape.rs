//! Questions about an engine beside the measured requests: each on a
//! connection of its own, off the driver's runtime. Knows routes, no meaning.

use super::http::Endpoint;
use super::{EngineError, EngineKind, EngineSpec};
use crate::clock::Clock;

/// Asks one engine.
pub struct Scrape(Endpoint);

impl Scrape {
    /// For the engine at the URL of `spec`; opens nothing.
    ///
    /// # Errors
    /// When the URL cannot be used or the key's variable is not set.
    pub fn new(spec: &EngineSpec, clock: &Clock) -> Result<Self, EngineError> {
        let versioned = spec.kind != EngineKind::Ollama;
        Ok(Self(Endpoint::new(spec, versioned, clock)?))
    }

    /// The text that a GET of `route` answers, at most 8 MiB, or `None` where
    /// the engine has no such route.
    ///
    /// # Errors
    /// When no complete answer comes.
    pub async fn text(&self, route: &str) -> Result<Option<String>, EngineError> {
        self.0.get_text(route).await
    }
}
