//! Bytes of real servers as they came over loopback, `SmolLM2-135M-Instruct` on
//! CPU, 24 Nov 2026: vLLM 0.32.0, llama-server b11434, Ollama (August 2026 source).

/// vLLM, `/v1/chat/completions`: role chunk, 7 texts, finish chunk, usage, `[DONE]`.
pub const VLLM_CHAT: &str = include_str!("wire/vllm_chat.sse");
/// vLLM, `/v1/completions`: 8 texts, the last with the finish reason, usage, `[DONE]`.
pub const VLLM_COMPLETIONS: &str = include_str!("wire/vllm_completions.sse");
/// llama-server, `/v1/chat/completions`: `content: null` first, usage with `timings`.
pub const LLAMA_CHAT: &str = include_str!("wire/llama_chat.sse");
/// llama-server, `/v1/completions`: usage and `timings` in the finish chunk.
pub const LLAMA_COMPLETIONS: &str = include_str!("wire/llama_completions.sse");
/// Ollama, `/api/chat`.
pub const OLLAMA_CHAT: &str = include_str!("wire/ollama_chat.ndjson");
/// Ollama, `/api/generate`.
pub const OLLAMA_GENERATE: &str = include_str!("wire/ollama_generate.ndjson");
/// Ollama, `/v1/completions`: a zero usage object on every chunk but the last.
pub const OLLAMA_V1: &str = include_str!("wire/ollama_v1_completions.sse");
/// Ollama, `/api/ps` with one model in memory.
pub const OLLAMA_PS: &str = include_str!("wire/ollama_ps.json");
/// Ollama, `/api/tags`.
pub const OLLAMA_TAGS: &str = include_str!("wire/ollama_tags.json");
