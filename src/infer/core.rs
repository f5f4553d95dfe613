//! The engine loop without threads: requests in, one step at a time, tokens out.

/// The engine: scheduler, KV blocks, model and sampler behind `add_request`, `step` and `abort`.
pub struct EngineCore {}
